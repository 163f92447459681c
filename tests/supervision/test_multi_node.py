"""Two machines, as two network namespaces of this one: a dead machine is left behind, a short silence of the network
costs nothing, a long one stops both sides.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megascratch.checkpoint.steps import latest, list_steps, problem_of
from megascratch.supervision.observe import kill

pytestmark = pytest.mark.deep
# namespace -> (interface, address)
NODES = {
    "ms-a": ("ms-va", "10.77.0.1"),
    "ms-b": ("ms-vb", "10.77.0.2"),
}
SMALL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --vocab-size 61 "
    "--make-vocab-size-divisible-by 8 --seq-length 16 --global-batch-size 8 --lr 0.01 "
    "--lr-decay-iters 1000 --save-interval 10 --keep-last-n-checkpoints 3 --log-interval 1 "
    "--eval-interval 0 --device cpu --mock-data"
).split()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def two_nodes() -> Iterator[None]:
    """Two network namespaces and a cable; skipped where that is not allowed."""
    _remove_nodes()  # those of a run that was killed
    try:
        for node in NODES:
            ip("netns", "add", node)
        (a, (va, _)), (b, (vb, _)) = NODES.items()
        ip("link", "add", va, "netns", a, "type", "veth", "peer", "name", vb, "netns", b)
        for node, (interface, address) in NODES.items():
            ip("-n", node, "addr", "add", f"{address}/24", "dev", interface)
            ip("-n", node, "link", "set", "lo", "up")
            ip("-n", node, "link", "set", interface, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        _remove_nodes()
        pytest.skip(
            f"network namespaces need `ip netns` and the right to use it: {getattr(error, 'stderr', error)}"
        )
    yield
    _remove_nodes()


def _remove_nodes() -> None:
    if shutil.which("ip") is None:
        return
    for node in NODES:
        kill(pids(node))
        subprocess.run(["ip", "netns", "del", node], capture_output=True)


def pids(node: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def start(
    folder: Path, *words: str, nnodes: str = "1:2", max_restarts: int = 3
) -> dict[str, subprocess.Popen]:
    """The same command on both nodes, two ranks each."""
    started = {}
    for host, (node, (interface, address)) in enumerate(NODES.items()):
        command = [
            *(
                "ip",
                "netns",
                "exec",
                node,
                sys.executable,
                "-m",
                "megascratch",
                "pretrain",
                *SMALL,
                *words,
            ),
            *("--output-dir", str(folder / "run"), "--nnodes", nnodes, "--nproc-per-node", "2"),
            *(
                "--max-restarts",
                str(max_restarts),
                "--rdzv-endpoint",
                "10.77.0.1:29555",
                "--rdzv-id",
                "test",
            ),
            *("--rdzv-conf", f"is_host={1 - host}", "--local-addr", address),
        ]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"}
        with (folder / f"{node}.txt").open("w") as out:
            started[node] = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
    return started


def said(folder: Path, node: str = "ms-a") -> str:
    return (folder / f"{node}.txt").read_text()


def until(condition, seconds: float = 120.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def losses(folder: Path) -> list[tuple]:
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        (row["step"], row["consumed_samples"], row["loss"]) for row in rows if "grad_norm" in row
    ]


def test_when_a_node_dies_the_other_goes_on_with_the_same_batch(tmp_path, two_nodes, capsys):
    started = start(tmp_path, "--train-iters", "100000", "--distributed-timeout-minutes", "1")
    until(lambda: "step     20/" in said(tmp_path))
    kill(pids("ms-b"))
    died = time.monotonic()
    until(lambda: said(tmp_path).count("parameters on") == 2)
    begun = said(tmp_path).count("\nstep ")
    until(lambda: said(tmp_path).count("\nstep ") > begun)
    with capsys.disabled():
        print(f"\nnode killed: the next step was done after {time.monotonic() - died:.1f} s")
    assert "(2 ranks, 1f1b, cpu), 128 tokens a step" in said(tmp_path).split("parameters on")[2]
    (tmp_path / "run" / "stop").touch()
    assert started["ms-a"].wait(60) == 82
    assert all(samples == 8 * step for step, samples, _ in losses(tmp_path))
    assert [step for step, *_ in losses(tmp_path)] == list(range(1, len(losses(tmp_path)) + 1))


def test_a_link_that_is_down_shorter_than_the_timeout_costs_nothing(tmp_path, two_nodes):
    words = ["--train-iters", "200", "--distributed-timeout-minutes", "1"]
    for name, silence in (("calm", 0), ("silent", 4)):
        folder = tmp_path / name
        folder.mkdir()
        started = start(folder, *words, nnodes="2", max_restarts=0)
        until(lambda folder=folder: "step     20/" in said(folder))
        if silence:
            ip("-n", "ms-b", "link", "set", "ms-vb", "down")
            time.sleep(silence)
            ip("-n", "ms-b", "link", "set", "ms-vb", "up")
        assert [process.wait(180) for process in started.values()] == [0, 0]
    assert losses(tmp_path / "silent") == losses(tmp_path / "calm")
    assert said(tmp_path / "silent").count("parameters on") == 1, "no restart"


def test_a_link_that_stays_down_stops_both_sides_and_leaves_a_sound_checkpoint(tmp_path, two_nodes):
    timeout = 8.0
    started = start(
        tmp_path,
        "--train-iters",
        "100000",
        "--distributed-timeout-minutes",
        str(timeout / 60),
        nnodes="2",
        max_restarts=0,
    )
    until(lambda: "step     20/" in said(tmp_path))
    ip("-n", "ms-b", "link", "set", "ms-vb", "down")
    assert [process.wait(timeout + 60) for process in started.values()] == [1, 1]
    saved = list_steps(tmp_path / "run" / "checkpoints")
    assert latest(tmp_path / "run" / "checkpoints") == saved[0] and not any(map(problem_of, saved))
    for node in NODES:
        assert "failed on rank" in said(tmp_path, node), "each side says what it waited for"


def test_a_signal_to_one_node_saves_and_stops_all(tmp_path, two_nodes):
    started = start(
        tmp_path, "--train-iters", "100000", "--distributed-timeout-minutes", "1", nnodes="2"
    )
    until(lambda: "step     20/" in said(tmp_path))
    launcher = started["ms-b"].pid  # `ip netns exec` has become the command
    os.kill(launcher, signal.SIGUSR1)
    assert [process.wait(60) for process in started.values()] == [83, 83]
    assert "stop requested (by a signal)" in said(tmp_path)
