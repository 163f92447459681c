"""Twenty minutes in which a rank dies, stands still or finds its disk full about every 20 seconds change no bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.deep
def test_chaos_changes_no_bit_of_the_final_weights():
    """CHAOS_MINUTES makes it shorter or longer."""
    command = [sys.executable, str(SCRIPT), "--minutes", os.environ.get("CHAOS_MINUTES", "20")]
    assert subprocess.run(command).returncode == 0
