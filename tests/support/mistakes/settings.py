"""Mistakes in flags: values, units, and habits from other tools."""

import shutil

from tests.support.mistakes.row import Mistake

RUN = "pretrain --config ok.yaml"


def value(name: str, flags: str, *says: str, fix: str = "", files: dict | None = None) -> Mistake:
    """A mistake in the flags of a run."""
    return Mistake(name, f"{RUN} {flags}", says, f"{RUN} {fix}".strip(), files=files or {})


TWENTY = [
    value("Hydra's key=value", "lr=1e-2", "lr=1e-2", "--lr 1e-2", fix="--lr 1e-2"),
    value(
        "odd blend",
        "--data-path 0.3 corpus_text_document 0.7",
        "data-path",
        "weight",
        fix="--data-path 0.3 corpus_text_document 0.7 one_text_document --split 1,0,0",
    ),
    value("wandb flag", "--wandb-project mine", "--wandb-project", "--log-project", fix=""),
    Mistake(
        "evaluate with a wrong key",
        "evaluate --load runs/done/checkpoints --input train.jsonl --json-key content",
        ("train.jsonl", "content", "text"),
        "evaluate --load runs/done/checkpoints --input train.jsonl --json-key text",
        torch=True,
    ),
    value("negative learning rate", "--lr -1", "lr (-1.0)", "at least 0", fix="--lr 1"),
    value(
        "min-lr above lr",
        "--min-lr 0.1",
        "min-lr (0.1)",
        "lr (0.001)",
        "min-lr 0.001 or less",
        fix="--min-lr 0.001",
    ),
    value("bf16 and fp16", "--bf16 --fp16", "bf16", "fp16", "choose one", fix="--bf16"),
    value(
        "vocabulary too small",
        "--vocab-size 7",
        "vocab-size (7)",
        "29 or more",
        fix="--vocab-size 29",
    ),
    Mistake(
        "truncated .bin",
        f"{RUN} --data-path cut",
        ("cut.bin", "cut.idx"),
        RUN,
        files={"cut.bin": b"\0\0" * 10},
        prepare=lambda: shutil.copyfile("corpus_text_document.idx", "cut.idx"),
    ),
    value(
        "garbage .idx",
        "--data-path bad",
        "bad.idx",
        files={"bad.bin": b"\0\0" * 10, "bad.idx": b"garbage" * 9},
    ),
    value(
        "garbage tokenizer",
        "--tokenizer-model bad.json",
        "bad.json",
        fix="--tokenizer-model chars.json",
        files={"bad.json": "{}"},
    ),
    Mistake(
        "vocabulary larger than the text gives",
        "tokenizer train --input digits.txt --output bpe.json --vocab-size 30000",
        ("--vocab-size 30000", "--vocab-size 266 or less"),
        "tokenizer train --input digits.txt --output bpe.json --vocab-size 266",
    ),
    value(
        "typo in a schedule",
        "--pipeline-schedule 1f1bb",
        "--pipeline-schedule",
        "1f1bb",
        "1f1b",
        fix="--pipeline-schedule 1f1b",
    ),
    value(
        "V schedule with too few layers",
        "--pipeline-schedule zb_v --pipeline-model-parallel-size 2 --nproc-per-node 2",
        "num-layers (2)",
        "num-layers 4",
        fix="--pipeline-schedule zb_v --pipeline-model-parallel-size 2 --nproc-per-node 2 --num-layers 4",
    ),
    value(
        "no ranks",
        "--nproc-per-node 0",
        "--nproc-per-node (0)",
        "at least 1",
        fix="--nproc-per-node 1",
    ),
]


VALUES = [
    value(
        "number with a k",
        "--seq-length 2k",
        "--seq-length",
        "2k",
        "whole number",
        fix="--seq-length 16",
    ),
    value(
        "number with underscores and a unit",
        "--train-iters 1_000_steps",
        "--train-iters",
        "1_000_steps",
        fix="--train-iters 2",
    ),
    value(
        "percent",
        "--lr-warmup-fraction 10%",
        "--lr-warmup-fraction",
        "10%",
        fix="--lr-warmup-fraction 0.1",
    ),
    value(
        "percent as a number",
        "--lr-warmup-fraction 10",
        "lr-warmup-fraction (10.0)",
        "[0, 1)",
        fix="--lr-warmup-fraction 0.1",
    ),
    value("value for a switch", "--bf16 true", "--bf16", "does not accept a value", fix="--bf16"),
    value("switch = value", "--bf16=True", "--bf16", "does not accept a value", fix="--bf16"),
    value("flag without its value", "--lr", "--lr needs a value", fix="--lr 1e-3"),
    value(
        "two values",
        "--hidden-size 32 64",
        "--hidden-size",
        "one value",
        "64",
        fix="--hidden-size 64",
    ),
    value("empty value", "--num-layers ''", "--num-layers", fix="--num-layers 2"),
    value(
        "negative size", "--num-layers -2", "num-layers (-2)", "at least 1", fix="--num-layers 2"
    ),
    value(
        "zero batch",
        "--micro-batch-size 0",
        "micro-batch-size (0)",
        "at least 1",
        fix="--micro-batch-size 1",
    ),
    value("not a number", "--lr nan", "lr (nan)", "finite", fix="--lr 1e-3"),
    value(
        "number of sixty bits and more",
        "--hidden-size 99999999999999999999",
        "--hidden-size",
        "64 bits",
        fix="--hidden-size 64",
    ),
    value(
        "dropout of one",
        "--hidden-dropout 1",
        "hidden-dropout (1.0)",
        "[0, 1)",
        fix="--hidden-dropout 0.1",
    ),
    value("beta of one", "--adam-beta2 1.0", "adam-beta2 (1.0)", "[0, 1)", fix="--adam-beta2 0.95"),
    value(
        "choice with a capital",
        "--normalization rmsnorm",
        "--normalization",
        "rmsnorm",
        "RMSNorm",
        fix="--normalization RMSNorm",
    ),
    value(
        "choice that is unknown",
        "--lr-decay-style cosin",
        "--lr-decay-style",
        "cosine",
        fix="--lr-decay-style cosine",
    ),
    value(
        "heads that do not divide the width",
        "--num-attention-heads 5",
        "hidden-size (32)",
        "num-attention-heads (5)",
        "num-attention-heads 1, 2, 4, 8",
        fix="--num-attention-heads 4",
    ),
    value(
        "groups that do not divide the heads",
        "--num-query-groups 3",
        "num-query-groups (3)",
        "1, 2 or 4",
        fix="--num-query-groups 2",
    ),
    value(
        "sequence longer than the positions",
        "--max-position-embeddings 8",
        "max-position-embeddings (8)",
        "seq-length (16)",
        "16 or more",
        fix="--max-position-embeddings 16",
    ),
    value(
        "warm-up longer than the run",
        "--lr-warmup-iters 9",
        "lr-warmup-iters (9)",
        "2 or less",
        fix="--lr-warmup-iters 2",
    ),
    value(
        "two warm-ups",
        "--lr-warmup-iters 1 --lr-warmup-fraction 0.1",
        "lr-warmup-iters (1)",
        "lr-warmup-fraction (0.1)",
        "keep one",
        fix="--lr-warmup-iters 1",
    ),
    value(
        "WSD without its last phase",
        "--lr-decay-style WSD",
        "lr-wsd-decay-iters 1",
        fix="--lr-decay-style WSD --lr-wsd-decay-iters 1",
    ),
    value(
        "samples and steps",
        "--train-samples 8 --train-iters 2",
        "train-iters (2)",
        "train-samples (8)",
        "keep one",
        fix="",
    ),
    value(
        "split of words",
        "--split train,valid",
        "split (train,valid)",
        "969,30,1",
        fix="--split 969,30,1",
    ),
    value(
        "split of four", "--split 90,5,3,2", "split (90,5,3,2)", "969,30,1", fix="--split 90,8,2"
    ),
    value("split with blanks", "--split 90 10 0", "--split", "10 0", fix="--split 90,10,0"),
    value(
        "two sources",
        "--mock-data --data-path corpus_text_document",
        "data-path and mock-data",
        "keep only one",
        fix="",
    ),
    value(
        "ramp-up of two numbers",
        "--rampup-batch-size 2 2",
        "rampup-batch-size (2 2)",
        "START INCREMENT SAMPLES",
        fix="--rampup-batch-size 2 2 4",
    ),
    value(
        "ramp-up that misses the batch",
        "--rampup-batch-size 2 4 8",
        "rampup-batch-size",
        "global-batch-size (4)",
        fix="--rampup-batch-size 2 2 8",
    ),
    value(
        "two activations",
        "--swiglu --openai-gelu",
        "swiglu, openai-gelu",
        "choose one",
        fix="--swiglu",
    ),
    value(
        "loss scale without fp16",
        "--loss-scale 8",
        "loss-scale",
        "fp16",
        fix="--fp16 --loss-scale 8",
    ),
    value(
        "NCCL on a CPU",
        "--distributed-backend nccl",
        "nccl",
        "gloo",
        fix="--distributed-backend gloo",
    ),
    value(
        "best checkpoints without validations",
        "--keep-best-n-checkpoints 1 --save-interval 3",
        "save-interval (3)",
        "eval-interval (2)",
        "2 or 4",
        fix="--keep-best-n-checkpoints 1 --save-interval 2",
    ),
    value(
        "rollback without checkpoints",
        "--on-bad-step rollback",
        "save-interval",
        fix="--on-bad-step rollback --save-interval 1",
    ),
    value(
        "force of a setting that is none",
        "--force-resume sed",
        "force-resume sed",
        "did you mean seed?",
        fix="",
    ),
    value(
        "schedule file missing",
        "--pipeline-schedule-csv mine.csv",
        "mine.csv",
        "cannot be read",
        fix="",
    ),
    value(
        "Megatron flag with its opposite here",
        "--disable-bias-linear",
        "--disable-bias-linear",
        "--no-add-bias-linear",
        fix="--no-add-bias-linear",
    ),
    value("two dashes of another kind", "—lr 1e-3", "—lr", fix="--lr 1e-3"),
    value("one dash", "-lr 1e-3", "-lr", "--lr", fix="--lr 1e-3"),
]

LAYERS = [
    value(
        "stages as text without an end",
        "--pipeline-model-parallel-layout Et|t",
        "pipeline-model-parallel-layout (Et|t)",
        "0 x L (the output layer)",
        "let one L end the last stage",
        fix="--pipeline-model-parallel-layout EttL",
    ),
    value(
        "a stage of multi-token prediction",
        "--pipeline-model-parallel-layout EttmL",
        "m (multi-token prediction), which is not implemented here: remove it",
        fix="--pipeline-model-parallel-layout EttL",
    ),
    value(
        "ends that count and do not come out even",
        "--num-layers 4 --account-for-loss-in-pipeline-split --pipeline-model-parallel-size 2 --scale-down",
        "num-layers (4) + the output layer (5 in all) must be divisible by",
        "num-layers 3 or 5",
        fix="--num-layers 3 --account-for-loss-in-pipeline-split --pipeline-model-parallel-size 2 --scale-down",
    ),
    value(
        "part of other layers to recompute",
        "--recompute-granularity selective --recompute-modules core_attn moe_act",
        "moe_act needs mixture of experts, which is not implemented here",
        fix="--recompute-granularity selective --recompute-modules core_attn",
    ),
    value(
        "wrong at full size, scaled down",
        "--num-attention-heads 3 --scale-down",
        "hidden-size (32)",
        "num-attention-heads (3)",
        fix="--scale-down",
    ),
    Mistake(
        "scaled down and all layouts",
        "verify --config ok.yaml --scale-down --max-world 2",
        ("--scale-down moves the config's own layout", "--max-world", "keep one"),
        "verify --config ok.yaml --scale-down",
        fix_needs_torch=True,
    ),
]


SETTINGS_ROWS = [*TWENTY, *VALUES, *LAYERS]
