"""A step whose numbers are wrong stops the run, is left out, or sends it back past its data; every rank does the same,
and a run that goes on later agrees.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megascratch.checkpoint import read_manifest
from megascratch.commands import main
from megascratch.config.errors import UserError
from megascratch.config.layout import Layout
from megascratch.config.settings import DataConfig, GuardConfig
from megascratch.data.inspect.audit import uses_of
from megascratch.data.samples.build import open_splits
from megascratch.data.tokens.token_files import TokenReader
from megascratch.training.health.bad_steps import LossGuard
from megascratch.training.health.skipped_samples import FILE, records, skipped_samples, write_down
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer
from tests.support.corpora import write
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.pretrain_runs import curve, flags, rows, saved
from tests.support.rank_pool import mesh_for, mesh_of, on_ranks

POISON = 60  # a step that reads this token goes wrong
SETTINGS = {"split": "1,0,0", "lr_decay_iters": 8, "lr_warmup_iters": 1, "train_iters": 6}

# ---- judging ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "loss", "norm", "wrong"),
    [
        ({}, 2.0, 1.0, ""),
        ({}, 2.0, math.nan, "the gradient norm is nan"),
        ({}, math.inf, 1.0, "the loss is inf"),
        ({"check_for_nan_in_loss_and_grad": False}, math.nan, math.inf, ""),
        ({}, 1e9, 1.0, ""),
        ({"check_for_spiky_loss": True}, 5.9, 1.0, ""),
        (
            {"check_for_spiky_loss": True},
            6.1,
            1.0,
            "the loss 6.1 is 2.03 times the median 3 of the last 3 (--spiky-",
        ),
        ({"check_for_spiky_loss": True, "spiky_loss_factor": 3.0}, 6.1, 1.0, ""),
        (
            {"check_for_spiky_loss": True, "spiky_loss_window": 4},
            99.0,
            1.0,
            "",
        ),  # too few to judge by
    ],
)
def test_a_step_is_judged_by_its_numbers_and_the_good_ones_before(settings, loss, norm, wrong):
    watch = LossGuard(
        GuardConfig(**{"spiky_loss_window": 3} | settings),
        TrainState(recent_losses=[3.0, 1.0, 4.0]),
    )
    assert watch.judge(loss, norm).startswith(wrong) and bool(watch.judge(loss, norm)) == bool(
        wrong
    )


@given(st.lists(st.floats(0.1, 10), max_size=20), st.integers(1, 5))
def test_the_state_remembers_the_last_good_losses_and_no_more(losses, window):
    state = TrainState(bad_steps=3)
    watch = LossGuard(GuardConfig(check_for_spiky_loss=True, spiky_loss_window=window), state)
    for loss in losses:
        watch.good(loss)
    assert state.recent_losses == losses[-window:] and state.bad_steps == (0 if losses else 3)
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


# ---- all ranks -------------------------------------------------------------------------------------------------


def poisoned_on_one(config, sick: int, when: str) -> tuple:
    """On a rank: a good step, one that goes wrong on rank `sick` alone, a good one."""
    mesh = mesh_for(Layout.of(config.parallel))
    trainer, told, finish = Trainer(config, mesh), [], None
    batches = [
        synthetic_batch(config, range(m, m + 1))
        for m in range(config.training.global_batch_size // mesh.dp.size)
    ]
    finish = trainer.data_parallel.finish

    def poison() -> None:
        if when == "after":
            finish()
        if mesh.rank == sick:
            trainer.data_parallel.owned[0].grads.view(-1)[0] = torch.nan
        if when == "before":
            finish()

    judge = LossGuard(GuardConfig(), TrainState()).judge
    for step in range(3):
        before = [held.tensor.clone() for held in trainer.held()]
        trainer.data_parallel.finish = poison if step == 1 else finish
        result = trainer.train_step(batches, 1e-2, step, judge=judge)
        same = all(
            torch.equal(held.tensor, old) for held, old in zip(trainer.held(), before, strict=True)
        )
        told.append((result.wrong, result.skipped, same))
    return tuple(told)


LAYOUTS = [
    {"data_parallel_size": 2},
    {"data_parallel_size": 2, "use_distributed_optimizer": True},
    {"tensor_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2},
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["dp2", "zero1", "tp2", "pp2"])
def test_a_gradient_that_is_sick_on_one_rank_is_left_out_by_all(layout, when):
    """`after`: when the sums over the ranks are done, so that a plain data-parallel rank is alone with it."""
    config = config_of(**layout, overlap_grad_reduce=when == "after")
    said = on_ranks(2, poisoned_on_one, config, 1, when)
    wrong = ("the gradient norm is nan", True, True)
    assert said == [(("", False, False), wrong, ("", False, False))] * 2


def test_fp16_skips_an_overflow_but_not_one_that_no_scale_can_mend():
    config = config_of(fp64=False, fp16=True, initial_loss_scale=2.0, hysteresis=1)
    trainer, batches = Trainer(config, mesh_of()), [synthetic_batch(config, range(8))]
    finish = trainer.data_parallel.finish

    def poison() -> None:
        finish()
        trainer.data_parallel.owned[0].grads[0] = torch.inf

    trainer.data_parallel.finish = poison
    judge = LossGuard(GuardConfig(), TrainState()).judge
    results = [trainer.train_step(batches, 1e-2, judge=judge) for _ in range(2)]
    assert [(result.skipped, result.wrong) for result in results] == [
        (True, ""),
        (True, "the gradient norm is inf"),
    ]


# ---- whole runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch):
    """Steps that read the token POISON get a gradient, or with `spike` a loss, that is wrong."""
    step, agreed = Trainer.train_step, Trainer._agreed

    def use(spike: bool) -> None:
        def train_step(self, batches, *args, **options):
            self.poisoned = any((batch.ids == POISON).any() for batch in batches)
            return step(self, batches, *args, **options)

        def changed(self, parts, own):
            numbers = agreed(self, parts, own)
            if spike and self.poisoned:
                loss, *others = numbers.terms
                return numbers._replace(terms=[loss * 100, *others])
            return numbers._replace(overflow=numbers.overflow or self.poisoned)

        monkeypatch.setattr(Trainer, "train_step", train_step)
        monkeypatch.setattr(Trainer, "_agreed", changed)

    return use


def corpus(folder) -> str:
    """Documents, one of which has the token, in a place that step 3 reads and no other of a run of 7."""
    random = np.random.default_rng(3)
    documents = [random.integers(0, 59, 16) for _ in range(60)]
    data = DataConfig(data_path=[write(folder / "corpus", documents)], split="1,0,0", seq_length=16)
    train = open_splits(data, seed=1234, vocab_size=61, train_samples=1).train
    use = next(uses_of(train, 3, 9))
    documents[use.document][use.first_token] = POISON
    return write(folder / "corpus", documents)


def bad_rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


def test_a_run_stops_and_names_the_documents_it_has_read(tmp_path, poison, capsys):
    poison(spike=False)
    assert main(flags(tmp_path / "out", **SETTINGS, data_path=corpus(tmp_path))) == 1
    said = capsys.readouterr()
    (row,) = bad_rows(tmp_path / "out")
    assert "the gradient norm is nan at step 3: nothing was updated" in said.err
    assert (
        "bad step 3: the gradient norm is nan | samples 8 to 11 | documents" in said.out
        and "corpus:" in said.out
    )
    assert (row["first_sample"], row["last_sample"], row["does"]) == (8, 11, "stop")
    ids = TokenReader(tmp_path / "corpus")
    read = [ids.get(use["document"], use["first_token"], use["tokens"]) for use in row["documents"]]
    assert sum(map(len, read)) == 4 * 17 and POISON in np.concatenate(read)


@pytest.mark.parametrize("spike", [False, True], ids=["nan", "spike"])
def test_a_run_that_skips_and_is_resumed_is_the_undisturbed_one_that_skips(tmp_path, poison, spike):
    poison(spike)
    settings = SETTINGS | {
        "data_path": corpus(tmp_path),
        "on_bad_step": "skip",
        "check_for_spiky_loss": True,
        "spiky_loss_window": 1,
        "log_interval": 1,
    }
    assert main(flags(tmp_path / "whole", **settings)) == 0
    assert [row["step"] for row in bad_rows(tmp_path / "whole")] == [3]
    assert main(flags(tmp_path / "parts", **settings | {"train_iters": 3})) == 0
    load = {"load": tmp_path / "parts" / "checkpoints"}
    assert main(flags(tmp_path / "parts", **settings, **load)) == 0
    assert saved(tmp_path / "parts", 6) == saved(tmp_path / "whole", 6)
    assert [row["step"] for row in rows(tmp_path / "whole") if "grad_norm" in row] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_a_run_that_goes_back_reads_past_the_samples_and_a_later_resume_agrees(tmp_path, poison):
    poison(spike=False)
    settings = SETTINGS | {
        "data_path": corpus(tmp_path),
        "on_bad_step": "rollback",
        "save_interval": 1,
    }
    assert main(flags(tmp_path / "whole", **settings)) == 0
    checkpoints = tmp_path / "whole" / "checkpoints"
    (jump,) = records(checkpoints)
    assert (jump["step"], jump["back_to"], jump["first"], jump["stop"]) == (3, 2, 8, 12)
    assert [row["step"] for row in rows(tmp_path / "whole") if "grad_norm" in row] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    state = read_manifest(checkpoints / "step_00000006").state["train_state"]
    assert state["skipped_samples"] == [[8, 12]] and state["consumed_samples"] == 24
    for step in (1, 2, 4):  # in front of the jump, where it begins, and behind it: the same end
        other = tmp_path / f"from{step}"
        shutil.copytree(checkpoints / f"step_{step:08}", other / "checkpoints" / f"step_{step:08}")
        shutil.copy(checkpoints / FILE, other / "checkpoints" / FILE)
        assert main(flags(other, **settings, load=other / "checkpoints")) == 0
        assert saved(other, 6) == saved(tmp_path / "whole", 6), step
        assert curve(other) == curve(tmp_path / "whole")[step:]


@pytest.mark.parametrize("does", ["skip", "rollback"])
def test_so_many_bad_steps_in_a_row_end_the_run(tmp_path, poison, capsys, does):
    poison(spike=False)
    prefix = write(tmp_path / "corpus", [np.full(16, POISON if i else 3) for i in range(40)])
    settings = SETTINGS | {
        "data_path": prefix,
        "on_bad_step": does,
        "max_bad_steps": 2,
        "save_interval": 1,
    }
    start = {}
    if does == "rollback":
        good = write(tmp_path / "good", [np.arange(16)] * 40)
        assert (
            main(flags(tmp_path / "out", **settings | {"data_path": good, "train_iters": 1})) == 0
        )
        start = {"load": tmp_path / "out" / "checkpoints", "force_resume": "data_path"}
    capsys.readouterr()
    assert main(flags(tmp_path / "out", **settings, **start)) == 1
    told = "3 bad steps in a row" if does == "skip" else "3 rollbacks to"
    assert f"{told}" in (said := capsys.readouterr().err) and "(--max-bad-steps 2)" in said
    assert len(bad_rows(tmp_path / "out")) == 3


def test_without_a_checkpoint_there_is_no_way_back(tmp_path, poison, capsys):
    poison(spike=False)
    prefix = write(tmp_path / "corpus", [np.full(16, POISON)] * 40)
    settings = SETTINGS | {"data_path": prefix, "on_bad_step": "rollback", "save_interval": 2}
    assert main(flags(tmp_path / "out", **settings)) == 1
    assert "there is no checkpoint in" in capsys.readouterr().err


# ---- the journal -----------------------------------------------------------------------------------------------


def test_a_line_that_a_crash_cut_short_is_no_jump_and_the_next_one_is_whole(tmp_path):
    assert skipped_samples(tmp_path) == []
    first = {"first": 8, "stop": 12, "back_to": 2}
    write_down(tmp_path, first)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"first": 1')
    assert skipped_samples(tmp_path) == [[8, 12]]
    write_down(tmp_path, first | {"first": 12, "stop": 20})
    assert skipped_samples(tmp_path) == [[8, 20]] and len(records(tmp_path)) == 2


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"first": 1}',
        '{"first": 3, "stop": 1, "back_to": 0}',
        '{"first": true, "stop": 2, "back_to": 0}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_jump_is_named(tmp_path, line):
    (tmp_path / FILE).write_text(line + "\n")
    with pytest.raises(
        UserError, match=r"skipped_samples\.jsonl:1 is not a record of skipped samples"
    ):
        skipped_samples(tmp_path)
