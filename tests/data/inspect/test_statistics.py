"""The numbers of a corpus are those that a plain count gives, whatever the blocks."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megascratch.data.inspect import statistics as room
from megascratch.data.inspect.statistics import QUANTILES, binned, histograms, statistics
from megascratch.data.tokens import token_files
from megascratch.data.tokens.token_files import TokenReader, TokenWriter


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 20), max_size=5), max_size=3), min_size=1, max_size=9
    ),
    block=st.integers(1, 7),
    dtype=st.sampled_from(["uint16", "int32"]),
)
@example(documents=[[[3], []], [[]], [[1], [3]]], block=7, dtype="uint16")
def test_everything_is_counted_once(tmp_path_factory, documents, block, dtype):
    prefix = tmp_path_factory.mktemp("c") / "c"
    with TokenWriter(prefix, dtype) as writer:
        for sequences in documents:
            writer.add_document(list(chain(*sequences)), [len(sequence) for sequence in sequences])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "BLOCK", block)
        patch.setattr(room, "BLOCK", block)
        found = statistics(TokenReader(prefix), eod=3)
    lengths = [sum(map(len, sequences)) for sequences in documents]
    ids = Counter(chain(*chain(*documents)))
    assert (found.documents, found.sequences, found.tokens) == (
        len(documents),
        sum(map(len, documents)),
        sum(lengths),
    )
    assert found.lengths == dict(sorted(Counter(lengths).items()))
    assert dict(found.most_frequent(99)) == ids and found.ids_used == len(ids)
    assert found.documents_with_eod == sum(
        bool(doc and doc[-1] and doc[-1][-1] == 3) for doc in documents
    )
    assert (
        list(found.quantiles.values())
        == np.quantile(lengths, QUANTILES, method="inverted_cdf").tolist()
    )
    assert sum(count for _, _, count in binned(found.lengths)) == len(documents)


def test_ids_that_no_vocabulary_has_are_counted_apart(tmp_path):
    with TokenWriter(tmp_path / "c", "int32") as writer:
        writer.add_document([1, -1, 2**31 - 1, 1])
    found = statistics(TokenReader(tmp_path / "c"))
    assert (found.ids_outside, found.ids.tolist()) == (2, [0, 2])


def test_an_empty_corpus_has_numbers_too(tmp_path):
    with TokenWriter(tmp_path / "c", "uint16"):
        pass
    found = statistics(TokenReader(tmp_path / "c"), eod=1)
    assert (found.documents, found.tokens, found.ids_used, found.quantiles) == (
        0,
        0,
        0,
        dict.fromkeys(QUANTILES, 0),
    )
    histograms(found, "even this can be drawn").savefig(tmp_path / "c.svg")
