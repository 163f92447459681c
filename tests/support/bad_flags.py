"""Wrong settings, each with what is said of it, in any combination: what the test and the benchmark of refusals draw
from.

`python tests/support/bad_flags.py FOLDER` (used in a process of its own) judges every set and prints JSON.
"""

import contextlib
import io
import json
import random
import sys
import time
from typing import NamedTuple


class Bad(NamedTuple):
    """Words that are wrong, and a part of the complaint. No two of one group stand together: the one would hide the
    other."""

    group: str
    words: list[str]
    told: str


GOOD = ("--num-layers 2 --hidden-size 60 --seq-length 32 --train-iters 3 --device cpu").split()
DATA = ["--mock-data", "--vocab-size", "61"]

POOL = [
    Bad(
        "flag",
        ["--hiden-dropout", "3"],
        "unknown flag --hiden-dropout - did you mean --hidden-dropout?",
    ),
    Bad("flag", ["--learning-rat", "3"], "unknown flag --learning-rat"),
    Bad(
        "heads",
        ["--num-attention-heads", "7"],
        "hidden-size (60) must be divisible by num-attention-heads (7)",
    ),
    Bad(
        "heads",
        ["--num-attention-heads", "many"],
        "--num-attention-heads must be a whole number, not 'many'",
    ),
    Bad(
        "tp",
        ["--tensor-model-parallel-size", "0"],
        "tensor-model-parallel-size (0) must be at least 1",
    ),
    Bad("lr", ["--lr", "-1"], "lr (-1.0) must be at least 0"),
    Bad("lr", ["--lr", "0.1", "--min-lr", "0.2"], "min-lr (0.2) must not exceed lr (0.1)"),
    Bad("length", ["--train-samples", "5"], "train-iters (3) and train-samples (5) are both given"),
    Bad("split", ["--split", "9,x"], "split (9,x) must be up to three numbers"),
    Bad("precision", ["--bf16", "--fp16"], "at most one of bf16, fp16"),
    Bad("precision", ["--bf16", "true"], "--bf16 does not accept a value (given: true)"),
    Bad("precision", ["--loss-scale", "8"], "loss-scale needs fp16"),
    Bad("activation", ["--swiglu", "--squared-relu"], "at most one of swiglu, squared-relu"),
    Bad("beta", ["--adam-beta1", "1.5"], "adam-beta1 (1.5) must be in [0, 1)"),
    Bad("seed", ["--seed", "abc"], "--seed must be a whole number, not 'abc'"),
    Bad("decay", ["--lr-decay-style", "WSD"], "lr-decay-style WSD needs lr-wsd-decay-"),
    Bad(
        "decay",
        ["--lr-warmup-iters", "9"],
        "lr-warmup-iters (9) must not exceed lr-decay-iters (3)",
    ),
    Bad(
        "decay",
        ["--lr-decay-style", "square"],
        "invalid choice 'square' for argument '--lr-decay-style'",
    ),
    Bad(
        "schedule",
        ["--pipeline-schedule", "zzz"],
        "invalid choice 'zzz' for argument '--pipeline-schedule'",
    ),
    Bad(
        "schedule",
        ["--pipeline-schedule-csv", "nowhere.csv"],
        "--pipeline-schedule-csv nowhere.csv: cannot be read",
    ),
    Bad("tokenizer", ["--tokenizer-type", "CharTokenizer"], "CharTokenizer needs tokenizer-model"),
    Bad(
        "tokenizer",
        ["--tokenizer-model", "nowhere.json"],
        "--tokenizer-model nowhere.json: cannot be read",
    ),
    Bad("load", ["--load", "nowhere"], "--load nowhere: no checkpoint"),
    Bad(
        "last",
        ["--weight-decay", "1", "--weight-decay", "x"],
        "--weight-decay must be a number, not 'x'",
    ),
    Bad(
        "fim",
        ["--fim-rate", "0.5"],
        "fim-rate (0.5) needs fim-prefix-id, fim-middle-id, fim-suffix-id",
    ),
    Bad("ramp", ["--rampup-batch-size", "1", "2"], "rampup-batch-size (1 2) must be three numbers"),
    Bad(
        "recompute",
        ["--recompute-method", "block"],
        "recompute-method (block) needs recompute-granularity full",
    ),
    Bad(
        "bad step",
        ["--on-bad-step", "rollback"],
        "on-bad-step rollback needs checkpoints during training",
    ),
    Bad(
        "force",
        ["--force-resume", "slit"],
        "force-resume slit is not a setting - did you mean split?",
    ),
    Bad("value", ["--clip-grad"], "--clip-grad needs a value"),
    Bad(
        "value", ["--adam-eps", "1", "2"], "--adam-eps accepts one value: unrecognized arguments: 2"
    ),
    Bad("value", ["--no-adam-beta2"], "--no-adam-beta2 does not exist"),
    Bad("eval", ["--eval-iters", "-1"], "eval-iters (-1) must be at least 0"),
    Bad(
        "batch",
        ["--global-batch-size", "3", "--micro-batch-size", "2"],
        "global-batch-size (3) must be divisible by",
    ),
    Bad("data", ["--data-path", "no/corpus"], "the data comes from data-path and mock-data"),
    Bad("data", ["--data-path", "no/corpus"], "index no/corpus.idx cannot be read"),
    Bad("data", ["--valid-data-path", "no/held"], "index no/held.idx cannot be read"),
    Bad(
        "replicas", ["--check-replicas-every", "-2"], "check-replicas-every (-2) must be at least 0"
    ),
]


def bad_sets(count: int, seed: int) -> list[list[Bad]]:
    """Sets of 1 to 6 wrong settings; together they have every one of the pool."""
    dice, sets = random.Random(seed), []
    waiting = [*POOL]
    dice.shuffle(waiting)
    for number in range(count):
        chosen: dict[str, Bad] = {}
        if waiting:
            one = waiting.pop()
            chosen[one.group] = one
        for bad in dice.sample(POOL, 1 + number % 5):
            chosen.setdefault(bad.group, bad)
        sets.append(list(chosen.values()))
    return sets


def words_of(bad: list[Bad]) -> list[str]:
    return ["pretrain", *GOOD, *DATA, *(word for one in bad for word in one.words)]


def main(count: int, seed: int) -> None:
    """Judges the sets by the command itself; imports come first and are not timed."""
    from megascratch.commands import main as megascratch
    from megascratch.commands import pretrain  # noqa: F401

    answers = []
    for bad in bad_sets(count, seed):
        begin, said = time.perf_counter(), io.StringIO()
        with contextlib.redirect_stderr(said):
            code = megascratch(words_of(bad))
        answers.append([code, said.getvalue(), time.perf_counter() - begin])
    print(json.dumps({"answers": answers, "distributed": "torch.distributed" in sys.modules}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
