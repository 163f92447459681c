"""Every file that a user can edit: a sound one, and what reads it as a command would."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megascratch import checkpoint
from megascratch.checkpoint.backend.lease_owner import LeaseOwner
from megascratch.checkpoint.format.manifest import FILE, signed
from megascratch.commands import call
from megascratch.commands.evaluate import _read_summary
from megascratch.commands.generate import _prompts
from megascratch.config.fields import flat, with_fields
from megascratch.config.resolve import resolve
from megascratch.config.resume_effects import Side
from megascratch.config.resume_rules import compare_configs
from megascratch.config.saved import config_from_dict
from megascratch.config.settings import Config
from megascratch.data.inspect.merge_split import _tokenizer_of
from megascratch.data.inspect.validate import problems
from megascratch.data.preprocess.conversations import messages_of
from megascratch.data.preprocess.merge import read_state
from megascratch.data.preprocess.output_shards import read_summary
from megascratch.data.preprocess.run_folder import _stored
from megascratch.data.text.jsonl import BadLine, parse_record, read_lines
from megascratch.data.tokens.index_cache import load_or_build
from megascratch.data.tokens.manifest import check_corpus
from megascratch.data.tokens.token_files import TokenReader
from megascratch.parallel.control import Control
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.pipeline.csv_schedule import read_table
from megascratch.pipeline.stage_times import read_times
from megascratch.tokenizer import load as load_tokenizer
from megascratch.tokenizer.simple import ByteTokenizer
from megascratch.tokenizer.vocabulary import END_OF_TEXT, read_ranks, spell, write_ranks
from megascratch.training.health.skipped_samples import records
from megascratch.training.report import Report
from megascratch.training.start.resume import find_checkpoint
from megascratch.training.state import TrainState
from tests.support.byte_vocabularies import trained
from tests.support.corpora import write
from tests.support.format_2 import to_format_2


class Editable(NamedTuple):
    """A kind of file."""

    name: str
    make: Callable[[Path], Path]
    """Writes a sound one into a folder, with what belongs beside it; gives the file to change."""
    read: Callable[[Path], Any]
    """Gets the changed file."""
    wrap: Callable[[bytes], bytes] = bytes
    """Makes the file's content of a changed record."""
    record: Callable[[bytes], Any] | None = json.loads
    """The record in a file's content; None: the file is no JSON, only its bytes are changed."""


def _file(name: str, content: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return make


def _lines(content: bytes) -> bytes:
    """A record as the first of two lines."""
    return (
        content + b'\n{"step": 9, "loss": 1.0, "text": "x", "first": 1, "stop": 2, "back_to": 0}\n'
    )


def _first_line(content: bytes) -> Any:
    return json.loads(content.splitlines()[0])


# ---- corpora ---------------------------------------------------------------------------------------------------


def _corpus(folder: Path) -> Path:
    prefix = write(folder / "c", [[1, 2, 3], [4, 5]])
    made_with = {
        "kind": "ByteTokenizer",
        "fingerprint": ByteTokenizer().fingerprint,
        "model": None,
        "vocab_size": 257,
        "eod": 256,
    }
    manifest = {
        "tokenizer": made_with,
        "documents": 2,
        "sequences": 2,
        "tokens": 5,
        "bin_bytes": 10,
        "min_token": 1,
        "max_token": 5,
        "plan": "x",
        "keys": ["text"],
    }
    path = Path(f"{prefix}.json")
    path.write_text(json.dumps(manifest))
    return path


def _read_corpus(path: Path) -> None:
    prefix = str(path.with_suffix(""))
    reader = TokenReader(prefix)
    for line in problems(prefix):
        assert line.isprintable(), line
    check_corpus(reader, 300, ByteTokenizer().fingerprint, None)
    _tokenizer_of([reader, reader])
    _quietly(lambda: call("data", ["inspect", prefix]))


def _conversation(path: Path) -> None:
    for line in read_lines(path):
        with contextlib.suppress(BadLine):
            messages_of(parse_record(line), "messages")


# ---- checkpoints -----------------------------------------------------------------------------------------------


def _now() -> Config:
    values = {
        "mock_data": True,
        "vocab_size": 61,
        "train_iters": 3,
        "data_stages": ["5 a"],
        "data_path": None,
    }
    return resolve(with_fields(Config(), values), 1)


def _checkpoint(folder: Path) -> Path:
    held = [ShardedTensor("param.w", (4,), Box((0,), (4,)), torch.zeros(4), 0)]
    files = {"c": {".bin": {"bytes": 10, "sha256": "00"}}}
    train = TrainState(
        step=3,
        consumed_samples=24,
        loss_scale={"scale": 1.0},
        optimizer={"steps": 3},
        recent_losses=[1.5],
        skipped_samples=[[1, 2]],
    )
    state = {
        "config": asdict(_now()),
        "train_state": train.to_dict(),
        "data_files": files,
        "tokenizer_fingerprint": "00",
        "valid_loss": 1.5,
    }
    step = checkpoint.save(folder, 3, held, state, Control.alone())
    return Path(step) / FILE


def _old_checkpoint(folder: Path) -> Path:
    return to_format_2(_checkpoint(folder).parent) / FILE


def _table(folder: Path) -> Path:
    return _checkpoint(folder).with_name("chunks.bin")


def _load_checkpoint(path: Path) -> None:
    """Loads the tensors, too."""
    held = [ShardedTensor("param.w", (4,), Box((0,), (4,)), torch.zeros(4), 0)]
    checkpoint.load(path.parent, held, Control.alone())
    _read_checkpoint(path)


def _read_checkpoint(path: Path) -> None:
    _quietly(lambda: call("checkpoint", ["inspect", str(path.parent.parent)]))
    _quietly(lambda: call("checkpoint", ["inspect", str(path.parent)]))
    state = checkpoint.read_manifest(path.parent).state
    train = TrainState.from_dict(state.get("train_state", {}))
    assert isinstance(train.consumed_samples, int) and isinstance(train.step, int)
    before = Side(
        {
            name: value
            for section in state.get("config", {}).values()
            for name, value in section.items()
        },
        state.get("data_files", {}),
        state.get("tokenizer_fingerprint"),
    )
    for sentences in compare_configs(
        before, Side(flat(_now()), {"c": {".bin": {"bytes": 9, "sha256": "1"}}}, "1"), 24
    ):
        assert all(len(sentence) < 5000 for sentence in sentences)
    config_from_dict(state.get("config", {}))
    named = {"load": str(path.parent), "save": f"{path.parent.parent}-on"}
    find_checkpoint(flat(_now()) | named, batch_is_given=False)


# ---- tokenizers ------------------------------------------------------------------------------------------------


def _byte_level(folder: Path) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    return _file("tokenizer.json", trained("gpt2").record())(folder)


def _roles(folder: Path) -> Path:
    _byte_level(folder)
    return _file(
        "tokenizer_config.json",
        {"eos_token": {"content": END_OF_TEXT}, "bos_token": None, "extra": [1]},
    )(folder)


def _gpt2(folder: Path) -> Path:
    vocabulary = trained("gpt2")
    merges = [f"{spell(left)} {spell(right)}" for left, right in vocabulary.merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return _file(
        "vocab.json", {spell(token): number for token, number in vocabulary.tokens.items()}
    )(folder)


def _merges(folder: Path) -> Path:
    _gpt2(folder)
    return folder / "merges.txt"


def _use(kind: str | None) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        tokenizer = load_tokenizer(kind, path)
        ids = tokenizer.encode("some text\n<|endoftext|>")
        tokenizer.decode(ids)

    return read


# ---- what runs write -------------------------------------------------------------------------------------------


def _resume_report(path: Path) -> None:
    """A report never stops a run, whatever became of the one before; nothing is drawn here, which takes long."""
    folder = path.parent
    report = _quietly(lambda: Report(str(folder), str(folder), 20, 10))
    _quietly(
        lambda: report._summarize(
            {"layout": {}, "seconds": 0, "stopped_early": False, "exit_code": 0}
        )
    )
    report.abandon()
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["step"], int)
    assert isinstance(json.loads((folder / "summary.json").read_text()), dict)


def _holder(path: Path) -> None:
    holder = LeaseOwner.from_text(path.read_bytes())
    assert holder is None or str(holder).isprintable()


def _quietly(work: Callable[[], Any]) -> Any:
    """Runs with what is printed checked: no control character but the line feed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        answer = work()
    for line in said.getvalue().split("\n"):
        assert line.isprintable(), repr(line)
    return answer


ROW = {"step": 3, "loss": 1.5, "split": "valid", "tokens": 64}
SUMMARY = {"layout": {"tp": 1}, "loss": 1.5, "seconds": 3.0, "stopped_early": True, "exit_code": 80}
HOLDER = {"host": "a", "pid": 1, "started": "1", "run": "", "since": "now", "claim": "x"}
CONVERSATION = {
    "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
}

SHARD = {"keys": [[2, 2, 9, 1, 5, 20, [1, 2, 3]]], "spans": [[0, 2, ["x"]]], "bad": 0}
CHARACTERS = "".join(sorted(set("some text\n<|endoftext|>")))

EDITABLE = [
    Editable("corpus manifest", _corpus, _read_corpus),
    Editable(
        "conversations",
        _file("c.jsonl", CONVERSATION),
        _conversation,
        lambda content: content + b"\n",
    ),
    Editable(
        "checkpoint manifest",
        _checkpoint,
        _load_checkpoint,
        signed,
        lambda content: json.loads(content)["body"],
    ),
    Editable(
        "checkpoint manifest of format 2",
        _old_checkpoint,
        _load_checkpoint,
        signed,
        lambda content: json.loads(content)["body"],
    ),
    Editable("checkpoint table of chunks", _table, _load_checkpoint, record=None),
    Editable("tokenizer.json", _byte_level, _use(None)),
    Editable("tokenizer_config.json", _roles, lambda path: _use(None)(path.parent)),
    Editable("vocab.json", _gpt2, _use("GPT2BPETokenizer")),
    Editable(
        "merges.txt",
        _merges,
        lambda path: _use("GPT2BPETokenizer")(path.parent / "vocab.json"),
        record=None,
    ),
    Editable(
        "characters",
        _file("t.json", {"tokenizer": "CharTokenizer", "eod": True, "characters": CHARACTERS}),
        _use("CharTokenizer"),
    ),
    Editable(
        "ranks",
        _file("t.tiktoken", write_ranks(trained("gpt2"))),
        lambda path: read_ranks(path),
        record=None,
    ),
    Editable(
        "metrics.jsonl",
        _file("metrics.jsonl", _lines(json.dumps(ROW).encode())),
        _resume_report,
        _lines,
        _first_line,
    ),
    Editable("summary.json", _file("summary.json", SUMMARY), _resume_report),
    Editable(
        "skipped_samples.jsonl",
        _file(
            "skipped_samples.jsonl",
            _lines(b'{"first": 3, "stop": 5, "back_to": 1, "step": 4, "reason": "x"}'),
        ),
        lambda path: records(path.parent),
        _lines,
        _first_line,
    ),
    Editable(
        "schedule",
        _file("s.csv", b"0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1\n"),
        lambda path: read_table(str(path)),
        record=None,
    ),
    Editable(
        "times",
        _file("t.csv", b"stage,F,B,W\n0,1,2,1\n1,1,2,1\n"),
        lambda path: read_times(str(path)),
        record=None,
    ),
    Editable(
        "prompts.jsonl",
        _file("p.jsonl", b'{"text": "once"}\n'),
        lambda path: list(_prompts(str(path))),
        lambda content: content + b"\n",
    ),
    Editable(
        "prompts.txt",
        _file("p.txt", b"once upon\na time\n"),
        lambda path: list(_prompts(str(path))),
        record=None,
    ),
    Editable(
        "summary to merge into", _file("s.json", SUMMARY), lambda path: _read_summary(str(path))
    ),
    Editable("holder of a folder", _file("holder.json", HOLDER), _holder),
    Editable(
        "plan of a preprocessing", _file("plan.json", {"x": 1}), lambda path: _stored(path.parent)
    ),
    Editable(
        "state of a merge",
        _file("merged.json", {"shards": 1, "bin_bytes": [3], "bad_bytes": 0}),
        lambda path: read_state(path.parent, 1),
    ),
    Editable(
        "counts of a shard",
        _file("00000003.json", SHARD),
        lambda path: read_summary(path.parent, 3),
    ),
    Editable(
        "key of a cache", lambda folder: _cached(folder), lambda path: _cached(path.parent.parent)
    ),
]


def _cached(folder: Path) -> Path:
    import numpy as np

    load_or_build(folder, {"what": "x"}, lambda: {"x": np.zeros(1)})
    (home,) = (path for path in folder.iterdir() if path.is_dir())
    return home / "key.json"
