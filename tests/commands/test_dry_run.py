"""`megascratch dry-run`: any rank of any layout, with the settings of a run and nothing that only a run needs."""

import json

import pytest

from megascratch.commands import main

MODEL = [
    *("--num-layers", "4", "--hidden-size", "64", "--num-attention-heads", "4"),
    *("--seq-length", "32", "--vocab-size", "128"),
]
LAYOUT = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
RUN = ["dry-run", "--world", "8", *MODEL, *LAYOUT]


def test_a_rank_is_reported_without_data_or_other_ranks(capsys):
    assert main([*RUN, "--rank", "5"]) == 0
    said = capsys.readouterr()
    assert "8 ranks: pp 2 x dp 2 x tp 2" in said.out
    assert "rank 5 (pp 1 dp 0 cp 0 tp 1), layers 2 to 3" in said.out
    for word in ("weights", "gradients", "optimizer", "activations", "all_reduce", "send", "FLOPs"):
        assert word in said.out, word
    assert said.err == ""


def test_each_stage_is_reported_as_json(capsys, tmp_path):
    picture = tmp_path / "memory.svg"
    words = [*RUN, "--all-stages", "--json", "--picture", str(picture), "--device-kind", "cpu"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["world"], found["layout"]["pp"], found["device_kind"]) == (8, 2, "cpu")
    first, last = found["ranks"]
    assert (first["rank"], first["layers"], last["rank"], last["layers"]) == (
        0,
        [[0, 1]],
        4,
        [[2, 3]],
    )
    for rank in found["ranks"]:
        memory = rank["memory"]
        assert sum(memory["at_peak"].values()) == memory["peak"]
        assert max(moment["peak"] for moment in memory["timeline"]) == memory["peak"]
        actions = [moment["action"] for moment in memory["timeline"]]
        assert {"F0", "B0", "start", "update"} <= set(actions)
        assert rank["microbatches"] == rank["microbatches_run"] == 1
    sent = [row["nbytes"] for row in first["traffic"] if row["operation"] == "send"]
    received = [row["nbytes"] for row in last["traffic"] if row["operation"] == "receive"]
    assert sent == received == [32 * 64 * 4]
    assert "rank 4" in picture.read_text(encoding="utf-8")


REFUSED = [
    (["--rank", "3", *MODEL], "--world N is missing: the number of ranks of the run"),
    (["--world", "many", *MODEL], "--world (many) must be a whole number"),
    (["--world", "0", *MODEL], "--world (0) must be at least 1"),
    (["--world", "9", *MODEL, *LAYOUT], "world size (9) must be divisible by"),
    (["--world", "9", *MODEL, *LAYOUT], "start 8 or 12 processes"),
    (["--world", "8", "--rank", "8", *MODEL, *LAYOUT], "use 0 to 7"),
    (["--world", "8", "--rank", "-1", *MODEL, *LAYOUT], "--rank (-1) must be at least 0"),
    (["--world", "8", "--rank", "1", "--all-stages", *MODEL], "remove it, or --rank (1)"),
    (
        ["--world", "8", "--device-kind", "gpu", *MODEL],
        "--device-kind (gpu) must be one of cpu, cuda",
    ),
    (["--world", "8", "--picture", "a.txt", *MODEL], "must end with .svg, .png, .pdf"),
    (["--world", "8", "--picture", "no/a.svg", *MODEL], "no/a.svg cannot be written: there is no"),
    (["--world", "8", *MODEL[:-2]], "the vocabulary is unknown"),
    (["--world", "8", *MODEL[:-2], "--tokenizer-model", "nowhere"], "give --vocab-size"),
    (["--world", "8", *MODEL, "--hidden-sise", "3"], "did you mean --hidden-size?"),
    (["--world", "8", *MODEL, "--print-config"], "is a flag of megascratch pretrain"),
]


@pytest.mark.parametrize(("words", "complaint"), REFUSED)
def test_what_cannot_be_run_is_refused_with_the_numbers(capsys, words, complaint):
    assert main(["dry-run", *words]) == 2
    said = capsys.readouterr()
    assert complaint in said.err and said.out == ""
    assert len(said.err.splitlines()) <= 6


def test_data_that_is_named_is_not_opened(capsys):
    words = ["--data-path", "nowhere", "--train-iters", "10", "--load", "nowhere-either"]
    assert main([*RUN, *words]) == 0


def test_compilation_is_not_followed_and_said_so(capsys):
    assert main([*RUN, "--compile"]) == 0
    assert "notice: compile is not followed" in capsys.readouterr().err
