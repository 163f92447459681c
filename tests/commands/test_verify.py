"""`megascratch verify` from the outside: a table and an exit code, and one line for what it cannot prove."""

import json

import pytest

from megascratch.commands import main

SMALL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --vocab-size 61 --seq-length 16"
).split()


def test_a_layout_that_passes_is_a_row_and_code_0(capsys, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(
        "num_layers: 24\nhidden_size: 1024\nnum_attention_heads: 16\nvocab_size: 50257\n"
        "global_batch_size: 8\ndata_path: [nowhere]\nsequence_parallel: true\n"
    )
    told = tmp_path / "verdicts.json"
    flags = ["--tensor-model-parallel-size", "2", "--steps", "2", "--json", str(told)]
    assert main(["verify", "--config", str(config), *flags]) == 0
    out = capsys.readouterr().out
    assert "tp2.pp1.dp1, SP, dropout, 2 x 1" in out and "pass" in out and "FAIL" not in out
    assert "1 of 1 layouts compute the same model as one process" in out
    verdicts = json.loads(told.read_text())
    (row,) = verdicts["layouts"]
    assert (
        verdicts["passed"] and row["passed"] and row["message"] is None and row["world_size"] == 2
    )
    assert set(row["differences"]) == {"loss", "grad norm", "gradients", "weights"}
    assert all(found["value"] <= 1e-9 for found in row["differences"].values())
    assert row["config"]["model"]["hidden_size"] < 100


def test_full_size_keeps_the_sizes(capsys, tmp_path):
    told = tmp_path / "verdicts.json"
    assert main(["verify", *SMALL, "--full-size", "--steps", "1", "--json", str(told)]) == 0
    (row,) = json.loads(told.read_text())["layouts"]
    model = row["config"]["model"]
    assert (model["hidden_size"], model["vocab_size"], model["num_layers"]) == (32, 61, 2)


def test_a_layout_that_differs_is_code_1_with_its_first_difference(capsys, monkeypatch):
    monkeypatch.setattr("megascratch.verification.verify.TOLERANCE", {"fp64": -1.0})
    assert main(["verify", *SMALL, "--steps", "1"]) == 1
    out = capsys.readouterr().out
    assert "FAIL tp1.pp1.dp1, dropout, 1 x 1: first at the start: weight" in out
    assert "0 of 1 layouts" in out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--random", "3"], "--random (3) needs --max-world"),
        (["--random", "0", "--max-world", "2"], "--random (0) must be above 0"),
        (["--max-world", "-1"], "--max-world (-1) must be above 0"),
        (["--steps", "0"], "--steps (0) must be above 0"),
        (["--timeout", "0"], "--timeout (0.0) must be above 0"),
        (["--tensor-model-parallel-size", "8"], "num-attention-heads (12) must be divisible by"),
        (["--max-wrld", "2"], "unknown flag --max-wrld"),
        (["--config", "nowhere.yaml"], "config file nowhere.yaml"),
        (["--vocab-size", "3"], "vocab-size (3) must be above 3"),
        (["--tokenizer-model", "nowhere.model"], "nowhere.model"),
        (
            ["--device", "cuda", "--data-parallel-size", "1000"],
            "--device cuda needs a device per rank",
        ),
        (
            ["--json", "nowhere/verdicts.json"],
            "--json nowhere/verdicts.json cannot be written: there is no folder",
        ),
        (["--print-config"], "--print-config is a flag of megascratch pretrain"),
        (
            ["--max-world", "4", "--tensor-model-parallel-size", "5"],
            "no layout of up to 4 ranks is legal",
        ),
    ],
)
def test_what_cannot_be_proved_is_one_line_and_code_2(capsys, flags, complaint):
    assert main(["verify", *flags]) == 2
    err = capsys.readouterr().err
    assert complaint in err and "Traceback" not in err


@pytest.mark.parametrize(
    "flags", [["--steps", "1", "--steps", "2"], ["--precision", "fp8"], ["--steps", "many"]]
)
def test_flags_of_its_own_are_checked(capsys, flags):
    assert main(["verify", *flags]) == 2
    assert f"error: {flags[0]}" in capsys.readouterr().err


def test_help_tells_every_flag_of_its_own(capsys):
    assert main(["verify", "--help"]) == 0
    out = capsys.readouterr().out
    own = ("steps", "precision", "max-world", "random", "full-size", "device", "timeout", "json")
    assert all(f"--{flag}" in out for flag in own)
