"""Single random bits flipped in every kind of file that training reads: who notices?

    python benchmarks/flips.py --flips 300      exit code 0 if `data validate` found all, and no run read other samples

Each flip is made in a fresh copy of a corpus of conversations with its loss mask, manifest, digests and index caches.
Then `megascratch data validate` judges the files, and a run opens them and reads all samples of two epochs. The run has
found the flip if it refuses a file or builds an index cache again; a flip that is not found must not change a sample.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.preprocess.conversations import Template, write_conversations
from megascratch.data.samples.build import open_splits
from megascratch.data.text.sources import find_sources
from megascratch.tokenizer.simple import ByteTokenizer

KINDS = {
    ".bin": "corpus.bin",
    ".idx": "corpus.idx",
    "manifest": "corpus.json",
    "digests": "corpus.digests",
    "loss mask .bin": "corpus_loss_mask.bin",
    "loss mask .idx": "corpus_loss_mask.idx",
    "index caches": "cache/*/*.*",
}
LENGTH = 256
EPOCHS = 2


class Outcome(NamedTuple):
    """Of one flip."""

    validated: bool
    """`data validate` found it."""
    refused: bool
    """A run ended with a sentence, or said that it builds an index cache again."""
    same: bool
    """The run read the samples of the sound files (True where it was refused)."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--flips", type=int, default=300, help="in files of each kind (default: 300)"
    )
    parser.add_argument("--dialogues", type=int, default=150, help="in the corpus (default: 150)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    silent = 0
    with tempfile.TemporaryDirectory() as name:
        sound = Path(name, "sound")
        write(sound, options.dialogues, dice)
        expected = samples(sound)
        for kind, pattern in KINDS.items():
            outcomes = [
                outcome_of(flip, sound, expected)
                for flip in flips(sound, pattern, options.flips, dice)
            ]
            found = sum(outcome.validated for outcome in outcomes)
            refused = sum(outcome.refused for outcome in outcomes)
            harmless = sum(outcome.same and not outcome.refused for outcome in outcomes)
            wrong = sum(not outcome.same for outcome in outcomes)
            print(
                f"{kind:16} validate found {found} of {len(outcomes)}; a run found {refused}, "
                f"{harmless} changed nothing, {wrong} changed samples silently",
                flush=True,
            )
            silent += wrong + len(outcomes) - found
    return 1 if silent else 0


def write(folder: Path, dialogues: int, dice: random.Random) -> None:
    """A corpus with a loss mask and everything beside it."""
    folder.mkdir()
    lines = []
    for number in range(dialogues):
        question = "?" * dice.randint(1, 300)
        answer = "!" * dice.randint(1, 600)
        lines.append(
            f'{{"messages": [{{"role": "user", "content": "{number}{question}"}}, '
            f'{{"role": "assistant", "content": "{answer}"}}]}}\n'
        )
    (folder / "x.jsonl").write_text("".join(lines))
    template = Template("<{role}>", "<end>")
    write_conversations(
        find_sources([str(folder / "x.jsonl")]),
        str(folder / "corpus"),
        ByteTokenizer(),
        template,
        key="messages",
        model=None,
    )


def samples(folder: Path) -> list[np.ndarray]:
    """Everything that a run reads."""
    tokenizer = ByteTokenizer()
    data = DataConfig(
        data_path=[str(folder / "corpus")],
        split="9,1",
        seq_length=LENGTH,
        data_cache_path=str(folder / "cache"),
    )
    splits = open_splits(
        data,
        seed=1,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        fingerprint=tokenizer.fingerprint,
        train_samples=1,
        valid_samples=1,
    )
    assert splits.train is not None
    assert splits.valid is not None
    read = [splits.train[number] for number in range(EPOCHS * len(splits.train))]
    return read + [splits.valid[number] for number in range(len(splits.valid))]


def flips(sound: Path, pattern: str, count: int, dice: random.Random) -> Iterator[Path]:
    """Copies of the folder, each with one bit of one file of the kind flipped; each goes before the next one comes."""
    broken = sound.with_name("broken")
    for _ in range(count):
        shutil.copytree(sound, broken)
        file = dice.choice(sorted(broken.glob(pattern)))
        raw = bytearray(file.read_bytes())
        bit = dice.randrange(8 * len(raw))
        raw[bit // 8] ^= 1 << bit % 8
        file.write_bytes(raw)
        yield broken
        shutil.rmtree(broken)


def outcome_of(folder: Path, sound: Path, expected: list[np.ndarray]) -> Outcome:
    """What the verb says, then what a run does."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = call(
            "data",
            [
                "validate",
                str(folder / "corpus"),
                "--data-cache-path",
                str(folder / "cache"),
                "--most",
                "1",
            ],
        )
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            read = samples(folder)
    except UserError:
        return Outcome(code != 0, True, True)
    same = len(read) == len(expected) and all(map(np.array_equal, read, expected))
    return Outcome(code != 0, "is damaged: it is built again" in told.getvalue(), same)


if __name__ == "__main__":
    sys.exit(main())
