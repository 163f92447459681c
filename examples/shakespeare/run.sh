#!/usr/bin/env bash
# From one text file, input.txt in the current folder, to text that a model writes: nanoGPT's small character model.
set -euo pipefail
megascratch preprocess --input input.txt --output-prefix shakespeare --train-tokenizer char --tokenizer-model chars.json
megascratch pretrain --config nanogpt-char
megascratch generate --load runs/nanogpt-char --prompt "The " --max-new-tokens 500
