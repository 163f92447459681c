"""Mistakes in a command line of Megatron-LM."""

from tests.support.mistakes.row import Mistake

RUN = (
    "pretrain --num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--micro-batch-size 1 --global-batch-size 4 --train-iters 2 --lr 1e-3 --data-path corpus_text_document "
    "--split 1,0,0 --tokenizer-model chars.json --device cpu --output-dir runs/mine --use-mcore-models"
)


def line(name: str, flags: str, *says: str, fix: str = "") -> Mistake:
    """A mistake in flags that are added to a command line that works."""
    return Mistake(f"Megatron-LM: {name}", f"{RUN} {flags}", says, f"{RUN} {fix}".strip())


MEGATRON_ROWS = [
    line(
        "a feature that is missing",
        "--num-experts 8 --moe-router-topk 2",
        "mixture of experts: not there yet (needed by --num-experts 8, --moe-router-topk 2)",
    ),
    line(
        "an optimizer that is missing",
        "--optimizer muon",
        "other optimizers than Adam: not there yet (needed by --optimizer muon)",
    ),
    line(
        "a flag that neither knows",
        "--swiglo",
        "unknown flag --swiglo - did you mean --swiglu?",
        fix="--swiglu",
    ),
    line(
        "two granularities",
        "--recompute-activations --recompute-granularity full",
        "--recompute-activations is --recompute-granularity selective, but full is given",
        fix="--recompute-activations",
    ),
    line(
        "no positions in the old way",
        "--no-position-embedding",
        "--no-position-embedding contradicts the table of learned positions",
        fix="--no-position-embedding --position-embedding-type rope",
    ),
    line(
        "a switch with a value",
        "--swiglu true",
        "--swiglu does not accept a value (given: true)",
        fix="--swiglu",
    ),
    line(
        "a flag of another program",
        "--mask-prob 0.1",
        "--mask-prob belongs to another program: BERT, T5 and vision models",
    ),
    line(
        "flags of a third tool",
        "--flags-of nemo",
        "--flags-of must be megatron or megascratch, not nemo",
        fix="--flags-of megatron",
    ),
]
