"""What would stop a run is named with its host and its remedy, before the run."""

import json
import os
import socket
import subprocess
import sys

import pytest

from megascratch.commands import doctor, main
from megascratch.commands.doctor_findings import _clocks, _fits, _together, report
from megascratch.doctor import host
from megascratch.doctor.host import HostFinding, check_host, interfaces
from megascratch.doctor.network import Bandwidth, bandwidths, slow_groups
from megascratch.parallel.rendezvous import INTERFACES, loopback_interface
from tests.support.corpora import write
from tests.support.pretrain_runs import ENVIRONMENT, ROOT, flags
from tests.support.rank_pool import mesh_of, on_ranks

HOST = socket.gethostname()
PARAMETERS = (
    61 * 32 + 16 * 32 + 2 * (2 * 64 + 32 * 96 + 96 + 32 * 32 + 32 + 2 * 32 * 128 + 160) + 64
)
"""Of the small model, counted by hand: embedding, positions, two blocks, last norm."""


def settings(folder, **values) -> list[str]:
    return ["doctor", *flags(folder, **values)[1:]]


def test_one_machine_without_settings_is_looked_at(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert (
        "ok    network" in said
        and "ok    device" in said
        and "0 failed, 0 warnings: a run can start" in said
    )


def test_settings_add_their_files_and_their_disk_and_nothing_is_left_behind(tmp_path, capsys):
    prefix = write(tmp_path / "corpus", [range(40)])
    assert main(settings(tmp_path, data_path=prefix, split="1,0,0")) == 0
    said = capsys.readouterr().out
    assert "ok    files" in said and "GiB free, writes" in said
    assert f"ok    model     {PARAMETERS:,} parameters" in said
    assert f"ok    memory    rank 0: {PARAMETERS:,} parameters, " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.bin",
        "corpus.digests",
        "corpus.idx",
    ]


def test_what_is_missing_is_named_with_its_remedy(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = settings(
        tmp_path / "out", data_path=tmp_path / "no", split="1,0,0", load=tmp_path / "nowhere"
    )
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "FAIL  files" in said and "no.idx cannot be read" in said
    assert f"--load {tmp_path / 'nowhere'}" in said and "-> copy it here" in said
    assert "2 failed, 0 warnings: a run cannot start" in said


def test_illegal_settings_are_refused_like_pretrains(tmp_path, capsys):
    assert main([*settings(tmp_path, mock_data=True), "--bf16", "--fp16", "--adam-beta1", "2"]) == 2
    assert "2 problems" in capsys.readouterr().err


def test_a_disk_without_room_or_permission_and_an_unknown_interface_fail(tmp_path, monkeypatch):
    def no_room(path):
        return os.statvfs_result((4096, 4096, 100, 10, 10, 0, 0, 0, 0, 255))

    with monkeypatch.context() as patch:
        patch.setattr(host.os, "statvfs", no_room)
        (full,) = host._disk(tmp_path)
    assert full.state == "FAIL" and "make room" in full.fix
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth99")
    (wrong,) = [finding for finding in check_host(None, True) if finding.about == "network"]
    assert (
        wrong.state == "FAIL" and "GLOO_SOCKET_IFNAME names eth99, this machine has" in wrong.text
    )


def test_the_interfaces_are_those_with_an_ipv4_address():
    found = interfaces()
    assert found[loopback_interface()] == "127.0.0.1"
    assert found.keys() <= {name for _, name in socket.if_nameindex()}


def test_a_host_that_others_cannot_reach_fails(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for name in INTERFACES:  # a run in this process, on one machine, leaves them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host.socket, "gethostbyname", lambda name: "127.0.1.1")
    (found,) = [finding for finding in check_host(None, True) if finding.about == "network"]
    assert (
        found.state == "FAIL"
        and "127.0.1.1: other machines cannot reach it" in found.text
        and "export GLOO" in found.fix
    )


def test_findings_of_all_ranks_are_put_together_by_host():
    fine, bad = (
        HostFinding("files", "ok", "all"),
        HostFinding("files", "FAIL", "no x.bin", "copy it"),
    )
    said = [
        ["a", 5.0, {"v": "1"}, [fine]],
        ["a", 5.0, {"v": "1"}, [fine]],
        ["b", 9.0, {"v": "2"}, [bad]],
    ]
    versions, one, other, clocks = (
        HostFinding(*found) for found in json.loads(_together(list(map(json.dumps, said))))
    )
    assert versions.state == "FAIL" and "v     1              2" in versions.text
    assert (one.text, other.text, other.fix) == (
        "a (ranks 0-1): all",
        "b (rank 2): no x.bin",
        "copy it",
    )
    assert clocks == HostFinding(
        "clocks", "warn", "b is 4.0 s ahead of a", "run an NTP client on both"
    )
    assert _clocks([("a", 1.0), ("b", 1.1)]).state == "ok"
    lines = report([versions, one, other, clocks]).splitlines()
    assert (
        lines[0].startswith("FAIL  versions")
        and lines[-1] == "2 failed, 1 warnings: a run cannot start"
    )


def every_axis():
    return bandwidths(mesh_of(tp=2, pp=2))


def test_every_group_of_every_axis_is_timed_and_all_ranks_know_it():
    first, *others = on_ranks(4, every_axis)
    assert all(other == first for other in others)
    assert sorted((speed.axis, speed.ranks) for speed in first) == [
        ("pp", (0, 2)),
        ("pp", (1, 3)),
        ("tp", (0, 1)),
        ("tp", (2, 3)),
        ("world", (0, 1, 2, 3)),
    ]
    assert all(speed.bytes_per_second > 0 for speed in first)


def test_a_group_much_slower_than_the_others_of_its_axis_is_named():
    even = [Bandwidth("dp", (rank, rank + 1), 1e9) for rank in range(4)]
    slow = Bandwidth("dp", (8, 9), 2e8)
    assert slow_groups([*even, slow, Bandwidth("tp", (0, 1), 1e6)]) == [slow]


@pytest.mark.parametrize(("needed", "state"), [(1 << 20, "ok"), (1 << 60, "warn")])
def test_a_rank_that_needs_more_memory_than_there_is_is_warned_of(needed, state):
    found = _fits("rank 0", needed, "cpu")
    assert (found.about, found.state) == ("memory", state)
    assert ("GiB there" in found.text) and bool(found.fix) == (state == "warn")


def test_flags_of_the_launcher_start_ranks_and_pass_on_what_they_found(tmp_path, monkeypatch):
    """As `pretrain` starts them; here the launcher runs one rank in this process."""
    plans = []

    def launch_here(plan):
        plans.append(plan)
        return plan.target()

    monkeypatch.setattr(doctor, "launch", launch_here)
    good = settings(tmp_path, mock_data=True)
    assert main([*good, "--nproc-per-node", "2"]) == 0
    assert main([*good, "--nproc-per-node", "2", "--load", str(tmp_path / "nowhere")]) == 1
    assert main([*good, "--nproc-per-node", "2", "--adam-beta1", "2"]) == 2
    assert [plan.ranks for plan in plans] == [2, 2]


@pytest.mark.deep
def test_the_launcher_looks_at_every_rank(tmp_path):
    words = settings(tmp_path, mock_data=True, tensor_model_parallel_size=2)
    command = [sys.executable, "-m", "megascratch", *words, "--nproc-per-node", "2"]
    for more, code in ([], 0), (["--load", "nowhere"], 1), (["--lr", "-1"], 2):
        done = subprocess.run(
            [*command, *more], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert (done.returncode, "supervisor" in done.stderr) == (code, False), done.stderr
        assert ("ok    versions  2 ranks have the same" in done.stdout) == (code < 2)


@pytest.mark.deep
def test_under_torchrun_all_ranks_are_looked_at_and_every_axis_is_timed(tmp_path):
    words = settings(tmp_path, mock_data=True, tensor_model_parallel_size=2)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "megascratch", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ok    versions  2 ranks have the same" in done.stdout and "ok    clocks" in done.stdout
    assert (
        "axes      tp: 1 group(s) of 2, all-reduce at" in done.stdout
        and f"{HOST} (ranks 0-1): " in done.stdout
    )
