"""--profile: each chosen rank has a trace of the steps that it was asked for, and of no other."""

import gzip
import json
from pathlib import Path

import pytest

from megascratch.commands import main
from megascratch.config.fields import with_fields
from megascratch.parallel.axis import Axis
from megascratch.training.profile import StepProfile
from tests.support.layout_runs import config_of
from tests.support.pretrain_runs import mock

MICROBATCHES = 4


def passes(file: Path) -> int:
    """The micro-batches whose words were looked up."""
    with gzip.open(file) as trace:
        events = json.load(trace)["traceEvents"]
    return sum(event.get("name") == "aten::embedding" for event in events)


@pytest.mark.parametrize(("end", "steps"), [(4, 2), (9, 4)])
def test_the_trace_has_the_steps_that_were_asked_for_up_to_the_end_of_the_run(
    end, steps, tmp_path, capsys
):
    settings = {"train_iters": 5, "profile": True, "profile_step_start": 2, "profile_step_end": end}
    settings["position_embedding_type"] = "rope"
    assert main(mock(tmp_path, **settings)) == 0
    trace = tmp_path / "profile" / "rank-0.json.gz"
    assert passes(trace) == steps * MICROBATCHES
    assert f"profile of steps 2 to {min(end - 1, 5)}: {trace}" in capsys.readouterr().out


def test_steps_that_the_run_does_not_have_are_named(tmp_path, capsys):
    assert main(mock(tmp_path, train_iters=2, lr_warmup_iters=1, profile=True)) == 0
    assert "nothing is profiled: 10 to 11 are not steps of this run" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


def test_a_profile_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / "profile").write_text("in the way")
    ends = {"profile_step_start": 1, "profile_step_end": 2}
    assert main(mock(tmp_path, train_iters=2, lr_warmup_iters=1, profile=True, **ends)) == 0
    assert "warning: no profile could be written" in capsys.readouterr().out


@pytest.mark.parametrize(("chosen", "expected"), [([1], ["rank-1.json.gz"]), (None, 2)])
def test_only_the_chosen_ranks_record(chosen, expected, tmp_path):
    told = {"output_dir": str(tmp_path), "profile": True, "profile_ranks": chosen}
    training = with_fields(
        config_of(data_parallel_size=2), told | {"profile_step_start": 1, "profile_step_end": 2}
    ).training
    said: list[str] = []
    for rank in range(2):
        profile = StepProfile(training, Axis("world", 2, rank), said.append)
        profile.begin(1)
        profile.end(1)
    files = sorted(file.name for file in (tmp_path / "profile").iterdir())
    assert files == (expected if chosen else ["rank-0.json.gz", "rank-1.json.gz"])
    assert len(said) == len(files)
