"""How long a run of many processes takes from its launch to the end of its first step, and where the time goes.

    python benchmarks/bench_start.py --ranks 64 --repo ../other-checkout

Peer: another checkout of megascratch (with its compiled files), in turn with this one. A tiny model and a small corpus,
whose index is cached before the first start; one thread per process, all ranks on this machine. A phase ends when the
last rank has reached the next fault point, which the ranks report (runtime/faults.py):

    processes   launcher, fork server, and a process per rank
    set-up      rendezvous, agreement of the ranks, process groups, model, data
    first step  one optimizer step
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from megascratch.runtime.faults import VARIABLE

HERE = Path(__file__).resolve().parent.parent
RUN = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --tokenizer-type ByteTokenizer --seq-length 16 "
    "--micro-batch-size 1 --train-iters 1 --eval-interval 0 --lr 1e-3 --device cpu "
    "--distributed-timeout-minutes 30"
).split()
DOCUMENTS = 2000
LAYOUTS = {"dp": (1, 1), "tp2pp2": (2, 2)}
PHASES = {
    "processes": "run.begin",
    "set-up": "run.built",
    "first step": "step.end",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--layout", choices=LAYOUTS, default="dp")
    parser.add_argument("--repo", type=Path, help="another checkout, the peer")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    sides = {"this": HERE}
    if asked.repo is not None:
        sides["peer"] = asked.repo.resolve()
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder))
        for side in sides:
            started(sides[side], 1, "dp", corpus)  # caches the index
        for number in range(asked.rounds):
            order = list(sides) if number % 2 == 0 else list(reversed(sides))
            for side in order:
                measured[side].append(started(sides[side], asked.ranks, asked.layout, corpus))
                print(side, _words(measured[side][-1]), flush=True)
    for side, runs in measured.items():
        medians = {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
        print(f"median of {side}: {_words(medians)}")
    if asked.repo is not None and asked.rounds > 1:
        ratios = []
        for mine, theirs in zip(measured["this"], measured["peer"], strict=True):
            ratios.append(theirs["all"] / mine["all"])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"speed {middle:.2f}x (quartiles {low:.2f} to {high:.2f})")


def write_corpus(folder: Path) -> Path:
    """Writes a corpus of bytes. Returns: its prefix."""
    text = folder / "text.jsonl"
    with text.open("w", encoding="utf-8") as file:
        for number in range(DOCUMENTS):
            file.write(json.dumps({"text": f"{number} " * 40}) + "\n")
    command = [sys.executable, "-m", "megascratch", "preprocess", "--input", str(text)]
    command += ["--output-prefix", str(folder / "corpus"), "--tokenizer-type", "ByteTokenizer"]
    subprocess.run([*command, "--append-eod"], cwd=HERE, check=True, capture_output=True)
    return folder / "corpus_text_document"


def started(repo: Path, ranks: int, layout: str, corpus: Path) -> dict[str, float]:
    """Seconds of each phase of one start, and of all of it."""
    tp, pp = LAYOUTS[layout]
    words = ["--data-path", str(corpus), "--split", "1,0,0"]
    words += ["--tensor-model-parallel-size", str(tp), "--pipeline-model-parallel-size", str(pp)]
    words += ["--global-batch-size", str(ranks // (tp * pp)), "--nproc-per-node", str(ranks)]
    # a fault that does nothing but report that the point was reached
    told = ",".join(f"{point}:*:1:slow=0" for point in PHASES.values())
    environment = {**os.environ, VARIABLE: told, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    reached = dict.fromkeys(PHASES.values(), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "megascratch", "pretrain", *RUN, *words]
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--output-dir", folder],
            cwd=repo,
            env=environment,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        other = []
        for line in process.stderr:
            if line.startswith("fault point"):
                reached[line.split()[2].rstrip(",")] = time.monotonic()
            else:
                other.append(line)
        if process.wait():
            raise SystemExit(f"the run ended with exit code {process.returncode}: {''.join(other)}")
    seconds = {}
    before = began
    for phase, point in PHASES.items():
        seconds[phase] = reached[point] - before
        before = reached[point]
    seconds["all"] = before - began
    return seconds


def _words(seconds: dict[str, float]) -> str:
    return "  ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())


if __name__ == "__main__":
    main()
