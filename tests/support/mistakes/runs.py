"""Mistakes around a run: launchers, environment, folders, disks, and what became of earlier runs."""

import gzip
import os
import shutil
from pathlib import Path
from unittest import mock

from tests.support import corpora
from tests.support.mistakes.row import Mistake

RUN = "pretrain --config ok.yaml"
NODES = f"{RUN} --nnodes 2 --nproc-per-node 1"
STEP = "runs/done/checkpoints/step_00000002"


def full_disk() -> "mock._patch":
    """The disk has room for 1,000 bytes."""
    usage = type(shutil.disk_usage("."))(2000, 1000, 1000)
    return mock.patch("shutil.disk_usage", lambda path: usage)


def cut(file: str, size: int) -> None:
    """Leaves the first bytes of a file."""
    Path(file).write_bytes(Path(file).read_bytes()[:size])


def interrupted_copy() -> None:
    """A copy of the corpus whose token file has not arrived whole."""
    for suffix in (".bin", ".idx", ".json"):
        shutil.copyfile(f"corpus_text_document{suffix}", f"part{suffix}")
    cut("part.bin", 1000)


def zip_to(file: str, most: int | None = None) -> None:
    """Compresses the text, or only the first bytes of what comes out."""
    Path(file).write_bytes(gzip.compress(Path("train.jsonl").read_bytes())[:most])


def other_type(prefix: str) -> None:
    """A corpus whose ids have four bytes."""
    corpora.write(Path(prefix), [[1, 2, 3], [4, 5]], "int32")


ENVIRONMENT = [
    Mistake("RANK without WORLD_SIZE", RUN, ("RANK is 3", "unset RANK"), RUN, env={"RANK": "3"}),
    Mistake(
        "WORLD_SIZE alone",
        RUN,
        ("WORLD_SIZE is 2", "MASTER_ADDR"),
        RUN,
        env={"WORLD_SIZE": "2"},
        torch=True,
    ),
    Mistake(
        "WORLD_SIZE in words",
        RUN,
        ("WORLD_SIZE is 'two'", "not a number"),
        RUN,
        env={"WORLD_SIZE": "two"},
    ),
    Mistake(
        "rank beyond the world",
        RUN,
        ("RANK is 2", "from 0 to 1"),
        RUN,
        env={"RANK": "2", "WORLD_SIZE": "2"},
    ),
    Mistake(
        "local rank beyond its machine",
        RUN,
        ("LOCAL_RANK is 1", "from 0 to 0"),
        RUN,
        env={"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
    ),
    Mistake(
        "a launcher inside a launcher",
        f"{RUN} --nproc-per-node 2",
        ("--nproc-per-node", "torchrun"),
        f"{RUN} --nproc-per-node 2",
        env={"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    ),
    Mistake(
        "a fault that does not exist",
        RUN,
        ("MEGASCRATCH_FAULT",),
        RUN,
        env={"MEGASCRATCH_FAULT": "everything"},
    ),
]

LAUNCHER = [
    Mistake(
        "nodes without a meeting point",
        NODES,
        ("--nnodes needs", "--rdzv-endpoint", "--rdzv-id"),
        RUN,
    ),
    Mistake(
        "meeting point without nodes",
        f"{RUN} --rdzv-endpoint host:29500",
        ("--rdzv-endpoint", "--nnodes"),
        RUN,
    ),
    Mistake(
        "port that cannot be",
        f"{NODES} --rdzv-endpoint 127.0.0.1:99999 --rdzv-id r",
        ("--rdzv-endpoint", "1 to 65535"),
        RUN,
        torch=True,
    ),
    Mistake(
        "host that cannot be resolved",
        f"{NODES} --rdzv-endpoint nosuch.invalid:29500 --rdzv-id r",
        ("--rdzv-endpoint", "nosuch.invalid", "cannot be resolved"),
        RUN,
        torch=True,
    ),
    Mistake(
        "number of nodes in words",
        f"{RUN} --nnodes all --rdzv-endpoint h:1 --rdzv-id r",
        ("--nnodes (all)", "MIN:MAX"),
        RUN,
    ),
    Mistake(
        "ranks in words",
        f"{RUN} --nproc-per-node gpu",
        ("--nproc-per-node", "gpu", "number"),
        f"{RUN} --nproc-per-node 2",
    ),
    Mistake(
        "negative restarts",
        f"{RUN} --max-restarts -1",
        ("--max-restarts (-1)", "at least 0"),
        f"{RUN} --max-restarts 1",
    ),
    Mistake(
        "pipeline of more stages than layers",
        f"{RUN} --pipeline-model-parallel-size 4 --nproc-per-node 4",
        ("num-layers (2)", "num-layers 4"),
        f"{RUN} --pipeline-model-parallel-size 2 --nproc-per-node 2",
    ),
    Mistake(
        "layout larger than the world",
        f"{RUN} --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --nproc-per-node 2",
        ("world size (2)", "--nproc-per-node 4"),
        f"{RUN} --tensor-model-parallel-size 2 --nproc-per-node 2",
    ),
    Mistake(
        "sequence that cannot be cut",
        f"{RUN} --tensor-model-parallel-size 2 --nproc-per-node 2 --sequence-parallel --seq-length 15",
        ("seq-length (15)", "14 or 16"),
        f"{RUN} --tensor-model-parallel-size 2 --nproc-per-node 2 --sequence-parallel --seq-length 14",
    ),
    Mistake(
        "interleaving without virtual stages",
        f"{RUN} --pipeline-schedule interleaved --pipeline-model-parallel-size 2 --nproc-per-node 2",
        ("interleaved", "1f1b"),
        f"{RUN} --pipeline-schedule 1f1b --pipeline-model-parallel-size 2 --nproc-per-node 2",
    ),
]

FOLDERS = [
    Mistake(
        "disk that is full",
        RUN,
        ("1,000 bytes of free space", "make room"),
        RUN,
        during=full_disk,
        leaves=("runs/mine", "runs/mine/checkpoints", "runs/mine/log.txt"),
        torch=True,
    ),
    Mistake(
        "a file where the run's folder should be",
        RUN,
        ("--output-dir runs/mine", "not a folder"),
        f"{RUN} --output-dir runs/other",
        files={"runs/mine": "a note"},
    ),
    Mistake(
        "a link to nowhere as the run's folder",
        f"{RUN} --output-dir link",
        ("--output-dir link", "not a folder"),
        RUN,
        prepare=lambda: os.symlink("nowhere", "link"),
    ),
    Mistake(
        "name that is too long",
        f"{RUN} --output-dir {'x' * 300}",
        ("--output-dir x", "File name too long"),
        RUN,
    ),
    Mistake(
        "cache that cannot be written",
        f"{RUN} --data-cache-path /proc/none",
        ("--data-cache-path /proc/none", "cannot be"),
        f"{RUN} --data-cache-path index",
    ),
    Mistake(
        "empty name",
        f"{RUN} --load ''",
        ("load is empty",),
        f"{RUN} --load runs/done/checkpoints",
        fix_needs_torch=True,
    ),
    Mistake(
        "load of a missing checkpoint",
        f"{RUN} --load runs/none",
        ("--load runs/none",),
        f"{RUN} --load runs/done/checkpoints",
        fix_needs_torch=True,
    ),
    Mistake(
        "step that does not exist",
        f"{RUN} --load runs/done/checkpoints/step_00000009",
        ("step_00000009",),
        f"{RUN} --load {STEP}",
        fix_needs_torch=True,
    ),
    Mistake(
        "evaluation of a token file",
        "evaluate --load runs/done --input corpus_text_document.bin",
        ("corpus_text_document.bin",),
        "evaluate --load runs/done --input input.txt",
        torch=True,
    ),
    Mistake(
        "checkpoint without its manifest",
        "generate --load runs/done --prompt a",
        ("runs/done",),
        f"{RUN} --output-dir runs/again",
        prepare=lambda: os.remove(f"{STEP}/manifest.json"),
        torch=True,
    ),
    Mistake(
        "manifest that is cut off",
        f"{RUN} --output-dir runs/done --auto-resume",
        ("runs/done/checkpoints", "damaged"),
        f"{RUN} --output-dir runs/again",
        prepare=lambda: cut(f"{STEP}/manifest.json", 100),
        torch=True,
    ),
    Mistake(
        "two settings changed on resume",
        f"{RUN} --output-dir runs/done --auto-resume --swiglu --normalization RMSNorm",
        ("swiglu", "normalization", "LayerNorm"),
        f"{RUN} --output-dir runs/done --auto-resume",
        torch=True,
    ),
    Mistake(
        "corpus changed on resume",
        f"{RUN} --output-dir runs/done --auto-resume --train-iters 4 --data-path one_text_document --split 1,0,0",
        ("data", "--force-resume"),
        f"{RUN} --output-dir runs/done --auto-resume --train-iters 4",
        torch=True,
    ),
]

CORPORA = [
    Mistake(
        "index without its token file",
        f"{RUN} --data-path part",
        ("part.bin",),
        RUN,
        prepare=lambda: shutil.copyfile("corpus_text_document.idx", "part.idx"),
    ),
    Mistake(
        "swapped tokenizer and config",
        "pretrain --config chars.json --tokenizer-model ok.yaml",
        ("chars.json",),
        RUN,
    ),
    Mistake("folder as data", f"{RUN} --data-path runs", ("runs",), RUN),
    Mistake(
        "corpus cut off by an interrupted copy",
        f"{RUN} --data-path part",
        ("part.bin", "copy the file again"),
        RUN,
        prepare=interrupted_copy,
    ),
    Mistake(
        "sequence longer than the corpus",
        f"{RUN} --seq-length 4096",
        ("corpus_text_document", "seq"),
        f"{RUN} --seq-length 32",
    ),
    Mistake(
        "gzip without its suffix",
        "preprocess --input zipped.jsonl --output-prefix new --tokenizer-model chars.json",
        ("zipped.jsonl", "UTF-8"),
        "preprocess --input zipped.jsonl.gz --output-prefix new --tokenizer-model chars.json",
        prepare=lambda: zip_to("zipped.jsonl"),
        repair=lambda: zip_to("zipped.jsonl.gz"),
    ),
    Mistake(
        "suffix of gzip on plain text",
        "preprocess --input train.jsonl.gz --output-prefix new --tokenizer-model chars.json",
        ("train.jsonl.gz",),
        "preprocess --input train.jsonl --output-prefix new --tokenizer-model chars.json",
        prepare=lambda: shutil.copyfile("train.jsonl", "train.jsonl.gz"),
    ),
    Mistake(
        "gzip cut off by an interrupted download",
        "preprocess --input zipped.jsonl.gz --output-prefix new --tokenizer-model chars.json",
        ("zipped.jsonl.gz",),
        "preprocess --input train.jsonl --output-prefix new --tokenizer-model chars.json",
        prepare=lambda: zip_to("zipped.jsonl.gz", most=200),
    ),
    Mistake(
        "text of characters that the tokenizer lacks",
        "preprocess --input other.txt --output-prefix new --tokenizer-model chars.json",
        ("other.txt", "CharTokenizer"),
        "preprocess --input input.txt --output-prefix new --tokenizer-model chars.json",
        files={"other.txt": "ÄÖÜ 123"},
    ),
    Mistake(
        "tokenizer that is a corpus",
        "preprocess --input input.txt --output-prefix new --tokenizer-model corpus_text_document.json",
        ("corpus_text_document.json",),
        "preprocess --input input.txt --output-prefix new --tokenizer-model chars.json",
    ),
    Mistake(
        "no tokenizer",
        "preprocess --input input.txt --output-prefix new",
        ("--tokenizer-model",),
        "preprocess --input input.txt --output-prefix new --tokenizer-model chars.json",
    ),
    Mistake(
        "output of an unknown kind of tokenizer",
        "tokenizer train --input input.txt --output tokens.xyz",
        ("--output tokens.xyz", ".json"),
        "tokenizer train --input input.txt --output tokens.json",
    ),
    Mistake(
        "fractions that exceed the whole",
        "data split corpus_text_document --output-prefix part --fractions 0.9 0.3",
        ("--fractions", "1"),
        "data split corpus_text_document --output-prefix part --fractions 0.7 0.3",
    ),
    Mistake(
        "merge of corpora of two types",
        "data merge --input corpus_text_document wide --output-prefix both",
        ("wide",),
        "data merge --input corpus_text_document one_text_document --output-prefix both",
        prepare=lambda: other_type("wide"),
    ),
    Mistake(
        "picture of an unknown kind",
        "data inspect corpus_text_document --output histogram.jpeg2",
        ("--output", ".png"),
        "data inspect corpus_text_document",
    ),
    Mistake(
        "stages that are none",
        "schedule show 1f1b --stages 0",
        ("--stages (0)", "at least 1"),
        "schedule show 1f1b --stages 2",
    ),
    Mistake(
        "schedule of a name that is none",
        "schedule show 1f1bb",
        ("1f1bb", "1f1b"),
        "schedule show 1f1b",
    ),
    Mistake(
        "tokens below zero",
        "generate --load runs/done --prompt a --max-new-tokens 0",
        ("--max-new-tokens (0)", "at least 1"),
        "generate --load runs/done --prompt a --max-new-tokens 2",
        fix_needs_torch=True,
    ),
    Mistake(
        "greedy and hot",
        "generate --load runs/done --prompt a --greedy --temperature 2",
        ("--greedy", "--temperature"),
        "generate --load runs/done --prompt a --greedy --max-new-tokens 2",
        fix_needs_torch=True,
    ),
    Mistake(
        "prompts file missing",
        "generate --load runs/done --prompts-file prompts.txt",
        ("prompts.txt",),
        "generate --load runs/done --prompts-file input.txt --max-new-tokens 1",
        fix_needs_torch=True,
    ),
    Mistake(
        "ranks of a dry run in words",
        "dry-run --config ok.yaml --world many",
        ("--world", "many"),
        "dry-run --config ok.yaml --world 2",
        fix_needs_torch=True,
    ),
]

FORGIVEN = [
    Mistake(
        "a run's folder in place of its checkpoints",
        "generate --load runs/done --prompt a --max-new-tokens 2",
        ("a",),
        "evaluate --load runs/done --input input.txt",
        code=0,
        torch=True,
    ),
    Mistake(
        "plain text to evaluate",
        "evaluate --load runs/done --input input.txt",
        ("bits per byte",),
        "evaluate --load runs/done --input input.txt --input-format text",
        code=0,
        torch=True,
    ),
    Mistake(
        "one document and the default split",
        f"{RUN} --data-path one_text_document",
        ("one_text_document",),
        f"{RUN} --data-path one_text_document --split 1,0,0 --output-dir runs/other",
        code=0,
        torch=True,
    ),
    Mistake("version as a flag", "--version", ("megascratch", "torch"), "--help", code=0),
    Mistake(
        "flag given twice",
        f"{RUN} --lr 1 --lr 1e-3",
        ("--lr",),
        f"{RUN} --lr 1e-3 --output-dir runs/other",
        code=0,
    ),
]

RUN_ROWS = [*ENVIRONMENT, *LAUNCHER, *FOLDERS, *CORPORA, *FORGIVEN]
