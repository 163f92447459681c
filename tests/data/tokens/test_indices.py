"""The C++ indices equal their Python twins and Megatron's golden arrays; wrong arguments are refused."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.data.tokens import _indices, indices_python
from megascratch.data.tokens.indices import stream_key
from megascratch.data.tokens.token_files import TokenReader, TokenWriter
from tests.support.corpora import golden

ENGINES = [_indices, indices_python]
UNLIMITED = np.iinfo(np.int64).max


def md5(array: np.ndarray, dtype: str) -> str:
    return hashlib.md5(np.ascontiguousarray(array.astype(dtype)).tobytes()).hexdigest()[:12]


@settings(max_examples=80, deadline=None)
@given(count=st.integers(0, 300), key=st.integers(0, 2**64 - 1))
def test_shuffles_of_both_engines_are_one_permutation(count, key):
    order = _indices.permutation(count, key)
    assert order.dtype == np.int64 and sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, indices_python.permutation(count, key))


def test_every_permutation_is_about_equally_likely():
    seen = [tuple(_indices.permutation(4, stream_key(seed, 0, 1))) for seed in range(24_000)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    # 1,000 each, deviation about 31
    assert len(counts) == 24 and counts.min() > 850 and counts.max() < 1150


def test_keys_depend_on_every_number_and_their_order():
    numbers = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 0), (), (2**63, 0, 1), (-1, 0, 1)]
    assert len({stream_key(*key) for key in numbers}) == len(numbers)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=20),
    seq_length=st.integers(1, 15),
    keep=st.booleans(),
    start=st.integers(0, 20),
    data=st.data(),
)
def test_cuts_of_both_engines_are_equal(lengths, seq_length, keep, start, data):
    """Any number of documents in a sample, empty ones, documents left out or repeated."""
    places = st.lists(st.integers(0, len(lengths) - 1), max_size=30) if lengths else st.just([])
    order = np.array(data.draw(places), dtype=np.int64)
    sizes = np.array(lengths, dtype=np.int64)
    cuts = _indices.sample_index(sizes, order, seq_length, keep, start)
    np.testing.assert_array_equal(
        cuts, indices_python.sample_index(sizes, order, seq_length, keep, start)
    )
    starts = np.cumsum(sizes[order]) - sizes[order]
    if len(cuts) > 1:
        tokens = starts[cuts[:, 0]] + cuts[:, 1]
        total = int(sizes[order].sum())
        assert tokens.tolist() == [min(start + j * seq_length, total - 1) for j in range(len(cuts))]
        assert (cuts[:, 1] < sizes[order][cuts[:, 0]]).all()
        assert total - 1 == tokens[-1] if keep else total - 1 - tokens[-1] < seq_length


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=20),
    seq_length=st.integers(1, 15),
    wide=st.booleans(),
    data=st.data(),
)
def test_rows_go_on_from_any_row_as_the_cuts_do(lengths, seq_length, wide, data):
    """Made in blocks and in the order's own width, both engines; past the end they are refused."""
    order = np.array(
        data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=30)),
        np.int64 if wide else np.int32,
    )
    sizes = np.array(lengths, dtype=np.int32)
    cuts = _indices.sample_index(sizes, order, seq_length, False)
    first = data.draw(st.integers(0, len(cuts) - 1))
    count = data.draw(st.integers(0, len(cuts) - 1 - first))
    for engine in ENGINES:
        rows = engine.sample_rows(sizes, order, seq_length, *cuts[first].tolist(), count, wide)
        assert rows.dtype == (np.int64 if wide else np.int32)
        np.testing.assert_array_equal(rows, cuts[first + 1 : first + 1 + count])
        with pytest.raises(IndexError):
            engine.sample_rows(
                sizes, order, seq_length, *cuts[first].tolist(), len(cuts) - first + 1, wide
            )


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    dtype=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "int64"]),
    data=st.data(),
)
def test_the_pieces_of_a_sample_are_read_in_one_call(tmp_path_factory, lengths, dtype, data):
    documents = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    prefix = tmp_path_factory.mktemp("pieces") / "c"
    with TokenWriter(prefix, dtype) as writer:
        writer.add_document(np.concatenate(documents), lengths)
    reader = TokenReader(prefix)
    order = np.array(data.draw(st.permutations(range(len(lengths)))), np.int32)
    tape = np.concatenate([documents[sequence] for sequence in order])
    where = [
        (place, offset)
        for place, sequence in enumerate(order)
        for offset in range(lengths[sequence])
    ]
    first, last = sorted(data.draw(st.lists(st.integers(0, len(tape)), min_size=2, max_size=2)))
    if last == len(tape) or first == len(tape):
        return
    both = [
        engine.pieces_between(reader.lengths, order, *where[first], *where[last])
        for engine in ENGINES
    ]
    np.testing.assert_array_equal(*both)
    ids = reader.read(both[0])
    assert ids.dtype == np.int64 and ids.tolist() == tape[first : last + 1].tolist()
    np.testing.assert_array_equal(indices_python.read_pieces(reader.file, both[0]), ids)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=30), seq_length=st.integers(1, 15), data=st.data()
)
def test_packed_samples_of_both_engines_are_equal(lengths, seq_length, data):
    first, stop = sorted(data.draw(st.lists(st.integers(0, len(lengths)), min_size=2, max_size=2)))
    sizes = np.array(lengths, dtype=np.int32)
    pieces, ends = _indices.best_fit(sizes, first, stop, seq_length)
    for ours, twin in zip(
        (pieces, ends), indices_python.best_fit(sizes, first, stop, seq_length), strict=True
    ):
        assert ours.dtype == np.int64
        np.testing.assert_array_equal(ours, twin)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("first", "stop", "epochs", "documents_md5", "cuts_md5"),
    [
        (0, 1454, 1, "e8498a258285", "49e65b5befc4"),
        (1454, 1498, 1, "7bf8a27c4e3c", "603433def100"),
        (1498, 1500, None, "360e4404cd5c", "f8a5edd78643"),
    ],
)
def test_cuts_are_megatrons(tmp_path, engine, first, stop, epochs, documents_md5, cuts_md5):
    """Megatron's own document order (several epochs of it where the split is tiny) gives Megatron's sample index."""
    lengths = TokenReader(golden(tmp_path / "A", 1500, 1)).lengths.astype(np.int64)
    tokens = int(lengths[first:stop].sum())
    epochs = epochs or -(-(5 * 64 + 1) // tokens)
    order = np.tile(np.arange(first, stop, dtype=np.int32), epochs)
    np.random.RandomState(1234).shuffle(order)
    assert md5(order, "int32") == documents_md5
    assert md5(engine.sample_index(lengths, order.astype(np.int64), 64, False), "int32") == cuts_md5


@pytest.mark.parametrize("engine", ENGINES)
def test_blend_is_megatrons(engine):
    datasets, samples = engine.blend(
        np.array([0.3, 0.7]), np.zeros(2, np.int64), np.full(2, UNLIMITED), 1000
    )
    assert datasets[:10].tolist() == [1, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    assert (md5(datasets, "int16"), md5(samples, "int64")) == ("fd364e54ffd6", "eb2376acbae6")
    first = engine.blend(np.array([0.3, 0.7]), np.zeros(2, np.int64), np.full(2, UNLIMITED), 100)
    assert (md5(first[0], "int16"), md5(first[1], "int64")) == ("7fdd0cdde336", "686918c59609")


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 30)), min_size=1, max_size=5),
    cut=st.integers(0, 100),
)
def test_blends_of_both_engines_are_equal_use_every_sample_once_and_go_on_from_any_cut(parts, cut):
    weights, limits = (
        np.array([p[0] for p in parts]),
        np.array([p[1] for p in parts], dtype=np.int64),
    )
    weights /= weights.sum()
    nothing, total = np.zeros(len(parts), dtype=np.int64), int(limits.sum())
    datasets, samples = _indices.blend(weights, nothing, limits, total)
    for ours, twin in zip(
        (datasets, samples), indices_python.blend(weights, nothing, limits, total), strict=True
    ):
        np.testing.assert_array_equal(ours, twin)
    for part, limit in enumerate(limits):
        assert samples[datasets == part].tolist() == list(range(limit))
    cut = min(cut, total)
    taken = np.bincount(datasets[:cut], minlength=len(parts))
    np.testing.assert_array_equal(
        _indices.blend(weights, taken, limits, total - cut)[0], datasets[cut:]
    )


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(
        st.floats(0, 4) | st.integers(0, 3).map(float), min_size=1, max_size=20
    ).filter(any)
    | st.integers(90, 130).map(lambda sets: [1 / (1 + at % 7) for at in range(sets)]),
    normed=st.booleans(),
    limits=st.lists(st.integers(0, 2000), max_size=4),
    count=st.integers(600, 1500),
)
def test_stretches_side_by_side_are_the_blend_of_one_sample_after_the_other(
    weights, normed, limits, count
):
    shares = np.array(weights) / (sum(weights) if normed else 1.0)
    most = np.array([*limits, *[UNLIMITED] * len(weights)], dtype=np.int64)[: len(weights)]
    nothing, count = np.zeros(len(weights), dtype=np.int64), min(count, sum(most.tolist()))
    for ours, twin in zip(
        *(one.blend(shares, nothing, most, count) for one in ENGINES), strict=True
    ):
        np.testing.assert_array_equal(ours, twin)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_blend_past_its_last_sample_is_refused(engine):
    with pytest.raises(ValueError, match="used up after 3 samples"):
        engine.blend(np.ones(1), np.zeros(1, np.int64), np.array([3]), 4)


LENGTHS, ORDER = np.array([3, 4]), np.array([1, 0])
SIZES, STATE = LENGTHS.astype(np.int32), np.zeros(625, np.uint32)
BYTES, POINTERS = np.zeros(14, np.uint8), np.array([0, 6])
UNCHECKED = np.empty(0, np.uint8)


def read(*piece, data=BYTES, code=8, pointers=POINTERS):
    file = _indices.TokenFile(data, code, SIZES, pointers, UNCHECKED, indices_python.NO_LIMIT)
    return _indices.read_pieces(file, np.array([piece]))


@pytest.mark.parametrize(
    ("call", "error", "law"),
    [
        (lambda: _indices.permutation(-1, 0), ValueError, "count -1 is negative"),
        (lambda: _indices.sample_index(LENGTHS, ORDER, 0, False), ValueError, "seq_length 0"),
        (
            lambda: _indices.sample_index(LENGTHS, ORDER, 1, False, -1),
            ValueError,
            "start -1 is negative",
        ),
        (
            lambda: _indices.sample_index(LENGTHS, np.array([2]), 1, False),
            IndexError,
            "is sequence 2 of 2",
        ),
        (
            lambda: _indices.sample_index(LENGTHS, np.array([-1]), 1, False),
            IndexError,
            "is sequence -1 of 2",
        ),
        (lambda: _indices.sample_index(-LENGTHS, ORDER, 1, False), ValueError, "negative length"),
        (
            lambda: _indices.sample_index(np.array([2**62] * 2), ORDER, 1, False),
            OverflowError,
            "64 bits",
        ),
        (
            lambda: _indices.sample_index(LENGTHS[None], ORDER, 1, False),
            ValueError,
            "one dimension",
        ),
        (
            lambda: _indices.legacy_shuffle(np.arange(4), STATE[1:]),
            ValueError,
            "state must have 625 words",
        ),
        (
            lambda: _indices.legacy_shuffle(np.arange(4), STATE + np.uint32(625)),
            ValueError,
            "position 625",
        ),
        (
            lambda: _indices.legacy_shuffle(np.arange(4), np.zeros(625)),
            TypeError,
            "state must be contiguous uint32",
        ),
        (lambda: _indices.legacy_shuffle(np.zeros(4, np.int8), STATE), TypeError, "4 or 8 bytes"),
        (
            lambda: _indices.legacy_shuffle(np.arange(9)[::2], STATE),
            ValueError,
            "one contiguous run",
        ),
        (lambda: _indices.legacy_draws(3, 4, STATE), ValueError, "count must be from 0 to place 3"),
        (lambda: _indices.sample_rows(SIZES, ORDER, 0, 0, 0, 1, True), ValueError, "seq_length 0"),
        (
            lambda: _indices.sample_rows(SIZES, ORDER, 1, 0, 4 + 1, 1, True),
            ValueError,
            "behind the end",
        ),
        (
            lambda: _indices.sample_rows(SIZES, ORDER, 1, -1, 0, 1, True),
            ValueError,
            "place 0, offset 0 or later",
        ),
        (
            lambda: _indices.sample_rows(SIZES, ORDER + 1, 1, 0, 0, 9, True),
            IndexError,
            "sequence.2. of 2",
        ),
        (
            lambda: _indices.sample_rows(LENGTHS, ORDER, 1, 0, 0, 1, True),
            TypeError,
            "lengths must be contiguous int32",
        ),
        (
            lambda: _indices.sample_rows(SIZES, ORDER, 1, 0, 0, -1, True),
            ValueError,
            "rows -1 is negative",
        ),
        (lambda: _indices.pieces_between(SIZES, ORDER, 0, 0, 2, 0), IndexError, "order.2. of 2"),
        (lambda: read(2, 0, 1), IndexError, "sequence.2. of 2"),
        (lambda: read(-1, 0, 1), IndexError, "sequence.-1. of 2"),
        (lambda: read(0, 3, 1), IndexError, "of a sequence of 3"),
        (lambda: read(0, -1, 1), IndexError, "of a sequence of 3"),
        (lambda: read(0, 0, -1), ValueError, "longer than its file"),
        (lambda: read(1, 0, 4, data=BYTES[1:]), IndexError, "outside the token file"),
        (lambda: read(1, 0, 1, pointers=POINTERS - 7), IndexError, "outside the token file"),
        (lambda: read(1, 0, 1, code=6), ValueError, "dtype code 6"),
        (lambda: read(1, 0, 1, data=BYTES[::2]), TypeError, "bytes must be contiguous uint8"),
        (
            lambda: read(1, 0, 1, pointers=POINTERS.astype(np.int32)),
            TypeError,
            "pointers must be contiguous int64",
        ),
        (lambda: _indices.best_fit(SIZES, 0, 3, 4), ValueError, "sequences 0 to 3 of 2"),
        (lambda: _indices.best_fit(SIZES, 0, 2, 0), ValueError, "seq_length 0 must be from 1"),
        (lambda: _indices.best_fit(-SIZES, 0, 2, 1), ValueError, "negative length"),
        (lambda: _indices.blend(np.ones(2), np.zeros(1), np.ones(2), 1), ValueError, "same length"),
        (lambda: _indices.blend(np.ones(1), np.zeros(1), np.ones(1), -1), ValueError, "negative"),
    ],
)
def test_wrong_arguments_are_refused(call, error, law):
    with pytest.raises(error, match=law):
        call()


def test_without_a_compiler_the_twin_takes_over_with_one_warning():
    code = (
        "import sys; sys.modules['megascratch.data.tokens._indices'] = None\n"
        "from megascratch.data.tokens import indices, indices_python\n"
        "assert indices.permutation is indices_python.permutation"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "always"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr.count("the C++ extensions are not built") == 1
