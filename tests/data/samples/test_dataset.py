"""Sample i is a pure function of files, seed and i; an epoch reads every token once."""

from itertools import chain, pairwise

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.data.samples.dataset import Corpus
from megascratch.data.samples.views import Blend
from megascratch.data.tokens.token_files import TokenReader
from tests.support.blends import blended
from tests.support.corpora import counting, write

PINNED = [65, 24, 67, 5, 47, 54, 53]
LENGTHS = [7, 1, 0, 30, 2, 2, 19, 5, 11, 3]


@pytest.fixture
def reader(tmp_path):
    return TokenReader(counting(tmp_path / "c", LENGTHS))


def corpus(reader, seq_length=6, seed=1, finite=False, first=0, stop=None, cache=None):
    stop = len(reader) if stop is None else stop
    return Corpus(reader, first, stop, seq_length=seq_length, seed=seed, finite=finite, cache=cache)


def read(dataset, numbers):
    return [dataset[number].tolist() for number in numbers]


def test_a_finite_set_reads_the_text_in_order_each_token_predicted_once(reader):
    """80 tokens, 79 predictions: 13 samples of 6 and one of 1; behind them nothing."""
    dataset = corpus(reader, finite=True)
    assert len(dataset) == 14
    samples = read(dataset, range(14))
    assert samples == [list(range(start, min(start + 7, 80))) for start in range(0, 79, 6)]
    assert read(dataset, [14, 1000]) == [[], []]


@pytest.mark.parametrize("seed", [1, 2])
def test_an_epoch_predicts_every_token_once_but_the_rest_of_the_last_cut(reader, seed):
    dataset = corpus(reader, seed=seed)
    for epoch in range(3):
        samples = read(dataset, range(epoch * 13, epoch * 13 + 13))
        assert all(len(sample) == 7 for sample in samples)
        labels = [token for sample in samples for token in sample[1:]]
        assert len(set(labels)) == len(labels) == 78


def test_the_first_cut_of_an_epoch_falls_anywhere(tmp_path):
    """One long document: every epoch has its own cuts, and no end of it is left out for good."""
    dataset = corpus(TokenReader(write(tmp_path / "long", [range(60)])))
    epochs = [read(dataset, range(9 * epoch, 9 * epoch + 9)) for epoch in range(40)]
    assert all(len({sample[0] % 6 for sample in epoch}) == 1 for epoch in epochs)
    assert {sample[0] % 6 for epoch in epochs for sample in epoch} == set(range(6))
    assert {token for epoch in epochs for sample in epoch for token in sample} == set(range(60))


def test_samples_are_runs_of_whole_documents_in_shuffled_order(reader):
    """Inside a sample the next token follows, or a document ends there and another begins."""
    ends = np.cumsum(LENGTHS)
    begins = set(ends - LENGTHS)
    for sample in read(corpus(reader), range(39)):
        for token, following in pairwise(sample):
            assert following == token + 1 or (token + 1 in ends and following in begins)


def test_a_sample_depends_on_its_number_and_not_on_what_was_read_before(reader):
    once = read(corpus(reader), range(60))
    backwards = read(corpus(reader), reversed(range(60)))
    assert once == backwards[::-1]
    assert corpus(reader)[10**9].tolist() == corpus(reader)[10**9].tolist()


def test_epochs_and_seeds_have_orders_of_their_own(reader):
    orders = [
        read(corpus(reader, seed=seed), range(start, start + 13))
        for seed in (1, 2)
        for start in (0, 13)
    ]
    assert all(orders[a] != orders[b] for a in range(4) for b in range(a))


def test_sequences_and_samples_are_shuffled_apart_and_anew_in_each_epoch(tmp_path):
    """Documents of one length: both shuffles have the same size and still differ."""
    dataset = corpus(TokenReader(counting(tmp_path / "even", [6] * 20)), stop=20)
    dataset._count = 20
    indices = [dataset._epoch(epoch) for epoch in range(2)]
    orders = [tuple(order[:20]) for index in indices for order in (index.sequences, index.samples)]
    assert len(set(orders)) == 4 and all(sorted(order) == list(range(20)) for order in orders)


def test_the_order_of_a_seed_never_changes(reader):
    """Pinned: a later version that reads in another order would break every resumed run."""
    assert [
        int(sample[0]) for sample in read(corpus(reader, seed=1234), [0, 1, 2, 12, 13, 26, 10**6])
    ] == PINNED


def test_a_split_reads_its_own_sequences_alone(reader):
    tokens = {
        token for sample in read(corpus(reader, first=3, stop=7), range(40)) for token in sample
    }
    assert tokens <= set(range(38, 66))  # the third document is empty and no sequence


def test_the_cache_gives_the_same_samples_and_is_used_again(reader, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    fresh = read(corpus(reader), range(30))
    assert read(corpus(reader, cache=cache), range(30)) == fresh
    monkeypatch.setattr(Corpus, "_build", lambda self, epoch: pytest.fail("built again"))
    assert read(corpus(reader, cache=cache), range(30)) == fresh


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"seq_length": 5}, {"first": 1}, {"stop": 9}, {"finite": True}]
)
def test_everything_that_shapes_an_index_is_in_its_key(reader, tmp_path, change):
    corpus(reader, cache=tmp_path / "cache")[0]
    cached, fresh = corpus(reader, cache=tmp_path / "cache", **change), corpus(reader, **change)
    assert read(cached, range(12)) == read(fresh, range(12))


def test_a_corpus_written_again_under_its_name_does_not_find_the_old_index(reader, tmp_path):
    corpus(reader, cache=tmp_path / "cache")[0]
    again = TokenReader(counting(tmp_path / "c", LENGTHS[::-1]))
    assert read(corpus(again, cache=tmp_path / "cache"), range(20)) == read(
        corpus(again), range(20)
    )


@pytest.mark.parametrize(
    ("tokens", "finite", "law"),
    [
        (
            6,
            False,
            r"hold 6 tokens, one sample of --seq-length 6 needs 7; use more text or --seq-length 5",
        ),
        (0, False, r"hold 0 tokens, one sample of --seq-length 6 needs 7; use more text$"),
        (1, True, r"hold 1 tokens, one sample of --seq-length 6 needs 2"),
    ],
)
def test_too_little_text_is_refused_with_the_numbers(tmp_path, tokens, finite, law):
    with pytest.raises(UserError, match=law):
        corpus(TokenReader(write(tmp_path / "c", [range(tokens)])), finite=finite)


def test_just_enough_text_is_one_sample(tmp_path):
    dataset = corpus(TokenReader(write(tmp_path / "c", [range(7)])))
    ring = [[(start + at) % 7 for at in range(7)] for start in range(6)]
    assert len(dataset) == 1 and all(sample in ring for sample in read(dataset, range(9)))


def test_negative_samples_do_not_wrap(reader):
    for dataset in (corpus(reader), corpus(reader, finite=True), blended([3], [1], True)):
        with pytest.raises(IndexError, match="sample -1 is negative"):
            dataset[-1]


@pytest.mark.parametrize("finite", [False, True])
def test_the_spans_of_a_sample_are_its_tokens(reader, finite):
    """Of a corpus and of a blend; past the end there are none."""
    alone = corpus(reader, finite=finite)
    for dataset in (
        alone,
        Blend([alone, corpus(reader, first=3, finite=finite)], [1, 2], finite=finite),
    ):
        for number in range(40):
            tokens = [
                span.source.get(span.sequence)[span.start : span.stop].tolist()
                for span in dataset.spans(number)
            ]
            assert list(chain(*tokens)) == dataset[number].tolist()
