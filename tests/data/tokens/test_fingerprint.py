"""A corpus is told from any other by a few reads, wherever it lies."""

import os
import shutil

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.build import open_splits
from megascratch.data.tokens import fingerprint, indices
from megascratch.data.tokens.digests import digests_path
from megascratch.data.tokens.fingerprint import (
    fingerprints,
    recorded,
    sampled,
    unrecorded,
)
from megascratch.data.tokens.token_files import TokenReader
from tests.support.corpora import write

TEXT = [np.arange(50) + i for i in range(20)]


def of(prefix):
    return fingerprints({"x": TokenReader(prefix)})["x"]


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
        (
            lambda text: [np.concatenate(text[:2]), *text[2:]],
            {".idx"},
        ),  # the same ids, other documents
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


def order_of(prefix, cache, **settings):
    data = DataConfig(
        data_path=[prefix], split="1", seq_length=8, data_cache_path=str(cache), **settings
    )
    return open_splits(data, seed=1, vocab_size=99, train_samples=9).order_digests(5)


@pytest.mark.parametrize(
    "settings", [{}, {"packing": "best-fit"}, {"data_order": "megatron"}], ids=str
)
def test_nodes_that_read_another_order_differ_before_they_start(tmp_path, monkeypatch, settings):
    prefix = write(tmp_path / "a", TEXT)
    sound = order_of(prefix, tmp_path / "one", **settings)
    assert order_of(prefix, tmp_path / "two", **settings) == sound
    with monkeypatch.context() as patch:
        for module, name in (
            ("dataset", "permutation"),
            ("packing", "permutation"),
            ("packing", "best_fit"),
            ("megatron_order", "legacy_shuffle"),
        ):
            patch.setattr(f"megascratch.data.samples.{module}.{name}", wrong(name))
        other = order_of(prefix, tmp_path / "three", **settings)
    assert other["index caches"] != sound["index caches"]
    assert (
        order_of(prefix, tmp_path / "three", **settings)["index caches"] == other["index caches"]
    ), "it stays there"


def wrong(name):
    """Two neighbours changed in what the sound function makes."""
    sound = getattr(indices, name)

    def changed(*arguments):
        made = sound(*arguments)
        array = arguments[0] if made is None else made[0] if isinstance(made, tuple) else made
        if len(array) > 1:
            array[[0, 1]] = array[[1, 0]]
        return made

    return changed


def test_what_was_recorded_tells_corpora_apart_and_a_missing_record_is_told_once(tmp_path):
    a, b = write(tmp_path / "a", TEXT), write(tmp_path / "b", TEXT)
    c = write(tmp_path / "c", [TEXT[0] + 1, *TEXT[1:]])
    digests = recorded({name: TokenReader(name) for name in (a, b, c)})
    assert digests[f"digests {a}"] == digests[f"digests {b}"] != digests[f"digests {c}"]
    assert unrecorded({a: TokenReader(a)}) == []
    digests_path(a).unlink()
    digests_path(c).unlink()
    (notice,) = unrecorded({name: TokenReader(name) for name in (a, b, c)})
    assert notice.startswith(f"no digests for {a}, {c}, so")
    assert recorded({a: TokenReader(a)}) == {f"digests {a}": "none"}
