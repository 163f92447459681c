"""The forty mistakes that a new user was seen to make."""

import shutil
from pathlib import Path

from tests.support.mistakes.row import Mistake
from tests.support.mistakes.world import OK

RUN = "pretrain --config ok.yaml"


def _damage_checkpoint() -> None:
    file = next(Path("runs/done/checkpoints/step_00000002").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])


FILES = [
    Mistake(
        "config path wrong",
        "pretrain --config okk.yaml",
        ("config file okk.yaml", "did you mean ok.yaml?"),
        RUN,
    ),
    Mistake(
        "data path wrong",
        f"{RUN} --data-path corpus_txt_document",
        ("corpus_txt_document", "did you mean corpus_text_document?"),
        f"{RUN} --data-path corpus_text_document",
    ),
    Mistake(
        "data path with .bin",
        f"{RUN} --data-path corpus_text_document.bin",
        ("corpus_text_document.bin", "corpus_text_document"),
        f"{RUN} --data-path corpus_text_document",
    ),
    Mistake(
        "data path is raw text",
        f"{RUN} --data-path train.jsonl",
        ("train.jsonl", "megascratch preprocess"),
        RUN,
    ),
    Mistake(
        "typo in a flag",
        f"{RUN} --num-layer 2",
        ("--num-layer", "did you mean --num-layers?"),
        f"{RUN} --num-layers 2",
    ),
    Mistake(
        "word for a number",
        f"{RUN} --num-layers two",
        ("--num-layers", "whole number", "two"),
        f"{RUN} --num-layers 2",
    ),
    Mistake(
        "float for a whole number",
        f"{RUN} --train-iters 1.5",
        ("--train-iters", "whole number", "1.5"),
        f"{RUN} --train-iters 2",
    ),
    Mistake(
        "tab in YAML",
        "pretrain --config tab.yaml",
        ("tab.yaml:3", "\\t"),
        "pretrain --config tab.yaml",
        files={
            "tab.yaml": OK.replace("optim: {lr: 1.0e-3}", "").replace(
                "data:", "optim:\n\tlr: 1.0e-3\ndata:", 1
            )
        },
        fixed_files={"tab.yaml": OK},
    ),
    Mistake(
        "duplicate YAML key",
        "pretrain --config dup.yaml",
        ("dup.yaml:1", "hidden_size"),
        "pretrain --config dup.yaml",
        files={"dup.yaml": OK.replace("hidden_size: 32", "hidden_size: 32, hidden_size: 64")},
        fixed_files={"dup.yaml": OK},
    ),
    Mistake(
        "string for a list in YAML",
        "pretrain --config str.yaml",
        ("str.yaml:2", "data_path", "[a, b]"),
        "pretrain --config str.yaml",
        files={"str.yaml": OK.replace("[corpus_text_document]", "corpus_text_document")},
        fixed_files={"str.yaml": OK},
    ),
    Mistake(
        "nanoGPT key n_layer",
        "pretrain --config nano.yaml",
        ("nano.yaml:1", "n_layer", "num_layers"),
        "pretrain --config nano.yaml",
        files={"nano.yaml": OK.replace("num_layers", "n_layer")},
        fixed_files={"nano.yaml": OK},
    ),
    Mistake(
        "wrong section name",
        "pretrain --config section.yaml",
        ("section.yaml:3", "section optim"),
        "pretrain --config section.yaml",
        files={"section.yaml": OK.replace("optim:", "optimizer:")},
        fixed_files={"section.yaml": OK},
    ),
    Mistake(
        "other tokenizer than the data's",
        f"{RUN} --tokenizer-model other.json",
        ("corpus_text_document", "tokenizer", "chars.json"),
        f"{RUN} --tokenizer-model chars.json",
    ),
]

TEXT = [
    Mistake(
        "empty file",
        "preprocess --input empty.jsonl --output-prefix new --tokenizer-model chars.json",
        ("empty.jsonl", "no document"),
        "preprocess --input train.jsonl --output-prefix new --tokenizer-model chars.json",
        files={"empty.jsonl": ""},
    ),
    Mistake(
        "binary file as text",
        "preprocess --input binary.txt --output-prefix new --tokenizer-model chars.json",
        ("binary.txt", "not UTF-8"),
        "preprocess --input input.txt --output-prefix new --tokenizer-model chars.json",
        files={"binary.txt": b"\xb3\x00\x01\x02" * 50},
    ),
    Mistake(
        "plain text called .jsonl",
        "preprocess --input text.jsonl --output-prefix new --tokenizer-model chars.json",
        ("text.jsonl", "--input-format text"),
        "preprocess --input text.jsonl --input-format text --output-prefix new --tokenizer-model chars.json",
        files={"text.jsonl": "a river near a bank\n" * 40},
    ),
    Mistake(
        "wrong --json-keys",
        "preprocess --input train.jsonl --json-keys content --output-prefix new --tokenizer-model chars.json",
        ("train.jsonl", "content", "text"),
        "preprocess --input train.jsonl --json-keys text --output-prefix new --tokenizer-model chars.json",
    ),
    Mistake(
        "same prefix, other options",
        "preprocess --input train.jsonl --output-prefix corpus --tokenizer-model chars.json",
        ("corpus", "--overwrite"),
        "preprocess --input train.jsonl --output-prefix corpus --tokenizer-model chars.json --overwrite",
    ),
    Mistake(
        "input missing",
        "preprocess --input nothere.jsonl --output-prefix new --tokenizer-model chars.json",
        ("nothere.jsonl", "No such file"),
        "preprocess --input train.jsonl --output-prefix new --tokenizer-model chars.json",
    ),
    Mistake(
        "output cannot be written",
        "preprocess --input train.jsonl --output-prefix /proc/none/new --tokenizer-model chars.json",
        ("/proc/none", "cannot be"),
        "preprocess --input train.jsonl --output-prefix out/new --tokenizer-model chars.json",
    ),
    Mistake(
        "broken Parquet",
        "preprocess --input a.parquet --output-prefix new --tokenizer-model chars.json",
        ("a.parquet", "Parquet"),
        "preprocess --input train.jsonl --output-prefix new --tokenizer-model chars.json",
        files={"a.parquet": b"PAR1" + bytes(100) + b"PAR1"},
        needs="pyarrow",
    ),
    Mistake(
        "Parquet without pyarrow",
        "preprocess --input a.parquet --output-prefix new --tokenizer-model chars.json",
        ("Parquet", "pip install 'megascratch[parquet]'"),
        "preprocess --input train.jsonl --output-prefix new --tokenizer-model chars.json",
        files={"a.parquet": b"PAR1" + bytes(100) + b"PAR1"},
        absent=("pyarrow",),
    ),
    Mistake(
        "object store without s3fs",
        f"{RUN} --save s3://bucket/run",
        ("s3://", "pip install 'megascratch[s3]'"),
        RUN,
        absent=("s3fs",),
    ),
]

START = [
    Mistake(
        "cuda without a GPU",
        f"{RUN} --device cuda",
        ("--device cpu", "CUDA"),
        f"{RUN} --device cpu",
        torch=True,
        env={"CUDA_VISIBLE_DEVICES": ""},
    ),
    Mistake(
        "more tensor ranks than heads",
        f"{RUN} --tensor-model-parallel-size 8 --nproc-per-node 8",
        ("num-attention-heads (4)", "tensor-model-parallel-size (8)", "2 or 4"),
        f"{RUN} --tensor-model-parallel-size 2 --nproc-per-node 2",
    ),
    Mistake(
        "two tensor ranks on one process",
        f"{RUN} --tensor-model-parallel-size 2",
        ("--nproc-per-node 2", "tensor-model-parallel-size"),
        f"{RUN} --tensor-model-parallel-size 2 --nproc-per-node 2",
    ),
    Mistake(
        "batch that is not whole",
        f"{RUN} --global-batch-size 7 --micro-batch-size 2",
        ("global-batch-size (7)", "6 or 8"),
        f"{RUN} --global-batch-size 8 --micro-batch-size 2",
    ),
    Mistake(
        "more ranks than the batch has samples",
        f"{RUN} --nproc-per-node 64",
        ("global-batch-size (4)", "64"),
        f"{RUN} --nproc-per-node 4",
    ),
    Mistake(
        "the same command again",
        f"{RUN} --output-dir runs/done",
        ("runs/done", "--auto-resume"),
        f"{RUN} --output-dir runs/done --auto-resume",
        torch=True,
    ),
    Mistake(
        "another hidden size on resume",
        f"{RUN} --output-dir runs/done --auto-resume --hidden-size 64",
        ("hidden-size", "32", "64"),
        f"{RUN} --output-dir runs/done --auto-resume --hidden-size 32",
        torch=True,
    ),
    Mistake(
        "another seed on resume",
        f"{RUN} --output-dir runs/done --auto-resume --seed 7 --train-iters 4",
        ("seed", "1234", "--force-resume seed"),
        f"{RUN} --output-dir runs/done --auto-resume --seed 7 --train-iters 4 --force-resume seed",
        torch=True,
    ),
    Mistake(
        "folder without a checkpoint",
        f"{RUN} --load tokenizers",
        ("tokenizers", "checkpoint"),
        f"{RUN} --load runs/done/checkpoints",
        files={"tokenizers/chars.json": "{}"},
        torch=True,
    ),
    Mistake(
        "truncated checkpoint",
        "generate --load runs/done/checkpoints --prompt a",
        ("damaged", "1,000 bytes"),
        "pretrain --config ok.yaml --output-dir runs/done --train-iters 3",
        prepare=_damage_checkpoint,
        repair=lambda: shutil.rmtree("runs/done"),
        torch=True,
    ),
    Mistake(
        "run that is complete",
        f"{RUN} --output-dir runs/done --auto-resume",
        ("all 2 steps", "--train-iters"),
        f"{RUN} --output-dir runs/done --auto-resume --train-iters 4",
        code=0,
        torch=True,
    ),
    Mistake(
        "folder that cannot be made",
        f"{RUN} --output-dir input.txt/run",
        ("--output-dir input.txt/run", "not a folder"),
        f"{RUN} --output-dir runs/other",
    ),
    Mistake(
        "hub name as tokenizer",
        f"{RUN} --tokenizer-model meta-llama/Llama-2-7b",
        ("meta-llama/Llama-2-7b", "download"),
        f"{RUN} --tokenizer-model chars.json",
    ),
    Mistake(
        "one document for a split by documents",
        f"{RUN} --data-path one_text_document --data-order megatron",
        ("one_text_document", "split", "keyed"),
        f"{RUN} --data-path one_text_document",
    ),
    Mistake(
        "evaluate without a checkpoint",
        "evaluate --load runs/none --input input.txt",
        ("runs/none", "checkpoint"),
        "evaluate --load runs/done/checkpoints --input input.txt",
        fix_needs_torch=True,
    ),
    Mistake(
        "learning rate far too high",
        f"{RUN} --lr 1e30 --train-iters 4 --lr-decay-style constant",
        ("step", "--lr"),
        f"{RUN} --lr 1e-3",
        code=1,
        torch=True,
    ),
    Mistake(
        "config without --config",
        "pretrain ok.yaml",
        ("ok.yaml", "--config ok.yaml"),
        "pretrain --config ok.yaml",
    ),
]


FORTY = [*FILES, *TEXT, *START]
