"""Fingerprints of corpora that a checkpoint stores: cheap for terabytes, and independent of where the files are.

    {prefix: {".bin": {"bytes": 1234, "sha256": ...}, ".idx": {"bytes": ..., "sha256": ...}}}

The sha256 of an index covers all its bytes; that of ids covers PIECES pieces of PIECE_BYTES, spread evenly from the
first byte to the last (all bytes of a smaller file). So another corpus, another tokenizer, a truncation, an added
document and a damaged region of megabytes are detected; a few ids changed in place between two pieces are not.
Objects in a store have their size and version instead.
"""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from megascratch.config.errors import UserError
from megascratch.data.tokens.digests import READ_BYTES, Digests, read_digests
from megascratch.data.tokens.file_digests import NOTHING_KNOWN, FileState, KnownDigests
from megascratch.data.tokens.loss_mask import has_mask, mask_prefix
from megascratch.data.tokens.remote import is_remote
from megascratch.data.tokens.token_files import TokenReader, bin_path, idx_path

PIECES = 64
PIECE_BYTES = 1 << 16
UNRECORDED = "none"


def fingerprints(
    corpora: Mapping[str, TokenReader], known: KnownDigests = NOTHING_KNOWN
) -> dict[str, dict[str, Any]]:
    """Size and digest of every file of the corpora.

    Args:
        known: digests that need not be computed again.

    Raises: UserError where a file can no longer be read.
    """
    return {prefix: _corpus(reader, known) for prefix, reader in corpora.items()}


def digests_to_share(prefixes: Iterable[str]) -> list[tuple[FileState, dict[str, Any]]]:
    """The entries of `KnownDigests` for corpora of this machine, for other processes: everything for which
    `TokenReader` and `fingerprints` would read whole files or many parts of them. A file that cannot be read is left
    out: opening it says why."""
    entries = []
    for prefix in prefixes:
        wanted = [(idx_path(prefix), _whole), (bin_path(prefix), _parts)]
        if has_mask(prefix):
            mask = mask_prefix(prefix)
            wanted += [(bin_path(mask), _parts), (idx_path(mask), _parts)]
        for path, digests in wanted:
            with suppress(OSError, UserError):
                state = FileState.of(path)  # before it is read: a later change has another state
                entries.append((state, digests(path)))
    return entries


def _whole(path: Path) -> dict[str, Any]:
    sha256 = hashlib.sha256()
    xxh3_128 = xxhash.xxh3_128()
    with path.open("rb") as file:
        while raw := file.read(READ_BYTES):
            sha256.update(raw)
            xxh3_128.update(raw)
    return {"sha256": sha256.hexdigest(), "xxh3_128": xxh3_128.hexdigest()}


def _parts(path: Path) -> dict[str, Any]:
    return {"sampled": sampled(path)}


def recorded(corpora: Mapping[str, TokenReader]) -> dict[str, str]:
    """For each corpus (and its loss mask) one digest of its .bin and .idx when they were written."""
    by_name = {}
    for prefix, reader in corpora.items():
        by_name[f"digests {prefix}"] = _pair(reader.digests)
        if has_mask(reader.files):
            by_name[f"digests {mask_prefix(prefix)}"] = _pair(
                read_digests(mask_prefix(reader.files))
            )
    return by_name


def _pair(digests: Digests | None) -> str:
    if digests is None:
        return UNRECORDED
    both = xxhash.xxh3_128(digests.idx.digest)
    both.update(digests.blocks.data)
    return both.hexdigest()


def unrecorded(corpora: Mapping[str, TokenReader]) -> list[str]:
    """A warning that names the corpora without digests; empty if there are none."""
    missing = []
    for name, digest in recorded(corpora).items():
        if digest == UNRECORDED:
            missing.append(name.removeprefix("digests "))
    if not missing:
        return []
    names = ", ".join(missing)
    remedy = f"megascratch data record {missing[0]}"
    if is_remote(missing[0]):
        remedy = f"upload the .digests that were made with the corpus as {missing[0]}.digests"
    return [f"no digests for {names}, so damage would not be detected: {remedy}"]


def _corpus(reader: TokenReader, known: KnownDigests) -> dict[str, Any]:
    objects = reader.identity.get("objects")
    if objects is not None:
        (_, bin_bytes, bin_version), (_, idx_bytes, idx_version) = objects
        return {
            ".bin": {"bytes": bin_bytes, "version": bin_version},
            ".idx": {"bytes": idx_bytes, "version": idx_version},
        }
    files = {
        ".bin": _sampled_once(bin_path(reader.files), known),
        ".idx": {
            "bytes": idx_path(reader.files).stat().st_size,
            "sha256": reader.identity["idx_sha256"],
        },
    }
    if has_mask(reader.files):
        mask = mask_prefix(reader.files)
        files["_loss_mask.bin"] = _sampled_once(bin_path(mask), known)
        files["_loss_mask.idx"] = _sampled_once(idx_path(mask), known)
    return files


def _sampled_once(path: Path, known: KnownDigests) -> dict[str, Any]:
    found: dict[str, Any] | None = known.get(path, "sampled")
    return sampled(path) if found is None else found


def sampled(path: Path) -> dict[str, Any]:
    """Size of a file, and the sha256 of at most PIECES x PIECE_BYTES of its bytes."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= PIECES * PIECE_BYTES:
                starts = list(range(0, size, PIECE_BYTES))
            else:
                last = size - PIECE_BYTES
                starts = [last * piece // (PIECES - 1) for piece in range(PIECES)]
            for start in starts:
                file.seek(start)
                digest.update(file.read(PIECE_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return {"bytes": size, "sha256": digest.hexdigest()}
