"""On one machine nothing of a run can be reached from another one."""

import subprocess

import psutil

from tests.support.pretrain_runs import ENVIRONMENT, ROOT, command, mock


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process or its descendants listen."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            found |= {c.laddr.ip for c in one.net_connections() if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue  # it has just ended
    return found


def test_a_run_on_one_machine_listens_on_the_loopback_interface_alone(tmp_path):
    words = [*mock(tmp_path, train_iters=10**6, data_parallel_size=2), "--nproc-per-node", "2"]
    run = subprocess.Popen(
        command(words), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert run.stdout is not None
        addresses: set[str] = set()
        for line in run.stdout:
            addresses |= listening(psutil.Process(run.pid))
            if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= 3:
                break
    finally:
        run.terminate()
        run.communicate(timeout=600)
    assert addresses and all(
        address.startswith("127.") or address == "::1" for address in addresses
    ), addresses
