"""Token files for programs: made from text files, and read as arrays without a copy."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megascratch.api.surroundings import hidden_main, kept_environment
from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.data.tokens.manifest import read_manifest
from megascratch.data.tokens.token_files import TokenReader


class TokenDataset(Sequence[np.ndarray]):
    """The documents of a corpus ({prefix}.bin, .idx), memory-mapped: `dataset[3]` is the ids of document 3.

    The index is checked when the corpus is opened, the ids against their checksums when they are first read.

    Args:
        prefix: of the two files, as in `data_path`.

    Raises: UserError, also when ids are read, for files that are missing or damaged.
    """

    def __init__(self, prefix: str | Path) -> None:
        self._reader = TokenReader(prefix)
        self.prefix = str(prefix)

    @property
    def tokens(self) -> int:
        """The number of tokens of all documents, ends of documents included."""
        return self._reader.tokens

    @property
    def dtype(self) -> np.dtype:
        """In which the ids are stored."""
        return self._reader.dtype

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents]: tokens of each document."""
        ends = np.concatenate(([0], np.cumsum(self._reader.lengths, dtype=np.int64)))
        return np.diff(ends[self._reader.documents])

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What is known of its making: tokenizer, inputs, counts; None if another tool has made the corpus."""
        return read_manifest(self._reader)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self._reader.documents) - 1

    def __getitem__(self, number: Any) -> Any:
        """The ids [tokens] of a document, read-only, usually as a view of the file; a list of them for a slice.

        Raises: IndexError; UserError for damage.
        """
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(
                f"{self.prefix} has {len(self)} documents: there is no document {number}"
            )
        number %= len(self)
        first, stop = self._reader.documents[number : number + 2].tolist()
        if stop - first == 1:
            return self._reader.get(first)
        parts = [self._reader.get(sequence) for sequence in range(first, stop)]
        whole = np.concatenate([*parts, np.empty(0, self.dtype)])
        whole.flags.writeable = False
        return whole

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(len(self)):
            yield self[number]

    def check(self) -> None:
        """Compares every id with its checksum. Raises: UserError naming the file and the bytes that are damaged."""
        self._reader.verify_blocks(0, self._reader.bin_bytes)

    def __repr__(self) -> str:
        return f"TokenDataset({self.prefix!r}: {len(self):,} documents, {self.tokens:,} tokens)"


def preprocess(
    files: str | Path | Sequence[str | Path],
    output_prefix: str | Path,
    tokenizer_model: str | Path,
    *,
    append_eod: bool = True,
    key: str = "text",
    workers: int = 1,
    overwrite: bool = False,
) -> TokenDataset:
    """Turns text files into a corpus of token ids, as `megascratch preprocess` does.

    Args:
        files: files, folders or patterns; .jsonl .txt .parquet, also compressed.
        output_prefix: of the files that are written: {output_prefix}_{key}_document.bin, .idx and .json.
        tokenizer_model: file of the tokenizer.
        append_eod: whether each document ends with the end-of-document id.
        key: of the text in a record.
        workers: processes that encode.
        overwrite: whether to replace a corpus that was made from other files or with other options.

    Returns: the corpus; `prefix` is its name for `data_path`.
    Raises: UserError for everything that the command refuses.
    """
    inputs = [files] if isinstance(files, str | Path) else list(files)
    words = ["--input", *map(str, inputs), "--output-prefix", str(output_prefix)]
    words += ["--tokenizer-model", str(tokenizer_model), "--json-keys", key]
    words += ["--workers", str(workers)]
    words += ["--append-eod"] if append_eod else []
    words += ["--overwrite"] if overwrite else []
    with hidden_main(), kept_environment():
        code = call("preprocess", words)
    if code:
        raise UserError(f"preprocess ended with code {code}, for the reason that is printed above")
    return TokenDataset(f"{output_prefix}_{key}_document")
