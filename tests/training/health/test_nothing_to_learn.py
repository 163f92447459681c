"""No token to learn is no loss: a step without any moves nothing on any layout, an interval's loss is that of its
learned tokens, and where a whole interval or set has none the run is refused or ends.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from megascratch.commands import main
from megascratch.config.settings import Config, GuardConfig
from megascratch.data.tokens.loss_mask import mask_prefix
from megascratch.training.health.bad_steps import LossGuard
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer
from tests.support.corpora import write
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.pretrain_runs import flags, losses, saved
from tests.support.rank_pool import on_ranks
from tests.support.sinks import report_to
from tests.support.trainers import build_trainer

LAYOUTS = {
    "one": (1, {}),
    "fp16": (
        1,
        {"fp64": False, "fp16": True, "initial_loss_scale": 1024.0, "loss_scale_window": 2},
    ),
    "dp2 zero1": (2, {"data_parallel_size": 2, "use_distributed_optimizer": True}),
    "tp2 sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
}

# ---- a step ----------------------------------------------------------------------------------------------------


def never_spiky(loss: float, grad_norm: float) -> str:
    assert not math.isnan(loss), "the judge was asked about a step without a loss"
    return ""


def trained(config: Config, steps: list[str]) -> tuple:
    """On a rank: after some steps, each 'a', 'b' or, without a learned token, 'masked'; or 'half': rank 0 of two
    data-parallel ranks has none."""
    trainer = build_trainer(config)
    told = []
    for name in steps:
        batch = synthetic_batch(config, range(2 if name == "a" else 4, 4 if name == "a" else 6))
        masked = name == "masked" or (name == "half" and trainer.mesh.data.is_first)
        if masked:
            batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
        result = trainer.train_step([batch], 1e-2, 3, judge=never_spiky)
        told.append((result.tokens, result.skipped, math.isnan(result.global_loss)))
    state = TrainState()
    trainer.save_scalars(state)
    return told, state.to_dict(), [held.tensor.clone() for held in trainer.held()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_without_a_learned_token_leaves_the_state_as_if_it_had_never_been(layout):
    ranks, settings = LAYOUTS[layout]
    config = config_of(**settings, micro_batch_size=2, global_batch_size=4, weight_decay=0.1)
    with_gap = on_ranks(ranks, trained, config, ["a", "masked", "b", "masked"])
    without = on_ranks(ranks, trained, config, ["a", "b"])
    for (told, scalars, tensors), (_, expected, untouched) in zip(with_gap, without, strict=True):
        assert [step[1:] for step in told] == [(False, False), (True, True)] * 2
        assert [step[0] > 0 for step in told] == [True, False] * 2
        assert scalars == expected
        assert all(torch.equal(a, b) for a, b in zip(tensors, untouched, strict=True))


def test_only_the_tokens_of_all_ranks_together_count():
    config = config_of(data_parallel_size=2, micro_batch_size=2, global_batch_size=4)
    first, second = (told for told, *_ in on_ranks(2, trained, config, ["half", "masked"]))
    one_rank = int(synthetic_batch(config, range(4, 6)).loss_mask.sum())
    assert first == second == [(one_rank, False, False), (0, True, True)]


def test_nothing_is_a_multiple_of_a_median_of_zero():
    """Older versions remembered a loss of 0 for a step without a token."""
    guard = GuardConfig(check_for_spiky_loss=True, spiky_loss_window=3)
    assert LossGuard(guard, TrainState(recent_losses=[0.0, 0.0, 5.8])).judge(5.9, 1.0) == ""


# ---- a run -----------------------------------------------------------------------------------------------------

LENGTH = 16
SETTINGS = {"global_batch_size": 1, "lr_decay_iters": 12, "train_iters": 12, "hidden_dropout": 0.0}


def corpus(folder, name: str, learned_every: int) -> str:
    """40 documents of LENGTH tokens; every so many has learned ones, more and more of them; 0: none has."""
    random = np.random.default_rng(3)
    prefix = write(folder / name, [random.integers(0, 60, LENGTH) for _ in range(40)])
    masks = np.zeros((40, LENGTH), np.uint8)
    for document in range(0, 40 if learned_every else 0, max(learned_every, 1)):
        masks[document, 3 : 5 + document // 4] = 1
    write(mask_prefix(prefix), list(masks))
    return prefix


def test_an_interval_has_the_loss_of_its_learned_tokens_and_nothing_else(
    tmp_path, monkeypatch, capsys
):
    """Beside the same run told step by step, with the tokens of each step counted in the batches it read."""
    tokens = []
    step = Trainer.train_step

    def count(self, batches, *args, **options):
        tokens.append(int(sum(batch.loss_mask.sum() for batch in batches)))
        return step(self, batches, *args, **options)

    prefix = corpus(tmp_path, "some", 3)
    words = {
        **SETTINGS,
        "train_data_path": prefix,
        "check_for_spiky_loss": True,
        "spiky_loss_window": 2,
    }
    monkeypatch.setattr(Trainer, "train_step", count)
    assert main(flags(tmp_path / "each", **words)) == 0
    monkeypatch.undo()
    each = losses(tmp_path / "each")
    assert len(each) == len(tokens) == 12 and 0 < tokens.count(0) < 12
    assert [row["loss"] is None for row in each] == [count == 0 for count in tokens]
    assert [row["grad_norm"] is None for row in each] == [count == 0 for count in tokens]
    assert [row.get("steps_without_tokens", 0) for row in each] == [
        int(count == 0) for count in tokens
    ]
    said = capsys.readouterr().out
    assert (
        f"warning: {tokens.count(0)} of 12 steps had no token to learn and updated nothing" in said
    )
    assert said.count("warning") == 1 and "loss 0.0000" not in said and "loss - " in said
    assert main(flags(tmp_path / "six", **words, log_interval=6)) == 0
    first, *sixes = losses(tmp_path / "six")
    assert first["loss"] == each[0]["loss"]
    for row, part in zip(sixes, (slice(1, 6), slice(6, 12)), strict=True):
        sums = [
            row["loss"] * count
            for row, count in zip(each[part], tokens[part], strict=True)
            if count
        ]
        assert row["loss"] == pytest.approx(sum(sums) / sum(tokens[part]), rel=1e-6)
        assert row["steps_without_tokens"] == tokens[part].count(0)
    assert saved(tmp_path / "six", 12) == saved(tmp_path / "each", 12)
    summary = json.loads((tmp_path / "six" / "summary.json").read_text())
    assert (
        summary["steps_without_tokens"] == tokens.count(0) and summary["loss"] == sixes[-1]["loss"]
    )


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_of_which_nothing_would_be_learned_is_refused_before_the_start(
    tmp_path, capsys, split
):
    paths = {
        f"{name}_data_path": corpus(tmp_path, name, 0 if name == split else 1)
        for name in ("train", "valid", "test")
    }
    words = flags(tmp_path / "out", **SETTINGS, **paths, **{"eval_interval": 4, "eval_iters": 2})
    assert main(words) == 2
    said = capsys.readouterr().err
    samples = 10 if split == "train" else 2
    assert f"no token of the {split} set is learned ({samples} samples of 16 tokens)" in said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_a_run_that_comes_to_nothing_to_learn_ends_with_a_checkpoint(tmp_path, capsys):
    """From sample 6 on it reads another corpus."""
    full, empty = corpus(tmp_path, "full", 1), corpus(tmp_path, "empty", 0)
    words = [
        *flags(tmp_path / "out", **SETTINGS, log_interval=3, train_data_path=full),
        "--data-stages",
        f"6 {empty}",
    ]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert (
        "no token of steps 7 to 9 is learned (3 of 9 steps had no token to learn and updated nothing)"
        in said
    )
    assert "Traceback" not in said
    assert [(row["step"], row["loss"] is None) for row in losses(tmp_path / "out")] == [
        (1, False),
        (3, False),
        (6, False),
        (9, True),
    ]
    assert saved(tmp_path / "out", 9)


def test_what_is_told_of_nothing_is_json_and_no_point_of_a_curve(tmp_path, monkeypatch, capsys):
    report, points = report_to(["tensorboard"], tmp_path), []
    monkeypatch.setattr(
        SummaryWriter, "add_scalar", lambda writer, name, value, step: points.append(name)
    )
    row = {
        "step": 2,
        "loss": None,
        "grad_norm": None,
        "learning_rate": 0.1,
        "tokens_per_second": 1.0,
        "mfu": 0.1,
        "memory_bytes": 1,
        "steps_without_tokens": 2,
    }
    report.step(row)
    report.evaluation({"step": 2, "split": "valid", "loss": None, "tokens": 0})
    report.close({"loss": None, "seconds": 1.0})
    said = capsys.readouterr().out
    assert "loss - | grad norm - |" in said and "valid loss - | perplexity - | 0 tokens" in said
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line and json.loads(line)["loss"] is None
    assert not [name for name in points if name.endswith(("loss", "grad_norm"))]
