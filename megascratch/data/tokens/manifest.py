"""The manifest of a corpus ({prefix}.json): its tokenizer, inputs and counts. Checks that a model may read the corpus.

Megatron's two files name neither tokenizer nor vocabulary; this third one does. A corpus without it (made elsewhere)
is read once in full to find its largest id, which is then stored in the index cache.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.config.json_record import (
    COUNT,
    INTEGER,
    OBJECT,
    TEXT,
    optional,
    parse_object,
    require_fields,
)
from megascratch.config.printable import printable, shown
from megascratch.data.tokens.digests import digests_path, manifest_file, read_digests, with_manifest
from megascratch.data.tokens.index_cache import load_or_build
from megascratch.data.tokens.token_files import TokenReader
from megascratch.runtime.atomic_file import flush_to_disk, move_into_place, partial_path

FIELDS = {
    **dict.fromkeys(
        ("documents", "sequences", "tokens", "learned_tokens", "bad_lines", "bin_bytes"), COUNT
    ),
    **dict.fromkeys(("min_token", "max_token"), INTEGER),
    **dict.fromkeys(("bin_sha256", "idx_sha256", "plan"), TEXT),
    "tokenizer": optional(OBJECT),
}
"""The fields of a manifest that are read; all others are only information."""

TOKENIZER_FIELDS = {
    "kind": TEXT,
    "fingerprint": TEXT,
    "model": optional(TEXT),
    "vocab_size": COUNT,
    "eod": optional(COUNT),
}


def manifest_path(prefix: str | Path) -> Path:
    """Path of the manifest of a corpus."""
    return manifest_file(prefix)


def write_manifest(prefix: str | Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest atomically; if the corpus has digests, they are updated to cover the new manifest."""
    path = manifest_path(prefix)
    digests = read_digests(prefix)
    partial = partial_path(path)
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
        flush_to_disk(file)
    # a crash may leave no digests, but never those of another manifest
    digests_path(prefix).unlink(missing_ok=True)
    move_into_place(partial, path)
    if digests is not None:
        with_manifest(prefix, digests)


def read_manifest(reader: TokenReader) -> dict[str, Any] | None:
    """The manifest, or None where there is none or it describes another .bin (of a different size).

    Raises: UserError where it is damaged.
    """
    manifest = stored_manifest(reader.files)
    if manifest and manifest.get("bin_bytes") == reader.bin_bytes:
        return manifest
    return None


def stored_manifest(prefix: str | Path) -> dict[str, Any] | None:
    """The manifest under this name, whether or not it describes the .bin. Raises: UserError where it is damaged."""
    path = manifest_path(prefix)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    manifest = parse_object(content, path)
    require_fields(manifest, FIELDS, path)
    require_fields(manifest.get("tokenizer") or {}, TOKENIZER_FIELDS, f"{path}: tokenizer")
    return manifest


def check_corpus(
    reader: TokenReader, vocab_size: int, fingerprint: str | None, cache: Path | None
) -> None:
    """Refuses a corpus made with another tokenizer (`fingerprint`; None: unknown) or with ids outside the vocabulary.
    Ids that its manifest does not mention are refused by `reader` when they are read.

    Raises: UserError naming both tokenizers, or file, sequence, id and vocabulary.
    """
    manifest = read_manifest(reader) or {}
    made_with = manifest.get("tokenizer") or {}
    if fingerprint is not None and made_with.get("fingerprint", fingerprint) != fingerprint:
        raise UserError(
            f"{reader.prefix} was made with another tokenizer: {shown(made_with.get('kind'))} "
            f"{printable(made_with['fingerprint'])[:16]} ({shown(made_with.get('model'))}), "
            f"training uses {fingerprint[:16]}; give that tokenizer's file as --tokenizer-model, or preprocess the "
            f"corpus again"
        )
    # a manifest may be wrong: every id is checked again when it is read
    reader.limit_ids(vocab_size)
    low, high = _token_range(reader, manifest, cache)
    if low < 0 or high >= vocab_size:
        for sequence, place, token in reader.places_outside(vocab_size):
            raise reader.outside_vocabulary(sequence, place, token, high + 1)
        raise UserError(
            f"{manifest_path(reader.prefix)} says that the corpus has ids from {low} to {high}, the vocabulary has "
            f"{vocab_size} (ids 0 to {vocab_size - 1}), and no id in the file is outside; megascratch data validate "
            f"{reader.prefix} shows what is wrong"
        )


def _token_range(
    reader: TokenReader, manifest: Mapping[str, Any], cache: Path | None
) -> tuple[int, int]:
    """Smallest and largest id, as the manifest says, or by reading all of them once."""
    low = manifest.get("min_token")
    high = manifest.get("max_token")
    if isinstance(low, int) and isinstance(high, int):
        return low, high
    if cache is None:
        return reader.token_range()
    key = {"what": "token range", **reader.identity}
    arrays = load_or_build(cache, key, lambda: {"range": np.array(reader.token_range())})
    low, high = arrays["range"].tolist()
    return low, high
