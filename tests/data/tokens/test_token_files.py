"""The token files keep what was written, match Megatron byte for byte, and refuse every kind of damage."""

import hashlib
import os
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.data.tokens import _indices, indices_python
from megascratch.data.tokens.digests import digests_path
from megascratch.data.tokens.token_files import (
    HEADER,
    MAGIC,
    TokenReader,
    TokenWriter,
    bin_path,
    idx_path,
    token_dtype,
)
from tests.support.corpora import golden, write


@pytest.mark.parametrize(
    ("documents", "seed", "bin_md5", "idx_md5", "sizes"),
    [
        (1500, 1, "026546817131", "3dfaa3b9e095", (183_878, 30_042)),
        (300, 2, "3c1a39637a00", "56deb76ba6f8", (34_100, 6_042)),
    ],
)
def test_files_are_megatrons_byte_for_byte(tmp_path, documents, seed, bin_md5, idx_md5, sizes):
    prefix = golden(tmp_path / "corpus", documents, seed)
    raw = [path(prefix).read_bytes() for path in (bin_path, idx_path)]
    assert tuple(map(len, raw)) == sizes
    assert [hashlib.md5(content).hexdigest()[:12] for content in raw] == [bin_md5, idx_md5]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.lists(st.integers(0, 200), max_size=9), max_size=4), max_size=8),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "int64"]),
)
def test_what_is_written_is_read(tmp_path_factory, documents, dtype):
    """Documents of any number of sequences, empty ones among them."""
    prefix = tmp_path_factory.mktemp("corpus") / "c"
    with TokenWriter(prefix, dtype) as writer:
        for sequences in documents:
            writer.add_document(list(chain(*sequences)), [len(sequence) for sequence in sequences])
    reader = TokenReader(prefix)
    flat = [sequence for sequences in documents for sequence in sequences]
    assert [reader.get(number).tolist() for number in range(len(reader))] == flat
    assert np.diff(reader.documents).tolist() == [len(sequences) for sequences in documents]
    assert reader.tokens == sum(map(len, flat)) and reader.dtype == dtype


def test_a_part_of_a_sequence_is_read_alone(tmp_path):
    reader = TokenReader(write(tmp_path / "c", [[9], range(10)]))
    assert reader.get(1, 3).tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert reader.get(1, 3, 2).tolist() == [3, 4]
    assert reader.get(1, 10).tolist() == []
    for sequence, offset, length in ((2, 0, 1), (-1, 0, 1), (1, 8, 3), (1, -1, 2)):
        with pytest.raises(IndexError):
            reader.get(sequence, offset, length)


def test_an_empty_document_has_an_entry_and_no_sequence(tmp_path):
    reader = TokenReader(write(tmp_path / "c", [[], [1, 2], []]))
    assert (len(reader), reader.documents.tolist()) == (1, [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, "uint16"), (65_499, "uint16"), (65_500, "int32")]
)
def test_small_vocabularies_take_two_bytes(vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype


@pytest.mark.parametrize("tokens", [[-1], [65_536], [3, 70_000]])
def test_an_id_that_does_not_fit_is_refused_not_wrapped(tmp_path, tokens):
    with (
        pytest.raises(ValueError, match="do not fit uint16"),
        TokenWriter(tmp_path / "c", "uint16") as writer,
    ):
        writer.add_document(tokens)


def test_lengths_must_cut_the_whole_document(tmp_path):
    with (
        pytest.raises(ValueError, match="do not cut"),
        TokenWriter(tmp_path / "c", "uint16") as writer,
    ):
        writer.add_document([1, 2, 3], [1, 1])


def test_an_error_leaves_nothing_behind_and_keeps_the_old_files(tmp_path):
    prefix = write(tmp_path / "c", [[1, 2, 3]])
    with pytest.raises(RuntimeError), TokenWriter(prefix, "uint16") as writer:
        writer.add_document([4])
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.bin", "c.digests", "c.idx"]
    assert TokenReader(prefix).get(0).tolist() == [1, 2, 3]


def test_final_names_appear_only_when_all_is_written(tmp_path):
    writer = TokenWriter(tmp_path / "c", "uint16")
    writer.add_document([1])
    assert not bin_path(tmp_path / "c").exists() and not idx_path(tmp_path / "c").exists()
    writer.finish()
    assert TokenReader(tmp_path / "c").get(0).tolist() == [1]


def test_a_crash_between_the_two_moves_never_pairs_new_ids_with_an_old_index(tmp_path, monkeypatch):
    prefix = write(tmp_path / "c", [[1, 2, 3]])
    move = os.replace
    monkeypatch.setattr(
        os, "replace", lambda old, new: move(old, new) if str(new).endswith(".bin") else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "c", [[4, 5], [6, 7]])
    with pytest.raises(UserError, match=r"c\.idx cannot be read"):
        TokenReader(prefix)


def test_every_truncation_is_refused_by_name_and_number(tmp_path):
    prefix = write(tmp_path / "c", [[1, 2, 3], [4, 5]])
    for path in (idx_path(prefix), bin_path(prefix)):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match=f"{path.name}.*({size} bytes|not a token index)"):
                TokenReader(prefix)
        path.write_bytes(whole)
    assert len(TokenReader(prefix)) == 2


def damaged(path: Path, offset: int, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)


FIRST_LENGTH, FIRST_POINTER, FIRST_DOCUMENT = HEADER.size, HEADER.size + 4 * 2, HEADER.size + 12 * 2


@pytest.mark.parametrize(
    ("offset", "content", "law"),
    [
        (0, b"TMIDIDX", "not a token index"),
        (len(MAGIC), struct.pack("<Q", 2), "version 2"),
        (17, b"\x09", "dtype code 9"),
        (17, b"\x06", "dtype code 6"),
        (18, struct.pack("<Q", 3), "truncated: 82 bytes, 3 sequences"),
        (18, struct.pack("<Q", 1), "longer than its header says"),
        (18, struct.pack("<Q", 2**63), "truncated"),
        (26, struct.pack("<Q", 0), "longer than its header says"),
        (FIRST_LENGTH, struct.pack("<i", -3), "sequence 0 has a negative length"),
        (FIRST_LENGTH, struct.pack("<i", 4), "sequence 1 begins before"),
        (
            FIRST_LENGTH + 4,
            struct.pack("<i", 3),
            "shorter than its index says: 10 bytes, c.idx needs 12",
        ),
        (FIRST_POINTER, struct.pack("<q", -2), "sequence 0 begins before"),
        (
            FIRST_POINTER + 8,
            struct.pack("<q", 7),
            "sequence 1 does not begin on a whole uint16 token",
        ),
        (
            FIRST_DOCUMENT,
            struct.pack("<q", 1),
            "documents must run from sequence 0 to 2, they run from 1 to 2",
        ),
        (FIRST_DOCUMENT + 8, struct.pack("<q", 3), "document 1 ends before it begins"),
        (
            FIRST_DOCUMENT + 16,
            struct.pack("<q", 1),
            "documents must run from sequence 0 to 2, they run from 0 to 1",
        ),
    ],
)
def test_every_broken_law_is_named(tmp_path, offset, content, law):
    prefix = write(tmp_path / "c", [[1, 2, 3], [4, 5]])
    damaged(idx_path(prefix), offset, content)
    with pytest.raises(UserError, match=law):
        TokenReader(prefix)


def test_random_damage_is_refused_or_read_but_never_crashes(tmp_path):
    """Both engines see the same damage."""
    prefix = golden(tmp_path / "c", 20, 3)
    digests_path(prefix).unlink()  # they would find all of it
    whole, size = idx_path(prefix).read_bytes(), bin_path(prefix).stat().st_size
    random = np.random.default_rng(0)
    for _ in range(500):
        idx_path(prefix).write_bytes(whole)
        damaged(
            idx_path(prefix),
            int(random.integers(len(whole))),
            random.bytes(int(random.integers(1, 9))),
        )
        raw = idx_path(prefix).read_bytes()
        sound = _indices.sound_index(raw, size)
        assert sound == indices_python.sound_index(raw, size)
        try:
            reader = TokenReader(prefix)
        except UserError:
            assert not sound
            continue
        assert sound
        for sequence in range(len(reader)):
            reader.get(sequence)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_named(tmp_path, suffix):
    prefix = write(tmp_path / "c", [[1]])
    Path(prefix + suffix).unlink()
    with pytest.raises(UserError, match=f"c{suffix} cannot be read: No such file"):
        TokenReader(prefix)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        TokenWriter(tmp_path / "file" / "c", "uint16")
