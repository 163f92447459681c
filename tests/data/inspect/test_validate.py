"""The full check finds every broken law, and none in a sound corpus."""

import json
import struct

import pytest

from megascratch.data.inspect.merge_split import merge
from megascratch.data.inspect.validate import problems
from megascratch.data.tokens.digests import digests_path
from megascratch.data.tokens.idx_format import HEADER
from megascratch.data.tokens.manifest import manifest_path, write_manifest
from megascratch.data.tokens.token_files import TokenReader, bin_path, idx_path
from tests.support.corpora import write

LENGTHS = HEADER.size
POINTERS, DOCUMENTS = LENGTHS + 4 * 3, LENGTHS + 12 * 3


@pytest.fixture
def prefix(tmp_path):
    """Three documents of 3, 2 and 1 ids, with a manifest that has checksums."""
    merge([TokenReader(write(tmp_path / "c", [[1, 2, 3], [4, 5], [6]]))], tmp_path / "m")
    return str(tmp_path / "m")


def damage(path, changes):
    raw = bytearray(path.read_bytes())
    for offset, content in changes:
        raw[offset : offset + len(content)] = content
    path.write_bytes(raw)


def test_a_sound_corpus_has_no_problem_with_or_without_its_manifest(prefix):
    assert list(problems(prefix, 7)) == []
    manifest_path(prefix).unlink()
    (problem,) = problems(prefix)
    assert problem.endswith("m.json is missing: it was written with the corpus")
    digests_path(prefix).unlink()
    assert list(problems(prefix)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(0, b"X")], ["not a token index"]),
        ([(18, struct.pack("<Q", 9))], ["truncated"]),
        (
            [(LENGTHS, struct.pack("<i", -1)), (POINTERS + 8, struct.pack("<q", 7))],
            [
                "sequence 0 has a negative length",
                "sequence 2 begins before",
                "sequence 1 does not begin on a whole",
            ],
        ),
        (
            [(DOCUMENTS, struct.pack("<qqqq", 1, 0, 3, 2))],
            ["run from 1 to 2", "document 0 ends before", "document 2 ends before"],
        ),
        (
            [(LENGTHS + 4, struct.pack("<i", 1)), (LENGTHS + 8, struct.pack("<i", 0))],
            [
                "sequence 2 begins at byte 10, the previous one ends at 8",
                "2 bytes after the last sequence",
                "m.idx differs from what was written",
                "tokens is 6, the files have 4",
                "max_token is 6, the files have 4",
                "bin_sha256",
                "idx_sha256",
            ],
        ),
    ],
)
def test_every_broken_law_of_the_index_is_listed(prefix, changes, expected):
    damage(idx_path(prefix), changes)
    found = list(problems(prefix))
    assert len(found) == len(expected)
    assert all(law in problem for law, problem in zip(expected, found, strict=True)), found


def test_every_id_outside_the_vocabulary_is_listed_with_its_sequence(prefix):
    assert [problem.split(": ")[1] for problem in problems(prefix, 5)] == [
        "sequence 1 has id 5, the vocabulary has 0 to 4",
        "sequence 2 has id 6, the vocabulary has 0 to 4",
    ]


def test_negative_ids_are_listed_though_no_vocabulary_is_known(tmp_path):
    prefix = write(tmp_path / "c", [[1, -2]], "int32")
    assert "sequence 0 has id -2" in next(problems(prefix))


def test_one_flipped_bit_is_found_by_the_checksum_alone(prefix):
    damage(bin_path(prefix), [(2, b"\x03")])  # id 2 becomes 3
    by_block, by_manifest = problems(prefix, 7)
    assert "m.bin: bytes 0 to 12 (sequences 0 to 2) differ from what was written" in by_block
    assert "bin_sha256" in by_manifest


def test_two_lengths_that_swap_a_token_are_found_by_the_checksum_alone(prefix):
    damage(
        idx_path(prefix),
        [(LENGTHS, struct.pack("<ii", 2, 3)), (POINTERS + 8, struct.pack("<q", 4))],
    )
    by_digest, by_manifest = problems(prefix, 7)
    assert "m.idx differs from what was written" in by_digest and "idx_sha256" in by_manifest


def test_the_manifest_is_checked_against_files_vocabulary_and_tokenizer(prefix):
    manifest = json.loads(manifest_path(prefix).read_text())
    write_manifest(
        prefix, manifest | {"documents": 4, "tokenizer": {"fingerprint": "a" * 64, "vocab_size": 6}}
    )
    found = list(problems(prefix, None, "b" * 64))
    assert len(found) == 3 and "id 6, the vocabulary has 0 to 5" in found[0]
    assert (
        "made with the tokenizer aaaaaaaaaaaaaaaa" in found[1]
        and "documents is 4, the files have 3" in found[2]
    )
    manifest_path(prefix).write_text("[]")
    by_digest, by_manifest = problems(prefix, 7)
    assert "m.json differs from what was written" in by_digest and by_manifest.endswith(
        "not an object {...}"
    )


def test_missing_and_short_files_are_problems_too(prefix):
    bin_path(prefix).write_bytes(b"ab")
    assert "2 bytes, its index needs 12" in next(problems(prefix))
    bin_path(prefix).unlink()
    assert "m.bin cannot be read" in next(problems(prefix))
