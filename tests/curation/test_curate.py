"""Lines that pass leave as they came, each other line is counted with its rule, and the first of equals stays."""

import json
import random

import pytest

from megascratch.commands import main
from megascratch.curation import overlap
from megascratch.curation.overlap import Contamination, n_grams, words_of
from tests.support.prose import PROSE


def sentence(seed, words=60):
    return " ".join(
        random.Random(seed).choices([f"word{number}" for number in range(2000)], k=words)
    )


def jsonl(path, texts):
    path.write_text(
        "".join(json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate(texts))
    )
    return str(path)


@pytest.fixture
def curate(tmp_path):
    def run(texts, *flags):
        """(exit code, ids of the lines that were kept, report)."""
        source, out = jsonl(tmp_path / "in.jsonl", texts), tmp_path / "out.jsonl"
        words = ["--input", source, "--output", out, "--report", tmp_path / "report.json", *flags]
        code = main(["curate", *map(str, words)])
        kept = (
            [json.loads(line)["id"] for line in out.read_text().splitlines()]
            if out.exists()
            else None
        )
        return code, kept, json.loads((tmp_path / "report.json").read_text()) if code == 0 else None

    return run


def test_the_first_of_equal_texts_stays_and_lines_keep_their_bytes(curate, tmp_path):
    code, kept, report = curate(["a b", "é", "a b", "a  b", "é"], "--exact-duplicates")
    assert (code, kept, report["dropped"]) == (0, [0, 1, 3], {"exact_duplicate": 2})
    lines = (tmp_path / "in.jsonl").read_bytes().splitlines()
    assert (tmp_path / "out.jsonl").read_bytes().splitlines() == [lines[0], lines[1], lines[3]]
    assert report["examples"]["exact_duplicate"][0]["reason"].endswith("in.jsonl:1")
    assert (report["lines"], report["kept"], report["bytes_read"]) == (5, 3, 14)


def test_near_duplicates_go_and_unlike_texts_stay(curate):
    """Two changed words of 400 leave a similarity near 0.87 in 13-grams; forty leave next to none."""
    pytest.importorskip("datasketch")
    base = sentence(0, 400).split()
    texts = [" ".join(base), sentence(1, 400)]
    for changes in (2, 40):
        step = len(base) // changes
        texts.append(
            " ".join("changed" if at % step == step - 1 else word for at, word in enumerate(base))
        )
    texts += [texts[0].upper() + "!", sentence(2, 400)]
    code, kept, report = curate(texts, "--near-duplicates")
    assert (code, kept, report["dropped"]) == (0, [0, 1, 3, 5], {"near_duplicate": 2})
    assert curate(texts, "--near-duplicates")[1:] == (kept, report)
    assert curate(texts, "--near-duplicates", "--similarity", 0.99)[1] == [0, 1, 2, 3, 5]


def test_what_shares_13_words_with_an_evaluation_text_goes(curate, tmp_path):
    heldout = sentence(7, 30).split()
    evaluation = jsonl(
        tmp_path / "eval.jsonl",
        [" ".join(heldout), "nine words that stand alone as one text", "short"],
    )
    shared, less = ([*sentence(8).split(), *heldout[3:stop], "end"] for stop in (16, 15))
    texts = [
        ", ".join(shared).title(),
        " ".join(less),
        "Nine words that stand alone as one text!",
        "short",
    ]
    code, kept, report = curate(texts, "--decontaminate", evaluation)
    assert (code, kept, report["dropped"]) == (0, [1, 3], {"contaminated": 2})
    assert (report["evaluation_texts"], report["evaluation_texts_too_short"]) == (3, 1)


def test_a_sample_of_every_length_is_found_in_itself():
    for words in range(8, 30):
        text = sentence(words, words)
        assert Contamination([text], 13).check(f"before {text} after") and not Contamination(
            [text], 13
        ).check("other")
    assert list(n_grams(words_of("A b, c!"), 2)) == [b"a b", b"b c"]


def test_rules_speak_in_order_and_c4_writes_the_changed_text(curate, tmp_path):
    texts = [PROSE, "too short", PROSE + "\n" + "again\n" * 99, "Menu of the site\n" + PROSE, PROSE]
    flags = ["--gopher-quality", "--gopher-repetition", "--c4", "--exact-duplicates"]
    code, kept, report = curate(texts, *flags)
    assert (code, kept) == (0, [0])
    assert report["dropped"] == {"exact_duplicate": 2, "words": 1, "duplicate_lines": 1}
    assert report["changed"] == 1 and report["settings"]["limits"]["min_words"] == 50
    text = json.loads((tmp_path / "out.jsonl").read_text())["text"]
    assert len(text.splitlines()) == 4 and all(line.endswith(".") for line in text.splitlines())
    assert curate(
        ["too short"], "--gopher-quality", "--limit", "min_words=2", "--limit", "min_stop_words=0"
    )[1] == [0]


def test_bad_lines_are_counted_or_end_the_run(curate, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{\n{"text": 5}\n')
    words = [
        "curate",
        "--input",
        str(tmp_path / "bad.jsonl"),
        "--output",
        str(tmp_path / "o"),
        "--exact-duplicates",
    ]
    assert (
        main([*words, "--report", str(tmp_path / "r")]) == 0
        and "1 of 3 lines" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "r").read_text())["bad_lines"] == 2
    for name in "or":
        (tmp_path / name).unlink()
    assert main([*words, "--strict"]) == 2 and "bad.jsonl:2: broken JSON" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]


@pytest.mark.parametrize(
    ("flags", "law"),
    [
        ([], "nothing to do: ask for --gopher-quality"),
        (
            ["--gopher-quality", "--limit", "min_word=3"],
            "unknown limit min_word - did you mean min_words?",
        ),
        (
            ["--gopher-quality", "--limit", "min_words=x"],
            "min_words must be of type int, such as min_words=1",
        ),
        (["--near-duplicates", "--similarity", "2"], "--similarity (2) must be in (0, 1]"),
        (["--decontaminate", "none.jsonl"], "none.jsonl cannot be read"),
        (
            ["--decontaminate", "{in}", "--decontaminate-words", "3"],
            "--decontaminate-words (3) must be at least 8",
        ),
        (["--exact-duplicates", "--output", "{in}"], "choose another name"),
        (["--exact-duplicates", "--input", "{in}", "{in}"], "more than once: name each file once"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(curate, tmp_path, capsys, flags, law):
    code, kept, _ = curate(["a"], *(flag.format(**{"in": tmp_path / "in.jsonl"}) for flag in flags))
    said = capsys.readouterr().err
    assert (code, kept) == (2, None) and law in said and said.count("\n") == 1


def test_a_missing_library_is_named(curate, monkeypatch, capsys):
    monkeypatch.setattr(overlap, "datasketch", None)
    assert curate(["a"], "--near-duplicates")[0] == 2
    assert "pip install 'megascratch[curate]'" in capsys.readouterr().err
