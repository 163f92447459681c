"""Damage is never silent: a corpus has digests, and each reader compares what it reads with them."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash

from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.data.inspect.merge_split import merge, split
from megascratch.data.inspect.validate import problems, record
from megascratch.data.tokens.digests import BLOCK_BYTES, BlockDigests, digests_path, read_digests
from megascratch.data.tokens.index_cache import load_or_build
from megascratch.data.tokens.loss_mask import mask_prefix
from megascratch.data.tokens.manifest import manifest_path, write_manifest
from megascratch.data.tokens.token_files import TokenReader, bin_path, idx_path
from tests.support.corpora import golden, write
from tests.support.digests import flip

FLIPS = Path(__file__).resolve().parents[3] / "benchmarks" / "flips.py"
PER_BLOCK = BLOCK_BYTES // 2  # ids of two bytes


@pytest.fixture
def prefix(tmp_path):
    """Three blocks and a half of ids in documents of 1,000."""
    return write(
        tmp_path / "c", [np.arange(1000) + number for number in range(7 * PER_BLOCK // 2000)]
    )


def test_the_file_is_the_one_that_its_description_says(prefix):
    write_manifest(prefix, {"a": 1})
    raw, ids = digests_path(prefix).read_bytes(), bin_path(prefix).read_bytes()
    index, manifest = idx_path(prefix).read_bytes(), manifest_path(prefix).read_bytes()
    blocks = [xxhash.xxh3_64_intdigest(ids[at : at + 32768]) for at in range(0, len(ids), 32768)]
    header = struct.pack("<8sIIQQQ", b"MSDIGEST", 1, 32768, len(ids), len(index), len(manifest))
    whole = (
        header
        + xxhash.xxh3_128_digest(index)
        + xxhash.xxh3_128_digest(manifest)
        + struct.pack("<4Q", *blocks)
    )
    assert raw == whole + xxhash.xxh3_128_digest(whole)


@pytest.mark.parametrize("cut", [1, 7, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 10**6])
@pytest.mark.parametrize("size", [0, 5, BLOCK_BYTES, 2 * BLOCK_BYTES + 3])
def test_digests_do_not_depend_on_how_the_bytes_come(cut, size):
    raw = np.random.default_rng(size).bytes(size)
    step = max(cut, size // 50)
    digests = BlockDigests()
    for at in range(0, size, step):
        digests.update(raw[at : at + step])
    assert digests.bytes == size
    assert digests.blocks().tolist() == [
        xxhash.xxh3_64_intdigest(raw[at : at + BLOCK_BYTES]) for at in range(0, size, BLOCK_BYTES)
    ]


def test_damage_is_found_when_its_block_is_first_read_and_not_before(prefix):
    flip(bin_path(prefix), 2 * BLOCK_BYTES + 10)
    reader = TokenReader(prefix)
    first, last = np.array([[0, 0, 1000]]), np.array([[len(reader) - 1, 0, 1]])
    assert reader.read(first)[0] == 0
    assert reader.read(last)[0] == len(reader) - 1
    (sequence,) = np.flatnonzero(reader.pointers <= 2 * BLOCK_BYTES)[-1:].tolist()
    offset = (2 * BLOCK_BYTES - int(reader.pointers[sequence])) // 2
    assert len(reader.read(np.array([[sequence, 0, offset]]))) == offset, (
        "ids in front of the block are sound"
    )
    for read in (
        lambda: reader.read(np.array([[sequence, 0, offset + 1]])),
        lambda: reader.get(sequence),
        lambda: list(reader.blocks()),
        reader.token_range,
    ):
        with pytest.raises(
            UserError, match=r"c\.bin differs from what was .* bytes 65,536 to 98,304 are damaged"
        ):
            read()


@pytest.mark.parametrize("path", [idx_path, manifest_path, digests_path])
def test_damage_that_breaks_no_law_is_found_when_a_corpus_is_opened(tmp_path, path):
    prefix = write(tmp_path / "c", [[1, 2], [3, 4], [5]])
    write_manifest(prefix, {"tokenizer": {"fingerprint": "a"}})
    raw = path(prefix).read_bytes()
    at = raw.index(b"finger") if path is manifest_path else len(raw) - 1
    if path is idx_path:  # the second sequence takes a token of the first
        raw = raw[:34] + struct.pack("<iiiqq", 1, 3, 1, 0, 2) + raw[62:]
        path(prefix).write_bytes(raw)
    else:
        flip(path(prefix), at)
    with pytest.raises(UserError, match=f"{path(prefix).name} (is damaged|differs)"):
        TokenReader(prefix)


def test_a_recorded_manifest_that_is_gone_is_missed(tmp_path):
    prefix = write(tmp_path / "c", [[1]])
    write_manifest(prefix, {})
    manifest_path(prefix).unlink()
    with pytest.raises(
        UserError, match=r"c\.json differs from what was written .* cannot be read: No such file"
    ):
        TokenReader(prefix)


def test_every_verb_that_makes_a_corpus_records_it(tmp_path):
    one, other = golden(tmp_path / "a", 30, 1), golden(tmp_path / "b", 30, 2)
    merge([TokenReader(one), TokenReader(other)], tmp_path / "m")
    split(TokenReader(tmp_path / "m"), [tmp_path / "x", tmp_path / "y"], [20, 40])
    for name in "abmxy":
        assert read_digests(tmp_path / name) is not None
        assert list(problems(tmp_path / name)) == []


def test_a_pair_from_elsewhere_is_recorded_once_and_then_guarded(tmp_path, capsys):
    prefix = write(tmp_path / "c", [[1, 2], [3]])
    mask = write(Path(mask_prefix(prefix)), [[1, 1], [0]])
    sound = digests_path(prefix).read_bytes(), digests_path(mask).read_bytes()
    for one in (prefix, mask):
        digests_path(one).unlink()
    assert call("data", ["validate", prefix]) == 0
    assert (
        f"no digests, so damage may go unnoticed: run megascratch data record {prefix}"
        in capsys.readouterr().out
    )
    assert call("data", ["record", prefix]) == 0
    assert (digests_path(prefix).read_bytes(), digests_path(mask).read_bytes()) == sound
    assert call("data", ["record", prefix]) == 0
    assert "already recorded and unchanged" in capsys.readouterr().out
    flip(bin_path(mask), 0, bit=1)
    with pytest.raises(
        UserError, match=r"c_loss_mask\.bin: bytes 0 to 6 .* --overwrite records the files"
    ):
        record(prefix)
    record(prefix, overwrite=True)
    assert TokenReader(mask).get(0).tolist() == [3, 1]


def test_half_a_loss_mask_is_refused_and_not_passed_over(tmp_path):
    prefix = write(tmp_path / "c", [[1, 2], [3]])
    mask = write(Path(mask_prefix(prefix)), [[1, 1], [0]])
    idx_path(mask).unlink()
    assert any("c_loss_mask.idx cannot be read" in problem for problem in problems(prefix))


CACHE_DAMAGE = {
    "a low bit": lambda file: flip(file, -8),
    "a high bit": lambda file: flip(file, -1, 6),
    "another dtype": lambda file: np.save(file, np.arange(5, dtype=np.int32)),
    "no dimension": lambda file: np.save(file, np.int64(7)),
    "another shape": lambda file: np.save(file, np.arange(6)),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
def test_a_damaged_index_cache_is_made_again_and_said_once(tmp_path, capsys, damage):
    def arrays():
        return {"x": np.arange(5)}

    load_or_build(tmp_path, {"a": 1}, arrays)
    (file,) = tmp_path.glob("*/x.npy")
    damage(file)
    for _ in range(2):
        back = load_or_build(tmp_path, {"a": 1}, arrays)["x"]
        assert (back.dtype, back.tolist()) == (np.int64, [0, 1, 2, 3, 4])
    assert (
        capsys.readouterr().err.count(
            f"the index cache {file.parent} is damaged: it is built again"
        )
        == 1
    )


def test_validate_names_a_damaged_index_cache(tmp_path, capsys):
    prefix = write(tmp_path / "c", [[1, 2]])
    load_or_build(tmp_path / "cache", {"a": 1}, lambda: {"x": np.arange(5)})
    assert call("data", ["validate", prefix]) == 0
    (record_,) = (tmp_path / "cache").glob("*/key.json")
    told = json.loads(record_.read_text())
    record_.write_text(json.dumps(told | {"key": {"a": 2}}))
    assert call("data", ["validate", prefix]) == 1
    assert f"index cache {record_.parent} is damaged" in capsys.readouterr().out


def test_random_flips_in_every_kind_of_file_are_all_found():
    done = subprocess.run(
        [sys.executable, str(FLIPS), "--flips", "8", "--dialogues", "40"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 7
