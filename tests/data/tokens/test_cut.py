"""A corpus that is cut inside a document has the same tokens in the same order, in more sequences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.data.tokens.cut import CutCorpus
from megascratch.data.tokens.token_files import TokenReader, TokenWriter
from tests.support.corpora import counting


def test_the_picture_of_the_docstring(tmp_path):
    cut = CutCorpus(TokenReader(counting(tmp_path / "c", [8, 2])), [5, 8])
    assert cut.lengths.tolist() == [5, 3, 2]
    assert cut.ends == [1, 2]
    assert cut.documents.tolist() == [0, 1, 2, 3]
    assert [cut.get(at).tolist() for at in range(3)] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]


SIZES = st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, data=st.data())
def test_the_parts_of_a_cut_corpus_are_its_tokens_in_order(tmp_path_factory, sizes, data):
    """Whatever the empty sequences and documents, and wherever the cuts: at a border, twice in one sequence."""
    prefix = tmp_path_factory.mktemp("c") / "c"
    total = sum(map(sum, sizes))
    with TokenWriter(prefix, "int32") as writer:
        for lengths in sizes:
            writer.add_document(np.arange(writer.tokens, writer.tokens + sum(lengths)), lengths)
    places = sorted(data.draw(st.lists(st.integers(0, total), max_size=3)))
    cut = CutCorpus(TokenReader(prefix), places)
    before = 0
    for place, end in zip([*places, total], [*cut.ends, len(cut)], strict=True):
        first = 0 if before == 0 else cut.ends[places.index(before)]
        part = [token for at in range(first, end) for token in cut.get(at).tolist()]
        assert part == list(range(before, place))
        blocks = [ids.tolist() for _, ids in cut.blocks(first, end)]
        assert [token for ids in blocks for token in ids] == part
        before = place
    rows = [(at, length // 2, length - length // 2) for at, length in enumerate(cut.lengths)]
    halves = [cut.get(*row).tolist() for row in rows]
    pieces = np.array(rows, dtype=np.int64).reshape(-1, 3)
    assert cut.read(pieces).tolist() == [token for ids in halves for token in ids]
    assert set(cut.ends) <= set(cut.documents.tolist())
    assert len(cut.documents) - len(sizes) - 1 <= len(set(places))


@pytest.mark.parametrize("places", [[3], [4]])
def test_the_identity_of_a_cut_corpus_tells_where_it_is_cut(tmp_path, places):
    reader = TokenReader(counting(tmp_path / "c", [8]))
    assert CutCorpus(reader, places).identity == {**reader.identity, "cut": places}
