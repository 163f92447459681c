"""`megascratch generate`: from a checkpoint of any layout to text, and one line for everything that cannot work."""

import json

import pytest

from megascratch.commands import main
from megascratch.inference.complete import Stops
from megascratch.inference.generate import Continuation
from megascratch.tokenizer.simple import ByteTokenizer
from tests.support.rank_pool import on_ranks
from tests.support.small_models import save_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of checkpoints, written on two tensor ranks and two stages."""
    folder = tmp_path_factory.mktemp("run")
    on_ranks(4, save_model, folder, 2, 2, 1)
    return folder


def generate(run, *flags):
    return main(["generate", "--load", str(run), "--device", "cpu", *flags])


def test_any_layout_writes_the_same_text(run, tmp_path, capsys):
    save_model(tmp_path)
    texts = []
    for folder in (run, tmp_path / "step_00000003"):
        assert generate(folder, "--prompt", "ab", "--max-new-tokens", "12", "--seed", "3") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("ab")


def test_several_prompts_have_headlines_and_a_jsonl_has_records(run, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first\nsecond ä\n")
    flags = (
        "--prompt",
        "zero",
        "--prompts-file",
        str(prompts),
        "--greedy",
        "--max-new-tokens=4",
        "--batch-size=2",
    )
    assert generate(run, *flags) == 0
    lines = capsys.readouterr().out.split("=== prompt ")[1:]
    assert [line.split("\n", 1)[1][:4] for line in lines] == ["zero", "firs", "seco"]
    assert generate(run, *flags, "--output", str(tmp_path / "new" / "out.jsonl")) == 0
    records = [
        json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()
    ]
    assert [record["prompt"] for record in records] == ["zero", "first", "second ä"]
    for record, line in zip(records, lines, strict=True):
        assert len(record["tokens"]) <= 4 and record["text"] in line


def test_a_jsonl_of_prompts_may_hold_line_ends(run, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "def f():\\n    "}\n')
    assert generate(run, "--prompts-file", str(prompts), "--max-new-tokens", "2") == 0
    assert capsys.readouterr().out.startswith("def f():\n    ")


def test_temperature_0_is_greedy_and_no_prompt_starts_a_document(run, capsys):
    assert generate(run, "--temperature", "0", "--max-new-tokens", "5") == 0
    first = capsys.readouterr().out
    assert generate(run, "--greedy", "--max-new-tokens", "5", "--prompt", "") == 0
    assert capsys.readouterr().out == first


def test_a_context_longer_than_the_position_table_is_cropped_with_one_notice(run, capsys):
    """1,000 characters from a model with 24 positions, unless the document ends before."""
    flags = ("--seed", "2", "--prompt", "0123456789" * 3, "--max-new-tokens", "60")
    assert generate(run, *flags) == 0
    written, said = capsys.readouterr()
    assert len(written) > 24 and said.count("\n") == 1
    assert "has 24 positions" in said and "position_embedding_type rope" in said


def test_a_continuation_is_printed_piece_by_piece_and_in_all_is_the_text_of_a_file(
    run, tmp_path, capsys, monkeypatch
):
    """Held back is what a later token can change: bytes of one character, and the beginning of a stop text."""
    flags = ("--prompt=ab", "--seed=4", "--max-new-tokens=40", "--stop=\ufffd\ufffd\ufffd")
    out = tmp_path / "out.txt"
    assert generate(run, *flags, "--output", str(out)) == 0
    pieces = []
    monkeypatch.setattr("megascratch.commands.generate._show", pieces.append)
    assert generate(run, *flags) == 0
    assert len(pieces) > 4 and "".join(pieces) == out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--top-p", "1.5"], "--top-p (1.5) must be above 0 and at most 1"),
        (["--top-p", "0"], "--top-p (0.0)"),
        (["--temperature", "-1"], "--temperature (-1.0)"),
        (["--top-k", "-3"], "--top-k (-3)"),
        (["--max-new-tokens", "0"], "--max-new-tokens (0)"),
        (["--batch-size", "0"], "--batch-size (0)"),
        (["--greedy", "--top-k", "3"], "--greedy ignores --top-k: remove one or the other"),
        (["--prompts-file", "no/such"], "no/such cannot be read"),
        (["--prompt", "\udcff"], "prompt 1: "),
        (["--load", "no/such"], "no checkpoint: no/such"),
        (["--tokenizer-model", "no/such.model"], "no/such.model cannot be read"),
        (["--prompt", "x", "--output", "/dev/null/x"], "--output /dev/null/x cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, capsys, flags, complaint):
    assert generate(run, *flags) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


@pytest.mark.parametrize(("name", "line"), [("x.jsonl", b'{"txt": 1}\n'), ("x.txt", b"\xff\n")])
def test_a_broken_prompt_is_named_by_its_line(run, tmp_path, capsys, name, line):
    (tmp_path / name).write_bytes(line)
    assert generate(run, "--prompts-file", str(tmp_path / name)) == 2
    assert f"{name}:1: " in capsys.readouterr().err


PROMPTS = (
    "--prompt=ab",
    "--prompt=second",
    "--prompt=3",
    "--greedy",
    "--max-new-tokens=14",
    "--batch-size=2",
)


def records(run, path, *flags):
    assert generate(run, *PROMPTS, "--output", str(path / "out.jsonl"), *flags) == 0
    return [
        json.loads(line) for line in (path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def ends_of(record, tokens: int) -> str:
    return bytes(token for token in record["tokens"][:tokens] if token < 256).decode(
        errors="replace"
    )


def test_a_stop_text_over_several_tokens_ends_each_prompt_of_a_batch_and_is_cut_off(run, tmp_path):
    free = records(run, tmp_path)
    # three and two tokens of this vocabulary, or more
    stops = [
        free[0]["text"][3:6],
        free[1]["text"][2:4],
    ]
    found = records(run, tmp_path, *(f"--stop={text}" for text in stops))
    for before, after in zip(free, found, strict=True):
        places = [before["text"].find(stop) for stop in stops]
        place = min((place for place in places if place >= 0), default=None)
        assert after["text"] == before["text"][:place]
        assert after["stopped_by"] == (before["stopped_by"] if place is None else "stop text")
        assert after["tokens"] == before["tokens"][: len(after["tokens"])]
    assert {record["stopped_by"] for record in found[:2]} == {"stop text"}
    assert any(stop in ends_of(found[0], len(found[0]["tokens"])) for stop in stops)
    assert not any(stop in ends_of(found[0], len(found[0]["tokens"]) - 1) for stop in stops)


def test_a_stop_id_ends_a_prompt_and_is_cut_off(run, tmp_path):
    free = records(run, tmp_path)
    ids = [free[0]["tokens"][4], free[2]["tokens"][2]]
    found = records(run, tmp_path, "--stop-ids", *map(str, ids))
    for before, after in zip(free, found, strict=True):
        place = min(
            (before["tokens"].index(number) for number in ids if number in before["tokens"]),
            default=None,
        )
        if place is None:
            assert after == before
            continue
        assert (after["tokens"], after["stopped_by"]) == (before["tokens"][: place + 1], "stop id")
        assert after["text"] == ends_of(before, place)


@pytest.mark.parametrize(
    ("text", "stops", "certain"),
    [
        ("ab", [], "ab"),
        ("ab\u00e4", [], "ab"),  # half of its bytes
        ("abc", ["cd"], "ab"),
        ("abcd", ["cde", "de"], "ab"),
        ("abcx", ["cde"], "abcx"),
    ],
)
def test_text_is_certain_when_no_later_token_can_change_it(text, stops, certain):
    ids = list(text.encode())
    if not text.isascii():
        ids.pop()
    assert Stops(ByteTokenizer(), stops, []).certain_text([1], ids) == certain


class Spells:
    """A vocabulary of words, one of which is a special token; the first word of a text loses its space."""

    words = ("</s>", "<turn>", " one", " two", " o", "ne")
    vocab_size = len(words)

    def __init__(self):
        self.special_words = {"<turn>": 1}

    def decode(self, ids):
        return "".join(self.words[number] for number in ids if number).removeprefix(" ")


@pytest.mark.parametrize(
    ("texts", "ids", "tokens", "reason", "text"),
    [
        ([" one"], [], [3, 4, 5], "stop text", " two"),
        (["o one"], [], [3, 4, 5], "stop text", " tw"),
        (["ne", " o"], [], [3, 4], "stop text", " two"),
        (["<turn>"], [], [3, 1], "stop id", " two"),
        ([], [4], [2, 4], "stop id", " one"),
        (["nothing"], [5], [2, 3], None, " one two"),
    ],
)
def test_what_stops_a_text_and_what_is_left_of_it(texts, ids, tokens, reason, text):
    stops, prompt = Stops(Spells(), texts, ids), [2]
    assert stops.reason(prompt, tokens) == reason
    assert all(stops.reason(prompt, tokens[:count]) is None for count in range(1, len(tokens)))
    assert stops.text(prompt, Continuation(tokens, reason or "max_new_tokens")) == text


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--stop", ""], "--stop is empty"),
        (["--stop-ids", "257"], "--stop-ids 257 is outside the vocabulary (0 to 256)"),
        (["--stop-ids", "-1"], "--stop-ids -1 is outside"),
    ],
)
def test_a_stop_that_can_never_be_is_refused(run, capsys, flags, complaint):
    assert generate(run, *flags) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n", "\n\n"])
def test_a_file_without_a_prompt_is_refused(run, tmp_path, capsys, content):
    (tmp_path / "none.txt").write_text(content)
    assert generate(run, "--prompts-file", str(tmp_path / "none.txt")) == 2
    said = capsys.readouterr()
    assert "none.txt contains no prompt" in said.err and said.out == ""
