"""Folders and files that mean harm, and what reads each of them."""

import base64
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from megascratch import checkpoint
from megascratch.checkpoint.format.manifest import signed
from megascratch.config.load import load_config
from megascratch.data.tokens.idx_format import DTYPES, HEADER, MAGIC
from megascratch.data.tokens.index_cache import load_or_build
from megascratch.data.tokens.token_files import TokenReader
from megascratch.parallel.control import Control
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.pipeline.csv_schedule import read_table
from megascratch.tokenizer import load as load_tokenizer
from megascratch.training.health.skipped_samples import records
from tests.support.corpora import write
from tests.support.format_2 import to_format_2
from tests.support.signed_tables import Change, changed_table

TABLE = "chunks.bin"
SECRET = "the secret of another folder"


class Hostile(NamedTuple):
    """A way in."""

    name: str
    make: Callable[[Path], Path]
    """Writes it into a folder of its own; gives what to read."""
    read: Callable[[Path], Any]


class Bomb:
    """Unpickled, it touches a file."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


BOMB = pickle.dumps(Bomb())

# ---- readers ---------------------------------------------------------------------------------------------------


def held() -> list[ShardedTensor]:
    return [ShardedTensor("w", (4,), Box((0,), (4,)), torch.zeros(4), 0)]


def read_checkpoint(path: Path) -> Any:
    return checkpoint.load(path, held(), Control.alone())


def read_tokenizer(path: Path) -> Any:
    tokenizer = load_tokenizer(None, path)
    return tokenizer.decode(tokenizer.encode("some text")), tokenizer.vocab_size


def read_kind(kind: str) -> Callable[[Path], Any]:
    return lambda path: load_tokenizer(kind, path).encode("some text")


def read_config(path: Path) -> Any:
    return load_config(["--config", str(path)])


def read_corpus(path: Path) -> Any:
    reader = TokenReader(path)
    return reader.tokens, [reader.get(at) for at in range(min(len(reader), 9))]


def read_cache(path: Path) -> Any:
    return load_or_build(path, {"what": "x"}, lambda: {"x": np.zeros(1)})["x"].tolist()


def read_schedule(path: Path) -> Any:
    return read_table(str(path))


# ---- what is written -------------------------------------------------------------------------------------------


def file(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def link(name: str, inside: bool = True) -> Callable[[Path], Path]:
    """A link to a file of another folder; read by its folder's name."""

    def make(folder: Path) -> Path:
        (folder / name).symlink_to(folder.parent / "secret.txt")
        return folder if inside else folder / name

    return make


def step(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """A sound checkpoint, then changed."""

    def make(folder: Path) -> Path:
        path = checkpoint.save(folder, 1, held(), {}, Control.alone())
        change(path)
        return path

    return make


def body(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """Its manifest changed and signed anew."""

    def apply(path: Path) -> None:
        manifest = path / checkpoint.steps.FILE
        record = json.loads(manifest.read_text())["body"]
        change(record)
        manifest.write_bytes(signed(json.dumps(record).encode()))

    return apply


def table(change: Change) -> Callable[[Path], None]:
    """Its table of chunks changed and signed anew."""

    def apply(path: Path) -> None:
        files = [path / checkpoint.steps.FILE, path / TABLE]
        contents = changed_table(*[file.read_bytes() for file in files], change)
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)

    return apply


def file_name(name: bytes) -> Change:
    return lambda files, rows: files["name"].fill(name)


def number(column: int, value: int) -> Change:
    """Of the only row of the only tensor."""
    return lambda files, rows: rows["w"][0].put(column, value)


def table_link(path: Path) -> None:
    shutil.move(path / TABLE, path.parent.parent / "elsewhere.bin")
    (path / TABLE).symlink_to(path.parent.parent / "elsewhere.bin")


def table_pipe(path: Path) -> None:
    (path / TABLE).unlink()
    os.mkfifo(path / TABLE)


def format_2(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """The same in a step that an older version wrote."""
    return lambda path: change(to_format_2(path))


def data_file(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


def replaced(content: bytes) -> Callable[[Path], None]:
    return lambda path: data_file(path).write_bytes(content)  # type: ignore[return-value]


def to_link(path: Path) -> None:
    found = data_file(path)
    shutil.copy(found, path.parent.parent / "elsewhere.safetensors")
    found.unlink()
    found.symlink_to(path.parent.parent / "elsewhere.safetensors")


def to_pipe(path: Path) -> None:
    found = data_file(path)
    found.unlink()
    os.mkfifo(found)


def manifest_text(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / checkpoint.steps.FILE).write_bytes(content)  # type: ignore[return-value]


def manifest_link(path: Path) -> None:
    manifest = path / checkpoint.steps.FILE
    manifest.unlink()
    manifest.symlink_to(path.parent.parent / "secret.txt")


def first_chunk(**values: Any) -> Callable[[dict], None]:
    return lambda record: record["tensors"]["w"]["chunks"][0].update(values)


def giant_tensor(record: dict) -> None:
    record["tensors"]["w"] |= {"shape": [1 << 60]}


def index(sequences: int, entries: int, content: bytes = b"") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / "c", [[1, 2, 3]])
        code = next(code for code, name in DTYPES.items() if name == "uint16")
        (folder / "c.idx").write_bytes(HEADER.pack(MAGIC, 1, code, sequences, entries) + content)
        return folder / "c"

    return make


def hugging_face(**changes: Any) -> Callable[[Path], Path]:
    """A small tokenizer.json with something else in it."""
    record = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    }
    return file("tokenizer.json", json.dumps(record | changes))


def cached(content: str, array: bytes | None = None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        read_cache(folder)
        (home,) = (path for path in folder.iterdir() if path.is_dir())
        (home / "key.json").write_text(content)
        np.save(folder.parent / "secret.npy", np.arange(5))
        if array is not None:
            (home / "x.npy").write_bytes(array)
        return folder

    return make


def object_array() -> bytes:
    return (
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128)
        + BOMB
    )


def laughs(deep: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, deep)]
    return "\n".join([*lines, f"data_path: *a{deep - 1}", f"lr: *a{deep - 1}"])


def giant_ids(folder: Path) -> Path:
    words = [bytes([byte]) for byte in range(256)]
    ranks = [f"{base64.b64encode(word).decode()} {rank}" for rank, word in enumerate(words)]
    path = folder / "cl100k_base.tiktoken"
    path.write_text("\n".join([*ranks, f"{base64.b64encode(b'zz').decode()} {(1 << 31) - 1}"]))
    return path


HOSTILE = [
    Hostile("checkpoint: a pickle for a manifest", step(manifest_text(BOMB)), read_checkpoint),
    Hostile("checkpoint: a pickle for data", step(replaced(BOMB)), read_checkpoint),
    Hostile(
        "checkpoint: ../ in a file name",
        step(table(file_name(b"../x.safetensors"))),
        read_checkpoint,
    ),
    Hostile(
        "checkpoint: an absolute file name",
        step(table(file_name(b"/etc/passwd"))),
        read_checkpoint,
    ),
    Hostile(
        "checkpoint of format 2: ../ in a file name",
        step(format_2(body(first_chunk(file="../x.safetensors")))),
        read_checkpoint,
    ),
    Hostile(
        "checkpoint of format 2: a giant offset",
        step(format_2(body(first_chunk(offset=1 << 62)))),
        read_checkpoint,
    ),
    Hostile(
        "checkpoint: ../ in the name of the table",
        step(body(lambda record: record.update(table="../x.bin"))),
        read_checkpoint,
    ),
    Hostile(
        "checkpoint: a giant number of chunks",
        step(body(lambda record: record["tensors"]["w"].update(chunks=1 << 60))),
        read_checkpoint,
    ),
    Hostile("checkpoint: the table is a link out", step(table_link), read_checkpoint),
    Hostile("checkpoint: the table is a pipe", step(table_pipe), read_checkpoint),
    Hostile(
        "checkpoint: a giant number of a file", step(table(number(0, 1 << 63))), read_checkpoint
    ),
    Hostile("checkpoint: a giant box", step(table(number(4, 1 << 63))), read_checkpoint),
    Hostile("checkpoint: data is a link out", step(to_link), read_checkpoint),
    Hostile("checkpoint: manifest is a link out", step(manifest_link), read_checkpoint),
    Hostile("checkpoint: data is a pipe", step(to_pipe), read_checkpoint),
    Hostile("checkpoint: a giant tensor", step(body(giant_tensor)), read_checkpoint),
    Hostile("checkpoint: a giant header", step(replaced(b"\xff" * 8 + b"{}")), read_checkpoint),
    Hostile("checkpoint: a giant offset", step(table(number(1, 1 << 62))), read_checkpoint),
    Hostile(
        "checkpoint: deep JSON",
        step(manifest_text(b'{"sha256": "' + b"[" * 1_000_000)),
        read_checkpoint,
    ),
    Hostile("corpus: giant counts", index((1 << 63) - 1, 1), read_corpus),
    Hostile("corpus: counts that wrap around", index(1 << 61, 1 << 61, b"\0" * 64), read_corpus),
    Hostile("corpus: no document", index(0, 0), read_corpus),
    Hostile(
        "corpus: a pickle", lambda folder: file("c.idx", BOMB)(folder).with_suffix(""), read_corpus
    ),
    Hostile("tokenizer: a pickle for a model", file("t.model", BOMB), read_tokenizer),
    Hostile("tokenizer: a pickle for JSON", file("t.json", BOMB), read_tokenizer),
    Hostile("tokenizer: deep JSON", file("t.json", "[" * 1_000_000), read_tokenizer),
    Hostile(
        "tokenizer: deep JSON of characters",
        file("t.json", "[" * 1_000_000),
        read_kind("CharTokenizer"),
    ),
    Hostile(
        "tokenizer: a giant id",
        hugging_face(model={"type": "WordLevel", "vocab": {"a": 2_000_000_000}, "unk_token": "a"}),
        read_tokenizer,
    ),
    Hostile(
        "tokenizer: a giant added id",
        hugging_face(added_tokens=[{"id": 2_000_000_000, "content": "x"}]),
        read_tokenizer,
    ),
    Hostile("tokenizer: a giant rank", giant_ids, read_kind("TikTokenizer")),
    Hostile(
        "tokenizer: a damaged character map",
        hugging_face(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        read_tokenizer,
    ),
    Hostile(
        "tokenizer: a character map that leads out of itself",
        hugging_face(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}],
            }
        ),
        read_tokenizer,
    ),
    Hostile(
        "tokenizer: a model whose map leads out of itself",
        file("t.model", bytes([26, 10, 18, 8]) + base64.b64decode("BAAAAP////8=")),
        read_tokenizer,
    ),
    Hostile("tokenizer: a folder whose file is a link out", link("tokenizer.json"), read_tokenizer),
    Hostile(
        "tokenizer: a folder whose model is a link out", link("tokenizer.model"), read_tokenizer
    ),
    Hostile(
        "tokenizer: its config is a link out",
        lambda folder: (hugging_face()(folder), link("tokenizer_config.json")(folder))[0],
        read_tokenizer,
    ),
    Hostile(
        "tokenizer: its merges are a link out",
        lambda folder: (
            file("vocab.json", json.dumps({chr(n): n for n in range(3)}))(folder),
            link("merges.txt")(folder),
        )[0],
        read_kind("GPT2BPETokenizer"),
    ),
    Hostile("tokenizer: a device", lambda folder: Path("/dev/zero"), read_kind("CharTokenizer")),
    Hostile(
        "config: a call",
        file("c.yaml", 'lr: !!python/object/apply:os.system ["touch pwned"]'),
        read_config,
    ),
    Hostile(
        "config: a call as a key",
        file("c.yaml", '? !!python/object/apply:os.system ["touch pwned"]\n: 1'),
        read_config,
    ),
    Hostile(
        "config: an object",
        file("c.yaml", "!!python/object/new:os.system [touch pwned]"),
        read_config,
    ),
    Hostile("config: a billion laughs", file("c.yaml", laughs(12)), read_config),
    Hostile("config: deep", file("c.yaml", "lr: " + "[" * 100_000), read_config),
    Hostile("config: a giant file", file("c.yaml", "#" * (3 << 20)), read_config),
    Hostile("config: a pickle", file("c.yaml", BOMB), read_config),
    Hostile("config: endless", lambda folder: Path("/dev/zero"), read_config),
    Hostile("schedule: a pickle", file("s.csv", BOMB), read_schedule),
    Hostile(
        "schedule: a giant micro-batch", file("s.csv", "0F9999999999,0B9999999999"), read_schedule
    ),
    Hostile("schedule: a giant stage", file("s.csv", "9999999999F0,9999999999B0"), read_schedule),
    Hostile(
        "skipped samples: deep JSON",
        lambda folder: file("skipped_samples.jsonl", "[" * 10**6 + "\n")(folder).parent,
        records,
    ),
    Hostile("cache: names that leave it", cached('{"arrays": ["../../secret", "x"]}'), read_cache),
    Hostile("cache: a pickle in an array", cached('{"arrays": ["x"]}', object_array()), read_cache),
]

HARMLESS = {"cache: names that leave it", "cache: a pickle in an array"}
"""Read all the same: what is hostile is thrown away and built again."""
