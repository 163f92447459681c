"""The record of what training reads is what training reads."""

import numpy as np
import pytest

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.inspect.audit import audit, steps, uses_of
from megascratch.data.samples.build import open_splits
from megascratch.data.samples.microbatches import sample_numbers
from megascratch.data.tokens.token_files import TokenReader
from tests.support.corpora import counting, write


@pytest.fixture
def run(tmp_path):
    """A blend of a corpus with empty documents and another; 4 samples of 9 tokens a step, later 8."""
    a = write(tmp_path / "a", [[], list(range(100, 140)), [], [], list(range(140, 230))], "int32")
    b = counting(tmp_path / "b", [10] * 30)
    values = {
        "train_data_path": [a, b],
        "seq_length": 9,
        "global_batch_size": 8,
        "rampup_batch_size": [4, 4, 20],
    }
    config = resolve(with_fields(Config(), values | {"train_iters": 50, "vocab_size": 999}), 1)
    return config, open_splits(config.data, seed=1, vocab_size=999, train_samples=1).train


def test_every_token_that_a_step_reads_is_told_with_its_document(run):
    config, dataset = run
    sources = {part.source.prefix: part.source for part in dataset.parts}
    by_sample = {}
    for use in audit(config.training, dataset, 3, 12):
        source = sources[use.corpus]
        first, stop = source.documents[use.document : use.document + 2]
        assert first <= use.sequence < stop
        ids = source.get(use.sequence, use.first_token, use.tokens).tolist()
        assert use.place == len(by_sample.setdefault((use.step, use.sample), []))
        by_sample[use.step, use.sample] += ids
    assert all(ids == dataset[sample].tolist() for (_, sample), ids in by_sample.items())
    assert list(by_sample) == [
        (step, sample)
        for step, samples in steps(config.training, 12)
        if step >= 3
        for sample in samples
    ]


def test_steps_take_the_samples_that_the_loader_deals(run):
    """Also while the batch grows, on any number of ranks."""
    config, _ = run
    consumed = 0
    for _, samples in steps(config.training, 9):
        dealt = [
            sample_numbers(consumed, m, 2, rank, 2)
            for m in range(len(samples) // 4)
            for rank in range(2)
        ]
        assert sorted(np.concatenate(dealt)) == list(samples)
        consumed += len(samples)
    assert consumed == 5 * 4 + 4 * 8


def test_a_document_that_is_cut_is_told_by_its_place_in_the_corpus(tmp_path):
    """Validation begins at token 450 of the corpus: token 400 of its second document."""
    prefix = counting(tmp_path / "c", [50, 450])
    values = {"data_path": [prefix], "seq_length": 9, "split": "9,1,0", "global_batch_size": 8}
    config = resolve(with_fields(Config(), values | {"train_iters": 50, "vocab_size": 999}), 1)
    splits = open_splits(config.data, seed=1, vocab_size=999, train_samples=1, valid_samples=1)
    reader = TokenReader(prefix)
    for use in uses_of(splits.valid, 1, 0):
        ids = reader.get(use.sequence, use.first_token, use.tokens).tolist()
        assert (use.document, use.sequence, use.first_token) == (1, 1, 400)
        assert ids == splits.valid[0].tolist()
