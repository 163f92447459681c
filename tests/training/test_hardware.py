"""What a run takes of its machine."""

import subprocess
import sys

import pytest

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
