#!/usr/bin/env bash
# Builds the source distribution and from it the wheel, installs the wheel in a clean environment, and uses it in an
# empty folder: help, the commands of the quickstart with few steps, init, and the cells of the notebook.
#
#   bash tools/check_wheel.sh [FOLDER]    FOLDER is made; default: a new temporary one. Committed files are built.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK=${1:-$(mktemp -d)}
mkdir -p "$WORK/source" "$WORK/run"
WORK=$(cd "$WORK" && pwd)
unset PYTHONPATH
say() { printf '\n== %s\n' "$*"; }

say "build"
git -C "$ROOT" archive HEAD | tar -x -C "$WORK/source"
python3 -m venv "$WORK/build"
"$WORK/build/bin/pip" install -q build
"$WORK/build/bin/python" -m build --outdir "$WORK/dist" "$WORK/source" >"$WORK/build.log"

say "install"
python3 -m venv "$WORK/venv"
"$WORK/venv/bin/pip" install -q -c "$ROOT/constraints.txt" "$WORK"/dist/*.whl
PATH="$WORK/venv/bin:$PATH"
cd "$WORK/run"
python -c 'import megascratch, sys; assert megascratch.__file__.startswith(sys.prefix), megascratch.__file__'
python -c 'import megascratch.data.tokens._indices, megascratch.layers._cpu_kernels'

say "help"
megascratch --version
megascratch --help >help.txt
megascratch pretrain --help >>help.txt

say "quickstart"
OUT=runs/quickstart
python "$ROOT/examples/quickstart/corpus.py" --output-dir "$OUT/corpus" --files 40
megascratch tokenizer train --input "$OUT/corpus/train.jsonl" --output "$OUT/tokenizer.model" --vocab-size 1024
for part in train heldout; do
    megascratch preprocess --input "$OUT/corpus/$part.jsonl" --output-prefix "$OUT/data/$part" \
        --tokenizer-model "$OUT/tokenizer.model" --append-eod --workers 2
done
megascratch pretrain --config "$ROOT/examples/quickstart/config.yaml" --nproc-per-node 8 --train-iters 3 \
    --lr-warmup-iters 1 --eval-iters 1 --output-dir "$OUT"
megascratch evaluate --load "$OUT" --input "$OUT/corpus/heldout.jsonl"
megascratch generate --load "$OUT" --prompt "def main(" --max-new-tokens 20

say "init"
megascratch init llama-10m
megascratch pretrain --config llama-10m.yaml --print-config >resolved.yaml

say "notebook"
python - "$ROOT/examples/notebook/first_model.ipynb" <<'PYTHON'
import json
import sys

import matplotlib

matplotlib.use("agg")
names = {}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        source = "".join(cell["source"]).replace("train_iters=200", "train_iters=6")
        exec(compile(source.replace("eval_interval=50", "eval_interval=6"), "cell", "exec"), names)
PYTHON

say "the wheel works: $(ls "$WORK"/dist/*.whl)"
