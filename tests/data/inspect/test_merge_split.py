"""Corpora made of corpora keep every document, in order and byte for byte, or are not made at all."""

import errno
import hashlib
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.data.inspect import merge_split
from megascratch.data.inspect.validate import problems
from megascratch.data.tokens import idx_format, token_files
from megascratch.data.tokens.digests import digests_path
from megascratch.data.tokens.manifest import read_manifest, write_manifest
from megascratch.data.tokens.token_files import TokenReader, TokenWriter, bin_path, idx_path
from tests.support.corpora import counting, golden, write


def documents(prefix):
    reader = TokenReader(prefix)
    borders = reader.documents.tolist()
    return [
        [reader.get(at).tolist() for at in range(*pair)]
        for pair in zip(borders, borders[1:], strict=False)
    ]


def raw(prefix):
    return bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()


DOCUMENTS = st.lists(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=3), max_size=9)


@settings(max_examples=20, deadline=None)
@given(corpora=st.lists(DOCUMENTS, min_size=1, max_size=3), block=st.integers(1, 5), data=st.data())
def test_split_then_merged_is_the_same_corpus_as_written_at_once(
    tmp_path_factory, corpora, block, data
):
    """Whatever the blocks; empty documents and empty sequences among them."""
    folder = tmp_path_factory.mktemp("c")
    whole = [document for corpus in corpora for document in corpus]
    for name, content in {
        "whole": whole,
        **{f"part{at}": corpus for at, corpus in enumerate(corpora)},
    }.items():
        with TokenWriter(folder / name, "uint16") as writer:
            for sequences in content:
                writer.add_document(
                    list(chain(*sequences)), [len(sequence) for sequence in sequences]
                )
    with pytest.MonkeyPatch.context() as patch:
        for module in (idx_format, token_files, merge_split):
            patch.setattr(module, "BLOCK", block)
        parts = [TokenReader(folder / f"part{at}") for at in range(len(corpora))]
        merge_split.merge(parts, folder / "merged")
        cut = data.draw(st.integers(0, len(whole)))
        merge_split.split(
            TokenReader(folder / "merged"), [folder / "a", folder / "b"], [cut, len(whole) - cut]
        )
    assert raw(folder / "merged") == raw(folder / "whole")
    assert documents(folder / "a") + documents(folder / "b") == whole
    assert [list(problems(folder / name)) for name in ("merged", "a", "b")] == [[], [], []]


def test_a_merge_of_megatrons_golden_pairs_is_their_bytes_one_after_the_other(tmp_path):
    """Ids appended, pointers shifted by the first .bin, documents by the first pair's sequences."""
    one, other = golden(tmp_path / "a", 1500, 1), golden(tmp_path / "b", 300, 2)
    merge_split.merge([TokenReader(one), TokenReader(other)], tmp_path / "merged")
    merged = TokenReader(tmp_path / "merged")
    assert raw(tmp_path / "merged")[0] == raw(one)[0] + raw(other)[0]
    assert merged.pointers[1500:].tolist() == (TokenReader(other).pointers + 183_878).tolist()
    assert merged.documents.tolist() == [*range(1801)]
    manifest = read_manifest(merged)
    assert manifest["bin_sha256"] == hashlib.sha256(raw(tmp_path / "merged")[0]).hexdigest()
    assert (manifest["documents"], manifest["tokens"], manifest["min_token"]) == (
        1800,
        merged.tokens,
        0,
    )


def test_what_lies_between_sequences_is_left_behind(tmp_path):
    prefix = write(tmp_path / "c", [[1, 2], [9, 9], [3]])
    reader = TokenReader(prefix)
    index = idx_path(prefix)
    with TokenWriter(prefix, "uint16") as writer:
        writer.add_document([1, 2])
        writer.add_document([3])
    header = bytearray(index.read_bytes())
    header[34 + 8 + 8 : 34 + 8 + 16] = np.int64(8).tobytes()
    index.write_bytes(header)
    bin_path(prefix).write_bytes(np.array([1, 2, 9, 9, 3], "uint16").tobytes())
    digests_path(prefix).unlink()
    reader = TokenReader(prefix)
    merge_split.merge([reader], tmp_path / "m")
    assert (reader.token_range(), raw(tmp_path / "m")[0]) == (
        (0, 3),
        np.array([1, 2, 3], "uint16").tobytes(),
    )


@pytest.mark.parametrize(
    ("fractions", "documents", "counts"),
    [
        ([0.9, 0.1], 100, [90, 10]),
        ([1, 1, 1], 10, [3, 4, 3]),
        ([969, 31], 500, [484, 16]),  # round(484.5) is even
        ([5], 3, [3]),
    ],
)
def test_fractions_cut_at_the_rounded_running_shares(fractions, documents, counts):
    assert merge_split.counts_of_fractions(fractions, documents) == counts


@pytest.mark.parametrize(
    ("call", "law"),
    [
        (lambda: merge_split.counts_of_fractions([1, -1], 100), "must be numbers above 0"),
        (lambda: merge_split.counts_of_fractions([float("nan")], 100), "must be numbers above 0"),
        (
            lambda: merge_split.check_counts([5, 6], 10),
            "add up to all 10 documents, they add up to 11",
        ),
        (lambda: merge_split.check_counts([10, 0], 10), "numbers above 0"),
    ],
)
def test_parts_that_cannot_be_are_refused_with_the_numbers(call, law):
    with pytest.raises(UserError, match=law):
        call()


def test_a_part_without_a_document_gets_tokens_of_one(tmp_path):
    """With the loss mask; what cannot be cut further is refused before anything is written."""
    prefix = counting(tmp_path / "c", [7, 3])
    write(tmp_path / "c_loss_mask", [[1] * 7, [1, 1, 0]])
    reader, counts = merge_split.divide(TokenReader(prefix), [0.5, 0.4, 0.1])
    parts = [str(tmp_path / name) for name in "xyz"]
    merge_split.split(reader, parts, counts)
    assert [documents(part) for part in parts] == [
        [[[0, 1, 2, 3, 4]]],
        [[[5, 6]], [[7, 8]]],
        [[[9]]],
    ]
    assert [TokenReader(f"{part}_loss_mask").token_range() for part in parts] == [
        (0, 1),
        (0, 1),
        (0, 0),
    ]
    assert [list(problems(part)) for part in parts] == [[], [], []]
    origin = read_manifest(TokenReader(parts[1]))["pieces"]
    assert origin == [{"prefix": prefix, "documents": [1, 3], "cut_at": [5, 9, 10]}]
    with pytest.raises(UserError, match=r"part 1 gets none of the 10 tokens of .*c; use fewer"):
        merge_split.divide(TokenReader(prefix), [99, 1])


def test_corpora_that_do_not_belong_together_are_refused_before_anything_is_written(tmp_path):
    small, large = (write(tmp_path / dtype, [[1]], dtype) for dtype in ("uint16", "int32"))
    twin = write(tmp_path / "twin", [[2]])
    for prefix, mark in ((small, "a"), (twin, "b")):
        write_manifest(prefix, {"tokenizer": {"fingerprint": mark * 64}, "bin_bytes": 2})
    before = sorted(tmp_path.iterdir())
    for readers, output, law in (
        ([small, large], "out", "uint16 has uint16, .*int32 has int32"),
        ([small, twin], "out", f"made with {'a' * 16}, .* with {'b' * 16}"),
        ([small], "uint16", "is also an input"),
    ):
        with pytest.raises(UserError, match=law):
            merge_split.merge([TokenReader(prefix) for prefix in readers], tmp_path / output)
    assert sorted(tmp_path.iterdir()) == before


def test_the_tokenizer_is_told_only_if_all_inputs_tell_it(tmp_path):
    one, other = write(tmp_path / "a", [[1]]), write(tmp_path / "b", [[2]])
    tokenizer = {"fingerprint": "a" * 64, "vocab_size": 9}
    write_manifest(one, {"tokenizer": tokenizer, "bin_bytes": 2})
    merge_split.merge([TokenReader(one), TokenReader(other)], tmp_path / "m")
    assert "tokenizer" not in read_manifest(TokenReader(tmp_path / "m"))
    write_manifest(other, {"tokenizer": tokenizer, "bin_bytes": 2})
    merge_split.merge([TokenReader(one), TokenReader(other)], tmp_path / "m")
    assert read_manifest(TokenReader(tmp_path / "m"))["tokenizer"] == tokenizer


def test_a_full_disk_leaves_nothing_and_keeps_the_old_files(tmp_path, monkeypatch):
    prefix, old = write(tmp_path / "a", [[1, 2, 3]]), write(tmp_path / "out", [[7]])

    def full(pieces, file, digests):
        file.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merge_split, "_copy_ids", full)
    with pytest.raises(
        UserError,
        match="out cannot be written: No space left on device; temporary files were removed",
    ):
        merge_split.merge([TokenReader(prefix)], old)
    files = [f"{name}.{suffix}" for name in ("a", "out") for suffix in ("bin", "digests", "idx")]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert documents(old) == [[[7]]]


def test_a_loss_mask_goes_where_its_corpus_goes(tmp_path):
    for name, documents_ in (("a", [[1, 2], [3]]), ("b", [[4]])):
        write(tmp_path / name, documents_)
        write(
            tmp_path / f"{name}_loss_mask",
            [[token % 2 for token in document] for document in documents_],
        )
    merge_split.merge([TokenReader(tmp_path / "a"), TokenReader(tmp_path / "b")], tmp_path / "m")
    assert documents(tmp_path / "m_loss_mask") == [[[1, 0]], [[1]], [[0]]]
    merge_split.split(TokenReader(tmp_path / "m"), [tmp_path / "x", tmp_path / "y"], [1, 2])
    assert [documents(tmp_path / f"{name}_loss_mask") for name in "xy"] == [
        [[[1, 0]]],
        [[[1]], [[0]]],
    ]
    plain = TokenReader(write(tmp_path / "plain", [[5]]))
    with pytest.raises(UserError, match="plain has no loss mask, others have one"):
        merge_split.merge([TokenReader(tmp_path / "a"), plain], tmp_path / "n")


@pytest.mark.parametrize(
    ("fractions", "law"),
    [
        (
            [0.5, 0.2],
            r"0\.5 0\.2 add up to 0\.7, .* add up to 1: use 0\.714286 0\.285714 or, .*, 0\.5 0\.2 0\.3",
        ),
        ([0.9, 0.2], r"0\.9 0\.2 add up to 1\.1, they must add up to 1: use 0\.818182 0\.181818$"),
        ([0.5], r"0\.5 add up to 0\.5, they must add up to 1: use 1 or, .*, 0\.5 0\.5"),
    ],
)
def test_fractions_that_do_not_add_up_are_refused_with_ones_that_do(fractions, law):
    with pytest.raises(UserError, match=law) as caught:
        merge_split.counts_of_fractions(fractions, 1000)
    told = str(caught.value).split("use ")[1].split(" or, ")[0]
    assert (
        sum(merge_split.counts_of_fractions([float(word) for word in told.split()], 1000)) == 1000
    )
