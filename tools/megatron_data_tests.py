"""Runs Megatron-LM's own unit tests for data on files that this toolkit writes, on a CPU, arguments as given.

    python tools/megatron_data_tests.py --megatron-repo PATH

The tests run in place, through `megatron_data_adapter.py`; nothing is copied from PATH and nothing is written there.
Needs transformers, nltk and requests, which the tests import, and megatron-core for its compiled helpers.
"""

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from megascratch.tokenizer import train_bpe
from megascratch.tokenizer.registry import dump
from megascratch.tokenizer.vocabulary import Vocabulary

ROOT = Path(__file__).parents[1]
FOLDER = "tests/unit_tests/data"
FILES = (
    "test_preprocess_data.py",
    "test_preprocess_data_fast.py",
    "test_bin_reader.py",
    "test_builder.py",
    "test_prepare_cache.py",
    "test_gpt_dataset.py",
)
"""Those that read token files, or make samples of documents, on a CPU; test_fim_dataset.py asks for places in a sample
that only the corpus of its authors has."""
NEEDED = ("torch", "transformers", "nltk", "requests", "awkward")
END = "<|endoftext|>"
START = "<|startoftext|>"


class Outcome(NamedTuple):
    """What became of a test."""

    name: str
    state: str
    """passed, failed or skipped"""
    reason: str


def main() -> int:
    """Prints what became of each test; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megatron-repo", required=True, type=Path, help="a copy of Megatron-LM")
    parser.add_argument("--only", nargs="+", default=[], help="names of tests (pytest -k)")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    options = parser.parse_args()
    missing = missing_for(options.megatron_repo)
    if missing:
        print(f"cannot run: {missing}", file=sys.stderr)
        return 2
    outcomes = run(options.megatron_repo, options.only)
    if options.json:
        print(json.dumps([outcome._asdict() for outcome in outcomes]))
    else:
        for outcome in outcomes:
            print(f"{outcome.state:<8}{outcome.name}  {outcome.reason}".rstrip())
    states = [outcome.state for outcome in outcomes]
    print(
        ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped")),
        file=sys.stderr,
    )
    return int("failed" in states or "passed" not in states)


def missing_for(repo: Path) -> str:
    """What the tests need and is not there; '' if they can run."""
    if not (repo / FOLDER).is_dir():
        return f"{repo} has no folder {FOLDER}"
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run(repo: Path, only: list[str]) -> list[Outcome]:
    """The outcome of each test."""
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder))
        report = Path(folder, "report.xml")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "megatron_data_adapter"]
        words += [
            "-o",
            "faulthandler_timeout=120",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--junitxml",
            str(report),
        ]
        words += ["-k", " or ".join(only)] if only else []
        words += [f"{FOLDER}/{name}" for name in FILES]
        path = [str(repo.resolve()), str(Path(__file__).parent), str(ROOT)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MEGASCRATCH_WORLD": folder,
            "MEGATRON_REPO": str(repo.resolve()),
            "MASTER_PORT": str(_free_port()),
            "HF_HUB_OFFLINE": "1",
        }
        log = Path(folder, "log")
        with log.open("w") as output:
            subprocess.run(words, cwd=repo, env=environment, stdout=output, stderr=output)
        if not report.exists():
            raise SystemExit("\n".join(log.read_text().splitlines()[-20:]))
        return outcomes_of(report)


def outcomes_of(report: Path) -> list[Outcome]:
    """The outcomes in a report in JUnit's form."""
    outcomes = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").rsplit(".", 1)[-1]
        state, reason = "passed", ""
        for mark in ("failure", "error", "skipped"):
            found = case.find(mark)
            if found is not None:
                state = "skipped" if mark == "skipped" else "failed"
                reason = found.get("message", "").split("\n")[0][:200]
        outcomes.append(Outcome(f"{file}.py::{case.get('name')}", state, reason))
    return outcomes


def make_world(folder: Path) -> None:
    """Writes what the tests expect below /opt/data: two vocabularies and texts."""
    code = [path.read_text() for path in sorted((ROOT / "megascratch" / "data").rglob("*.py"))]
    texts = [f"python\n{text[:600]}" for text in code] + ["python"] * 200
    vocabulary = train_bpe.train(texts, 2000, "gpt2", [END])
    model = vocabulary.record()["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    _write_hub_folder(folder / "gpt2", vocabulary, begins=False)
    _write_hub_folder(folder / "hub", vocabulary, begins=True)
    lines = [json.dumps({"text": text}) + "\n" for text in texts * 5]
    (folder / "texts.jsonl").write_text("".join(lines))


def _write_hub_folder(folder: Path, vocabulary: Vocabulary, begins: bool) -> None:
    """A tokenizer as the Hugging Face hub has it; `begins`: a text begins with a token of its own, as for Llama."""
    folder.mkdir()
    record = vocabulary.record()
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    if begins:
        start = max(record["model"]["vocab"].values()) + 1
        record["added_tokens"].append({**record["added_tokens"][0], "id": start, "content": START})
        record["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": START, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {START: {"id": START, "ids": [start], "tokens": [START]}},
        }
        roles["bos_token"] = START
    (folder / "tokenizer.json").write_bytes(dump(record))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
