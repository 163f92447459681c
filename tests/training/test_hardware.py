"""What a run takes of its machine."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megascratch.config.errors import UserError
from megascratch.config.fields import with_fields
from megascratch.config.load import Loaded, Origins
from megascratch.config.settings import Config
from megascratch.dry_run.run import run_rank
from megascratch.dry_run.settings import imagined_run
from megascratch.training.hardware import Peak, choose_device

SAME_AGAIN = """
import resource
from megascratch.training.hardware import keep_freed_memory
{first}
def step():
    tensors = [bytearray(1 << 20) for _ in range(64)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
before = faults()
step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_what_a_step_frees_serves_the_next_one_without_a_page_fault():
    def faults(first: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", SAME_AGAIN.format(first=first)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    pages = 64 << 20 >> 12
    assert faults("keep_freed_memory()") < pages / 10
    assert faults("") > pages / 2, (
        "the C library keeps it by itself: keep_freed_memory is of no use"
    )


class Fp64OnDevice(TorchDispatchMode):
    """Notes every operation that makes an fp64 tensor on the meta device, which stands for the target."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.is_meta
                and tensor.dtype == torch.float64
            ):
                self.found.add(str(function))
        return out


@pytest.mark.parametrize(("kind", "has_fp64"), [("mps", False), ("cpu", True)])
def test_a_step_on_apples_gpu_makes_no_fp64_tensor(kind, has_fp64):
    """Sums of losses and of squares, counts and angles are fp64 elsewhere."""
    values = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 16}
    settings = {**values, "vocab_size": 50, "position_embedding_type": "rope", "device": kind}
    loaded = Loaded(with_fields(Config(), settings), Origins(), [], set())
    run = imagined_run(loaded, 1, kind)
    spy = Fp64OnDevice()
    with spy:
        run_rank(run, 0)
    assert bool(spy.found) is has_fp64, spy.found


def test_a_device_that_is_not_there_is_refused_with_one_that_is():
    with pytest.raises(UserError, match="use --device cpu"):
        choose_device("mps", 0)


def test_mfu_never_exceeds_one_and_the_first_faster_rate_is_reported():
    said = []
    peak = Peak(100.0)
    assert [peak.mfu(rate, said.append) for rate in (50.0, 145.0, 72.5, 290.0, 145.0)] == [
        0.5,
        1.0,
        0.5,
        1.0,
        0.5,
    ]
    assert len(said) == 1 and "above the matmul peak measured at the start" in said[0]
