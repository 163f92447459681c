"""A validation reads the same samples whatever the state of training, or in Megatron's order those behind the last
one's; and it is optional: the checkpoint comes before it, and a request to stop ends it between two batches.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from megascratch.checkpoint import validation_loss
from megascratch.checkpoint.retention import scan
from megascratch.commands import main
from megascratch.config import exit_codes
from megascratch.config.batch_size import samples_asked_for, steps_and_samples
from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.samples.megatron_order import validation_start
from megascratch.training.stop import StopRequest
from megascratch.training.trainer import Trainer
from tests.support.pretrain_runs import ENVIRONMENT, ROOT, command, losses, mock

# ---- which samples ---------------------------------------------------------------------------------------------


def valid_rows(folder: Path) -> list[dict]:
    return [row for row in losses(folder) if row.get("split") == "valid"]


def test_a_validation_during_a_batch_size_ramp_reads_the_same_samples_each_time(tmp_path):
    """Nothing is learned at a rate of 0, so nothing may change."""
    settings = {
        "rampup_batch_size": "1 1 12",
        "lr": "0",
        "min_lr": "0",
        "eval_interval": 1,
        "eval_iters": 2,
    }
    assert main(mock(tmp_path, **settings)) == 0
    rows = valid_rows(tmp_path)
    assert [row["tokens"] for row in rows] == [2 * 4 * 16] * 6
    assert len({row["loss"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("settings", "asked", "read"),
    [  # what Megatron-LM's get_train_valid_test_num_samples gives, and what the run consumes
        ({"train_samples": 777, "global_batch_size": 16}, 777, 768),
        ({"train_samples": 1400, "global_batch_size": 64}, 1400, 1344),
        ({"train_iters": 60, "global_batch_size": 16, "rampup_batch_size": [4, 4, 200]}, 960, 664),
        (
            {"train_iters": 100, "global_batch_size": 16, "rampup_batch_size": [4, 4, 200]},
            1600,
            1304,
        ),
        (
            {"train_samples": 780, "global_batch_size": 16, "rampup_batch_size": [4, 4, 200]},
            780,
            776,
        ),
        ({"train_iters": 12, "global_batch_size": 8}, 96, 96),
    ],
)
def test_a_run_asks_for_as_many_samples_as_megatron_and_reads_what_it_consumes(
    settings, asked, read
):
    config = resolve(with_fields(Config(), {"vocab_size": 61, **settings}), 1)
    assert (samples_asked_for(config.training), steps_and_samples(config.training)[1]) == (
        asked,
        read,
    )


@pytest.mark.parametrize(
    ("step", "start"),
    [(6, 0), (12, 8), (18, 16), (20, 24)],  # every 6 steps 8 samples each, and after the last step
)
def test_in_megatrons_order_a_validation_goes_on_where_the_last_one_ended(step, start):
    assert validation_start(step, 6, 8, size=33) == start


def test_a_set_without_a_further_whole_validation_begins_anew():
    assert [validation_start(step, 1, 8, size=20) for step in (1, 2, 3, 4)] == [0, 8, 0, 8]
    assert [validation_start(step, 1, 8, size=5) for step in (1, 2)] == [0, 0]


def read_by_validations(folder: Path, monkeypatch, **settings) -> list[int]:
    """The first sample of every batch that validations of a run read."""
    found, plain = [], Trainer.evaluate

    def noted(self, batches):
        found.append(int(batches[0].samples[0]))
        return plain(self, batches)

    words = {"data_order": "megatron", "eval_interval": 2, "eval_iters": 2, **settings}
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "evaluate", noted)
        assert main(mock(folder, **words)) in (0, exit_codes.EXIT_INTERVAL)
    return found


def test_a_resumed_run_in_megatrons_order_repeats_and_skips_no_validation(tmp_path, monkeypatch):
    whole = read_by_validations(tmp_path / "whole", monkeypatch, train_iters=7)
    assert whole == [0, 4, 8, 12, 16, 20, 24, 28]  # after 2, 4, 6 and 7 steps, 2 batches of 4 each
    for stop in (3, 4):  # between two validations, and right behind one
        folder = tmp_path / f"parts{stop}"
        before = read_by_validations(folder, monkeypatch, train_iters=7, exit_interval=stop)
        again = read_by_validations(folder, monkeypatch, train_iters=7, load=folder / "checkpoints")
        assert before + again == whole
        assert [(row["step"], row["loss"]) for row in valid_rows(folder)] == [
            (row["step"], row["loss"]) for row in valid_rows(tmp_path / "whole")
        ]


@pytest.mark.parametrize("order", ["keyed", "megatron"])
def test_the_loss_of_a_validation_does_not_depend_on_its_batches(tmp_path, order):
    """The same samples, dealt to other batches and micro-batches than those of training, have the same mean."""
    words = {"data_order": order, "eval_interval": 3, "train_iters": 6, "micro_batch_size": 4}
    sizes = [
        {"eval_iters": 6},
        {"eval_iters": 2, "eval_global_batch_size": 12},
        {"eval_iters": 3, "eval_global_batch_size": 8, "eval_micro_batch_size": 2},
    ]
    found = []
    for number, settings in enumerate(sizes):
        assert main(mock(tmp_path / str(number), **words, **settings)) == 0
        found.append([(row["tokens"], row["loss"]) for row in valid_rows(tmp_path / str(number))])
    assert [len(rows) for rows in found] == [2, 2, 2] and found[0][0][0] == 6 * 4 * 16
    for other in found[1:]:
        assert other == [(tokens, pytest.approx(loss, rel=1e-6)) for tokens, loss in found[0]]


def test_a_run_that_skips_training_measures_what_it_loads_and_writes_no_checkpoint(tmp_path):
    words = {"eval_interval": 2, "eval_iters": 2, "save_interval": 2, "train_iters": 4}
    assert main(mock(tmp_path / "run", **words)) == 0
    again = mock(tmp_path / "again", load=tmp_path / "run", **{**words, "eval_interval": 0})
    again += ["--save", str(tmp_path / "run/checkpoints"), "--skip-train"]
    for step in (2, 4):  # also one behind which the folder has others
        assert main([*again, "--ckpt-step", str(step)]) == 0
    assert [(row["step"], row["loss"]) for row in valid_rows(tmp_path / "again")] == [
        (row["step"], row["loss"]) for row in valid_rows(tmp_path / "run")
    ]
    assert not any("grad_norm" in row for row in losses(tmp_path / "again"))
    assert [step.number for step in scan(tmp_path / "run/checkpoints")] == [4, 2]
    summary = json.loads((tmp_path / "again/summary.json").read_text())
    assert (summary["steps"], summary["exit_code"], summary["stopped_early"]) == (4, 0, False)


# ---- the checkpoint first ---------------------------------------------------------------------------------------


@pytest.fixture
def evaluations(monkeypatch):
    """Notes what each batch of an evaluation finds saved, and may do something before it."""
    seen, plain, before = [], Trainer.evaluate, {}

    def noted(self, batches):
        folder = Path(self.config.training.save)
        seen.append(sorted(int(path.name[5:]) for path in folder.glob("step_*")))
        before.get(len(seen), lambda: None)()
        return plain(self, batches)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    return seen, before


def test_the_checkpoint_comes_before_a_validation_at_its_step_and_before_the_last_losses(
    tmp_path, evaluations
):
    seen, _ = evaluations
    words = {
        "save_interval": 2,
        "eval_interval": 2,
        "eval_iters": 1,
        "async_save": None,
        "split": None,
    }
    assert main([*mock(tmp_path, **words, train_iters=5), "--no-async-save"]) == 0
    assert seen == [[2], [2, 4], [2, 4, 5]]


def test_the_best_checkpoints_are_found_although_their_losses_come_later(tmp_path, monkeypatch):
    """Losses as the test says: of steps 1 to 6, the second and the fourth are the best."""
    told = iter([5.0, 1.0, 4.0, 2.0, 6.0, 3.0])
    plain = Trainer.evaluate

    def prescribed(self, batches):
        result = plain(self, batches)
        result[0] = torch.tensor([next(told), 1])
        return result

    monkeypatch.setattr(Trainer, "evaluate", prescribed)
    words = {"save_interval": 1, "eval_interval": 1, "eval_iters": 1, "keep_best_n_checkpoints": 2}
    assert main(mock(tmp_path, **words)) == 0
    kept = [(step.number, step.valid_loss) for step in scan(tmp_path / "checkpoints")]
    assert kept == [(6, 3.0), (4, 2.0), (2, 1.0)]
    assert main(["checkpoint", "verify", str(tmp_path / "checkpoints")]) == 0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"valid_loss": "x"}', b'{"valid_loss": NaN}', b"\xff" * 9000]
)
def test_a_file_of_a_loss_that_is_none_ranks_nothing(tmp_path, content):
    (tmp_path / validation_loss.FILE).write_bytes(content)
    assert str(validation_loss.read_loss(tmp_path)) == "nan"
    validation_loss.write_loss(tmp_path, 2.5)
    assert validation_loss.read_loss(tmp_path) == 2.5
    assert [path.name for path in tmp_path.iterdir()] == [validation_loss.FILE]


# ---- requests to stop -------------------------------------------------------------------------------------------


@pytest.fixture
def ask(monkeypatch):
    """Sends this process a signal, and waits until it is heard."""
    made = []
    plain = StopRequest.__init__

    def noted(self, training):
        made.append(self)
        plain(self, training)

    monkeypatch.setattr(StopRequest, "__init__", noted)

    def send():
        os.kill(os.getpid(), signal.SIGTERM)
        while not made[-1].asked:
            time.sleep(0.001)

    return send


def test_a_request_ends_a_validation_between_two_batches_and_leaves_a_checkpoint(
    tmp_path, evaluations, ask, capsys
):
    seen, before = evaluations
    before[3] = ask
    assert main(mock(tmp_path, eval_interval=2, eval_iters=1000)) == exit_codes.PREEMPTED
    said = capsys.readouterr().out
    assert len(seen) == 3 and valid_rows(tmp_path) == []
    assert "stop requested (by a signal): no valid loss for step 2" in said
    (step,) = scan(tmp_path / "checkpoints")
    assert (step.number, str(step.valid_loss)) == (2, "nan")
    before.clear()
    again = {"eval_interval": 2, "eval_iters": 1, "train_iters": 4}
    assert main(mock(tmp_path, **again, auto_resume=True)) == 0
    assert main(mock(tmp_path / "whole", **again)) == 0
    assert [row["step"] for row in valid_rows(tmp_path)] == [2, 4], (
        "what was left out is made up for"
    )
    assert valid_rows(tmp_path) == valid_rows(tmp_path / "whole")


def test_a_request_during_the_last_loss_ends_the_run_with_its_code_and_another_start_makes_up_for_it(
    tmp_path, evaluations, ask, capsys
):
    seen, before = evaluations
    before[2] = ask
    settings = {"eval_interval": 10, "eval_iters": 5}
    assert main(mock(tmp_path, **settings)) == exit_codes.PREEMPTED
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_early"], summary["exit_code"]) == (
        6,
        True,
        exit_codes.PREEMPTED,
    )
    assert seen == [[6], [6]]
    before.clear()
    capsys.readouterr()
    assert main(mock(tmp_path, **settings, auto_resume=True)) == 0
    said = capsys.readouterr().out
    done = f"all 6 steps of {tmp_path} are done: nothing is left to train"
    assert f"{done}; to continue, raise --train-iters (now 6)" in said
    assert [row["step"] for row in valid_rows(tmp_path)] == [6]
    assert scan(tmp_path / "checkpoints")[0].valid_loss == valid_rows(tmp_path)[0]["loss"]
    assert json.loads((tmp_path / "summary.json").read_text())["exit_code"] == 0


def test_a_request_behind_the_end_changes_no_exit_code(tmp_path):
    environment = {**ENVIRONMENT, "MEGASCRATCH_FAULT": "run.end:0:1:slow=2"}
    words = command(mock(tmp_path, train_iters=1, lr_decay_iters=1, lr_warmup_iters=0))
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert "fault point run.end" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert (
        process.wait(300) == 0 == json.loads((tmp_path / "summary.json").read_text())["exit_code"]
    )


def test_a_process_that_ends_with_its_run_hears_no_request_behind_it(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        monkeypatch.setenv(exit_codes.OWN_PROCESS, str(os.getpid()))
        StopRequest(Config().training).release()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        monkeypatch.setenv(exit_codes.OWN_PROCESS, str(os.getppid()))  # inherited
        signal.signal(signal.SIGTERM, before)
        StopRequest(Config().training).release()
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
