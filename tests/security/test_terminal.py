"""What stands in a file is printed as it is written: no escape reaches the terminal, and no name forges a line."""

import json

import pytest
import torch

from megascratch import checkpoint
from megascratch.commands import main
from megascratch.config.printable import printable, printable_lines, shown
from megascratch.parallel.control import Control
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.training.report import Report
from tests.support.corpora import write

EVIL = "\x1b[31mx\x9b2J\r\u202ey\x7f"
ESCAPED = "\\x1b[31mx\\x9b2J\\r\\u202ey\\x7f"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain äß 漢字 🙂 [red]", "plain äß 漢字 🙂 [red]"),
        (EVIL, ESCAPED),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u2028\u2029\u200b\ud800", "\\u2028\\u2029\\u200b\\ud800"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_a_text_becomes_one_printable_line(text, line):
    assert printable(text) == line and line.isprintable()


def test_lines_of_our_own_stay_lines_and_long_names_are_cut():
    assert printable_lines("a\n\x1bb") == "a\n\\x1bb"
    assert shown("x" * 300) == "x" * 200 + "..."


def save(folder, names: list[str], step: int = 1) -> str:
    held = [
        ShardedTensor(name, (4,), Box((0,), (4,)), torch.full((4,), float(step)), 0)
        for name in names
    ]
    state = {"train_state": {"step": step}, EVIL: [step, EVIL]}
    return str(checkpoint.save(folder, step, held, state, Control.alone()))


def settings(folder) -> list[str]:
    file = folder / "c.yaml"
    file.write_text(json.dumps({EVIL: 1, "lr: 1\nforged": 2, "lr": EVIL}))
    return ["pretrain", "--config", str(file)]


def conversations(folder) -> list[str]:
    file = folder / "a\nskipped nothing.jsonl"
    message = {"role": EVIL + "\nskipped forged", "content": "x"}
    good = {"messages": [{"role": "assistant", "content": "y"}]}
    file.write_text("\n".join([json.dumps({"messages": [message]}), json.dumps(good)]))
    return [
        "conversations",
        "--input",
        str(file),
        "--output-prefix",
        str(folder / "out"),
        "--tokenizer-type",
        "ByteTokenizer",
    ]


def corpus(folder) -> list[str]:
    prefix = write(folder / "c", [[1, 2]])
    (folder / "c.json").write_text(json.dumps({"tokenizer": {"kind": EVIL}, "documents": EVIL}))
    return ["data", "validate", prefix]


def lines(folder) -> list[str]:
    file = folder / f"{EVIL}\nskipped forged.jsonl"
    file.write_text('{"text": "x"}\n{"' + "\\u001b[2J" + '": 1}\n')
    return [
        "preprocess",
        "--input",
        str(file),
        "--output-prefix",
        str(folder / "o"),
        "--tokenizer-type",
        "ByteTokenizer",
        "--workers",
        "1",
    ]


def schedule(folder) -> list[str]:
    file = folder / f"{EVIL}[red].csv"
    file.write_text("0F0,0B0\n")
    return ["schedule", "check", str(file)]


WAYS = {
    "settings": settings,
    "tensor names": lambda folder: [
        "checkpoint",
        "inspect",
        save(folder, [f"{EVIL}.[red]w", "a\nb"]),
    ],
    "tensor names that differ": lambda folder: [
        "checkpoint",
        "diff",
        save(folder, [EVIL, "a"]),
        save(folder, [EVIL, "b\nc"], 2),
    ],
    "steps": lambda folder: ["checkpoint", "verify", save(folder / EVIL, ["a"])],
    "a folder that is none": lambda folder: ["checkpoint", "inspect", str(folder / EVIL)],
    "roles": conversations,
    "a manifest": corpus,
    "file names": lines,
    "a schedule": schedule,
    "a verb": lambda folder: [EVIL],
}


@pytest.mark.parametrize("way", WAYS)
def test_no_escape_out_of_a_file_reaches_the_terminal(tmp_path, capsys, way):
    main(WAYS[way](tmp_path))
    said = capsys.readouterr()
    for line in (said.out + said.err).split("\n"):
        assert line.isprintable() and not line.startswith("skipped forged"), repr(line)
    whole = "".join((said.out + said.err).split())
    assert "\\x1b[31m" in whole or "\\x1b[2J" in whole


def test_a_tensor_name_is_no_markup(tmp_path, capsys):
    main(["checkpoint", "inspect", save(tmp_path, ["[red]w[/red]"])])
    assert "[red]w[/red]" in capsys.readouterr().out


def test_what_a_run_says_is_escaped(tmp_path, capsys):
    report = Report(str(tmp_path), str(tmp_path), 2, 0)
    report.event({"step": 1, "event": "x"}, f"first {EVIL}\nsecond [red]")
    report.close({})
    assert capsys.readouterr().out.split("\n")[:2] == [f"first {ESCAPED}", "second [red]"]
