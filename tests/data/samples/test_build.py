"""The settings open the right sequences of the right files, and refuse what cannot work before training starts."""

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.build import MockReader, open_splits
from megascratch.data.samples.split_spec import prefixes_and_weights, ranges
from megascratch.data.tokens.manifest import write_manifest
from tests.support.corpora import counting, golden


@pytest.mark.parametrize(
    ("split", "sequences", "expected"),
    [
        ("969,30,1", 1500, [(0, 1454), (1454, 1498), (1498, 1500)]),
        (
            "969,30,1",
            500,
            [(0, 484), (484, 500), (500, 500)],
        ),  # round(499.5) is even: the test gets nothing
        ("949,50,1", 1000, [(0, 949), (949, 999), (999, 1000)]),
        ("90,10,0", 10, [(0, 9), (9, 10), None]),
        ("90,10", 10, [(0, 9), (9, 10), None]),
        ("0.5 0.5", 3, [(0, 2), (2, 3), None]),
        ("1", 3, [(0, 3), None, None]),
        ("0,1,0", 3, [None, (0, 3), None]),
    ],
)
def test_borders_are_the_rounded_running_shares(split, sequences, expected):
    assert ranges(split, sequences) == expected


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "0,0,0", "-1,2", "1,,2", "nan"])
def test_a_split_that_is_no_share_is_refused(split):
    with pytest.raises(UserError, match="must be up to three numbers"):
        ranges(split, 10)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a"], (["a"], None)),
        (["a", "b"], (["a", "b"], None)),
        (["1", "a", "3", "b"], (["a", "b"], [0.25, 0.75])),
        (["1", "a", "3"], (["1", "a", "3"], None)),
        (["1", "a", "x", "b"], (["1", "a", "x", "b"], None)),
    ],
)
def test_weights_are_told_from_prefixes_as_megatron_tells_them(
    tmp_path, monkeypatch, words, expected
):
    monkeypatch.chdir(tmp_path)
    for name in "13":
        (tmp_path / f"{name}.idx").touch()  # else these numbers could be nothing but weights
    assert prefixes_and_weights(words, "--data-path") == expected


@pytest.mark.parametrize(
    "words", [[], ["-1", "a"], ["0", "a", "0", "b"], ["inf", "a"], ["nan", "a"]]
)
def test_weights_that_cannot_be_shares_are_refused(words):
    with pytest.raises(UserError, match="--data-path"):
        prefixes_and_weights(words, "--data-path")


@pytest.fixture
def prefix(tmp_path):
    return counting(tmp_path / "c", [10] * 100)


def open_(data, train=1, valid=1, test=0, vocab_size=5000, **more):
    return open_splits(
        data,
        seed=1,
        vocab_size=vocab_size,
        train_samples=train,
        valid_samples=valid,
        test_samples=test,
        **more,
    )


def test_each_split_reads_its_share(prefix):
    splits = open_(DataConfig(data_path=[prefix], split="80,10,10", seq_length=9), test=1)
    assert (splits.valid[0].tolist(), splits.test[0].tolist()) == (
        list(range(800, 810)),
        list(range(900, 910)),
    )
    assert max(splits.train[number].max() for number in range(len(splits.train))) < 800


def test_a_split_is_opened_only_if_it_is_asked_for_and_has_a_share(prefix):
    data = DataConfig(data_path=[prefix], split="90,10,0", seq_length=9)
    assert open_(data, valid=0, test=1)[1:3] == (None, None)


def test_the_number_of_samples_asked_for_changes_no_sample(prefix):
    data = DataConfig(data_path=[prefix], seq_length=9)
    few, many = (open_(data, train=count).train for count in (1, 10**6))
    assert all((few[number] == many[number]).all() for number in range(300))


def test_a_split_that_rounds_to_nothing_is_refused_with_the_numbers(prefix):
    with pytest.raises(
        UserError, match=r"--split 999,1 leaves no sequence of .*c \(100 sequences\) to valid"
    ):
        open_(DataConfig(data_path=[prefix], split="999,1", seq_length=9))


def test_every_split_can_have_files_of_its_own(tmp_path, prefix):
    data = DataConfig(
        train_data_path=[prefix], valid_data_path=[golden(tmp_path / "v", 9, 1)], seq_length=9
    )
    splits = open_(data, test=1)
    assert (len(splits.train), splits.valid.finite, splits.test) == (111, True, None)


def test_several_corpora_are_blended_by_weight_or_by_size(tmp_path, prefix):
    other = counting(tmp_path / "d", [10] * 300)
    for words, share in ((["0.2", prefix, "0.8", other], 0.2), ([prefix, other], 0.25)):
        train = open_(DataConfig(data_path=words, seq_length=9), valid=0).train
        assert sum(train.origin(number)[0] == 0 for number in range(1000)) == pytest.approx(
            1000 * share, abs=2
        )


def test_mock_data_needs_no_file():
    splits = open_(DataConfig(mock_data=True, seq_length=64), eod=4999)
    assert (
        splits.train[10**6].shape == (65,)
        and splits.valid[0][:3].tolist() == splits.valid[0][:3].tolist()
    )
    assert len(splits.train) > len(splits.valid) - 5000 > 900_000


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"data_path": None}, "no data: give --data-path"),
        ({"data_path": []}, "--data-path names no corpus"),
        ({"data_path": ["nowhere"]}, "nowhere.idx cannot be read: No such file"),
    ],
)
def test_no_data_is_refused(change, law):
    with pytest.raises(UserError, match=law):
        open_(DataConfig(seq_length=9, **change))


def test_an_id_outside_the_vocabulary_is_refused_with_its_place(prefix):
    data = DataConfig(data_path=[prefix], seq_length=9)
    place = r"c\.bin: document 57, sequence 57, token 0 has id 570"
    law = place + r", the vocabulary has 570 \(ids 0 to 569\).*--vocab-size 1000"
    for _ in range(2):  # the second time from the remembered range
        with pytest.raises(UserError, match=law):
            open_(data, vocab_size=570)
    assert open_(data, vocab_size=1000).train is not None


def manifest(fingerprint, bin_bytes=4000, high=999):
    tokenizer = {"kind": "CharTokenizer", "fingerprint": fingerprint, "model": "old.json"}
    return {"tokenizer": tokenizer, "bin_bytes": bin_bytes, "min_token": 0, "max_token": high}


def test_another_tokenizer_is_refused_naming_both(prefix):
    data = DataConfig(data_path=[prefix], seq_length=9)
    write_manifest(prefix, manifest("a" * 64))
    assert open_(data, fingerprint="a" * 64).train is not None
    assert open_(data, fingerprint=None).train is not None
    with pytest.raises(
        UserError, match=rf"CharTokenizer {'a' * 16} \(old\.json\), training uses {'b' * 16}"
    ):
        open_(data, fingerprint="b" * 64)


def test_a_manifest_is_believed_only_for_its_own_bin(prefix):
    data = DataConfig(data_path=[prefix], seq_length=9)
    write_manifest(prefix, manifest("a" * 64, high=5))
    open_(data, vocab_size=6)
    write_manifest(prefix, manifest("a" * 64, bin_bytes=3999, high=5))
    with pytest.raises(UserError, match=r"sequence 0, token . has id 6"):
        open_(data, vocab_size=6)


@pytest.mark.parametrize(
    ("words", "law"),
    [
        (["0.5", "a", "b"], "weights: 1, corpora: 2"),
        (["0.3", "a", "0.7"], "weights: 2, corpora: 1"),
        (["a", "0.5", "b", "0.5"], "weights: 2, corpora: 2"),
        (["0.5", "0.5"], "weights: 2, corpora: 0"),
        (["0.2", "a", "0.8", "b", "c"], "weights: 2, corpora: 3"),
        (["1"], "weights: 1, corpora: 0"),
    ],
)
def test_a_blend_whose_weights_do_not_fit_is_blamed_and_not_a_file(
    tmp_path, monkeypatch, words, law
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"--data-path .*: {law}; give each corpus a weight in front of it"
    ):
        open_(DataConfig(data_path=words, seq_length=9))


def test_a_corpus_may_have_a_number_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counting(tmp_path / "2024", [10] * 100)
    for words in (["2024"], ["0.5", "2024"]):
        assert open_(DataConfig(data_path=words, seq_length=9, split="8,1,1")).train is not None


def test_mock_data_counts_and_ends_documents():
    mock = MockReader(50, 49)
    whole = mock.get(3)
    assert (
        len(whole) == mock.lengths[3]
        and whole[-1] == 49
        and whole[:4].tolist() == [1, 2, 3, 4]
        and whole.max() < 50
    )
    assert mock.get(3, 2, 5).tolist() == whole[2:7].tolist()
    assert mock.get(3, len(whole) - 2).tolist() == whole[-2:].tolist()
    assert MockReader(50, None).get(3)[-1] == len(whole) % 50
    assert int(mock.lengths.sum()) == int(
        np.random.default_rng(0).integers(1, 4096, 100_000, dtype=np.int32).sum()
    )
