"""A small supervised run for tests: its flags and the weights that it saves."""

from pathlib import Path

SMALL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --vocab-size 61 "
    "--make-vocab-size-divisible-by 8 --seq-length 16 --global-batch-size 4 --lr 0.01 "
    "--train-iters 8 --save-interval 2 --eval-interval 0 --log-interval 1 --device cpu "
    "--mock-data"
).split()
DP2 = ["--data-parallel-size", "2", "--use-distributed-optimizer", "--nproc-per-node", "2"]


def weights(folder: Path, step: int = 8) -> dict[str, bytes]:
    files = (folder / "checkpoints" / f"step_{step:08}").glob("*.safetensors")
    return {file.name: file.read_bytes() for file in files}
