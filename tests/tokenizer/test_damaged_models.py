"""Random damage of a vocabulary's file is refused or read, in a process that goes on living."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from megascratch.tokenizer.registry import train

ROOT = Path(__file__).resolve().parents[2]
DAMAGE = """
import random, sys
from pathlib import Path
from megascratch.config.errors import UserError
from megascratch.tokenizer import load
source, rounds = Path(sys.argv[1]), int(sys.argv[2])
whole, dice, read = source.read_bytes(), random.Random(7), 0
for _ in range(rounds):
    raw = bytearray(whole)
    for _ in range(dice.randint(1, 8)):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    if dice.random() < 0.2:
        del raw[dice.randrange(len(raw)):]
    source.write_bytes(raw)
    try:
        tokenizer = load(None, source)
        tokenizer.decode(tokenizer.encode("some text with \\u00e9 and \\u2581 and 123"))
        read += 1
    except UserError:
        pass
print(read)
"""


@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.deep)])
@pytest.mark.parametrize(
    ("kind", "suffix"), [("SentencePieceTokenizer", ".model"), ("HuggingFaceTokenizer", ".json")]
)
def test_no_damage_ends_the_process(tmp_path, kind, suffix, rounds):
    dice = random.Random(1)
    texts = [
        " ".join("".join(dice.choices("abcdefgh", k=dice.randint(1, 9))) for _ in range(20))
        for _ in range(300)
    ]
    train(kind, texts, tmp_path / f"t{suffix}", vocab_size=400)
    command = [sys.executable, "-c", DAMAGE, str(tmp_path / f"t{suffix}"), str(rounds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 <= int(done.stdout) <= rounds
