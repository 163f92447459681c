"""The law of a corpus that `--split` cuts inside a document: what validation reads is never trained."""

from pathlib import Path

from megascratch.config.settings import DataConfig
from megascratch.data.samples.build import Splits, open_splits
from tests.support.corpora import counting

TOKENS = 1000


def opened(folder: Path, **changes) -> Splits:
    """The splits of one document of the ids 0, 1, 2 ... 999 in samples of 9 + 1 tokens."""
    prefix = counting(folder / "one", [TOKENS])
    data = DataConfig(**{"data_path": [prefix], "split": "90,10,0", "seq_length": 9, **changes})
    return open_splits(data, seed=1, vocab_size=TOKENS, train_samples=1, valid_samples=1)


def validation_reads_the_end_and_training_never_does(folder: Path, **changes) -> None:
    """Sixty epochs of training read all of the first 900 tokens, always in the text's order, and no other."""
    splits = opened(folder, **changes)
    trained = set()
    for number in range(60 * len(splits.train)):
        sample = splits.train[number].tolist()
        rises = [after - before for before, after in zip(sample, sample[1:], strict=False)]
        assert set(rises) <= {1, -899}, (
            f"sample {number} is {sample}"
        )  # the end meets the beginning
        trained.update(sample)
    validated = set()
    for number in range(len(splits.valid)):
        validated.update(splits.valid[number].tolist())
    assert trained == set(range(900)), sorted(trained)
    assert validated == set(range(900, 1000)), sorted(validated)
