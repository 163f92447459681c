"""The verb `pretrain` from flags to files: rows, resume to the bit, a clean stop, and one line for each bad input."""

import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from megascratch.commands import main
from megascratch.config.exit_codes import PREEMPTED
from megascratch.data.tokens.manifest import write_manifest
from tests.support.corpora import write
from tests.support.pretrain_runs import (
    ENVIRONMENT,
    ROOT,
    command,
    curve,
    flags,
    losses,
    mock,
    refused,
    saved,
)

TRAIN_ROW = [
    "step",
    "consumed_samples",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "step_seconds",
    "mfu",
    "memory_bytes",
    "data_share",
    "forward_and_backward_share",
    "update_share",
    "communication_share",
    "goodput",
    "wall",
    "time",
]


# ---- what a run leaves behind ----------------------------------------------------------------------------------


def test_a_run_leaves_rows_summary_curve_events_and_a_checkpoint(tmp_path):
    assert main(mock(tmp_path, eval_interval=3, eval_iters=2, log_interval=2)) == 0
    train = [row for row in losses(tmp_path) if "split" not in row]
    valid = [row for row in losses(tmp_path) if "split" in row]
    assert [row["step"] for row in train] == [1, 2, 4, 6] and all(
        list(row) == TRAIN_ROW for row in train
    )
    assert [row["consumed_samples"] for row in train] == [4, 8, 16, 24]
    # 3 steps of warm-up, then 5 of a half cosine
    rates = [
        0,
        0.01 / 3,
        0.01,
        0.005 * (1 + math.cos(0.4 * math.pi)),
    ]
    assert [row["learning_rate"] for row in train] == pytest.approx(rates)
    assert [(row["step"], row["split"]) for row in valid] == [(3, "valid"), (6, "valid")]
    assert all(
        list(row) == ["step", "split", "loss", "tokens"] and row["tokens"] == 2 * 4 * 16
        for row in valid
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["layout"] == {"pp": 1, "dp": 1, "cp": 1, "tp": 1} and summary["steps"] == 6
    assert summary["tokens"] == 24 * 16 and summary["valid_loss"] == valid[-1]["loss"]
    assert summary["loss"] == train[-1]["loss"] < train[0]["loss"] and not summary["stopped_early"]
    assert (tmp_path / "loss.png").stat().st_size > 1000 and list(
        (tmp_path / "tensorboard").iterdir()
    )
    assert saved(tmp_path, 6)


def test_an_interval_tells_the_mean_loss_of_its_steps(tmp_path):
    assert main(mock(tmp_path / "each")) == 0
    assert main(mock(tmp_path / "two", log_interval=2)) == 0
    each, two = ([row["loss"] for row in losses(tmp_path / name)] for name in ("each", "two"))
    assert two == pytest.approx(
        [each[0], each[1], (each[2] + each[3]) / 2, (each[4] + each[5]) / 2], rel=1e-12
    )


FP16 = {"fp16": True, "initial_loss_scale": 65536, "loss_scale_window": 2}


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, FP16], ids=["fp32", "bf16", "fp16"])
def test_a_resumed_run_is_the_undisturbed_one_to_the_last_bit(tmp_path, precision):
    """Losses, norms, learning rates, and in the end weights, masters and moments."""
    assert main(mock(tmp_path / "whole", **precision)) == 0
    assert main(mock(tmp_path / "parts", train_iters=3, **precision)) == 0
    assert main(mock(tmp_path / "parts", load=tmp_path / "parts" / "checkpoints", **precision)) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert saved(tmp_path / "parts", 6) == saved(tmp_path / "whole", 6)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(tmp_path, capsys):
    """And saves the damaged step again, to the bit."""
    assert main(mock(tmp_path / "whole", save_interval=2)) == 0
    assert main(mock(tmp_path / "parts", train_iters=4, save_interval=2)) == 0
    folder = tmp_path / "parts" / "checkpoints"
    file = next((folder / "step_00000004").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 8
    file.write_bytes(content)
    capsys.readouterr()
    refused(
        capsys,
        mock(tmp_path / "named", load=folder / "step_00000004"),
        file.name,
        "do not match their checksum",
    )
    assert main(mock(tmp_path / "parts", load=folder, save_interval=2)) == 0
    said = capsys.readouterr().err
    assert (
        "skipped step_00000004: " in said
        and file.name in said
        and "resuming from step_00000002" in said
    )
    assert "is damaged and was renamed to damaged.step_00000004" in said
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert all(
        saved(tmp_path / "parts", step) == saved(tmp_path / "whole", step) for step in (2, 4, 6)
    )


def test_a_run_resumed_in_the_middle_of_a_stage_is_the_undisturbed_one(tmp_path):
    """The blend changes at sample 6 and at sample 14; the run stops after sample 12."""
    a, b = (
        write(tmp_path / name, [np.arange(400) % size]) for name, size in (("a", 40), ("b", 60))
    )
    words = ["--train-data-path", a, "--data-stages", f"6 0.5 {a} 0.5 {b}", f"14 {b}"]
    assert main([*flags(tmp_path / "whole"), *words]) == 0
    assert main([*flags(tmp_path / "parts", train_iters=3), *words]) == 0
    assert main([*flags(tmp_path / "parts", load=tmp_path / "parts" / "checkpoints"), *words]) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert main([*flags(tmp_path / "other"), *words[:-1]]) == 0
    whole, other = curve(tmp_path / "whole"), curve(tmp_path / "other")
    assert other[:3] == whole[:3] and other[4:] != whole[4:]  # without the last stage


def test_validation_checkpoints_and_reading_ahead_change_nothing(tmp_path):
    assert main(mock(tmp_path / "plain", data_prefetch_steps=0)) == 0
    assert main(mock(tmp_path / "busy", eval_interval=1, eval_iters=3, save_interval=2)) == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    busy = [row for row in curve(tmp_path / "busy") if row[2] is not None]
    assert busy == curve(tmp_path / "plain") and saved(tmp_path / "busy", 6) == saved(
        tmp_path / "plain", 6
    )


def test_after_sigterm_a_run_saves_ends_well_and_can_go_on_as_if_nothing_had_been(tmp_path):
    endless = mock(tmp_path / "parts", train_iters=10**6)
    process = subprocess.Popen(
        command(endless), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGTERM)
            break
    said = process.stdout.read()
    assert (
        process.wait(300) == PREEMPTED
        and "stop requested (by a signal): saving a checkpoint after step" in said
    )
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert summary["stopped_early"] and summary["exit_code"] == PREEMPTED
    end = summary["steps"] + 4
    assert (
        main(mock(tmp_path / "parts", train_iters=end, load=tmp_path / "parts" / "checkpoints"))
        == 0
    )
    assert main(mock(tmp_path / "whole", train_iters=end)) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert saved(tmp_path / "parts", end) == saved(tmp_path / "whole", end)


def test_after_a_signal_while_it_loads_a_run_saves_one_step_and_has_its_code(tmp_path):
    environment = {**ENVIRONMENT, "MEGASCRATCH_FAULT": "run.built:0:1:slow=2"}
    words = command(mock(tmp_path, train_iters=10**6))
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert "fault point run.built" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == PREEMPTED
    assert len(list((tmp_path / "checkpoints").glob("step_*"))) == 1


def test_a_second_signal_ends_a_run_that_hangs_at_once_and_the_last_checkpoint_is_kept(tmp_path):
    words = mock(tmp_path, save_interval=2, train_iters=10**6)
    environment = {**ENVIRONMENT, "MEGASCRATCH_FAULT": "step.end:0:3:hang"}
    process = subprocess.Popen(
        command(words), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("fault point step.end"):
            break
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert (
        process.wait(300) == 128 + signal.SIGINT
        and "second request to stop: exiting at once" in process.stderr.read()
    )
    assert saved(tmp_path, 2) and not saved(tmp_path, 3)


def test_two_ranks_under_torchrun_train_the_model_of_one(tmp_path):
    prefix = write(tmp_path / "x", [np.arange(40 + i) % 61 for i in range(30)])
    settings = {
        "data_path": prefix,
        "split": "8,2,0",
        "eval_interval": 3,
        "eval_iters": 1,
        "hidden_dropout": 0.1,
    }
    assert main(flags(tmp_path / "one", **settings)) == 0
    words = flags(
        tmp_path / "two", **settings, tensor_model_parallel_size=2, sequence_parallel=True
    )
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "megascratch",
    ]
    done = subprocess.run(
        [*start, *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([row["loss"] for row in losses(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5) and len(one) == 8
    assert done.stdout.count("step      6/6") == 1, "the first rank alone speaks"
    onward = flags(
        tmp_path / "onward", **settings, load=tmp_path / "two" / "checkpoints", train_iters=8
    )
    assert main(onward) == 0 and [row["step"] for row in losses(tmp_path / "onward")] == [7, 8, 8]


def test_a_traced_step_is_told_drawn_and_can_be_played_again(tmp_path, capsys):
    assert main(mock(tmp_path, trace_schedule=True)) == 0
    said = capsys.readouterr().out
    assert "schedule of step 5: 1f1b, all actions in the compiled order" in said
    again = said.split("again: megascratch ")[1].splitlines()[0].split()
    assert main([*again, "--json"]) == 0
    played = json.loads(capsys.readouterr().out)["nonblocking"]["total"]
    found = json.loads((tmp_path / "schedule_step_5.json").read_text())
    assert [span["action"] for span in found["spans"]] == [
        f"{op}{m}" for m in range(4) for op in "FB"
    ]
    assert (
        played == pytest.approx(found["played_with_means"]["seconds"]) and found["disorder"] is None
    )
    assert found["played"]["seconds"] <= found["happened"]["seconds"] <= found["step_seconds"]
    assert "as it happened" in (tmp_path / "schedule_step_5.svg").read_text()


def test_a_step_to_trace_must_be_one_of_the_run(tmp_path, capsys):
    refused(capsys, mock(tmp_path, trace_schedule=True, trace_schedule_step=7), "(7)", "use 1 to 6")
    assert main(mock(tmp_path, train_iters=2, lr_decay_iters=2, lr_warmup_iters=1)) == 0
    capsys.readouterr()
    onward = {"load": tmp_path / "checkpoints", "trace_schedule": True, "trace_schedule_step": 2}
    refused(capsys, mock(tmp_path / "onward", **onward), "(2)", "use 3 to 6")


# ---- bad input -------------------------------------------------------------------------------------------------


BAD_LAYOUTS = {
    "heads not divisible": (
        {"tensor-model-parallel-size": 3},
        3,
        ("num-attention-heads (4)", "parallel-size (3)", "change several"),
    ),
    "layers not cut": (
        {"pipeline-model-parallel-size": 4},
        4,
        ("num-layers (2) must be divisible", "use num-layers 4"),
    ),
    "batch not divisible": (
        {"global-batch-size": 5},
        2,
        ("global-batch-size (5) must be divisible", "use global-batch-size 4 or 6"),
    ),
    "world does not fit": (
        {"tensor-model-parallel-size": 2},
        3,
        ("world size (3)", "start 2 or 4 processes"),
    ),
    "unknown flag": ({"hiden-size": 32}, 1, ("--hiden-size", "did you mean --hidden-size?")),
    "output folder is a file": (
        {"output-dir": __file__},
        1,
        ("--output-dir", "test_pretrain.py", "is not a folder"),
    ),
    "no such checkpoint": ({"load": "nowhere"}, 1, ("no checkpoint", "nowhere")),
}


@pytest.mark.parametrize("bad", BAD_LAYOUTS)
def test_a_bad_setting_is_refused_before_any_process_group(tmp_path, capsys, monkeypatch, bad):
    settings, world, told = BAD_LAYOUTS[bad]
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", "0")
    refused(capsys, mock(tmp_path, **settings), *told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "model:\n  num_layers: 2\n  num_layers: 4\n",
            ("bad.yaml:3", "duplicate key", "num_layers"),
        ),
        ("model:\n  num_layer: 2\n", ("num_layer", "num_layers")),
        ("model: [\n", ("bad.yaml",)),
    ],
)
def test_a_bad_config_file_is_refused_with_its_place(tmp_path, capsys, text, told):
    (tmp_path / "bad.yaml").write_text(text)
    refused(
        capsys,
        ["pretrain", "--config", str(tmp_path / "bad.yaml"), "--mock-data", "--train-iters", "1"],
        *told,
    )


def cut_short(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


BAD_DATA = {
    "missing .idx": (lambda p: p.with_suffix(".idx").unlink(), ("corpus.idx",)),
    "truncated .idx": (lambda p: cut_short(p.with_suffix(".idx"), 60), ("corpus.idx",)),
    "short .bin": (lambda p: cut_short(p.with_suffix(".bin"), 100), ("corpus.bin",)),
    "id beyond the vocabulary": (
        lambda p: write(p, [np.arange(100)]),
        ("has id 61", "the vocabulary has 61"),
    ),
}


@pytest.mark.parametrize("bad", BAD_DATA)
def test_damaged_data_is_refused_by_name(tmp_path, capsys, bad):
    damage, told = BAD_DATA[bad]
    prefix = tmp_path / "corpus"
    write(prefix, [np.arange(60)] * 9)
    damage(prefix)
    refused(capsys, flags(tmp_path, data_path=prefix, split="1,0,0"), *told)


def test_data_of_another_tokenizer_is_refused(tmp_path, capsys):
    prefix = tmp_path / "corpus"
    write(prefix, [np.arange(60)] * 9)
    made_with = {"kind": "CharTokenizer", "fingerprint": "0" * 64, "model": "other.json"}
    write_manifest(
        prefix, {"bin_bytes": prefix.with_suffix(".bin").stat().st_size, "tokenizer": made_with}
    )
    words = flags(
        tmp_path, data_path=prefix, split="1,0,0", vocab_size=None, tokenizer_type="ByteTokenizer"
    )
    refused(capsys, words, "was made with another tokenizer: CharTokenizer", "other.json")


def test_a_port_in_use_is_refused(tmp_path, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
        }
        for name, value in where.items():
            monkeypatch.setenv(name, value)
        refused(
            capsys,
            mock(tmp_path),
            f"cannot open the rendezvous store at 127.0.0.1:{where['MASTER_PORT']}",
            "another port",
        )


def test_a_loss_that_is_not_finite_ends_the_run_with_code_1(tmp_path, capsys):
    assert main(mock(tmp_path, lr="1e30", clip_grad=0, lr_warmup_iters=0)) == 1
    assert "the gradient norm is" in capsys.readouterr().err
