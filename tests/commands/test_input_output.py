"""No verb writes over what it reads, and an earlier corpus goes only with --overwrite."""

import json
import os
from pathlib import Path

import pytest

from megascratch.commands import main
from tests.support.corpora import write

CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
BYTES = ["--tokenizer-type", "ByteTokenizer"]
CURATE = ["curate", "--exact-duplicates", "--input", "x.jsonl"]
TURNS = ["--turn-begin", "<{role}>", "--turn-end", "<end>"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One of every kind of input."""
    monkeypatch.chdir(tmp_path)
    Path("chat.jsonl").write_text(CHAT)
    Path("x.jsonl").write_text('{"text": "hello"}\n')
    Path("p_bad_lines.txt").write_text("hello\n")
    write(Path("c"), [[1, 2], [3]])
    write(Path("c_loss_mask"), [[1, 1], [0]])
    write(Path("d"), [[4]])
    assert main(["tokenizer", "train", "--input", "x.jsonl", "--output", "t.json"]) == 0
    Path("k_text_document.json").write_bytes(Path("t.json").read_bytes())
    Path("vocabulary.json").write_text("{}")
    os.link("chat.jsonl", "linked.jsonl")
    assert main(("schedule csv 1f1b --stages 2 --microbatches 4 --output own.csv").split()) == 0
    return tmp_path


OVER_AN_INPUT = {
    "conversations over its tokenizer": [
        "conversations",
        "--input",
        "chat.jsonl",
        "--tokenizer-model",
        "t.json",
        "--output-prefix",
        "t",
        "--overwrite",
        *TURNS,
    ],
    "preprocess over its tokenizer": (
        "preprocess --input x.jsonl --output-prefix k --tokenizer-model k_text_document.json "
        "--overwrite --workers 1"
    ).split(),
    "preprocess over its input": [
        "preprocess",
        "--input",
        "p_bad_lines.txt",
        "--output-prefix",
        "p",
        *BYTES,
        "--workers",
        "1",
    ],
    "merge over an input": ("data merge --input d c --output-prefix ./c --overwrite").split(),
    "merge over the mask of an input": [
        "data",
        "merge",
        "--input",
        "c",
        "--output-prefix",
        "c_loss_mask",
        "--overwrite",
    ],
    "split over the mask of its input": (
        "data split c --output-prefix c --documents 1 1 --names loss_mask x --overwrite"
    ).split(),
    "curate over an input": [
        "curate",
        "--exact-duplicates",
        "--input",
        "chat.jsonl",
        "--output",
        "linked.jsonl",
    ],
    "curate's report over an input": [*CURATE, "--output", "y.jsonl", "--report", "x.jsonl"],
    "curate's report over its output": [*CURATE, "--output", "y.jsonl", "--report", "y.jsonl"],
    "curate over what it compares with": [
        *CURATE,
        "--output",
        "chat.jsonl",
        "--decontaminate",
        "chat.jsonl",
    ],
    "a tokenizer over its text": [
        "tokenizer",
        "train",
        "--input",
        "vocabulary.json",
        "--output",
        "vocabulary.json",
    ],
    "a conversion over its source": ["tokenizer", "convert", "t.json", "--output", "t.json"],
    "a report over a tokenizer": (
        "tokenizer report --input x.jsonl --tokenizer-model t.json --json t.json"
    ).split(),
    "a schedule over itself": ["schedule", "csv", "own.csv", "--output", "own.csv"],
}


@pytest.mark.parametrize("words", OVER_AN_INPUT.values(), ids=OVER_AN_INPUT)
def test_an_output_that_is_an_input_is_refused_and_nothing_is_touched(folder, capsys, words):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(words) == 2
    assert "choose another name" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


OVER_A_CORPUS = {
    "conversations": [
        "conversations",
        "--input",
        "chat.jsonl",
        *BYTES,
        *TURNS,
        "--output-prefix",
        "out",
    ],
    "merge": ["data", "merge", "--input", "d", "--output-prefix", "out"],
    "split": ["data", "split", "d", "--output-prefix", "o", "--documents", "1", "--names", "ut"],
    "preprocess": [
        "preprocess",
        "--input",
        "x.jsonl",
        *BYTES,
        "--output-prefix",
        "out",
        "--workers",
        "1",
    ],
}


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json", ".digests"])
@pytest.mark.parametrize("verb", OVER_A_CORPUS)
def test_an_earlier_corpus_goes_only_when_told(folder, capsys, verb, suffix):
    words = OVER_A_CORPUS[verb]
    name = {"split": "o_ut", "preprocess": "out_text_document"}.get(verb, "out")
    taken = folder / f"{name}{suffix}"
    taken.write_text(json.dumps("mine"))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{taken.name} exists" in said
    assert "--overwrite" in said
    assert taken.read_text() == json.dumps("mine")
    assert main([*words, "--overwrite"]) == 0
    assert main(["data", "validate", name]) == 0
