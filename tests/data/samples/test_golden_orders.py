"""Samples that a command line of Megatron-LM reads are those of megatron-core 0.16.1, on 30 random configurations.

Compared are tokens, labels, loss mask, position ids and attention mask, for training, all validations and the test set.
How many samples a run requests decides their order; `requested` counts them as Megatron-LM's training.py does.
"""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import pytest

from megascratch.config.errors import Problems
from megascratch.config.load import read_config
from megascratch.config.resolve import Found
from megascratch.data.samples.batch import collate
from megascratch.training.start.inputs import open_inputs
from megascratch.training.start.settings import legal_settings
from tests.support.corpora import golden

EOD = 7
MOST_COMPARED = 250
"""Samples of a split, evenly over all of it."""
MODEL = (
    "--num-layers 1 --hidden-size 8 --num-attention-heads 1 --max-position-embeddings 128 --lr 1e-3"
)
TOKENIZER = f"--tokenizer-type NullTokenizer --vocab-size 1000 --null-tokenizer-eod-id {EOD}"
RESETS = ("reset-position-ids", "reset-attention-mask", "eod-mask-loss")


PINNED = {6: "7428b3e8f2a8158a", 8: "018fb971aa429eac", 26: "ae56476aec3905a7"}
"""Number of a configuration -> sum: ramp-up, blends of each split, incomplete last batch."""


class Run(NamedTuple):
    """A random configuration."""

    words: list[str]
    """Flags of data and length, in Megatron-LM's words."""
    blends: dict[str, Any]
    """`blend` and `split`, or `blend_per_split`, of its GPTDatasetConfig."""
    seed: int
    seq_length: int
    resets: set[str]
    requested: tuple[int, int, int]
    """Samples of training, of all validations together and of the test."""


def drawn(number, folder):
    random = np.random.RandomState(number)
    count = random.randint(1, 5)
    prefixes = []
    for each in range(count):
        documents = int(random.randint(60, 400))
        prefixes.append(golden(folder / f"corpus{number}_{each}", documents, 100 * number + each))
    resets = {name for name in RESETS if random.rand() < 0.5}
    seed = int(random.randint(0, 1 << 32, dtype=np.uint32))
    seq_length = int(random.choice([8, 17, 32, 64, 128]))
    words = ["--seed", str(seed), "--seq-length", str(seq_length)]
    words += [f"--{name}" for name in resets]
    of_data, blends = sources(random, prefixes, folder / f"blends{number}.json")
    length, requested = lengths(random)
    return Run([*words, *of_data, *length], blends, seed, seq_length, resets, requested)


def sources(random, prefixes, file):
    """Flags and Megatron-LM's arguments for one blend with a split, or a blend for each split."""
    blend, words = blended(random, prefixes)
    if random.rand() < 0.6 or len(prefixes) == 1:
        split = str(
            random.choice(["80,20,0", "70,20,10", "949,50,1" if len(prefixes) > 9 else "60,40"])
        )
        quoted = f"'{split}'" if random.rand() < 0.5 else split
        return ["--data-path", *words, "--split", quoted], {"blend": blend, "split": split}
    (first, one), (second, other) = blended(random, prefixes[:1]), blended(random, prefixes[1:])
    per_split = {"blend_per_split": [first, second, second]}
    if random.rand() < 0.5:
        file.write_text(json.dumps({"train": one, "valid": " ".join(other), "test": other}))
        return ["--per-split-data-args-path", str(file)], per_split
    paths = ["--train-data-path", *one, "--valid-data-path", *other, "--test-data-path", *other]
    return paths, per_split


def blended(random, prefixes):
    if random.rand() < 0.5 or len(prefixes) == 1:
        return (prefixes, None), prefixes
    weights = [round(float(random.rand()) + 0.1, 2) for _ in prefixes]
    words = []
    for weight, prefix in zip(weights, prefixes, strict=True):
        words += [str(weight), prefix]
    return (prefixes, weights), words


def lengths(random):
    """Flags, and the samples that Megatron-LM requests for them (training.py, get_train_valid_test_num_samples)."""
    batch = int(random.choice([4, 8, 16]))
    eval_interval, eval_iters = int(random.randint(3, 20)), int(random.randint(1, 4))
    words = ["--micro-batch-size", "1", "--global-batch-size", str(batch)]
    words += ["--eval-interval", str(eval_interval), "--eval-iters", str(eval_iters)]
    ramp = random.rand() < 0.4 and batch > 4
    if ramp:
        words += ["--rampup-batch-size", "4", "4", "100"]
    if random.rand() < 0.5:
        steps = int(random.randint(5, 60))
        words += ["--train-iters", str(steps)]
        train = steps * batch
    else:
        train = int(random.randint(200, 900))
        words += ["--train-samples", str(train)]
        steps = train // batch
        if ramp:
            steps = 0
            consumed = 0
            increments = (batch - 4) // 4
            while consumed <= 100:  # as update_train_iters counts them
                consumed += min(batch, 4 + 4 * int(consumed / (100 / increments)))
                steps += 1
            if train > consumed:
                steps += (train - consumed) // batch
    valid = (steps // eval_interval + 1) * eval_iters * batch
    return words, (train, valid, eval_iters * batch)


def ours(run, folder):
    words = [*MODEL.split(), *TOKENIZER.split(), "--data-cache-path", str(folder / "ours")]
    loaded = read_config(["--flags-of", "megatron", *words, *run.words])
    return open_inputs(legal_settings(loaded, 1), Found(), Problems()).splits


def megatrons(run):
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset")
    builder = pytest.importorskip("megatron.core.datasets.blended_megatron_dataset_builder")

    class Tokenizer:
        vocab_size, eod, pad, unique_identifiers = 1000, EOD, -1, {}

    config = gpt.GPTDatasetConfig(
        random_seed=run.seed,
        sequence_length=run.seq_length,
        tokenizer=Tokenizer(),
        reset_position_ids="reset-position-ids" in run.resets,
        reset_attention_mask="reset-attention-mask" in run.resets,
        eod_mask_loss="eod-mask-loss" in run.resets,
        create_attention_mask=True,
        **run.blends,
    )
    sizes = list(run.requested)
    return builder.BlendedMegatronDatasetBuilder(
        gpt.GPTDataset, sizes, lambda: True, config
    ).build()


def masked(batch, seq_length):
    """[S, S] bool, True where attention is not allowed, as Megatron-LM has it."""
    place = np.arange(seq_length)
    starts = np.zeros(seq_length, int)
    if batch.document_starts is not None:
        starts = batch.document_starts[0].numpy()
    return (place[None] > place[:, None]) | (place[None] < starts[:, None])


def compare(mine, other, run):
    for number in np.unique(np.linspace(0, len(other) - 1, MOST_COMPARED).astype(int)).tolist():
        resets = {name.replace("-", "_"): name in run.resets for name in RESETS}
        batch = collate([mine[number]], [number], run.seq_length, EOD, **resets)
        want = other[number]
        assert batch.ids[0].tolist() == want["tokens"].tolist()
        assert batch.labels[0].tolist() == want["labels"].tolist()
        assert batch.loss_mask[0].tolist() == want["loss_mask"].tolist()
        assert batch.positions[0].tolist() == want["position_ids"].tolist()
        assert np.array_equal(masked(batch, run.seq_length), want["attention_mask"][0].numpy())


@pytest.mark.deep
@pytest.mark.parametrize("number", range(30))
def test_a_command_line_reads_the_samples_of_megatron_core(number, tmp_path):
    pytest.importorskip("megatron.core.datasets.gpt_dataset")
    run = drawn(number, tmp_path)
    splits = ours(run, tmp_path)
    compared = 0
    pairs = zip((splits.train, splits.valid, splits.test), megatrons(run), strict=True)
    for mine, other in pairs:
        if mine is None or other is None:
            continue
        assert len(mine) == len(other)
        compare(mine, other, run)
        compared += 1
    assert compared >= 2


def test_the_samples_of_three_of_them_are_pinned(tmp_path):
    """sha256 of all samples of training and validation, measured when they were those of megatron-core 0.16.1."""
    found = {}
    for number in PINNED:
        run = drawn(number, tmp_path)
        splits = ours(run, tmp_path)
        digest = hashlib.sha256()
        for split in (splits.train, splits.valid):
            for sample in range(len(split)):
                digest.update(split[sample].astype("<i8").tobytes())
        found[number] = digest.hexdigest()[:16]
    assert found == PINNED
