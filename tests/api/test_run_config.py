"""Laws of `ms.Config`: the settings of the command line, in any order of sources, and back to YAML."""

from dataclasses import asdict

import pytest

import megascratch as ms
from megascratch.api.run_config import config_of_checkpoint, flags_of
from megascratch.config.load import load_config
from tests.support.small_models import SMALL
from tests.support.small_models import config_of as resolved

SETTINGS = [
    {},
    {"lr": 1e-5, "num_layers": 3},
    {"swiglu": True, "overlap_grad_reduce": False},
    {"data_path": [0.3, "a", 0.7, "b"], "tokenizer_model": "t.json"},
    {"pipeline_model_parallel_layout": (1, 2), "position_embedding_type": "rope"},
    {"output_dir": "a b'c: #d", "fim_rate": 1e-300},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_keywords_yaml_and_flags_say_the_same(settings, tmp_path):
    config = ms.Config(**settings)
    for name, value in settings.items():
        expected = [str(each) for each in value] if name == "data_path" else value
        expected = list(expected) if isinstance(expected, tuple) else expected
        assert getattr(config, name) == config.to_dict()[name] == expected
    text = config.to_yaml(tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == text
    assert ms.Config(tmp_path / "config.yaml") == config
    assert (
        load_config(flags_of(config))[0]
        == load_config(["--config", str(tmp_path / "config.yaml")])[0]
    )


def test_later_files_override_earlier_ones_and_keywords_both(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1.0\nnum_layers: 2\nseq_length: 8")
    (tmp_path / "b.yaml").write_text("optim: {lr: 2.0}\nnum-layers: 3")
    config = ms.Config(tmp_path / "a.yaml", str(tmp_path / "b.yaml"), num_layers=4)
    assert (config.lr, config.num_layers, config.seq_length) == (2.0, 4, 8)


def test_replace_makes_another_config_and_none_sets_back():
    config = ms.Config(lr=1.0, ffn_hidden_size=8)
    other = config.replace(lr=2.0, ffn_hidden_size=None)
    assert (config.lr, config.ffn_hidden_size) == (1.0, 8)
    assert repr(other) == "Config(lr=2.0)" and other == ms.Config(lr=2.0) != config
    with pytest.raises(AttributeError, match=r"use config.replace\(lr=...\)"):
        config.lr = 3.0


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ms.Config(num_layer=3), "unknown flag --num-layer - did you mean --num-layers?"),
        (lambda: ms.Config(num_layers="two"), "--num-layers"),
        (lambda: ms.Config(num_layers=2.5), "--num-layers"),
        (lambda: ms.Config(lr=True), "--lr"),
        (lambda: ms.Config(swiglu="yes"), "--swiglu"),
        (lambda: ms.Config(data_path=[]), "--data-path needs a value"),
        (lambda: ms.Config(normalization="MyNorm"), "LayerNorm, RMSNorm"),
        (
            lambda: ms.Config(nproc_per_node=2),
            "nproc_per_node is not a setting: give it to ms.pretrain",
        ),
        (lambda: ms.Config("no/such.yaml"), "no/such.yaml"),
        (lambda: ms.Config().replace(bad=1), "--bad"),
        (lambda: ms.Config(num_attention_heads=7).check(), "num-attention-heads"),
        (lambda: ms.Config(tensor_model_parallel_size=2).check(3), "world size (3)"),
    ],
)
def test_what_the_command_line_refuses_is_refused_in_the_same_words(make, complaint):
    with pytest.raises(ms.SettingError) as raised:
        make()
    assert complaint in str(raised.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ms.SettingError) as raised:
        ms.Config(num_layers="x", lr="y")
    assert "--num-layers" in str(raised.value) and "--lr" in str(raised.value)


def test_an_attribute_that_is_no_setting_has_the_hint_of_the_command_line():
    with pytest.raises(AttributeError, match="no setting num_layer - did you mean num_layers"):
        ms.Config().num_layer  # noqa: B018
    assert {"lr", "replace", "num_layers"} <= set(dir(ms.Config()))


def test_a_config_from_a_checkpoint_has_what_was_given_and_fits_another_layout():
    given = {**SMALL, "tensor_model_parallel_size": 2, "mock_data": True, "lr_decay_iters": 7}
    saved = asdict(resolved(4, **given))
    config = config_of_checkpoint(saved)
    assert config == ms.Config(**given)
    config.replace(tensor_model_parallel_size=1).check(8)
