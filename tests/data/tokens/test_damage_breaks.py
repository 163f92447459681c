"""The laws of damage can fail: each deliberate break of the code below makes one of them fail, and sound code none."""

from unittest.mock import patch

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.data.inspect.validate import problems
from megascratch.data.tokens.index_cache import load_or_build
from megascratch.data.tokens.indices import TokenFile, read_pieces
from megascratch.data.tokens.loss_mask import mask_prefix
from megascratch.data.tokens.manifest import manifest_path, write_manifest
from megascratch.data.tokens.token_files import TokenReader, bin_path, idx_path
from tests.support.corpora import write
from tests.support.digests import flip

IDS = [[1, 2, 3], [4, 5], [6]]


def a_flipped_id_is_refused(folder):
    prefix = write(folder / "c", IDS)
    flip(bin_path(prefix), 8)
    with pytest.raises(UserError):
        TokenReader(prefix).read(np.array([[2, 0, 1], [1, 0, 2]]))


def a_swapped_length_is_refused(folder):
    prefix, other = write(folder / "c", IDS), write(folder / "d", [[1, 2], [3, 4, 5], [6]])
    idx_path(prefix).write_bytes(idx_path(other).read_bytes())
    with pytest.raises(UserError):
        TokenReader(prefix)


def a_changed_manifest_is_refused(folder):
    prefix = write(folder / "c", IDS)
    write_manifest(prefix, {"tokenizer": {"fingerprint": "aa"}})
    flip(manifest_path(prefix), manifest_path(prefix).read_bytes().index(b"aa"))
    with pytest.raises(UserError):
        TokenReader(prefix)


def a_flipped_cache_is_built_again(folder):
    load_or_build(folder, {"a": 1}, lambda: {"x": np.arange(9)})
    (file,) = folder.glob("*/x.npy")
    flip(file, -8)
    assert load_or_build(folder, {"a": 1}, lambda: {"x": np.arange(9)})["x"].tolist() == list(
        range(9)
    )


def validate_finds_a_flipped_mask(folder):
    prefix = write(folder / "c", IDS)
    mask = write(folder / mask_prefix("c"), [[1, 0, 1], [1, 1], [0]], "uint8")
    flip(bin_path(mask), 1)
    assert list(problems(prefix))


def an_id_of_the_padding_is_refused(folder):
    reader = TokenReader(write(folder / "c", IDS))
    reader.limit_ids(6)
    assert reader.read(np.array([[1, 0, 2]])).tolist() == [4, 5]
    with pytest.raises(
        UserError, match=r"document 2, sequence 2, token 0 has id 6, the vocabulary has 6"
    ):
        reader.read(np.array([[0, 0, 3], [2, 0, 1]]))


def always(value):
    return lambda *_, **__: value


def believing(file, pieces):
    """read_pieces that looks at no mark and at no limit."""
    unchecked = TokenFile(
        file.bytes, file.code, file.lengths, file.pointers, np.empty(0, np.uint8), -1
    )
    return read_pieces(unchecked, pieces)


INDEXED, CACHE, CHECK = (
    "megascratch.data.tokens.token_files",
    "megascratch.data.tokens.index_cache",
    "megascratch.data.inspect.validate",
)
BREAKS = {
    "blocks are never compared": (
        a_flipped_id_is_refused,
        f"{INDEXED}.block_is_intact",
        always(True),
    ),
    "blocks that were never read count as compared": (
        a_flipped_id_is_refused,
        f"{INDEXED}.read_pieces",
        believing,
    ),
    "the index is not compared": (
        a_swapped_length_is_refused,
        f"{INDEXED}.read_digests",
        always(None),
    ),
    "the manifest is not compared": (
        a_changed_manifest_is_refused,
        f"{INDEXED}.read_digests",
        always(None),
    ),
    "validate forgets the loss mask": (
        validate_finds_a_flipped_mask,
        f"{CHECK}.has_mask",
        always(False),
    ),
    "validate compares no block": (
        validate_finds_a_flipped_mask,
        f"{CHECK}.damaged_blocks",
        always([]),
    ),
    "ids are not judged when they are read": (
        an_id_of_the_padding_is_refused,
        f"{INDEXED}.read_pieces",
        believing,
    ),
}


@pytest.mark.parametrize(("law", "where", "broken"), BREAKS.values(), ids=BREAKS)
def test_a_deliberate_break_is_noticed(tmp_path, law, where, broken):
    (tmp_path / "sound").mkdir()
    law(tmp_path / "sound")
    (tmp_path / "broken").mkdir()
    with patch(where, broken), pytest.raises((AssertionError, pytest.fail.Exception)):
        law(tmp_path / "broken")


def test_a_cache_whose_arrays_are_not_compared_is_noticed(tmp_path):
    a_flipped_cache_is_built_again(tmp_path / "sound")

    class Blind:
        """A digest that every file has."""

        digest = bytes(16)

    with patch(f"{CACHE}.whole_file", always(Blind)), pytest.raises(AssertionError):
        a_flipped_cache_is_built_again(tmp_path / "broken")
