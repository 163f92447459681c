"""A corpus that is not where its name says is explained once, with a name or a command that works."""

import shlex

import pytest

from megascratch.commands import main
from megascratch.config.errors import UserError
from megascratch.data.tokens.missing import require_corpus
from tests.support.corpora import write


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a corpus, one below it, and texts."""
    monkeypatch.chdir(tmp_path)
    for name in ("corpus_text_document", "web"):
        write(tmp_path / name, [[1, 2, 3]])
    (tmp_path / "many").mkdir()
    for name in "abcde":
        write(tmp_path / "many" / name, [[1]])
    (tmp_path / "half.bin").write_bytes(b"")
    (tmp_path / "train.jsonl.gz").write_bytes(b"")
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts" / "a.txt").write_text("a b")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("corpus", "corpus.idx cannot be read: No such file .* did you mean corpus_text_document?"),
        ("corpus_txt_document", "did you mean corpus_text_document?"),
        ("corpus_text_document.bin", "is one file of a corpus, .*: use corpus_text_document$"),
        ("corpus_text_document.idx", "is one file of a corpus, .*: use corpus_text_document$"),
        ("many", r"many is a folder: name the corpora in it \(many/a, many/b, many/c and 2 more\)"),
        ("empty", "empty is a folder without a corpus"),
        ("half", "index half.idx cannot be read: No such file"),
        ("0.3,web", "separated by spaces, use 0.3 web$"),
        ("0.3:web;0.7:corpus_text_document", "use 0.3 web 0.7 corpus_text_document$"),
        (
            "train.jsonl.gz",
            "not a corpus of token ids yet: run megascratch preprocess --input train",
        ),
        ("roneneldan/TinyStories", "nothing is downloaded: .* hf download roneneldan/TinyStories"),
        ("many/z", "many/z.idx cannot be read: No such file.*has .bin and .idx$"),
        ("nothing", "nothing.idx cannot be read: No such file.*has .bin and .idx$"),
    ],
)
def test_a_missing_corpus_is_explained_in_one_line(here, name, says):
    with pytest.raises(UserError, match=says) as caught:
        require_corpus(name)
    assert "\n" not in str(caught.value)


def test_a_corpus_that_is_there_passes(here):
    require_corpus("corpus_text_document")


def test_the_command_for_a_raw_text_works_literally(here, capsys):
    with pytest.raises(UserError) as caught:
        require_corpus("my texts")
    said = str(caught.value)
    command = said[said.index("preprocess") : said.index(", then give")]
    words = shlex.split(command.replace("--tokenizer-model FILE", "--tokenizer-type ByteTokenizer"))
    assert main([*words, "--workers", "1"]) == 0
    require_corpus(said.partition("then give ")[2])


@pytest.mark.parametrize("verb", ["inspect", "validate", "split --output-prefix x --fractions 9 1"])
def test_every_verb_explains_it(here, capsys, verb):
    first, *rest = verb.split()
    assert main(["data", first, "corpus", *rest]) in (1, 2)
    out, err = capsys.readouterr()
    assert "did you mean corpus_text_document?" in out + err


def test_a_run_says_it_once(here, capsys):
    words = ["--data-path", "corpus", "--vocab-size", "9", "--train-iters", "1"]
    assert main(["pretrain", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("corpus_text_document") == 1
    assert len(err.splitlines()) == 1
