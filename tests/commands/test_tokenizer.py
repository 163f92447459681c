"""`megascratch tokenizer` trains on JSONL or plain text, and turns text into ids and back."""

import inspect
import io
import json
import textwrap

import pytest

from megascratch import tokenizer as tokenizers
from megascratch.commands import call
from megascratch.config.errors import UserError

CODE = inspect.getsource(textwrap)


def test_sentence_piece_is_trained_on_jsonl_and_bad_lines_are_named(tmp_path, capsys):
    path, model = tmp_path / "x.jsonl", tmp_path / "t.model"
    path.write_text(json.dumps({"body": CODE}) + "\n{\n")
    words = [
        "train",
        "--input",
        str(path),
        "--json-key",
        "body",
        "--output",
        str(model),
        "--vocab-size",
        "400",
    ]
    assert call("tokenizer", words) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"wrote {model}: SentencePieceTokenizer, 400 ids, end of document 1")
    assert err.startswith(f"skipped {path}:2: broken JSON")
    assert len(tokenizers.load(None, model).encode(CODE)) < 0.7 * len(CODE)


@pytest.mark.parametrize(("flags", "size"), [([], 4), (["--no-eod"], 3)])
def test_characters_are_trained_on_plain_text_as_it_is(tmp_path, flags, size):
    path = tmp_path / "x.txt"
    path.write_bytes(b"b\r\nb")
    assert (
        call(
            "tokenizer",
            ["train", "--input", str(path), "--output", str(tmp_path / "c.json"), *flags],
        )
        == 0
    )
    tokenizer = tokenizers.load(None, tmp_path / "c.json")
    assert (tokenizer.vocab_size, tokenizer.decode([0, 1, 2])) == (size, "\n\rb")


def test_ids_and_text_go_through_arguments_or_pipes(capsys, monkeypatch):
    flags = ["--tokenizer-type", "ByteTokenizer"]
    call("tokenizer", ["encode", "hé", *flags])
    call("tokenizer", ["decode", "104", "195", "169", "256", *flags])
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    call("tokenizer", ["encode", *flags])
    monkeypatch.setattr("sys.stdin", io.StringIO("97 10\n98"))
    call("tokenizer", ["decode", *flags])
    assert capsys.readouterr().out == "104 195 169\nhé\n97 10\na\nb\n"


def test_training_stops_at_the_limit_and_says_so(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": letter * 400_000}) + "\n" for letter in "abc"))
    call(
        "tokenizer",
        [
            "train",
            "--input",
            str(path),
            "--output",
            str(tmp_path / "c.json"),
            "--max-megabytes",
            "1",
        ],
    )
    assert "first 1 MB" in capsys.readouterr().err
    assert tokenizers.load(None, tmp_path / "c.json").vocab_size == 3


@pytest.mark.parametrize(
    ("words", "law"),
    [
        (
            ["train", "--input", "nowhere.txt", "--output", "c.json"],
            "nowhere.txt cannot be read: No such",
        ),
        (
            ["train", "--input", "nowhere.jsonl", "--output", "c.json"],
            "nowhere.jsonl cannot be read: No such file",
        ),
        (["train", "--input", "x", "--output", "c.txt"], "must end in .model"),
        (["decode", "--tokenizer-type", "ByteTokenizer", "1", "x"], "decode reads ids.*'x'"),
        (["decode", "--tokenizer-type", "ByteTokenizer", "300"], "id 300 at place 0 is outside"),
        (["encode", "a"], "no tokenizer: give --tokenizer-model"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, monkeypatch, words, law):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=law):
        call("tokenizer", words)
    assert not list(tmp_path.iterdir())
