"""The folder that every mistake is made in: texts, tokenizers, a corpus, a config and a finished run."""

import json
import random
from pathlib import Path

from megascratch.commands import main

WORDS = "the quick brown fox jumps over a lazy dog while seven zebras dance near cold river banks"
OK = """\
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4}
data: {data_path: [corpus_text_document], tokenizer_model: chars.json, seq_length: 16}
optim: {lr: 1.0e-3}
training: {train_iters: 2, global_batch_size: 4, eval_iters: 1, eval_interval: 2, device: cpu, output_dir: runs/mine}
"""
FILES_MADE_BY = (
    "tokenizer train --input input.txt --output chars.json",
    "tokenizer train --input digits.txt --output other.json",
    "preprocess --input train.jsonl --output-prefix corpus --tokenizer-model chars.json --append-eod",
    "preprocess --input input.txt --output-prefix one --tokenizer-model chars.json",
)
RUN_MADE_BY = "pretrain --config ok.yaml --output-dir runs/done"


def make_world(with_run: bool) -> None:
    """Makes the files in the current folder, by the commands that a user would type; the run needs torch."""
    dice = random.Random(1)
    lines = []
    for _ in range(60):
        lines.append(" ".join(dice.choice(WORDS.split()) for _ in range(12)))
    Path("input.txt").write_text("\n".join(lines) + "\n")
    Path("train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    Path("digits.txt").write_text("0123456789\n")
    Path("ok.yaml").write_text(OK)
    chat = {
        "messages": [{"role": "user", "content": "a fox"}, {"role": "assistant", "content": "dog"}]
    }
    Path("chat.jsonl").write_text(json.dumps(chat) + "\n")
    commands = [*FILES_MADE_BY, RUN_MADE_BY] if with_run else FILES_MADE_BY
    for command in commands:
        if main(command.split()) != 0:
            raise RuntimeError(f"{command} failed")
