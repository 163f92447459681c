"""`preprocess --train-tokenizer` writes what `tokenizer train` and `preprocess` write, and never another tokenizer."""

import json
import shlex

import pytest

from megascratch.commands import main
from megascratch.config.load import load_config
from megascratch.data.tokens.token_files import TokenReader

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 30


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.txt").write_text(TEXT)
    (tmp_path / "two.jsonl").write_text(json.dumps({"a": "abc", "b": "xyz"}) + "\n")
    return tmp_path


def run(words: str) -> int:
    return main(shlex.split(words))


@pytest.mark.parametrize(
    ("name", "file", "train", "size"),
    [
        ("char", "t.json", "", ""),
        ("bpe", "t.json", "--vocab-size 270", "--vocab-size 270"),
        ("sentencepiece", "t.model", "--vocab-size 300", "--vocab-size 300"),
    ],
)
def test_one_command_writes_what_two_write(here, name, file, train, size):
    assert run(f"tokenizer train --input input.txt --output two-{file} {train}") == 0
    assert (
        run(f"preprocess --input input.txt --output-prefix two --tokenizer-model two-{file}") == 0
    )
    words = f"--train-tokenizer {name} --tokenizer-model {file} {size} --workers 1"
    assert run(f"preprocess --input input.txt --output-prefix one {words}") == 0
    assert (here / file).read_bytes() == (here / f"two-{file}").read_bytes()
    for suffix in ("bin", "idx"):
        one, two = (here / f"{name}_text_document.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_no_character_of_a_text_is_lost_whatever_the_documents(here, capsys):
    words = "--train-tokenizer char --tokenizer-model t.json --workers 1"
    for how in ("document", "line"):
        assert (
            run(f"preprocess --input input.txt --output-prefix {how} --sample-by {how} {words}")
            == 0
        )
        assert TokenReader(f"{how}_text_document").tokens == len(TEXT)
    assert "uses t.json, which exists" in capsys.readouterr().err


def test_every_key_is_trained_on(here):
    words = "--json-keys a b --train-tokenizer char --tokenizer-model t.json --workers 1"
    assert run(f"preprocess --input two.jsonl --output-prefix p {words}") == 0
    assert json.loads((here / "t.json").read_text())["characters"] == "abcxyz"


def test_the_next_commands_are_printed_once_and_are_read_by_their_verbs(here, capsys):
    assert run("tokenizer train --input 'input.txt' --output t.json --vocab-size 270") == 0
    command = next_of(capsys.readouterr().out)
    assert command[0] == "preprocess"
    assert main([*command, "--workers", "1"]) == 0
    command = next_of(capsys.readouterr().out)
    assert command[0] == "pretrain"
    data = load_config(command[1:])[0].data
    assert (data.data_path, data.tokenizer_model) == (["corpus_text_document"], "t.json")


def next_of(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith("next: megascratch ")]
    return shlex.split(line)[2:]


FLAGS = "--input input.txt --output-prefix p --train-tokenizer"


@pytest.mark.parametrize(
    ("words", "says", "fix"),
    [
        (f"{FLAGS} char", "--tokenizer-model, for example char.json", "--tokenizer-model c.json"),
        (f"{FLAGS} bpe --tokenizer-model t.json", "give --vocab-size", "--vocab-size 270"),
        (f"{FLAGS} bpe --vocab-size 270 --tokenizer-model t.model", "use t.json", None),
        (f"{FLAGS} char --vocab-size 9 --tokenizer-model t.json", "remove --vocab-size 9", None),
        (
            f"{FLAGS} char --tokenizer-type CharTokenizer --tokenizer-model t.json",
            "remove --tokenizer-type",
            None,
        ),
        (f"{FLAGS} char --shard 0/2 --tokenizer-model t.json", "tokenizer train before", None),
        (f"{FLAGS} char --tokenizer-model input.txt", "use input.json", None),
        (f"{FLAGS} bpe --vocab-size 9000 --tokenizer-model t.json", "use --vocab-size", None),
        (
            "--input - --output-prefix p --train-tokenizer char --tokenizer-model t.json",
            "pipe",
            None,
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(here, capsys, words, says, fix):
    before = sorted(here.iterdir())
    assert run(f"preprocess {words}") == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    assert sorted(here.iterdir()) == before
    if fix is not None:
        assert run(f"preprocess {words} {fix} --workers 1") == 0


def test_a_tokenizer_or_a_corpus_that_exists_is_not_replaced(here, capsys):
    words = f"{FLAGS} char --tokenizer-model t.json --workers 1"
    assert run(f"preprocess {words}") == 0
    trained = (here / "t.json").read_bytes()
    assert run(f"preprocess {words}") == 0  # the same again
    (here / "input.txt").write_text("zzz")
    bpe = words.replace("char", "bpe") + " --vocab-size 260"
    assert run(f"preprocess {bpe}") == 2
    assert "t.json exists and is a CharTokenizer of" in capsys.readouterr().err
    assert run(f"preprocess {words.replace('t.json', 'new.json')}") == 2
    assert "p_text_document.bin exists" in capsys.readouterr().err
    assert not (here / "new.json").exists()
    assert (here / "t.json").read_bytes() == trained
    assert run(f"preprocess {words} --overwrite") == 0
    assert json.loads((here / "t.json").read_text())["characters"] == "z"
