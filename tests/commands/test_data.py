"""`megascratch data`: numbers on the terminal and as JSON, exit code 1 for a broken corpus, 2 for a wrong request."""

import json

import pytest

from megascratch.commands import main
from megascratch.data.tokens.token_files import TokenReader, bin_path, idx_path
from tests.support.corpora import golden, write


@pytest.fixture
def corpus(tmp_path):
    """ "ab", "", "hello" and "b", each but the empty one closed by the byte tokenizer's end of document."""
    texts = ["ab", "", "hello", "b"]
    return write(tmp_path / "c", [[*text.encode(), *([256] if text else [])] for text in texts])


def run(*words):
    return main(["data", *map(str, words)])


def test_inspect_tells_the_numbers_the_samples_and_draws(corpus, tmp_path, capsys):
    flags = ["--tokenizer-type", "ByteTokenizer", "--samples", 4, "--output", tmp_path / "c.svg"]
    assert run("inspect", corpus, *flags) == 0
    told = capsys.readouterr().out
    for words in (
        "4 documents, 3 sequences, 11 tokens, uint16, 22 bytes",
        "50% 2,",
        "at the end of 3 documents",
        "ids used: 7 of 257",
        "document 2 (6 tokens): 'hello'",
    ):
        assert words in told, told
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    assert run("inspect", corpus, "--json", "--samples", 2) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["tokens"], numbers["eod"], numbers["ids_used"]) == (11, None, 7)
    assert numbers["document_length_histogram"][0] == [0, 0, 1]
    assert [sample["document"] for sample in numbers["samples"]] == [0, 2]
    assert numbers["samples"][1]["ids"] == [*b"hello", 256]


def test_validate_is_1_for_a_broken_corpus_and_lists_what_it_finds(corpus, tmp_path, capsys):
    other = golden(tmp_path / "g", 20, 1)
    assert run("validate", corpus, other) == 0
    assert capsys.readouterr().out.count("valid; ") == 2
    assert run("validate", corpus, other, "--vocab-size", 90, "--most", 2) == 1
    told = capsys.readouterr().out.splitlines()
    assert f"{corpus}.bin: sequence 0 has id 97, the vocabulary has 0 to 89" in told
    assert any("more problems (--most 2)" in line for line in told)
    idx_path(corpus).write_bytes(b"x")
    assert run("validate", corpus, "--most", 0) == 1
    assert "1 more problems" in capsys.readouterr().out


def test_merge_takes_folders_in_the_order_of_names_and_prefixes_as_given(tmp_path, capsys):
    for name, token in (("f/b", 1), ("f/a", 2), ("z", 3)):
        write(tmp_path / name, [[token]])
    first = lambda name: [TokenReader(tmp_path / name).get(at)[0] for at in range(3)]  # noqa: E731
    assert (
        run("merge", "--input", tmp_path / "z", tmp_path / "f", "--output-prefix", tmp_path / "m")
        == 0
    )
    assert (
        first("m") == [3, 2, 1] and "3 documents, 3 sequences, 3 tokens" in capsys.readouterr().out
    )
    assert (
        run(
            "merge",
            "--sort",
            "--input",
            tmp_path / "z",
            tmp_path / "f",
            "--output-prefix",
            tmp_path / "s",
        )
        == 0
    )
    assert first("s") == [2, 1, 3]


def test_split_cuts_by_fractions_or_counts(corpus, tmp_path):
    out = tmp_path / "part"
    assert (
        run(
            "split",
            corpus,
            "--output-prefix",
            out,
            "--fractions",
            3,
            1,
            "--names",
            "train",
            "valid",
        )
        == 0
    )
    assert [len(TokenReader(f"{out}_{name}").documents) - 1 for name in ("train", "valid")] == [
        3,
        1,
    ]
    assert run("split", corpus, "--output-prefix", out, "--documents", 1, 3) == 0
    assert [TokenReader(f"{out}_{name}").tokens for name in (0, 1)] == [3, 8]


@pytest.mark.parametrize(
    ("words", "law"),
    [
        (
            ["inspect", "{c}", "--output", "c.gif"],
            "--output (c.gif) must end with .png, .svg, .pdf",
        ),
        (["inspect", "{c}none"], "none.idx cannot be read: No such file"),
        (
            ["merge", "--input", "{c}", "{c}", "--output-prefix", "x"],
            "more than once: name each corpus once",
        ),
        (
            ["merge", "--input", "{folder}/half", "--output-prefix", "x"],
            "has only one of .bin and .idx",
        ),
        (
            ["merge", "--input", "{folder}/none", "--output-prefix", "x"],
            "contains no .bin/.idx pair",
        ),
        (["merge", "--input", "{c}", "--output-prefix", "x", "--multimodal"], "--multimodal"),
        (
            ["split", "{c}", "--output-prefix", "x", "--documents", "1", "2"],
            "add up to all 4 documents",
        ),
        (
            ["split", "{c}", "--output-prefix", "x", "--documents", "1", "3", "--names", "a", "a"],
            "2 different names",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(corpus, tmp_path, capsys, words, law):
    (tmp_path / "half").mkdir()
    (tmp_path / "none").mkdir()
    bin_path(tmp_path / "half" / "h").write_bytes(b"")
    assert run(*(word.format(c=corpus, folder=tmp_path) for word in words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("megascratch data: error: ") and law in said and said.count("\n") == 1


@pytest.fixture
def settings_(corpus, tmp_path):
    """Flags of a run that reads 4 samples of 2 tokens a step, for 50 steps."""
    other = write(tmp_path / "other", [[5] * 50])
    words = [
        "--train-data-path",
        "0.25",
        corpus,
        "0.75",
        other,
        "--seq-length",
        2,
        "--vocab-size",
        300,
    ]
    return [
        *words,
        "--global-batch-size",
        4,
        "--train-iters",
        50,
        "--data-cache-path",
        tmp_path / "cache",
    ]


def test_blend_report_tells_what_each_corpus_gives(settings_, corpus, capsys):
    assert run("blend-report", "--json", *settings_) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["corpus"], first["samples"], second["samples"]) == (corpus, 50, 150)
    assert (first["tokens"], first["epochs"]) == (100, [0, 10]) and first["largest_error"] <= 1
    assert run("blend-report", "--samples", 8, *settings_, "--data-stages", f"4 {corpus}") == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [[row[1], row[7]] for row in told if row[3:4] == [corpus]] == [["0", "1"], ["4", "4"]], (
        told
    )


def test_megatrons_order_is_reported_and_audited_for_the_samples_of_the_whole_run(
    settings_, corpus, capsys
):
    """Its order depends on how many samples are asked for."""
    assert run("blend-report", "--json", *settings_, "--data-order", "megatron") == 0
    assert [row["samples"] for row in json.loads(capsys.readouterr().out)] == [50, 150]
    told = []
    for steps in (50, 40):
        assert (
            run(
                "audit",
                "--steps",
                "1:40",
                *settings_[:-3],
                steps,
                *settings_[-2:],
                "--data-order",
                "megatron",
            )
            == 0
        )
        told.append(capsys.readouterr().out)
    assert told[0] != told[1] and told[0].count(corpus) > 40


def test_audit_tells_every_use_and_where_a_document_went(settings_, corpus, tmp_path, capsys):
    assert run("audit", "--steps", "2:3", *settings_) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "step,sample,place,corpus,document,sequence,first_token,tokens"
    assert {row.split(",")[1] for row in rows} == set("456789") | {"10", "11"}
    file = tmp_path / "uses.jsonl"
    assert (
        run(
            "audit",
            "--steps",
            "1:50",
            "--corpus",
            corpus,
            "--document",
            2,
            "--output",
            file,
            *settings_,
        )
        == 0
    )
    uses = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(use["corpus"], use["document"], use["sequence"]) for use in uses} == {(corpus, 2, 1)}
    assert len({use["step"] for use in uses}) > 10


@pytest.mark.parametrize(
    ("words", "law"),
    [
        (["audit", "--steps", "3:2"], "--steps 3:2 must be FIRST:LAST"),
        (["audit", "--steps", "1:51"], "ends after the last step of the run (50): use 1:50"),
        (["audit", "--steps", "1", "--document", "3"], "needs --corpus"),
        (
            ["audit", "--steps", "1", "--micro-batch-size", "0"],
            "micro-batch-size (0) must be at least 1",
        ),
        (["audit", "--steps", "1", "--data-stages", "5 x", "5 x"], "begin at 6 or later"),
        (["blend-report", "--samples", "0"], "--samples (0) must be at least 1"),
        (["blend-report", "--sed", "0"], "unknown flag --sed - did you mean --seed?"),
    ],
)
def test_a_record_that_cannot_be_made_is_refused_in_one_line(settings_, capsys, words, law):
    assert run(*words, *settings_) == 2
    said = capsys.readouterr().err
    assert said.startswith("megascratch data: error: ") and law in said and said.count("\n") == 1
