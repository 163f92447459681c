"""Every verb reads every input by the same rule, and tells bad lines alike."""

import json
import sys

import pytest

from megascratch import tokenizer as tokenizers
from megascratch.commands import main
from megascratch.commands.input_output import MOST_PRINTED
from megascratch.data.tokens.token_files import TokenReader
from tests.support.preprocess_runs import PACK
from tests.support.small_models import save_model

TEXTS = ["def f(x):\n    return 1", 'say "ä"', "1 2 3\n\n4"]
TALKS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}] for text in TEXTS
]
LINES = [
    json.dumps({"text": text, "messages": talk}) for text, talk in zip(TEXTS, TALKS, strict=True)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder)
    return folder


def characters(run, words, out) -> str:
    assert main(["tokenizer", "train", "--output", str(out / "c.json"), *words]) == 0
    return tokenizers.load(None, out / "c.json").characters


def report(run, words, out) -> list:
    characters(run, words, out)
    files = ["--tokenizer-model", str(out / "c.json"), "--json", str(out / "r.json")]
    assert main(["tokenizer", "report", *files, *words]) == 0
    (found,) = json.loads((out / "r.json").read_text())
    return [found["bytes"], found["tokens"]]


def conversations(run, words, out) -> list:
    assert (
        main(
            [
                "conversations",
                "--output-prefix",
                str(out / "t"),
                "--tokenizer-type",
                "ByteTokenizer",
                *words,
            ]
        )
        == 0
    )
    reader = TokenReader(out / "t")
    return [reader.get(number).tolist() for number in range(len(reader))]


def preprocess(run, words, out) -> list:
    flags = ["--tokenizer-type", "ByteTokenizer", "--workers", "1"]
    assert main(["preprocess", "--output-prefix", str(out / "p"), *flags, *words]) == 0
    reader = TokenReader(out / "p_text_document")
    return [bytes(reader.get(number).tolist()).decode() for number in range(len(reader))]


def curate(run, words, out) -> list:
    assert main(["curate", "--output", str(out / "kept.jsonl"), "--exact-duplicates", *words]) == 0
    return [json.loads(line)["text"] for line in (out / "kept.jsonl").read_text().splitlines()]


def evaluate(run, words, out) -> list:
    flags = ["--load", str(run), "--device", "cpu", "--output-json", str(out / "e.json")]
    assert main(["evaluate", *flags, *words]) == 0
    found = json.loads((out / "e.json").read_text())
    return [found["heldout_documents"], found["heldout_bytes"]]


SIZE = sum(len(text.encode()) for text in TEXTS)
VERBS = {
    characters: "".join(sorted(set("".join(TEXTS)))),
    report: [SIZE, sum(map(len, TEXTS))],
    preprocess: TEXTS,
    curate: TEXTS,
    evaluate: [3, SIZE],
    conversations: None,
}
"""Verb -> what it makes of TEXTS (None: told below)."""


def expected(verb):
    if VERBS[verb] is not None:
        return VERBS[verb]
    turns = [
        [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in talk]
        for talk in TALKS
    ]
    return [[*"".join(talk).encode(), 256] for talk in turns]


@pytest.mark.parametrize(
    "suffix", [f".jsonl{packed}" for packed in PACK] + [".json", ".json.gz", ".ndjson.bz2"]
)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_reads_json_lines_under_every_suffix(run, tmp_path, verb, suffix):
    stem, _, packed = suffix[1:].partition(".")
    content = "\n".join(LINES).encode()
    (tmp_path / f"x.{stem}").with_suffix(suffix).write_bytes(
        PACK[f".{packed}" if packed else ""](content)
    )
    assert verb(run, ["--input", str(tmp_path / f"x{suffix}")], tmp_path) == expected(verb)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_reads_parquet(run, tmp_path, verb, packed):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": TEXTS, "messages": TALKS}), tmp_path / "x.parquet")
    path = tmp_path / f"x.parquet{packed}"
    path.write_bytes(PACK[packed]((tmp_path / "x.parquet").read_bytes()))
    assert verb(run, ["--input", str(path)], tmp_path) == expected(verb)


def lay_out(folder, contents, suffix) -> list[str]:
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number}{suffix}").write_text(content)
    return ["--input", str(folder)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_reads_folders_and_patterns(run, tmp_path, verb):
    words = lay_out(tmp_path / "in", LINES, ".json")
    assert verb(run, words, tmp_path) == expected(verb)
    (tmp_path / "again").mkdir()
    assert verb(run, ["--input", str(tmp_path / "in" / "*.json")], tmp_path / "again") == expected(
        verb
    )


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb is not report]
)  # which reads its input twice here
def test_a_verb_reads_the_standard_input(run, tmp_path, verb, monkeypatch):
    (tmp_path / "x").write_text("\n".join(LINES))
    with (tmp_path / "x").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert verb(run, ["--input", "-"], tmp_path) == expected(verb)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb is not conversations])
def test_a_verb_reads_text_files(run, tmp_path, verb):
    assert verb(run, lay_out(tmp_path / "in", TEXTS, ".txt"), tmp_path) == expected(verb)


@pytest.mark.parametrize("verb", [preprocess, curate])
def test_a_line_of_a_text_file_may_be_a_document(run, tmp_path, verb):
    words = lay_out(tmp_path / "in", ["a\n\n b\n", "ä"], ".txt")
    for how, texts in (("line", ["a\n", "\n", " b\n", "ä"]), ("bare-line", ["a", " b", "ä"])):
        (tmp_path / how).mkdir()
        kept = verb(run, [*words, "--sample-by", how], tmp_path / how)
        assert [text for text in kept if text] == texts


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_bad_lines_are_told_and_all_are_counted(run, tmp_path, verb, capsys):
    bad = MOST_PRINTED + 5
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([*["{"] * bad, *LINES]))
    assert verb(run, ["--input", str(path)], tmp_path) == expected(verb)
    told = capsys.readouterr()
    runs = 2 if verb is report else 1  # it trains what it reports on
    assert told.err.count(f"skipped {path}:") == runs * MOST_PRINTED
    assert f"skipped {path}:{MOST_PRINTED}: broken JSON" in told.err
    assert (told.err + told.out).count("skipped 5 more") == runs


@pytest.mark.parametrize("content", ["", "{\n{\n", '{"text": ""}\n'])
@pytest.mark.parametrize("verb", [[], ["--vocab-size", "257"], ["--vocab-size", "300"]])
def test_a_tokenizer_of_nothing_is_refused_and_not_written(tmp_path, capsys, content, verb):
    (tmp_path / "x.jsonl").write_text(content)
    words = ["--input", str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "t.json"), *verb]
    assert main(["tokenizer", "train", *words]) == 2
    said = capsys.readouterr().err
    assert f"x.jsonl: no text found, {content.count(chr(123) + chr(10))} bad lines" in said
    assert not (tmp_path / "t.json").exists()


def test_curating_nothing_is_refused_and_not_written(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("{\n")
    words = [
        "--input",
        str(tmp_path / "x.jsonl"),
        "--output",
        str(tmp_path / "o.jsonl"),
        "--exact-duplicates",
    ]
    assert main(["curate", *words]) == 2
    assert "no text found, 1 bad lines" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


PLAIN = "FIRST CITIZEN:\nBefore we proceed\n\n1603\n"
TWO_KEYS = "".join(json.dumps({"id": number, "body": "a b"}) + "\n" for number in range(300))
ONE_KEY = "".join(json.dumps({"body": "a b"}) + "\n" for _ in range(300))


@pytest.mark.parametrize(
    ("content", "says", "fix"),
    [
        (PLAIN * 100, "it looks like plain text, use --input-format text", "--input-format text"),
        (TWO_KEYS, "with one of the keys that are there (id, body)", "KEY body"),
        (ONE_KEY, "the only key there is body, use KEY body", "KEY body"),
        (json.dumps([{"text": "a"}] * 99, indent=1), "it looks like one JSON document", None),
        ("\0" * 99, ", 1 bad lines", None),
    ],
)
@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("tokenizer train", "--output c.json"),
        ("preprocess", "--output-prefix p --tokenizer-type ByteTokenizer --workers 1"),
        ("curate", "--output kept.jsonl --exact-duplicates"),
        ("evaluate", "--device cpu --load {run}"),
    ],
)
def test_an_input_without_a_good_line_is_explained_in_six_lines(
    run, tmp_path, monkeypatch, capsys, verb, flags, content, says, fix
):
    """And what is advised works."""
    monkeypatch.chdir(tmp_path)
    key = "--json-keys" if verb == "preprocess" else "--json-key"
    (tmp_path / "x.jsonl").write_text(content)
    words = [*verb.split(), "--input", "x.jsonl", *flags.format(run=run).split()]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert says.replace("KEY", key) in said
    assert len(said.splitlines()) <= 6
    if fix is not None:
        assert main([*words, *fix.replace("KEY", key).split()]) == 0
