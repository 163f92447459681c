#!/usr/bin/env bash
# From the text of the standard library to a trained model, with nothing but the toolkit's own commands.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=runs/quickstart
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
rm -rf "$OUT"

say "1. corpus: the source files of this Python's standard library, whole files held out"
python examples/quickstart/corpus.py --output-dir "$OUT/corpus"

say "2. tokenizer: SentencePiece BPE with byte fallback"
megascratch tokenizer train --input "$OUT/corpus/train.jsonl" --output "$OUT/tokenizer.model" --vocab-size 2048

say "3. text -> .bin/.idx"
for part in train heldout; do
    megascratch preprocess --input "$OUT/corpus/$part.jsonl" --output-prefix "$OUT/data/$part" \
        --tokenizer-model "$OUT/tokenizer.model" --append-eod --workers 2
done

say "4. training on 8 ranks: TP 2 x PP 2 x DP 2, 1F1B, sequence parallel, ZeRO-1"
OMP_NUM_THREADS=1 megascratch pretrain --config examples/quickstart/config.yaml --nproc-per-node 8

say "5. the held-out files: bits per byte beside gzip and xz"
megascratch evaluate --load "$OUT/checkpoints" --input "$OUT/corpus/heldout.jsonl" --summary "$OUT/summary.json"

say "6. what it writes"
megascratch generate --load "$OUT/checkpoints" --prompt "def main(" --prompt "class " --prompt "import os" \
    --max-new-tokens 120 --temperature 0.8 --top-p 0.95 --output "$OUT/sample.txt"
cat "$OUT/sample.txt"

say "Everything is in $OUT:"
cat <<TEXT
  checkpoints/     loads on any layout             summary.json   layout, tokens, seconds, bits per byte
  metrics.jsonl    a row per log interval          loss.png       the curves
  tensorboard/     tensorboard --logdir $OUT       sample.txt     generated text
Next:
  . .venv/bin/activate
  megascratch generate --load $OUT/checkpoints --prompt "for i in " --max-new-tokens 100
  megascratch pretrain --config examples/quickstart/config.yaml --print-config      # every setting and its origin
  megascratch pretrain --config examples/quickstart/config.yaml --nproc-per-node 4 \\
      --pipeline-model-parallel-size 1 --output-dir runs/mine      # the same on four ranks; edit the config for more
TEXT
