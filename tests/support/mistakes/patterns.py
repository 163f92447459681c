"""Mistakes in rotary positions, in patterns of layers, and in sequences that ranks share."""

from tests.support.mistakes.settings import value

ROPE = "--position-embedding-type rope"
YARN = f"{ROPE} --rope-scaling-type yarn --rope-scaling-factor 4"

PATTERN_ROWS = [
    value(
        "window of no token",
        "--sliding-window 0",
        "sliding-window (0)",
        "at least 1",
        fix="--sliding-window 1",
    ),
    value(
        "pattern of the wrong length",
        "--num-layers 2 --sliding-window 4 --window-attn-skip-freq 1 1 0",
        "window-attn-skip-freq (1 1 0) has 3 numbers, and num-layers is 2",
        "use window-attn-skip-freq 1 1, num-layers 3, or give one number",
        fix="--num-layers 2 --sliding-window 4 --window-attn-skip-freq 1 1",
    ),
    value(
        "rope of an unknown kind",
        f"{ROPE} --rope-scaling-type yarm",
        "--rope-scaling-type",
        "yarm",
        "yarn",
        fix=f"{YARN} --rope-original-max-position-embeddings 16",
    ),
    value(
        "yarn without the length it was made for",
        YARN,
        "rope-scaling-type yarn needs rope-original-max-position-embeddings",
        fix=f"{YARN} --rope-original-max-position-embeddings 16",
    ),
    value(
        "positions stretched twice",
        f"{ROPE} --rope-scaling-type linear --rope-scaling-factor 4 --rotary-seq-len-interpolation-factor 4",
        "rope-scaling-type linear and rotary-seq-len-interpolation-factor (4)",
        "remove one",
        fix=f"{ROPE} --rope-scaling-type linear --rope-scaling-factor 4",
    ),
    value(
        "sequence that two chunks on each of three ranks do not fill",
        "--context-parallel-size 3 --scale-down",
        "must be divisible by 2 x context-parallel-size (3)",
        "use seq-length",
        fix="--context-parallel-size 2 --scale-down",
    ),
    value(
        "fewer heads than ranks that exchange them",
        "--seq-length 32 --context-parallel-size 8 --cp-comm-type a2a --scale-down",
        "num-attention-heads (",
        "exchange heads (cp-comm-type a2a) cannot share evenly",
        "cp-comm-type p2p",
        fix="--seq-length 32 --context-parallel-size 8 --cp-comm-type p2p --scale-down",
    ),
    value(
        "DeltaNet with a sequence that ranks share",
        "--mixers gated_delta_net attention --context-parallel-size 2 --scale-down",
        "context-parallel-size (2) divides each sequence",
        "mixers gated_delta_net do not allow",
        "use context-parallel-size 1",
        fix="--mixers gated_delta_net attention --context-parallel-size 1 --scale-down",
    ),
]
