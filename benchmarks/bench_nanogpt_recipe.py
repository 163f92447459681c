"""nanoGPT's CPU recipe (character level, 4 layers, width 128, 2,000 steps) in one process, on TP 2 x PP 2, and as a
plain PyTorch loop with nanoGPT's random crops.

    python benchmarks/bench_nanogpt_recipe.py --text tinyshakespeare.txt

Prints for each the loss over the whole last tenth of the text and over the first 20 batches of it, and how far apart
the first 200 training losses of the two layouts are. nanoGPT measures over 20 random batches (its 1.8857 for tiny
shakespeare is one such draw): the plain loop draws 100 times, which shows how far one draw may stray from the whole.
Without --text it takes a part of the standard library.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from plain_gpt import PlainTrainer

STEPS = 2000
SEQUENCE = 64
NANOGPT = 1.8857
WITHIN = 1e-3  # of 200 losses in fp32: sums in another order, a few 1e-7, grow with every step
RECIPE = {
    "num-layers": 4,
    "hidden-size": 128,
    "num-attention-heads": 4,
    "seq-length": SEQUENCE,
    "micro-batch-size": 12,
    "global-batch-size": 12,
    "lr": 1e-3,
    "min-lr": 1e-4,
    "lr-decay-style": "cosine",
    "lr-warmup-iters": 100,
    "adam-beta2": 0.99,
    "weight-decay": 0.1,
    "hidden-dropout": 0,
    "attention-dropout": 0,
    "make-vocab-size-divisible-by": 1,
    "log-interval": 1,
    "eval-interval": STEPS,
    "eval-iters": 20,
}
LAYOUTS = {
    "one process": (1, []),
    "TP 2 x PP 2": (
        4,
        ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="a plain text file")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1337, help="nanoGPT's own is 1337")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8") if args.text else _standard_library()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(text, folder)
        rows = {layout: train(folder, layout, args.steps, args.seed) for layout in LAYOUTS}
        for layout, found in rows.items():
            twenty = [row["loss"] for row in found if row.get("split") == "valid"][-1]
            print(
                f"{layout:<12} all {whole_loss(folder, layout):.4f}   20 batches {twenty:.4f}",
                flush=True,
            )
    one, four = (training_losses(found)[:200] for found in rows.values())
    far = max(abs(a - b) / a for a, b in zip(one, four, strict=True))
    print(
        f"first {len(one)} training losses of the two layouts: largest relative difference {far:.2e}",
        flush=True,
    )
    if far > WITHIN:
        sys.exit(
            f"more than the {WITHIN:g} that rounding explains: the two layouts do not train the same model"
        )
    whole, draws = train_plain(text, args.steps, args.seed)
    mean = statistics.mean(draws)
    deviation = statistics.stdev(draws)
    print(
        f"plain loop   all {whole:.4f}   20 random batches {mean:.4f} +- {deviation:.4f}, "
        f"{sum(draw <= NANOGPT for draw in draws)} of {len(draws)} draws at most {NANOGPT}"
    )


def prepare(text: str, folder: Path) -> None:
    """A character tokenizer of the whole text; its first nine tenths train, the rest validates."""
    cut = len(text) * 9 // 10
    (folder / "all.txt").write_text(text, encoding="utf-8")
    _run(
        "tokenizer",
        "train",
        "--input",
        folder / "all.txt",
        "--output",
        folder / "characters.json",
        "--no-eod",
    )
    for name, part in (("train", text[:cut]), ("valid", text[cut:])):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": part}) + "\n", encoding="utf-8")
        _run(
            "preprocess",
            "--input",
            folder / f"{name}.jsonl",
            "--output-prefix",
            folder / name,
            "--tokenizer-model",
            folder / "characters.json",
        )


def train(folder: Path, layout: str, steps: int, seed: int) -> list[dict]:
    """The rows of metrics.jsonl."""
    ranks, flags = LAYOUTS[layout]
    output = folder / f"{ranks}-ranks"
    recipe = [word for name, value in RECIPE.items() for word in (f"--{name}", str(value))]
    words = [
        "pretrain",
        *recipe,
        "--train-iters",
        str(steps),
        "--seed",
        seed,
        "--no-add-bias-linear",
        "--output-dir",
        output,
        "--tokenizer-model",
        folder / "characters.json",
        "--train-data-path",
        folder / "train_text_document",
        "--valid-data-path",
        folder / "valid_text_document",
        *flags,
    ]
    launcher = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
        if ranks > 1
        else []
    )
    _run(*words, launcher=launcher)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def training_losses(rows: list[dict]) -> list[float]:
    """Without the rows of validation and of checkpoints."""
    return [row["loss"] for row in rows if "split" not in row and "event" not in row]


def whole_loss(folder: Path, layout: str) -> float:
    """Nats per character of the whole held-out text."""
    report = folder / "report.json"
    checkpoints = folder / f"{LAYOUTS[layout][0]}-ranks" / "checkpoints"
    _run(
        "evaluate",
        "--load",
        checkpoints,
        "--input",
        folder / "valid.jsonl",
        "--output-json",
        report,
    )
    return json.loads(report.read_text())["heldout_loss"]


def train_plain(text: str, steps: int, seed: int) -> tuple[float, list[float]]:
    """The same recipe by hand: loss over the whole last tenth, and 100 draws of 20 batches of random crops of it."""
    torch.manual_seed(seed)
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[character] for character in text])
    train_part = tokens[: len(text) * 9 // 10]
    valid_part = tokens[len(text) * 9 // 10 :]
    trainer = PlainTrainer(4, 128, 4, SEQUENCE, len(number))
    for step in range(steps):
        done = max(0.0, (step - 100) / (STEPS - 100))
        lr = (
            1e-3 * (step + 1) / 101
            if step < 100
            else 1e-4 + 4.5e-4 * (1 + math.cos(math.pi * done))
        )
        trainer.step(*_crops(train_part), lr)
    rows = (len(valid_part) - 1) // SEQUENCE
    ids, labels = (valid_part[i : i + rows * SEQUENCE].view(rows, SEQUENCE) for i in (0, 1))
    with torch.no_grad():
        whole = (
            sum(trainer.model(ids[i : i + 1], labels[i : i + 1]).item() for i in range(rows)) / rows
        )
        draws = [
            sum(trainer.model(*_crops(valid_part)).item() for _ in range(20)) / 20
            for _ in range(100)
        ]
    return whole, draws


def _crops(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(tokens) - SEQUENCE, (12,)).tolist()
    ids, labels = ([tokens[i + shift : i + shift + SEQUENCE] for i in starts] for shift in (0, 1))
    return torch.stack(ids), torch.stack(labels)


def _run(*words: object, launcher: list[str] | None = None) -> None:
    command = [sys.executable, "-m", *(launcher or []), "megascratch", *map(str, words)]
    ranks_share_cores = {"OMP_NUM_THREADS": "1"} if launcher else {}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | ranks_share_cores
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _standard_library() -> str:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[:1_100_000]


if __name__ == "__main__":
    main()
