"""`megascratch schedule`: what it prints, writes and refuses."""

import json

import pytest

from megascratch.commands import main

GOOD = "0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n"


def said(capsys, *argv: str) -> str:
    assert main(["schedule", *argv]) == 0
    return capsys.readouterr().out


def test_show_draws_the_staircase(capsys):
    lines = said(capsys, "show", "1f1b", "--stages", "2", "--microbatches", "2").splitlines()
    assert lines == [
        "1f1b: 2 stages, 2 micro-batches, bubble 33.3%, 9 units of time",
        "rank 0   F0 F1 .  .  B0 -  .  B1 -",
        "rank 1   .  F0 B0 -  F1 B1 -  .  .",
    ]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_show_writes_a_picture(capsys, tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    said(capsys, "show", "zb_v", "--output", str(path))
    assert path.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_check_proves_a_file(capsys, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(GOOD)
    assert (
        "2 stages of 1, 1 micro-batches, 8 actions: complete, paired and free of deadlock"
        in said(capsys, "check", str(path))
    )


TOO_MANY_WARM_UPS = """\
from megascratch.config.registry import register
from megascratch.pipeline.schedule import Action

@register("schedule", "long_warm_up")
def long_warm_up(rank, ranks, microbatches, chunks, group):
    warm_up = ranks - rank
    order = [Action("F", m) for m in range(warm_up)]
    for m in range(microbatches):
        if warm_up + m < microbatches:
            order.append(Action("F", warm_up + m))
        order.append(Action("B", m))
    return order
"""


def test_check_tries_a_users_schedule_with_fewer_micro_batches_than_its_warm_up(capsys, tmp_path):
    """With the default sizes alone, 4 stages and 8 micro-batches, it is right."""
    file = tmp_path / "own.py"
    file.write_text(TOO_MANY_WARM_UPS)
    own = ["long_warm_up", "--import", str(file)]
    assert "free of deadlock" in said(capsys, "check", *own, "--stages", "4", "--microbatches", "8")
    assert main(["schedule", "check", *own]) == 2
    assert (
        "wrong with 2 stages and 1 micro-batches: rank 0 runs F1, but the micro-batches of the step are 0 to 0"
        in capsys.readouterr().err
    )


def test_compare_gives_bubbles_and_peaks(capsys):
    found = {row["schedule"]: row for row in json.loads(said(capsys, "compare", "--json"))}
    bubbles = {name: round(row["nonblocking"]["bubble"], 3) for name, row in found.items()}
    assert bubbles == {
        "gpipe": 0.273,
        "1f1b": 0.273,
        "interleaved": 0.158,
        "zb_h1": 0.111,
        "zb_h2": 0.0,
        "zb_v": 0.0,
        "dualpipe_v": 0.059,
    }
    assert (
        found["zb_v"]["nonblocking"]["peak_in_flight"]
        == found["zb_h1"]["nonblocking"]["peak_in_flight"]
        == [4] * 4
    )
    assert "27.27%" in said(capsys, "compare", "1f1b", "zb_h1")


def test_csv_is_read_again(capsys, tmp_path):
    path = tmp_path / "zb.csv"
    said(capsys, "csv", "zb_h1", "--stages", "3", "--comms", "--output", str(path))
    assert "3 stages of 1, 8 micro-batches" in said(capsys, "check", str(path))
    assert (
        said(capsys, "csv", "1f1b", "--stages", "2", "--microbatches", "1") == "0F0,0B0\n1F0,1B0\n"
    )


def play(capsys, tmp_path, times: str, *argv: str) -> dict:
    path = tmp_path / "times.csv"
    path.write_text(times)
    return json.loads(said(capsys, "simulate", *argv, "--times", str(path), "--json"))


def test_play_takes_measured_times(capsys, tmp_path):
    """A published cell each: 1F1B, and interleaved 1F1B with communication overlapped (arXiv 2401.10241, table 5)."""
    times = "T_F_ms,T_B_ms,T_W_ms,T_comm_ms\n18.522,18.086,9.337,0.601\n"
    numbers = "--stages", "8", "--microbatches", "24"
    plain = play(capsys, tmp_path, times, "1f1b", *numbers)
    assert (
        plain["nonblocking"]["bubble"] == pytest.approx(0.2431, abs=1e-4)
        and plain["overlapped"] is None
    )
    assert plain["blocking"]["bubble"] > plain["nonblocking"]["bubble"]
    interleaved = play(capsys, tmp_path, times, "interleaved", "--virtual-stages", "3", *numbers)
    assert interleaved["overlapped"]["bubble"] == pytest.approx(0.1055, abs=1e-4)


def test_play_knows_stages_apart(capsys, tmp_path):
    """8 micro-batches through a stage of 2 + 4, behind one of 1 + 2."""
    slow = play(
        capsys, tmp_path, "stage,F,B,W,comm\n0,1,1,1,0\n1,2,2,2,0\n", "1f1b", "--stages", "2"
    )
    assert slow["nonblocking"]["total"] == 1 + 8 * 6 + 2 and slow["nonblocking"]["busy"] == [24, 48]
    halves = play(capsys, tmp_path, "F,B,W\n1,1,1\n1,1,1\n1,1,1\n1,1,1\n", "zb_v", "--stages", "2")
    assert halves["nonblocking"]["busy"] == [48, 48]


TIMES = {
    "lacks": "F,B\n1,1\n",
    "negative": "F,B,W\n1,-1,1\n",
    "empty": "F,B,W\n",
    "three": "F,B,W\n" + "1,1,1\n" * 3,
}


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["show", "1f2b"], "unknown schedule 1f2b: use gpipe, 1f1b,"),
        (["show", "1f1b", "--stages", "0"], "--stages (0) must be at least 1"),
        (
            ["show", "1f1b", "--virtual-stages", "2"],
            "1 model chunk per rank, not 2: use interleaved",
        ),
        (
            ["show", "zb_h1", "--group", "4"],
            "--group (4) needs the schedule interleaved, not zb_h1",
        ),
        (["show", "zb_v", "--virtual-stages", "3"], "zb_v has 2 model chunks per rank, not 3"),
        (["show", "1f1b", "--w", "-1"], "--w (-1) must be a time, 0 or more"),
        (["show", "1f1b", "--unit", "0"], "--unit (0) must be above 0"),
        (
            ["show", "1f1b", "--output", "x.gif"],
            "--output (x.gif) must end with .svg, .png or .pdf",
        ),
        (["csv", "1f1b", "--output", "/none/x.csv"], "cannot write /none/x.csv"),
        (["check", "none.csv"], "cannot read the schedule none.csv"),
        (["check", "zb_h2", "--blocking"], "zb_h2: circular wait: rank 0 waits at"),
        (["simulate", "1f1b", "--times", "none"], "cannot read the times"),
        (
            ["simulate", "1f1b", "--times", "lacks"],
            "has no column W: its first line must name F, B, W, comm",
        ),
        (["simulate", "1f1b", "--times", "negative"], ":2: B ('-1') must be a time, 0 or more"),
        (["simulate", "1f1b", "--times", "empty"], "has no row of times after its header"),
        (
            ["simulate", "1f1b", "--times", "three"],
            "times of 3 stages, but 4 ranks of 1 virtual stages: give 1 or 4 rows",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(capsys, tmp_path, monkeypatch, argv, complaint):
    monkeypatch.chdir(tmp_path)
    for name, text in TIMES.items():
        (tmp_path / name).write_text(text)
    assert main(["schedule", *argv]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_a_missing_receive_is_named(capsys, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(GOOD.replace("1RECV_F0,", ""))
    assert main(["schedule", "check", str(path)]) == 2
    assert "rank 1 runs F0 without its input: no RF0 before it" in capsys.readouterr().err


def test_numbers_beside_a_file_must_be_its_own(capsys, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(GOOD)
    assert main(["schedule", "show", str(path), "--stages", "4"]) == 2
    assert f"--stages (4) is 2 in {path}: remove it" in capsys.readouterr().err
