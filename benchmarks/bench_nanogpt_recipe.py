"""nanoGPT's CPU recipe (character level, 4 layers, width 128, 2,000 steps) in one process and on TP 2 x PP 2.

    python benchmarks/bench_nanogpt_recipe.py --text tinyshakespeare.txt

With tiny shakespeare nanoGPT itself reaches a validation loss of 1.8857. Prints both validation losses over the whole
last tenth of the text, and how far apart the first 200 training losses of the two runs are. Without --text it takes a
part of the standard library, to compare the two layouts alone.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

STEPS = 2000
RECIPE = {
    "num-layers": 4, "hidden-size": 128, "num-attention-heads": 4, "seq-length": 64, "micro-batch-size": 12,
    "global-batch-size": 12, "lr": 1e-3, "min-lr": 1e-4, "lr-decay-style": "cosine", "lr-warmup-iters": 100,
    "adam-beta2": 0.99, "weight-decay": 0.1, "hidden-dropout": 0, "attention-dropout": 0,
    "make-vocab-size-divisible-by": 1, "log-interval": 1, "eval-interval": STEPS, "eval-iters": 1000,
}  # fmt: skip
LAYOUTS = {
    "one process": (1, []),
    "TP 2 x PP 2": (4, ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a plain text file")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8") if args.text else _standard_library()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(text, folder)
        rows = {layout: train(folder, layout, args.steps) for layout in LAYOUTS}
    for layout, found in rows.items():
        valid = [row["loss"] for row in found if row.get("split") == "valid"][-1]
        train_rows = [row for row in found if "split" not in row]
        print(f"{layout:<12} validation loss {valid:.4f}   last training loss {train_rows[-1]['loss']:.4f}")
    one, four = ([row["loss"] for row in found if "split" not in row][:200] for found in rows.values())
    far = max(abs(a - b) / a for a, b in zip(one, four, strict=True))
    print(f"first {len(one)} training losses: largest relative difference {far:.2e}")


def prepare(text: str, folder: Path) -> None:
    """A character tokenizer of the whole text; its first nine tenths train, the rest validates."""
    cut = len(text) * 9 // 10
    (folder / "all.txt").write_text(text, encoding="utf-8")
    _run("tokenizer", "train", "--input", folder / "all.txt", "--output", folder / "characters.json", "--no-eod")
    for name, part in (("train", text[:cut]), ("valid", text[cut:])):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": part}) + "\n", encoding="utf-8")
        _run("preprocess", "--input", folder / f"{name}.jsonl", "--output-prefix", folder / name,
             "--tokenizer-model", folder / "characters.json")  # fmt: skip


def train(folder: Path, layout: str, steps: int) -> list[dict]:
    """The rows of metrics.jsonl."""
    ranks, flags = LAYOUTS[layout]
    output = folder / f"{ranks}-ranks"
    recipe = [word for name, value in RECIPE.items() for word in (f"--{name}", str(value))]
    words = ["pretrain", *recipe, "--train-iters", str(steps), "--no-add-bias-linear", "--output-dir", output,
             "--tokenizer-model", folder / "characters.json", "--train-data-path", folder / "train_text_document",
             "--valid-data-path", folder / "valid_text_document", *flags]  # fmt: skip
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    _run(*words, launcher=launcher)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _run(*words: object, launcher: list[str] | None = None) -> None:
    command = [sys.executable, "-m", *(launcher or []), "megascratch", *map(str, words)]
    ranks_share_cores = {"OMP_NUM_THREADS": "1"} if launcher else {}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ranks_share_cores)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _standard_library() -> str:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[:1_100_000]


if __name__ == "__main__":
    main()
