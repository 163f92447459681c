"""Twenty minutes in which a rank dies, stands still or finds its disk full about every 20 seconds change no bit; nor do
sixty kills of ranks, fork servers and launchers, of which nothing is left.
"""

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


@pytest.mark.deep
def test_kills_of_launchers_and_fork_servers_change_no_bit_and_leave_nothing():
    """CHAOS_KILLS makes it shorter or longer."""
    command = [
        sys.executable,
        str(SCRIPT),
        "--kills",
        os.environ.get("CHAOS_KILLS", "60"),
        "--every",
        "5",
    ]
    assert (
        subprocess.run([*command, "--victims", "rank", "launcher", "fork-server"]).returncode == 0
    )
