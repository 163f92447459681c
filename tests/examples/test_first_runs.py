"""From one text file in three commands, and from a folder of texts in five, to generated text: as a user types them."""

import gzip
import json
import shlex
from pathlib import Path

import pytest

from megascratch.commands import main
from megascratch.data.tokens.token_files import TokenReader

SCRIPT = Path(__file__).parents[2] / "examples" / "shakespeare" / "run.sh"
PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nThe citizens:\nSpeak.\n"
FEW_STEPS = "--train-iters 2 --lr-warmup-iters 1 --eval-interval 2 --eval-iters 1"


def run(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "megascratch"
    assert main(words[1:]) == 0, command


def test_one_text_file_to_generated_text_in_three_commands(tmp_path, monkeypatch, capsys):
    """With fewer steps and characters than the script's. One notice says where the text is cut."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.txt").write_text(PLAY * 40)
    prepare, train, sample = SCRIPT.read_text().splitlines()[3:]
    run(f"{prepare} --workers 1")
    assert TokenReader("shakespeare_text_document").tokens == len(PLAY * 40)
    run(f"{train} {FEW_STEPS}")
    said = capsys.readouterr()
    assert said.out.count("it is cut inside a document, after ") == 1
    assert "perplexity" in said.out
    run(f"{sample} --max-new-tokens 70 --output sample.txt --device cpu")
    assert len((tmp_path / "sample.txt").read_text()) >= len("The ") + 70


FOLDER = (
    "megascratch tokenizer train --input corpus --output tokenizer.json --vocab-size 320",
    "megascratch preprocess --input corpus --output-prefix corpus --tokenizer-model tokenizer.json --append-eod",
    "megascratch init llama-10m",
    "megascratch pretrain --config llama-10m.yaml --nproc-per-node 2",
    "megascratch generate --load runs/llama-10m --prompt 'The ' --max-new-tokens 5 --output sample.txt",
)


@pytest.mark.deep
def test_a_folder_of_texts_to_a_llama_on_two_ranks_in_five_commands(tmp_path, monkeypatch):
    """Of text, Parquet and compressed JSONL; with fewer steps and a smaller batch than the preset has."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"{number} {PLAY}" * 9)
    rows = [f"{number}. {PLAY}" * 5 for number in range(40)]
    parquet.write_table(arrow.table({"text": rows}), tmp_path / "corpus" / "part.parquet")
    lines = "".join(json.dumps({"text": f"{text}!"}) + "\n" for text in rows)
    (tmp_path / "corpus" / "part.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for command in FOLDER:
        less = f" {FEW_STEPS} --global-batch-size 2 --micro-batch-size 1"
        run(command + (less if " pretrain " in command else ""))
    assert (tmp_path / "sample.txt").read_text().startswith("The ")
