"""`megascratch evaluate`: bits per byte of a checkpoint of any layout beside gzip and xz, as a table and a summary."""

import gzip
import json
import lzma
import math

import pytest

from megascratch.commands import main
from tests.support.rank_pool import on_ranks
from tests.support.small_models import save_model

TEXTS = ["import os\n\n\ndef f(x):\n    return os.path.join(x)\n", "ä", "print(1)\n" * 30]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of checkpoints, written on two tensor ranks and two data-parallel ones."""
    folder = tmp_path_factory.mktemp("run")
    on_ranks(4, save_model, folder, 2, 1, 2)
    return folder


@pytest.fixture
def heldout(tmp_path):
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def evaluate(run, path, *flags):
    return main(["evaluate", "--load", str(run), "--device", "cpu", "--input", str(path), *flags])


def test_the_summary_gets_the_result_and_keeps_the_rest(run, heldout, tmp_path, capsys):
    summary = tmp_path / "summary.json"
    summary.write_text('{"tokens": 5, "bits_per_byte": 9}')
    assert (
        evaluate(run, heldout, "--summary", str(summary), "--output-json", str(tmp_path / "r.json"))
        == 0
    )
    found, alone = json.loads(summary.read_text()), json.loads((tmp_path / "r.json").read_text())
    assert found["tokens"] == 5
    assert all(alone[name] == value for name, value in found.items() if name != "tokens")
    contents = [text.encode() for text in TEXTS]
    size = sum(map(len, contents))
    assert (found["heldout_documents"], found["heldout_bytes"], found["heldout_tokens"]) == (
        3,
        size,
        size + 3,
    )
    assert found["bits_per_byte"] == found["heldout_nats"] / math.log(2) / size
    assert found["gzip_bits_per_byte"] == 8 * sum(len(gzip.compress(c, 9)) for c in contents) / size
    assert (
        found["xz_bits_per_byte"]
        == 8 * sum(len(lzma.compress(c, preset=9)) for c in contents) / size
    )
    assert (
        found["gzip_one_stream_bits_per_byte"]
        == 8 * len(gzip.compress(b"".join(contents), 9)) / size
    )
    out = capsys.readouterr().out
    for name in (
        "bits_per_byte",
        "gzip_bits_per_byte",
        "xz_bits_per_byte",
        "xz_one_stream_bits_per_byte",
    ):
        assert f"{found[name]:.4f}" in out
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_any_layout_has_the_same_loss(run, heldout, tmp_path):
    save_model(tmp_path / "alone")
    nats = []
    for number, folder in enumerate((run, tmp_path / "alone")):
        out = tmp_path / f"{number}.json"
        assert (
            evaluate(
                folder, heldout, "--output-json", str(out), "--stride", "5", "--batch-size", "3"
            )
            == 0
        )
        nats.append(json.loads(out.read_text())["heldout_nats"])
    assert nats[0] == nats[1]


def test_bad_lines_are_named_counted_and_passed_over_unless_strict(run, heldout, tmp_path, capsys):
    with heldout.open("ab") as file:
        file.write(b'\n{"text": ""}\n{"body": "x"}\n\xff\n')
    out = tmp_path / "r.json"
    assert evaluate(run, heldout, "--output-json", str(out)) == 0
    said = capsys.readouterr()
    assert (
        json.loads(out.read_text())["bad_lines"] == 4
        and "3 documents, 4 bad lines skipped" in said.out
    )
    reasons = ["empty line", "empty text", "no key 'text' (it has 'body')", "not UTF-8"]
    assert [line.split(": ")[1] for line in said.err.splitlines()] == reasons
    assert evaluate(run, heldout, "--strict") == 2
    assert f"{heldout}:4: empty line (--strict)" in capsys.readouterr().err


def test_a_model_without_ends_of_documents_is_not_charged_for_them(run, heldout, tmp_path):
    out = tmp_path / "r.json"
    assert evaluate(run, heldout, "--no-eod", "--output-json", str(out)) == 0
    found = json.loads(out.read_text())
    assert found["heldout_tokens"] == found["heldout_bytes"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--stride", "0"], "--stride (0) must be from 1 to"),
        (["--stride", "25"], "--stride (25) must be from 1 to the model's --seq-length (24)"),
        (["--batch-size", "0"], "--batch-size (0)"),
        (["--load", "no/such"], "no checkpoint: no/such"),
        (["--input", "no/such"], "no/such cannot be read"),
        (["--json-key", "body"], "no document found, 3 bad lines"),
        (["--output-json", "/dev/null/x"], "/dev/null/x cannot be written"),
    ],
)
def test_bad_input_is_code_2_and_its_last_line_says_why(run, heldout, capsys, flags, complaint):
    assert evaluate(run, heldout, *flags) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_a_summary_that_is_none_is_refused_before_the_work(run, heldout, tmp_path, capsys, content):
    summary = tmp_path / "summary.json"
    summary.write_text(content)
    assert evaluate(run, heldout, "--summary", str(summary)) == 2
    assert "cannot be merged into" in capsys.readouterr().err
    assert summary.read_text() == content
