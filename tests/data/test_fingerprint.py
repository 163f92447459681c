"""A corpus is told from any other by a few reads, wherever it lies."""

import os
import shutil

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.data import fingerprint
from megascratch.data.fingerprint import fingerprints, sampled
from megascratch.data.indexed import Reader
from tests.data.corpora import write

TEXT = [np.arange(50) + i for i in range(20)]


def of(prefix):
    return fingerprints({"x": Reader(prefix)})["x"]


def test_a_copy_elsewhere_has_the_same_digests(tmp_path):
    a = write(tmp_path / "a", TEXT)
    for suffix in (".bin", ".idx"):
        shutil.copy(a + suffix, tmp_path / f"b{suffix}")
        os.utime(tmp_path / f"b{suffix}", ns=(1, 1))
    assert of(a) == of(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda text: [*text, np.arange(9)], {".bin", ".idx"}),  # a document more
        (lambda text: [text[1], text[0], *text[2:]], {".bin"}),  # two of one length change places
        (lambda text: [np.concatenate(text[:2]), *text[2:]], {".idx"}),  # the same ids, other documents
        (lambda text: [text[0] + 1, *text[1:]], {".bin"}),  # other ids
    ],
)
def test_each_change_is_seen_in_the_file_that_changed(tmp_path, change, differs):
    a, b = of(write(tmp_path / "a", TEXT)), of(write(tmp_path / "b", change(TEXT)))
    assert {suffix for suffix in a if a[suffix] != b[suffix]} == differs


def test_a_large_file_is_read_in_pieces_from_its_first_byte_to_its_last(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "PIECES", 4)
    monkeypatch.setattr(fingerprint, "PIECE_BYTES", 100)
    path = tmp_path / "x"
    content = bytearray(np.random.default_rng(0).bytes(10_000))
    path.write_bytes(content)
    whole = sampled(path)
    for at, seen in ((0, True), (99, True), (3300, True), (9999, True), (200, False)):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert (sampled(path) != whole) == seen, at
    path.write_bytes(content + b"x")
    assert sampled(path)["bytes"] == 10_001 and sampled(path)["sha256"] != whole["sha256"]


def test_a_loss_mask_belongs_to_its_corpus(tmp_path):
    a = write(tmp_path / "a", TEXT)
    write(tmp_path / "a_loss_mask", [np.ones(50, int)] * 20)
    assert list(of(a)) == [".bin", ".idx", "_loss_mask.bin", "_loss_mask.idx"]


def test_a_file_that_went_away_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.bin cannot be read: No such file"):
        sampled(tmp_path / "gone.bin")
