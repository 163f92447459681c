"""Padding rows of the vocabulary that are trained, as in Megatron-LM: their number belongs to the model, so no layout
changes the model, and nothing ever returns the id of a padding row."""

import pytest
import torch
import torch.nn.functional as F

from megascratch.config.fields import flat
from megascratch.config.notices import notices
from megascratch.inference.logits import whole_logits
from megascratch.model.build import build_chunks
from megascratch.model.flops import parameters
from megascratch.parallel.mesh import Mesh
from megascratch.verification.layouts import own_layout
from megascratch.verification.run_layout import one_process
from tests.support.layout_runs import (
    assert_same,
    config_of,
    serial,
    synthetic_batch,
    trace,
)
from tests.support.pretrain_runs import losses, main, mock

ON = {"padded_vocab_in_softmax": True}
TP2 = {"tensor_model_parallel_size": 2}
LAYOUTS = {
    "tp2 sp, rows of its own": {**TP2, "sequence_parallel": True},
    "tp4, rows that tp does not divide": {"tensor_model_parallel_size": 4, "padded_vocab_size": 70},
    "tp2 pp2 zero1, tied over stages": {
        **TP2,
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
}


def built(**settings):
    config = config_of(num_layers=1, **settings)
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 7)
    return config, chunk


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_never_changes_a_model_with_trained_padding(layout):
    config = config_of(num_layers=2, **ON, **LAYOUTS[layout])
    assert_same(serial(config, 3), trace(config, 3), 1e-9)


@pytest.mark.parametrize(("on", "columns"), [(False, 61), (True, 64)])
def test_padding_is_in_the_softmax_only_where_asked_for(on, columns):
    """The loss is cross-entropy over that many columns, written out here; padding rows have gradients then."""
    config, chunk = built(padded_vocab_in_softmax=on)
    batch = synthetic_batch(config, range(2))
    loss = chunk(None, batch)
    loss.backward()
    weight = chunk.embedding.word.weight
    hidden = {}
    chunk.final_norm.register_forward_hook(lambda part, x, out: hidden.update(out=out))
    with torch.no_grad():
        chunk(None, batch)
        logits = hidden["out"].transpose(0, 1) @ weight[:columns].T  # [b, s, columns]
        losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
        expected = (losses * batch.loss_mask.flatten()).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert bool(weight.grad[61:].abs().min() > 0) is on


def test_rows_of_the_vocabulary_start_as_without_padding_and_padding_starts_as_a_row():
    (_, plain), (_, padded) = built(), built(**ON)
    before, now = plain.embedding.word.weight, padded.embedding.word.weight
    assert torch.equal(before[:61], now[:61])
    assert bool((before[61:] == 0).all()) and 0.05 < float(now[61:].detach().std()) < 0.2


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 64),
        ({**TP2, "make_vocab_size_divisible_by": 20}, 80),
        ({"padded_vocab_size": 77}, 77),
        ({"vocab_size": 64}, 64),
    ],
)
def test_the_rows_are_those_of_megatron(settings, rows):
    """The next multiple of make_vocab_size_divisible_by x tp, or the number that is given."""
    config = config_of(**ON, **settings)
    assert config.model.padded_vocab_size == config.model.trained_vocab_rows == rows
    assert one_process(config).model.padded_vocab_size == rows
    plain = config_of(**{name: value for name, value in settings.items() if "padded" not in name})
    more = (rows - plain.model.vocab_size) * plain.model.hidden_size
    assert parameters(config.model) == parameters(plain.model) + more


def test_it_is_announced_with_the_number_on_which_the_model_depends():
    (line,) = notices(config_of(**ON, padded_vocab_size=70))
    assert "9 rows of padding" in line and "depends on padded-vocab-size (70)" in line
    assert notices(config_of(padded_vocab_size=70)) == [
        "padded-vocab-size has no effect without padded-vocab-in-softmax"
    ]


def test_logits_have_a_column_for_each_id_and_none_for_padding():
    config, chunk = built(**ON)
    chunk.requires_grad_(False).eval()
    logits = whole_logits(chunk, config.data, torch.tensor([[1, 2, 3]]), None)
    assert logits.shape == (1, 3, 61)


@pytest.mark.parametrize("full_size", [False, True])
def test_a_verified_layout_has_trained_padding_as_well(full_size):
    case = own_layout({**flat(config_of(**ON, **TP2, padded_vocab_size=71))}, full_size)
    model = case.config.model
    assert model.trained_vocab_rows > model.vocab_size
    assert one_process(case.config).model.trained_vocab_rows == model.trained_vocab_rows


def test_a_resume_keeps_the_checkpoints_number_of_rows_and_refuses_another(tmp_path, capsys):
    """Even where a new run would have another number: 61 ids are 64 rows by 8, and 80 by 40."""
    alone = {"padded_vocab_in_softmax": True, "hidden_dropout": 0, "save_interval": 2}
    assert main(mock(tmp_path / "whole", **alone)) == 0
    assert main(mock(tmp_path / "cut", **alone, exit_interval=2)) == 80
    more = {**alone, "load": tmp_path / "cut" / "checkpoints" / "step_00000002"}
    capsys.readouterr()
    assert main(mock(tmp_path / "other", **more, padded_vocab_size=80)) == 2
    refusal = capsys.readouterr().err
    assert "padded-vocab-size was 64 and is now 80" in refusal and "cannot be forced" in refusal
    assert main(mock(tmp_path / "small", **more, padded_vocab_size=60)) == 2
    assert "padded-vocab-size (60) must be at least vocab-size (61)" in capsys.readouterr().err
    assert main(mock(tmp_path / "on", **more, make_vocab_size_divisible_by=40)) == 0
    rest = [row for row in losses(tmp_path / "whole") if row["step"] > 2]
    assert [row["loss"] for row in losses(tmp_path / "on")] == [row["loss"] for row in rest]
