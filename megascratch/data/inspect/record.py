"""Writes the digests of a corpus that was made elsewhere or changed on purpose (`megascratch data record`)."""

from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.data.inspect.validate import not_as_recorded
from megascratch.data.tokens.digests import blocks_of, digests_path, read_digests, write_digests
from megascratch.data.tokens.loss_mask import has_mask, mask_prefix
from megascratch.data.tokens.token_files import TokenReader, bin_path


def record(prefix: str | Path, overwrite: bool = False) -> list[Path]:
    """Writes the digests of a corpus and of its loss mask; returns the files that were written.

    Raises: UserError for an invalid corpus, and for one that differs from what was recorded before, unless
    `overwrite`.
    """
    prefixes = [str(prefix), *([mask_prefix(prefix)] if has_mask(prefix) else [])]
    return [path for one in prefixes for path in _record(one, overwrite)]


def _record(prefix: str, overwrite: bool) -> list[Path]:
    reader = TokenReader(prefix, trusting=True)
    if not overwrite and digests_path(prefix).exists():
        read_digests(prefix)
        for problem in not_as_recorded(reader):
            raise UserError(f"{problem}; --overwrite records the files as they are now")
        return []
    try:
        with bin_path(prefix).open("rb") as file:
            digests = blocks_of(file, reader.bin_bytes)
    except OSError as error:
        raise UserError(f"{bin_path(prefix)} cannot be read: {error.strerror}") from error
    write_digests(prefix, digests)
    return [digests_path(prefix)]
