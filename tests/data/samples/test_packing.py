"""Packing cuts no document that fits and predicts each token once; fill-in-the-middle keeps every length and order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples import packing
from megascratch.data.samples.build import open_splits
from megascratch.data.samples.fill_in_middle import Choices, FillInMiddle, rearranged
from megascratch.data.samples.packing import Packed
from megascratch.data.tokens.token_files import TokenReader
from tests.support.corpora import counting, write

LENGTHS = [7, 1, 30, 2, 2, 19, 5, 11, 3, 10, 10]


def packed(reader, cache=None, seq_length=9, finite=False, seed=1):
    return Packed(
        reader, 0, len(reader), seq_length=seq_length, seed=seed, finite=finite, cache=cache
    )


@pytest.fixture
def reader(tmp_path):
    return TokenReader(counting(tmp_path / "c", LENGTHS))


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=25),
    seq_length=st.integers(1, 12),
    window=st.integers(1, 30),
)
def test_no_document_that_fits_is_cut_and_every_token_is_predicted_once(
    tmp_path_factory, lengths, seq_length, window
):
    """Inside its document, whatever else shares the sample; windows of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", window)
        dataset = packed(
            TokenReader(counting(tmp_path_factory.mktemp("c") / "c", lengths)),
            None,
            seq_length,
            True,
        )
    predicted = []
    for number in range(len(dataset)):
        pieces = dataset.pieces(number)
        assert 1 <= len(dataset[number]) == pieces[:, 2].sum() <= seq_length + 1
        for sequence, start, count in pieces.tolist():
            assert count == lengths[sequence] or lengths[sequence] > seq_length + 1
            predicted += [(sequence, start + at) for at in range(1, count)]
    assert sorted(predicted) == [
        (s, at) for s, length in enumerate(lengths) for at in range(1, length)
    ]
    assert dataset.pieces(len(dataset)).tolist() == []


def test_documents_that_fill_samples_leave_no_padding(tmp_path):
    dataset = packed(TokenReader(counting(tmp_path / "c", [6, 4] * 50)))
    assert len(dataset) == 50 and all(len(dataset[number]) == 10 for number in range(50))


def test_every_epoch_reads_every_sample_once_in_an_order_of_its_own(reader, tmp_path):
    dataset, size = packed(reader), len(packed(reader))
    epochs = [
        [tuple(dataset[number]) for number in range(epoch * size, (epoch + 1) * size)]
        for epoch in range(3)
    ]
    assert (
        len({tuple(epoch) for epoch in epochs}) == 3
        and len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    )
    assert [tuple(packed(reader, tmp_path / "cache")[n]) for n in range(size)] == epochs[0]
    assert [tuple(packed(reader, tmp_path / "cache", seed=2)[n]) for n in range(size)] != epochs[0]
    assert [span.sequence for span in dataset.spans(3)] == dataset.pieces(3)[:, 0].tolist()


def test_a_corpus_without_a_next_token_is_refused(tmp_path):
    with pytest.raises(UserError, match="hold 1 tokens, 2 are needed"):
        packed(TokenReader(write(tmp_path / "c", [[1]])))


IDS = Choices(rate=1.0, spm_rate=0.5, prefix=901, middle=902, suffix=903)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(0, 30), key=st.integers(0, 2**64 - 1))
def test_a_rearranged_document_is_its_own_beginning_in_three_marked_parts(length, key):
    document = np.arange(length)
    for spm_rate in (0.0, 1.0):
        new = rearranged(document, IDS._replace(spm_rate=spm_rate), key)
        assert len(new) == length and new.dtype == np.int64
        if length < 4:
            assert new.tolist() == document.tolist()
            continue
        marks = [int(np.flatnonzero(new == mark)[0]) for mark in (901, 903, 902)]
        assert marks == sorted(marks) and marks[0] == 0
        one, two, three = new[1 : marks[1]], new[marks[1] + 1 : marks[2]], new[marks[2] + 1 :]
        back = [*one, *three, *two] if spm_rate == 0 else [*three, *two]
        assert back == list(range(length - 3)) and (spm_rate == 0 or len(one) == 0)
        assert rearranged(document, IDS._replace(rate=0.0), key) is document


def test_rates_are_kept_and_every_cut_is_reached():
    document, choices = np.arange(7), IDS._replace(rate=0.3, spm_rate=0.25)
    new = [rearranged(document, choices, key * 7919) for key in range(4000)]
    changed = [tuple(tokens) for tokens in new if tokens is not document]
    assert 0.27 < len(changed) / 4000 < 0.33
    first_is_suffix = sum(tokens[1] == 903 for tokens in changed) / len(changed)
    assert abs(first_is_suffix - (0.25 + 0.75 * 9 / 25)) < 0.05  # or the prefix is empty
    # pairs of cuts; with the suffix first it looks like an empty prefix
    assert len(set(changed)) == 15


def test_a_sample_is_rearranged_document_by_document_and_always_alike(tmp_path):
    documents = [[*range(1, length), 0] for length in (9, 2, 14, 30, 6)]
    data = DataConfig(
        data_path=[write(tmp_path / "c", documents)], split="1", seq_length=20, packing="best-fit"
    )
    plain = open_splits(data, seed=1, vocab_size=999, eod=0, train_samples=9).train
    dataset = FillInMiddle(plain, IDS, seed=5, eod=0)
    again, other = FillInMiddle(plain, IDS, seed=5, eod=0), FillInMiddle(plain, IDS, seed=6, eod=0)
    samples = [dataset[number].tolist() for number in range(40)]
    assert samples[::-1] == [again[number].tolist() for number in reversed(range(40))]
    assert samples != [other[number].tolist() for number in range(40)]
    for number, sample in enumerate(samples):
        assert [token == 0 for token in sample] == [token == 0 for token in plain[number]]
        assert len(dataset.spans(number)) == len(plain.spans(number)) and len(dataset) == len(plain)


def test_the_same_document_is_cut_anew_in_each_sample_and_at_each_place():
    class Same:
        def __getitem__(self, number):
            return np.array([*range(1, 31), 0, *range(1, 31), 0])

    psm = IDS._replace(spm_rate=0.0)
    samples = [FillInMiddle(Same(), psm, seed=5, eod=0)[number] for number in range(20)]
    assert len({tuple(half) for sample in samples for half in (sample[:31], sample[31:])}) > 30


def test_settings_choose_packing_and_rearrange_training_alone(tmp_path):
    data = DataConfig(
        data_path=[counting(tmp_path / "c", [10] * 100)],
        split="80,20",
        seq_length=19,
        packing="best-fit",
        fim_rate=1.0,
        fim_prefix_id=2001,
        fim_middle_id=2002,
        fim_suffix_id=2003,
    )
    splits = open_splits(data, seed=1, vocab_size=5000, train_samples=9, valid_samples=9)
    assert {2001, 2002, 2003} <= set(splits.train[0].tolist())
    assert len(splits.valid) == 10 and sorted(splits.valid[0].tolist())[0] >= 800
