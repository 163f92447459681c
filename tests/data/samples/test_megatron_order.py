"""`--data-order megatron` reads the samples that Megatron-LM reads: its golden arrays, and its own code where it is."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.build import open_splits
from megascratch.data.samples.megatron_order import (
    MegatronBlend,
    MegatronCorpus,
    epochs,
    sizes_to_build,
)
from megascratch.data.tokens import _indices, indices_python
from megascratch.data.tokens.token_files import TokenReader
from tests.support.corpora import Numbers, counting, golden

ENGINES = [_indices, indices_python]


def md5(*arrays: np.ndarray) -> str:
    return hashlib.md5(
        b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    ).hexdigest()[:12]


def state_of(random: np.random.RandomState) -> np.ndarray:
    state = random.get_state()
    return np.append(state[1], state[2]).astype(np.uint32)


@settings(max_examples=60, deadline=None)
@given(
    count=st.one_of(st.integers(0, 3000), st.sampled_from([2**16 - 1, 2**16, 2**16 + 1])),
    seed=st.integers(0, 2**32 - 1),
    used=st.integers(0, 700),
    dtype=st.sampled_from([np.int32, np.uint32, np.int64]),
)
def test_a_shuffle_is_numpys_own_and_leaves_its_generator_where_numpy_leaves_it(
    count, seed, used, dtype
):
    random = np.random.RandomState(seed)
    random.bytes(4 * used)
    for engine in ENGINES:
        theirs, state, ours = (
            np.random.RandomState(),
            state_of(random),
            np.arange(count, dtype=dtype),
        )
        theirs.set_state(random.get_state())
        engine.legacy_shuffle(ours, state)
        expected = np.arange(count, dtype=dtype)
        theirs.shuffle(expected)
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(state, state_of(theirs))


@pytest.mark.parametrize(
    "place", [1, 2, 700, 2**31 + 5, 2**32 - 1, 2**32 + 300, 2**33 + 100, 2**62]
)
def test_draws_need_64_bits_from_place_2_to_the_32_on(place):
    """A run of draws over the borders where the mask and the width change, and the generator behind them."""
    count = min(place, 1000)
    states = [state_of(np.random.RandomState(3)) for _ in ENGINES]
    ours, twin = (
        engine.legacy_draws(place, count, state)
        for engine, state in zip(ENGINES, states, strict=True)
    )
    np.testing.assert_array_equal(ours, twin)
    np.testing.assert_array_equal(*states)
    assert (ours <= place - np.arange(count)).all() and (ours >= 0).all()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    return golden(folder / "A", 1500, 1), golden(folder / "B", 300, 2)


def opened(path, split, sizes, tmp_path):
    samples = dict(zip(["train_samples", "valid_samples", "test_samples"], sizes, strict=False))
    data = DataConfig(
        data_path=path,
        split=split,
        seq_length=64,
        data_order="megatron",
        data_cache_path=str(tmp_path),
    )
    return open_splits(data, seed=1234, vocab_size=1000, **samples)


GOLDEN = [
    ("train", 100, 1393, ("e8498a258285", "49e65b5befc4", "573aec466780")),
    ("train", 700, 1393, ("e8498a258285", "49e65b5befc4", "573aec466780")),
    ("train", 1500, 2787, ("cc73e73a675c", "6b550bbc21ef", "c216e97e9a09")),
    ("valid", 20, 41, ("7bf8a27c4e3c", "603433def100", "dc3a1aeeb704")),
    ("valid", 60, 82, ("2e811124003b", "5fbae91eca7c", "43e99a5b2021")),
    ("test", 5, 5, ("360e4404cd5c", "f8a5edd78643", "fc6662e84654")),
]


@pytest.mark.parametrize(("name", "wanted", "samples", "sums"), GOLDEN)
def test_the_indices_are_megatrons(corpora, tmp_path, name, wanted, samples, sums):
    sizes = [wanted if split == name else 0 for split in ("train", "valid", "test")]
    for _ in range(2):  # the second time from the cache
        dataset = getattr(opened([corpora[0]], "969,30,1", sizes, tmp_path), name)
        assert len(dataset) == samples
        assert [array.dtype for array in (dataset.documents, dataset.cuts, dataset.order)] == [
            "i4",
            "i4",
            "u4",
        ]
        assert tuple(map(md5, (dataset.documents, dataset.cuts, dataset.order))) == sums


@pytest.mark.parametrize(("wanted", "sum_"), [(100, "2b71c95ebfc3"), (1500, "d29d8fd938d8")])
def test_the_tokens_are_megatrons(corpora, tmp_path, wanted, sum_):
    train = opened([corpora[0]], "969,30,1", [wanted], tmp_path).train
    assert md5(*(train[number][:-1] for number in range(3))) == sum_


@pytest.mark.parametrize(
    ("sizes", "name", "sums"),
    [
        ([1000], "train", ("fd364e54ffd6", "eb2376acbae6")),
        ([0, 100], "valid", ("7fdd0cdde336", "686918c59609")),
    ],
)
def test_the_blend_is_megatrons(corpora, tmp_path, sizes, name, sums):
    mixed = getattr(
        opened(["0.3", corpora[0], "0.7", corpora[1]], "90,10,0", sizes, tmp_path), name
    )
    which, sample = zip(*(mixed.origin(number) for number in range(len(mixed))), strict=True)
    assert (md5(np.array(which, np.int16)), md5(np.array(sample, np.int64))) == sums


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(1, 500), wanted=st.integers(1, 300), seq_length=st.integers(1, 40))
def test_epochs_are_just_enough_and_a_thin_last_one_stands_alone(tokens, wanted, seq_length):
    """In exact numbers, where Megatron counts a kept partial sample in float32."""
    count, samples, alone = epochs(tokens, wanted, seq_length)
    assert samples >= wanted and samples * seq_length < count * tokens <= (samples + 1) * seq_length
    assert count == 1 or (count - 1) * tokens < wanted * seq_length + 1
    before = ((count - 1) * tokens - 1) // seq_length
    thin = count > 1 and wanted - before < int(0.8 * ((tokens - 1) // seq_length))
    assert alone == (before if thin else None)


def parts(*sizes):
    return [Numbers(part, size) for part, size in enumerate(sizes)]


def test_a_blend_asks_each_set_for_its_share_and_a_surplus():
    assert sizes_to_build([0.3, 0.7], 1000) == [302, 704]
    assert len(MegatronBlend(parts(400, 800), [0.3, 0.7], 999)) == 300 + 700


def test_a_blend_without_weights_takes_each_sample_at_most_once():
    assert len(MegatronBlend(parts(30, 10), None, 20)) == 20
    for wanted in (None, 40, 1000):
        mixed = MegatronBlend(parts(30, 10), None, wanted)
        assert len(mixed) == 40 and len({tuple(mixed[number]) for number in range(40)}) == 40
        assert [mixed[number].tolist() for number in (40, 10**6)] == [[], []]


def test_a_set_that_runs_dry_is_named():
    with pytest.raises(
        UserError, match=r"dataset 2 of the blend has 5 samples, Megatron's order takes 50"
    ):
        MegatronBlend(parts(100, 5), [0.5, 0.5], 100)


def test_fewer_samples_than_asked_for_are_refused_for_training_alone(corpora, tmp_path):
    path = [corpora[0], corpora[1]]
    with pytest.raises(
        UserError, match=r"the blend has [0-9]+ samples in one epoch, training reads 5000"
    ):
        opened(path, "1", [5000], tmp_path)
    assert len(opened(path, "1,1", [0, 5000], tmp_path).valid) < 5000


def test_a_split_that_rounds_to_nothing_is_refused_and_does_not_loop(tmp_path):
    with pytest.raises(UserError, match="leaves no sequence"):
        opened([counting(tmp_path / "c", [2] * 500)], "969,30,1", [1, 1, 1], tmp_path)


def test_sequences_without_tokens_are_refused(tmp_path):
    reader = TokenReader(counting(tmp_path / "c", [65]))
    with pytest.raises(UserError, match=r"hold 0 tokens, one sample of --seq-length 64 needs 65"):
        MegatronCorpus(reader, 0, 0, seq_length=64, seed=1, wanted=9, cache=None)


def test_a_corpus_written_again_does_not_find_the_old_index(tmp_path):
    first = opened([golden(tmp_path / "c", 200, 5)], "1", [50], tmp_path).train.documents.copy()
    again = opened([golden(tmp_path / "c", 300, 5)], "1", [50], tmp_path).train.documents
    assert len(first) == 200 and len(again) == 300


def test_megatron_core_reads_the_same(corpora, tmp_path):
    """Where megatron-core is installed: a blend of both corpora, token by token."""
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset")
    builder = pytest.importorskip("megatron.core.datasets.blended_megatron_dataset_builder")

    class Tokenizer:
        vocab_size, eod, pad, unique_identifiers = 1000, 999, -1, {}

    prefixes, weights, sizes = list(corpora), [0.37, 0.63], [2500, 90, 0]
    config = gpt.GPTDatasetConfig(
        random_seed=1234,
        sequence_length=64,
        blend=(prefixes, weights),
        split="90,10,0",
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    theirs = builder.BlendedMegatronDatasetBuilder(
        gpt.GPTDataset, sizes, lambda: True, config
    ).build()
    ours = opened(["0.37", corpora[0], "0.63", corpora[1]], "90,10,0", sizes, tmp_path)
    for mine, other in zip((ours.train, ours.valid), theirs, strict=False):
        assert len(mine) == len(other)
        for number in range(len(other)):
            assert mine[number].tolist() == [
                *other[number]["tokens"].tolist(),
                int(other[number]["labels"][-1]),
            ]
