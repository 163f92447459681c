"""A checkpoint of any layout becomes the same model on one process."""

from dataclasses import asdict

import pytest
import torch

from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.saved import config_from_dict
from megascratch.config.settings import Config
from megascratch.inference.load import load_for_inference
from megascratch.tokenizer import TokenizerSource
from tests.support.rank_pool import on_ranks
from tests.support.small_models import config_of, model_of, save_model

CPU = torch.device("cpu")


def saved(folder, layout=(1, 1, 1), **settings):
    world = layout[0] * layout[1] * layout[2]
    args = (folder, *layout, tuple(settings.items()))
    return save_model(*args) if world == 1 else on_ranks(world, save_model, *args)[0]


def same_weights(config, model, dtype=torch.float64):
    torch.manual_seed(0)
    expected = model_of(config)
    for (name, got), (_, want) in zip(
        model.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert got.dtype == dtype and torch.equal(got, want.to(dtype)), name


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 1), (1, 2, 2), (4, 1, 1)])
@pytest.mark.parametrize("untied", [False, True])
def test_any_layout_gives_the_same_model(tmp_path, layout, untied):
    saved(tmp_path, layout, seed=5, untie_embeddings_and_output_weights=untied, num_query_groups=2)
    config, model, tokenizer = load_for_inference(tmp_path, CPU)
    assert tokenizer.kind == "ByteTokenizer" and not model.training
    same_weights(config, model)


def test_half_precision_is_widened_on_a_cpu(tmp_path):
    saved(tmp_path, fp64=False, bf16=True)
    _, model, _ = load_for_inference(tmp_path / "step_00000003", CPU)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32 and torch.equal(
            parameter, parameter.bfloat16().float()
        )


def test_the_settings_come_back_as_they_were():
    config = config_of(2, position_embedding_type="rope", rampup_batch_size=[1, 1, 10])
    assert flat(config_from_dict(asdict(config))) == flat(config)
    assert config_from_dict({}) == Config()


@pytest.mark.parametrize(
    ("state", "how", "complaint"),
    [
        (
            {"tokenizer_fingerprint": "0" * 64},
            {},
            "the model was trained with tokenizer 0000000000000000",
        ),
        (
            {"config": {"model": {"depth": 3}}},
            {},
            "settings that this version does not know: depth",
        ),
        ({}, {"tokenizer_model": "no/such.model"}, "no/such.model cannot be read"),
        ({}, {"tokenizer_type": "NullTokenizer"}, "the model was trained with tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, state, how, complaint):
    save_model(tmp_path, state=tuple(state.items()))
    with pytest.raises(UserError) as raised:
        load_for_inference(tmp_path, CPU, TokenizerSource(**how))
    assert complaint in str(raised.value)


def test_a_vocabulary_that_the_model_does_not_have_is_refused(tmp_path):
    save_model(tmp_path, settings=(("vocab_size", 100),), state=(("tokenizer_fingerprint", None),))
    with pytest.raises(UserError, match="257 ids, but the model has 100"):
        load_for_inference(tmp_path, CPU)


def test_a_place_without_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        load_for_inference(tmp_path / "nowhere", CPU)
