"""Merges the shards of a run, in order, into one corpus per key: .bin, .idx, manifest and digests.

    shard 0, 1, 2 ... --append--> {key}.bin grows --finish--> idx, manifest, digests --> merged.json: complete --> moves

`merged.json` makes each step safe against a kill: the ids of the shards it counts are on the disk, so the shards' files
can be deleted, and once it says "complete" only renames are left to do.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.config.json_record import COUNT, FLAG, list_of, parse_object, require_fields
from megascratch.data.preprocess.output_shards import (
    KINDS,
    NO_COUNTS,
    KeyCounts,
    Summary,
    remove_shard,
    shard_path,
)
from megascratch.data.tokens.digests import (
    BlockDigests,
    blocks_of,
    digests_path,
    encoded,
    whole_file,
)
from megascratch.data.tokens.idx_format import HEADER, MAGIC, VERSION, dtype_code
from megascratch.data.tokens.manifest import manifest_path
from megascratch.data.tokens.token_files import bin_path, idx_path
from megascratch.runtime.atomic_file import flush_to_disk, fsync_folder, write_atomically
from megascratch.runtime.faults import fault_point

CHECKPOINT_BYTES = 1 << 30
BLOCK_BYTES = 1 << 22


class State(NamedTuple):
    """The content of merged.json."""

    shards: int
    """Number of shards, from the first, whose content is in the merged files and on the disk."""
    bin_bytes: list[int]
    """Size of the merged .bin of each key."""
    bad_bytes: int
    complete: bool = False
    """All files are complete: only renames are left."""


def read_state(folder: Path, keys: int) -> State:
    """How far an earlier run got; zeros if there was none. Raises: UserError where the file is damaged."""
    file = folder / "merged.json"
    try:
        record = parse_object(file.read_bytes(), file)
    except FileNotFoundError:
        return State(0, [0] * keys, 0)
    fields = {
        "shards": COUNT,
        "bin_bytes": list_of(COUNT, keys),
        "bad_bytes": COUNT,
        "complete": FLAG,
    }
    require_fields(record, fields, file)
    required = fields.keys() - {"complete"}
    if not required <= record.keys() <= fields.keys():
        raise UserError(
            f"{file} is damaged: it must have {', '.join(fields)}; delete {folder} to start again"
        )
    return State(**record)


class Merge:
    """Appends shards to the corpora of all keys; holds counts and open files, but no ids."""

    def __init__(self, folder: Path, names: Sequence[str], keys: int, dtype: np.dtype):
        self._folder = folder
        self._names = names
        self._dtype = dtype
        self._state = read_state(folder, keys)
        self._bins: list[IO[bytes]] = []
        self._digests: list[BlockDigests] = []
        for key, size in enumerate(self._state.bin_bytes):
            file = _grown(self.partial(f"{key}.bin"), size)
            self._bins.append(file)
            self._digests.append(blocks_of(file, size))
        self._bad_file = _grown(self.partial("bad"), self._state.bad_bytes)
        self._appended = 0  # bytes since the last checkpoint
        self.shards = 0
        self.bad = 0
        self.counts = [NO_COUNTS] * keys
        self.rows = [0] * len(names)
        self.digests: list[list[str]] = [[] for _ in names]

    def partial(self, name: str) -> Path:
        """Path of a file that will become part of the output."""
        return self._folder / f"merged.{name}"

    def append(self, summary: Summary) -> list[str]:
        """Appends the next shard and returns its bad lines; one that `merged.json` counts already only adds its counts.

        Raises: UserError where its files are damaged.
        """
        assert summary.number == self.shards
        bad = []
        fault_point("preprocess.merge")
        if summary.number >= self._state.shards:
            for key, counts in enumerate(summary.keys):
                self._appended += self._copy(summary, key, counts)
            bad = list(self._bad_rows(summary))
            self._bad_file.writelines(f"{line}\n".encode() for line in bad)
        self._count(summary)
        if self._appended >= CHECKPOINT_BYTES:
            self._checkpoint()
        return bad

    def first_bad(self, summary: Summary) -> str:
        """The first bad line of the next shard, as `file:line: reason`; the shard may have been stopped by --strict."""
        if summary.stopped_at:
            return self._describe(summary, *summary.stopped_at)
        return next(self._bad_rows(summary))

    def _describe(self, summary: Summary, part: int, row: int, reason: str) -> str:
        source = summary.spans[part].source
        line = self.rows[source] + row
        for span in summary.spans[:part]:
            if span.source == source:
                line += span.rows
        return f"{self._names[source]}:{line}: {reason}"

    def _bad_rows(self, summary: Summary) -> Iterator[str]:
        with shard_path(self._folder, summary.number, "bad").open("rb") as file:
            for part, row, reason in map(json.loads, file):
                yield self._describe(summary, part, row, reason)

    def _copy(self, summary: Summary, key: int, counts: KeyCounts) -> int:
        """Appends the ids of a key and returns their bytes. Also checks the arrays that the index will need later."""
        size = 0
        for kind, wanted in zip(KINDS, counts.checksums, strict=True):
            checksum = 0
            for block in self._blocks(summary.number, f"{key}.{kind}"):
                checksum = zlib.crc32(block, checksum)
                if kind == "bin":
                    self._bins[key].write(block)
                    self._digests[key].update(block)
                    size += len(block)
            if checksum != wanted:
                raise self._damaged(summary.number)
        return size

    def _blocks(self, number: int, kind: str) -> Iterator[bytes]:
        with shard_path(self._folder, number, kind).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def _damaged(self, number: int) -> UserError:
        remove_shard(self._folder, number)
        return UserError(
            f"{shard_path(self._folder, number, '*')} differs from what was written (a crash of the machine?); "
            f"the shard was discarded: start the same command again"
        )

    def _count(self, summary: Summary) -> None:
        self.shards += 1
        self.bad += summary.bad
        for span in summary.spans:
            self.rows[span.source] += span.rows
            self.digests[span.source] += span.digests
        for key, counts in enumerate(summary.keys):
            self.counts[key] = self.counts[key].plus(counts)

    def _checkpoint(self, complete: bool = False) -> None:
        """Flushes what was appended, then updates merged.json, then deletes the ids of the merged shards."""
        for file in (*self._bins, self._bad_file):
            flush_to_disk(file)
        before = self._state.shards
        sizes = [counts.tokens * self._dtype.itemsize for counts in self.counts]
        self._state = State(self.shards, sizes, self._bad_file.tell(), complete)
        write_atomically(self._folder / "merged.json", json.dumps(self._state._asdict()))
        self._appended = 0
        for number in range(before, self.shards):
            for key in range(len(self._bins)):
                shard_path(self._folder, number, f"{key}.bin").unlink(missing_ok=True)

    def finish(self, manifests: Sequence[dict[str, Any]]) -> None:
        """Writes indices, manifests and digests after all shards were appended; then the files can be published."""
        for key, manifest in enumerate(manifests):
            with self.partial(f"{key}.idx").open("wb") as file:
                for block in self._index(key):
                    file.write(block)
                flush_to_disk(file)
            write_atomically(self.partial(f"{key}.json"), json.dumps(manifest, indent=1) + "\n")
            self._record(key)
        self._checkpoint(complete=True)

    def _record(self, key: int) -> None:
        """Writes the digests of a key's merged files."""
        blocks = self._digests[key]
        idx = whole_file(self.partial(f"{key}.idx"))
        manifest = whole_file(self.partial(f"{key}.json"))
        with self.partial(f"{key}.digests").open("wb") as file:
            file.write(encoded(blocks.bytes, blocks.blocks(), idx, manifest))
            flush_to_disk(file)

    def _index(self, key: int) -> Iterator[bytes]:
        counts = self.counts[key]
        yield HEADER.pack(
            MAGIC, VERSION, dtype_code(self._dtype), counts.sequences, counts.documents + 1
        )
        for lengths in self._arrays(key, "lengths"):
            yield lengths.tobytes()
        yield from _sums(self._arrays(key, "lengths"), self._dtype.itemsize, ends=False)
        yield np.zeros(1, "<i8").tobytes()
        yield from _sums(self._arrays(key, "sequences"), 1, ends=True)

    def _arrays(self, key: int, kind: str) -> Iterator[np.ndarray]:
        """The int32 values of all shards, block by block."""
        for number in range(self.shards):
            for block in self._blocks(number, f"{key}.{kind}"):
                yield np.frombuffer(block, "<i4")

    def close(self) -> None:
        """Closes the files; whatever merged.json does not count will be written again."""
        for file in (*self._bins, self._bad_file):
            file.close()


def _sums(arrays: Iterator[np.ndarray], scale: int, ends: bool) -> Iterator[bytes]:
    """Sum of all previous entries (`ends`: including the entry itself), times `scale`, as int64 bytes."""
    before = 0
    for array in arrays:
        sums = np.cumsum(array, dtype=np.int64) + before
        before = int(sums[-1])
        if not ends:
            sums -= array
        yield (sums * scale).astype("<i8").tobytes()


def _grown(path: Path, size: int) -> IO[bytes]:
    """Opens a file and truncates it to the bytes that merged.json counts. Raises: UserError where it is shorter."""
    path.touch()
    file = path.open("r+b")
    if file.seek(0, os.SEEK_END) < size:
        raise UserError(
            f"{path} has fewer bytes than merged.json says ({size}); use --overwrite to start again"
        )
    file.truncate(size)
    file.seek(size)
    return file


def publish(folder: Path, prefixes: Sequence[str], bad_lines: str) -> None:
    """Moves the files of a complete run to their final names; can be repeated after a kill at any point."""
    for key, prefix in enumerate(prefixes):
        parts = {
            kind: folder / f"merged.{key}.{kind}" for kind in ("bin", "idx", "json", "digests")
        }
        if parts["bin"].exists():
            for path in (digests_path(prefix), manifest_path(prefix), idx_path(prefix)):
                # what describes the old ids must never describe the new ones
                path.unlink(missing_ok=True)
            fault_point("preprocess.place")
            os.replace(parts["bin"], bin_path(prefix))
            fault_point("preprocess.place")
        if parts["idx"].exists():
            os.replace(parts["idx"], idx_path(prefix))
        if parts["json"].exists():
            os.replace(parts["json"], manifest_path(prefix))
        if parts["digests"].exists():
            os.replace(parts["digests"], digests_path(prefix))
    bad = folder / "merged.bad"
    if bad.exists() and bad.stat().st_size:
        os.replace(bad, bad_lines)
    elif bad.exists():
        Path(bad_lines).unlink(missing_ok=True)
    fsync_folder(folder.parent)
