"""The settings open the right sequences of the right files, and refuse what cannot work before training starts."""

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.build import MockReader, open_splits
from megascratch.data.samples.split_spec import prefixes_and_weights, ranges
from megascratch.data.tokens.manifest import write_manifest
from tests.support.corpora import counting, golden, write
from tests.support.cuts import validation_reads_the_end_and_training_never_does


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


@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_one_document_is_cut_and_its_end_is_never_trained(tmp_path, packing):
    validation_reads_the_end_and_training_never_does(tmp_path, packing=packing)


@pytest.mark.parametrize(
    ("lengths", "split", "borders"),
    [
        ([1000], None, (969, 999)),
        ([400, 600], "90,10,0", (900, 1000)),
        ([10] * 100, "995,5", (995, 1000)),
        ([600, 400], "80,10,10", (800, 900)),
        ([1000], "0,1,0", (0, 1000)),
    ],
)
def test_a_corpus_with_too_few_documents_is_cut_at_the_shares_of_its_tokens(
    tmp_path, lengths, split, borders
):
    data = DataConfig(data_path=[counting(tmp_path / "c", lengths)], split=split, seq_length=9)
    trained = open_(data, train=int(borders[0] > 0), valid=0)
    splits = open_(data, train=int(borders[0] > 0))
    valid = [splits.valid[number].tolist() for number in range(len(splits.valid))]
    assert (valid[0][0], valid[-1][-1]) == (borders[0], borders[1] - 1)
    if splits.train:  # which is the same whether there is a validation or not
        samples = [splits.train[number].tolist() for number in range(len(splits.train))]
        assert samples == [trained.train[number].tolist() for number in range(len(splits.train))]
        assert max(map(max, samples)) < borders[0]


def test_a_cut_is_told_once_with_its_place(tmp_path):
    prefix = counting(tmp_path / "c", [1000])
    data = DataConfig(data_path=[prefix], split="80,10,10", seq_length=9)
    assert open_(data, test=1).cuts == [
        f"{prefix} has too few documents for --split 80,10,10 (1): it is cut inside a document, after 800 and 900 of "
        "1,000 tokens"
    ]
    assert open_(DataConfig(data_path=[prefix], split="1,0,0", seq_length=9), valid=0).cuts == []


def test_a_corpus_with_enough_documents_is_not_cut(prefix):
    splits = open_(DataConfig(data_path=[prefix], split="99,1", seq_length=9))
    assert (splits.cuts, splits.valid[0].tolist()) == ([], list(range(990, 1000)))


def test_the_loss_mask_of_a_corpus_is_cut_with_it(tmp_path):
    """Of 1,000 tokens each third one is learned; the others are marked in training and validation alike."""
    prefix = counting(tmp_path / "c", [1000])
    write(tmp_path / "c_loss_mask", [[int(token % 3 == 0) for token in range(1000)]])
    splits = open_(DataConfig(data_path=[prefix], split="90,10", seq_length=9))
    for dataset, low, high in ((splits.train, 0, 900), (splits.valid, 900, 1000)):
        for number in range(len(dataset)):
            for token in dataset[number].tolist():
                marked = token if token >= 0 else ~token
                assert low <= marked < high
                assert (token >= 0) == (marked % 3 == 0)


@pytest.mark.parametrize(
    ("tokens", "split", "name", "fix"),
    [
        (1000, "999,1", "valid", r"use --split 998,2,0"),
        (1000, "9999,1", "valid", r"use --split 998,2,0"),
        (1000, "980,19,1", "test", r"use --split 979,19,2"),
        (3, "2,1", "valid", r"use more text"),
    ],
)
def test_a_share_of_too_few_tokens_is_refused_with_one_that_works(
    tmp_path, tokens, split, name, fix
):
    words = {"data_path": [counting(tmp_path / "c", [tokens])], "seq_length": 1}
    wanted = {"valid": int(name == "valid"), "test": int(name == "test")}
    with pytest.raises(UserError, match=rf"gives {name} [01] of the {tokens} tokens.*{fix}"):
        open_(DataConfig(**words, split=split), **wanted)
    if "--split" in fix:
        opened = open_(DataConfig(**words, split=fix.split()[-1]), **wanted)
        assert len(getattr(opened, name)[0]) == 2


def test_megatrons_order_never_cuts_a_document_and_says_what_does(tmp_path):
    words = {"data_path": [counting(tmp_path / "c", [1000])], "seq_length": 9}
    order = {"data_order": "megatron"}
    law = r"leaves no sequence of .*c \(it has 1, which Megatron's order never cuts\) to valid: use --data-order keyed"
    with pytest.raises(UserError, match=law):
        open_(DataConfig(**words, **order))
    open_(DataConfig(**words))
    open_(DataConfig(**words, **order, split="1,0,0"), valid=0)
    assert open_(DataConfig(**words, **order), valid=0).cuts == []


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
