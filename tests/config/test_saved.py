"""The settings of a checkpoint are read like those of a file: typed, in their ranges, and all problems at once."""

import dataclasses

import pytest

from megascratch.config.errors import UserError
from megascratch.config.fields import with_fields
from megascratch.config.saved import config_from_dict, require_valid_state
from megascratch.config.settings import Config


def test_what_was_written_is_read_back():
    config = with_fields(Config(), {"lr": 0.5, "data_path": ["0.3", "a"], "num_query_groups": 3})
    saved = dataclasses.asdict(config)
    require_valid_state({"config": saved})
    assert config_from_dict(saved) == config


def test_all_values_that_no_run_could_have_written_are_named_at_once():
    saved = {
        "model": {"num_layers": "two", "hidden_size": 0},
        "optim": {"lr": None, "clip_grad": -1.0},
    }
    with pytest.raises(UserError) as error:
        require_valid_state({"config": saved})
    assert str(error.value).split("; ") == [
        "setting num_layers must be a whole number, not 'two'",
        "setting lr must be a number, not None",
        "hidden-size (0) must be at least 1",
        "clip-grad (-1.0) must be at least 0",
    ]


def test_a_setting_of_another_version_is_refused_when_its_config_is_read():
    saved = {"model": {"num_layers": 2, "tea": 3}}
    require_valid_state({"config": saved})  # other programs may write other fields
    with pytest.raises(UserError, match="settings that this version does not know: tea"):
        config_from_dict(saved)


def test_settings_that_an_older_version_did_not_have_get_their_defaults():
    assert config_from_dict({"model": {"num_layers": 2}}) == with_fields(
        Config(), {"num_layers": 2}
    )
