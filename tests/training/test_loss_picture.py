"""The picture of a run is drawn while it trains, by a process that training does not wait for and that never outlives
the run."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from megascratch.training import curves, loss_picture
from megascratch.training.loss_picture import LossPicture

ROWS: list[dict] = []
for step in range(1, 60):
    ROWS.append({"step": step, "loss": 4.0 - step / 50, "grad_norm": 1.0, "learning_rate": 0.1})
ROWS += [{"step": 30, "split": "valid", "loss": 3.5}, {"step": 59, "split": "valid", "loss": 3.0}]


@pytest.fixture
def folder(tmp_path):
    """A run's folder with its rows."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


@pytest.fixture
def elsewhere(monkeypatch):
    """As in a process that has not loaded matplotlib: a child draws."""
    monkeypatch.setattr(loss_picture, "sys", SimpleNamespace(modules={}, executable=sys.executable))
    monkeypatch.setattr(loss_picture, "DRAW_EVERY", 0.0)


def drawn(folder, monkeypatch):
    """The axes of the picture, as matplotlib is told to draw them."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig

    def kept(figure, *args, **more):
        figures.append(figure)
        save(figure, *args, **more)

    monkeypatch.setattr(Figure, "savefig", kept)
    curves.draw(ROWS, folder / "loss.png", "mine: 1,000 parameters on tp $2")
    return figures[0]


def test_it_has_a_title_a_legend_and_a_panel_for_each_curve(folder, monkeypatch):
    figure = drawn(folder, monkeypatch)
    assert figure.get_suptitle() == r"mine: 1,000 parameters on tp \$2"
    losses, rate, norm = figure.axes
    told = [text.get_text() for text in losses.get_legend().get_texts()]
    assert told == ["train", "train, mean of 5 log lines", "valid"]
    train, smooth, valid = losses.get_lines()
    assert list(train.get_xdata()) == list(smooth.get_xdata()) == list(range(1, 60))
    assert (list(valid.get_xdata()), valid.get_marker()) == ([30, 59], "o")
    assert (rate.get_ylabel(), norm.get_ylabel()) == ("learning rate", "gradient norm")
    assert norm.get_xlabel() == "step"


def test_a_smoothed_curve_is_the_mean_of_both_sides_and_follows_a_straight_line():
    line = [(step, 3.0 - step) for step in range(100)]
    averages, points = curves.smoothed(line)
    assert points == 11
    for (step, value), (at, mean) in zip(line, averages, strict=True):
        assert step == at and mean == pytest.approx(value)
    spike = [(step, 6.0 * (step == 10)) for step in range(21)]
    assert [value for _, value in curves.smoothed(spike)[0]][7:14] == [
        0,
        1.2,
        1.2,
        1.2,
        1.2,
        1.2,
        0,
    ]


def test_a_child_draws_it_while_the_run_continues_and_again_at_its_end(folder, elsewhere):
    picture = LossPicture(folder, "mine")
    child = picture._child
    assert child is not None
    picture.look()  # returns at once: nothing is there yet
    while not (folder / "loss.png").exists():
        picture.look()
        time.sleep(0.01)
    (folder / "loss.png").unlink()
    picture.finish()
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert child.poll() == 0 and {path.name for path in folder.iterdir()} == {
        "loss.png",
        "metrics.jsonl",
    }


def test_what_goes_wrong_in_the_child_is_an_error_here_and_not_in_the_run(folder, elsewhere):
    (folder / "loss.png").mkdir()
    picture = LossPicture(folder, "mine")
    with pytest.raises(OSError, match=r"loss\.png"):
        picture.finish()
    dead = LossPicture(folder, "mine")
    dead._child.kill()
    dead._child.wait()
    with pytest.raises(OSError):
        dead.finish()


OWNER = """
import sys, time
from megascratch.training import loss_picture
picture = loss_picture.LossPicture(__import__("pathlib").Path(sys.argv[1]), "mine")
print(picture._child.pid, flush=True)
time.sleep(600)
"""


def test_the_child_ends_with_a_run_that_is_killed_and_not_with_a_request_to_stop_it(folder):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(owner.stdout.readline()))
    assert os.getsid(child.pid) != os.getsid(owner.pid), "Ctrl-C in a terminal does not reach it"
    while child.nice() != 19:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    child.wait(60)
