"""Laws of `ms.pretrain`, `ms.verify` and `ms.dry_run_rank`: the same runs as the commands, in a process that stays as
it was and can do it again."""

import os
import signal
import sys
import threading
from types import ModuleType

import pytest
import torch.distributed as dist

import megascratch as ms
from megascratch.commands import main
from megascratch.training import loop, step_log
from tests.support.pretrain_runs import SMALL, curve, mock


def config(folder, **settings):
    values = {name.replace("-", "_"): value for name, value in SMALL.items()}
    return ms.Config(
        **{**values, "mock_data": True, "output_dir": folder, "train_iters": 2, **settings}
    )


def surroundings():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return dict(os.environ), os.getcwd(), threading.enumerate(), handlers, dist.is_initialized()


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch):
    """The peak for MFU takes 0.4 s of each start, and no law here reads it."""
    monkeypatch.setattr(step_log, "matmul_peak", lambda *_: 1e9)


def test_a_run_is_that_of_the_command_twice_in_one_process_that_stays_as_it_was(tmp_path):
    before = surroundings()
    runs = [ms.pretrain(config(tmp_path / name)) for name in ("a", "b")]
    assert surroundings() == before
    assert main(mock(tmp_path / "c", train_iters=2)) == 0
    assert curve(tmp_path / "a") == curve(tmp_path / "b") == curve(tmp_path / "c")
    result = runs[1]
    assert (result.exit_code, result.stopped, result.steps) == (0, None, 2)
    losses = [row["loss"] for row in result.rows() if "loss" in row]
    assert result.loss == losses[-1] and result.valid_loss is None
    assert result.output_dir == str(tmp_path / "b")


def test_ranks_train_the_same_without_running_the_main_program_again(tmp_path, monkeypatch):
    """Also after the caller has moved to another folder, to which the output folder is relative."""
    ran = tmp_path / "ran"
    script = tmp_path / "script.py"
    script.write_text(f"open({str(ran)!r}, 'w')")
    program = ModuleType("__main__")
    program.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # the launcher sets it for its ranks
    before = surroundings()
    result = ms.pretrain(config("two", tensor_model_parallel_size=2), nproc_per_node=2)
    assert surroundings() == before and sys.modules["__main__"] is program
    ms.pretrain(config("one"))
    assert not ran.exists() and (tmp_path / "two" / "summary.json").exists()
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    assert result.summary["layout"]["tp"] == 2


def interrupted(monkeypatch, signals):
    """Sends signals to this process in the second step."""
    true = loop.next_rates

    def at_step(optim, training, state):
        if state.step == 1:
            for number in signals:
                os.kill(os.getpid(), number)
        return true(optim, training, state)

    monkeypatch.setattr(loop, "next_rates", at_step)


def test_one_interrupt_saves_and_returns(tmp_path, monkeypatch):
    interrupted(monkeypatch, [signal.SIGINT])
    before = surroundings()
    result = ms.pretrain(config(tmp_path, train_iters=50))
    assert surroundings() == before
    assert (result.exit_code, result.stopped) == (130, "by Ctrl-C")
    assert (tmp_path / "checkpoints" / f"step_{result.steps:08}").is_dir()


def test_two_interrupts_raise_and_leave_the_process_as_it_was(tmp_path, monkeypatch):
    interrupted(monkeypatch, [signal.SIGINT, signal.SIGTERM])
    before = surroundings()
    with pytest.raises(KeyboardInterrupt):
        ms.pretrain(config(tmp_path, train_iters=5000))
    assert surroundings() == before


@pytest.mark.parametrize(
    ("settings", "ranks", "complaint"),
    [
        ({"num_attention_heads": 3}, 1, "num-attention-heads"),
        ({}, 0, "nproc_per_node (0)"),
        ({"data_path": ["no/such"], "mock_data": False}, 2, "no/such"),
    ],
)
def test_what_the_command_refuses_raises_and_writes_nothing(tmp_path, settings, ranks, complaint):
    with pytest.raises(ms.UserError) as raised:
        ms.pretrain(config(tmp_path / "new", **settings), ranks)
    assert complaint in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_a_run_that_diverges_has_failed(tmp_path):
    before = surroundings()
    with pytest.raises(ms.RunFailed, match="exit code 1") as raised:
        ms.pretrain(config(tmp_path, lr=1e30, clip_grad=0.0, lr_warmup_iters=0, train_iters=20))
    assert raised.value.exit_code == 1 and surroundings() == before


def test_another_thread_is_told_to_use_the_main_one(tmp_path):
    said = []

    def call():
        try:
            ms.pretrain(config(tmp_path))
        except ms.UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in said[0]


def test_verify_has_a_verdict_for_each_layout(tmp_path):
    before = surroundings()
    found = ms.verify(
        config(tmp_path), {}, {"sequence_parallel": True, "tensor_model_parallel_size": 2}, steps=2
    )
    assert surroundings() == before
    assert [verdict.passed for verdict in found] == [True, True]
    assert [verdict.case.config.parallel.tensor_model_parallel_size for verdict in found] == [1, 2]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"random": 2}, "needs max_world"),
        ({"steps": 0}, "steps (0)"),
        ({"layouts": [{}], "max_world": 2}, "give one of them"),
        ({"layouts": [{"tensor_model_parallel_size": 3}]}, "tensor-model-parallel-size"),
        ({"layouts": [{"tp": 3}]}, "--tp"),
    ],
)
def test_a_verification_that_cannot_be_is_refused(tmp_path, options, complaint):
    layouts = options.pop("layouts", [])
    with pytest.raises(ms.UserError) as raised:
        ms.verify(config(tmp_path), *layouts, **options)
    assert complaint in str(raised.value)


def test_a_dry_run_counts_the_parameters_of_a_rank(tmp_path):
    whole = ms.dry_run_rank(config(tmp_path), 1, device_kind="cpu").parameters
    half = ms.dry_run_rank(config(tmp_path, tensor_model_parallel_size=2), 2, 1, "cpu").parameters
    assert whole[0] > half[0] > whole[0] / 2
    with pytest.raises(ms.UserError, match=r"rank \(2\) is outside of 2 ranks"):
        ms.dry_run_rank(config(tmp_path), 2, 2)
