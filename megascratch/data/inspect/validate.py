"""Validates a corpus completely and reports every problem (`megascratch data validate`).

`TokenReader` refuses a corpus at its first problem; this check continues as far as the rest can be trusted: without a
header there are no arrays, without valid arrays no sequences, without sequences no ids.

`record` writes the digests of a corpus that was made elsewhere or changed on purpose (`megascratch data record`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.digests import (
    BLOCK_BYTES,
    Digests,
    blocks_of,
    damaged_blocks,
    digests_path,
    read_digests,
    whole_file,
    write_digests,
)
from megascratch.data.tokens.idx_format import BLOCK, Index, broken_laws, read_index
from megascratch.data.tokens.loss_mask import has_mask, mask_prefix
from megascratch.data.tokens.manifest import manifest_path, stored_manifest
from megascratch.data.tokens.missing import require_corpus
from megascratch.data.tokens.token_files import TokenReader, bin_path, idx_path, open_map


def problems(
    prefix: str | Path, vocab_size: int | None = None, fingerprint: str | None = None
) -> Iterator[str]:
    """One message per problem, in the order: header, documents, sequences, .bin's size, digests, ids, manifest, mask.

    `vocab_size`: ids must be below it; None: the manifest's, or ids must only be not negative. `fingerprint`: that of
    the tokenizer that the manifest must name, if it names one.
    """
    try:
        require_corpus(str(prefix))
        index = read_index(idx_path(prefix), open_map(idx_path(prefix), "index"))
        bin_bytes = len(open_map(bin_path(prefix), "token file"))
    except UserError as error:
        yield str(error)
        return
    valid = True
    for law in broken_laws(index):
        valid = False
        yield f"{idx_path(prefix)}: {law}"
    if not valid:
        return
    yield from _gaps(prefix, index)
    needed = index.end
    if bin_bytes > needed:
        yield f"{bin_path(prefix)}: {bin_bytes - needed} bytes after the last sequence belong to none"
    elif bin_bytes < needed:
        yield f"{bin_path(prefix)} has {bin_bytes} bytes, its index needs {needed}"
        return
    reader = TokenReader(prefix, trusting=True)
    yield from not_as_recorded(reader)
    manifest = None
    damage = None
    try:
        manifest = stored_manifest(reader.files)
    except UserError as error:
        damage = str(error)
    yield from _wrong_ids(reader, vocab_size, manifest)
    if damage is not None:
        yield damage
    if manifest is not None:
        yield from _wrong_manifest(reader, fingerprint, manifest)
    if has_mask(prefix):
        yield from _wrong_mask(reader)


def not_as_recorded(reader: TokenReader) -> Iterator[str]:
    """Every file, and every block of ids, that differs from .digests; nothing if the corpus has no digests."""
    try:
        digests = read_digests(reader.files)
    except UserError as error:
        yield str(error)
        return
    if digests is None:
        return
    yield from _changed_files(reader, digests)
    if digests.bin_bytes != reader.bin_bytes:
        yield f"{bin_path(reader.prefix)} has {reader.bin_bytes} bytes, {digests.bin_bytes} were written"
        return
    for block in damaged_blocks(reader.view, digests):
        start = block * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, reader.bin_bytes)
        first = max(reader.sequence_at(start), 0)
        last = reader.sequence_at(stop - 1)
        yield (
            f"{bin_path(reader.prefix)}: bytes {start:,} to {stop:,} (sequences {first} to {last}) differ from "
            f"what was written"
        )


def _changed_files(reader: TokenReader, digests: Digests) -> Iterator[str]:
    idx = idx_path(reader.prefix)
    manifest = manifest_path(reader.prefix)
    if whole_file(idx) != digests.idx:
        yield f"{idx} differs from what was written: its checksum is different"
    if manifest.exists():
        if digests.manifest is None:
            yield f"{manifest} is not covered by the digests: megascratch data record {reader.prefix} --overwrite"
        elif whole_file(manifest) != digests.manifest:
            yield f"{manifest} differs from what was written: its checksum is different"
    elif digests.manifest is not None:
        yield f"{manifest} is missing: it was written with the corpus"


def _wrong_mask(reader: TokenReader) -> Iterator[str]:
    """Checks that the loss mask is a corpus of 0 and 1 whose sequences have the same lengths."""
    prefix = mask_prefix(reader.prefix)
    messages = list(problems(prefix, vocab_size=2))
    yield from messages
    if messages:
        return
    mask = TokenReader(prefix, trusting=True)
    if not np.array_equal(mask.lengths, reader.lengths):
        yield f"{prefix} is not a loss mask of {reader.prefix}: its sequences have other lengths"


def _gaps(prefix: str | Path, index: Index) -> Iterator[str]:
    """Gaps between sequences. A corpus with gaps can be read, but Megatron writes pointers without any."""
    end = 0
    for start in range(0, len(index.lengths), BLOCK):
        lengths = index.lengths[start : start + BLOCK].astype(np.int64)
        pointers = index.pointers[start : start + BLOCK]
        ends = pointers + lengths * index.dtype.itemsize
        previous_ends = np.concatenate([[end], ends[:-1]])
        for at in np.flatnonzero(pointers != previous_ends).tolist():
            yield (
                f"{idx_path(prefix)}: sequence {start + at} begins at byte {pointers[at]}, "
                f"the previous one ends at {previous_ends[at]}"
            )
        end = int(ends[-1])


def _wrong_ids(
    reader: TokenReader, vocab_size: int | None, manifest: Mapping[str, Any] | None
) -> Iterator[str]:
    """One message for each id that is negative or outside the vocabulary."""
    if vocab_size is None and manifest is not None:
        tokenizer = manifest.get("tokenizer") or {}
        vocab_size = tokenizer.get("vocab_size")
    if vocab_size is None:
        vocab_size = int(np.iinfo(reader.dtype).max) + 1
    for sequence, token in reader.outside(vocab_size):
        yield f"{reader.prefix}.bin: sequence {sequence} has id {token}, the vocabulary has 0 to {vocab_size - 1}"


def _wrong_manifest(
    reader: TokenReader, fingerprint: str | None, manifest: Mapping[str, Any]
) -> Iterator[str]:
    """Where the manifest differs from the files."""
    path = manifest_path(reader.prefix)
    made_with = (manifest.get("tokenizer") or {}).get("fingerprint")
    if fingerprint and made_with and made_with != fingerprint:
        yield f"{path}: made with the tokenizer {made_with[:16]}, the given one is {fingerprint[:16]}"
    for name, value in _facts(reader, manifest).items():
        if name in manifest and manifest[name] != value:
            yield f"{path}: {name} is {manifest[name]}, the files have {value}"


def _facts(reader: TokenReader, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a manifest should have; checksums are computed only if the manifest has them."""
    low, high = reader.token_range()
    facts: dict[str, Any] = {
        "documents": len(reader.documents) - 1,
        "sequences": len(reader),
        "tokens": reader.tokens,
        "bin_bytes": reader.bin_bytes,
        "min_token": low,
        "max_token": high,
    }
    if "bin_sha256" in manifest:
        digest = hashlib.sha256()
        for _, ids in reader.blocks():
            digest.update(ids.data)
        facts["bin_sha256"] = digest.hexdigest()
    if "idx_sha256" in manifest:
        facts["idx_sha256"] = reader.identity["idx_sha256"]
    return facts


def record(prefix: str | Path, overwrite: bool = False) -> list[Path]:
    """Writes the digests of a corpus and of its loss mask; returns the files that were written.

    Raises: UserError for an invalid corpus, and for one that differs from what was recorded before, unless
    `overwrite`.
    """
    prefixes = [str(prefix)]
    if has_mask(prefix):
        prefixes.append(mask_prefix(prefix))
    written = []
    for one in prefixes:
        reader = TokenReader(one, trusting=True)
        if overwrite or not digests_path(one).exists():
            _write_digests(reader)
            written.append(digests_path(one))
        else:
            read_digests(one)
            for problem in not_as_recorded(reader):
                raise UserError(f"{problem}; --overwrite records the files as they are now")
    return written


def _write_digests(reader: TokenReader) -> None:
    path = bin_path(reader.files)
    try:
        with path.open("rb") as file:
            digests = blocks_of(file, reader.bin_bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    write_digests(reader.files, digests)
