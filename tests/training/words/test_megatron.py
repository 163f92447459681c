"""What --log-format megatron prints and draws: each number is that of the same run in our own words, at the place where
Megatron-LM's parsers look for it."""

import importlib
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megascratch.config.fields import with_fields
from megascratch.config.megatron.rules import RULES
from megascratch.training import step_log
from megascratch.training.hardware import Memory
from megascratch.training.loop import _Loop
from megascratch.training.report import Report
from megascratch.training.stop import StopRequest
from megascratch.training.words.megascratch import OwnWords
from megascratch.training.words.megatron import MegatronWords, RunFacts
from tests.support.layout_runs import built_run, config_of, world_of
from tests.support.rank_pool import on_ranks

FLOPS = 1e9  # per token
RUN = RunFacts(
    total_steps=50,
    first_step=0,
    consumed_samples=0,
    world_size=4,
    tp=2,
    pp=1,
    flops_per_token=FLOPS,
    save="kept",
    timing_level=2,
    spread="minmax",
)
MEMORY = Memory(3 << 20, 5 << 20, 4 << 20, 6 << 20, 77)
STEP = {
    "step": 20,
    "event": "iteration",
    "consumed_samples": 160,
    "loss": 6.5,
    "router_loss": 0.25,
    "grad_norm": 1.5,
    "next_learning_rate": 1e-4,
    "batch_size": 8,
    "loss_scale": 1024.0,
    "world_size": 4,
    "num_zeros": 12,
    "memory": MEMORY,
}
LINE = STEP | {
    "loss": 7.0,
    "params_norm": 98.7654,
    "mean_loss": 6.952002,
    "skipped": 1,
    "not_finite": 2,
    "step_seconds": 0.1028,
    "tokens_per_second": 40_000.0,
}
EXPECTED = (
    "] iteration       20/      50 | consumed samples:          160 | elapsed time per iteration (ms): 102.8 | "
    "throughput per GPU (TFLOP/s/GPU): 10.0 | learning rate: 1.000000E-04 | global batch size:     8 | "
    "lm loss: 6.952002E+00 | router loss: 2.500000E-01 | loss scale: 1024.0 | grad norm: 1.500 | num zeros: 12 | "
    "params norm: 98.765 | number of skipped iterations:   1 | number of nan iterations:   2 |"
)
ALWAYS = {"samples vs steps", "world-size", "world-size vs samples"}
"""Tags that only further flags there switch on."""
TAGS_THERE = {
    "learning-rate",
    "learning-rate vs samples",
    "batch-size",
    "batch-size vs samples",
    "lm loss",
    "lm loss vs samples",
    "loss-scale",
    "loss-scale vs samples",
    "grad-norm",
    "grad-norm vs samples",
    "num-zeros",
    "num-zeros vs samples",
    "params-norm",
    "params-norm vs samples",
    "mem-reserved-bytes",
    "mem-allocated-bytes",
    "mem-max-allocated-bytes",
    "mem-allocated-count",
    "iteration-time",
    "throughput",
    "lm loss validation",
    "lm loss validation vs samples",
    "lm loss validation ppl",
    "lm loss validation ppl vs samples",
}
"""The 24 scalars of a run of Megatron-LM with the logging flags of its functional tests."""


def test_a_log_line_has_the_form_of_megatrons():
    line, memory = MegatronWords(RUN).log_line(LINE, 0.0).splitlines()
    assert re.fullmatch(r" \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}" + re.escape(EXPECTED), line)
    assert memory == (
        "[Rank 0] (after 20 iterations) memory (MB) | allocated: 3.00 | max allocated: 4.00 | "
        "reserved: 5.00 | max reserved: 6.00"
    )


def test_numbers_that_a_step_lacks_are_left_out():
    nothing = {"mean_loss": None, "grad_norm": None, "router_loss": None}
    line = {name: value for name, value in LINE.items() if name not in ("params_norm", "num_zeros")}
    said = MegatronWords(RUN).log_line(line | nothing, 0.0)
    for absent in ("lm loss", "grad norm", "router loss", "num zeros", "params norm"):
        assert absent not in said
    assert "loss scale: 1024.0 | number of skipped iterations:" in said


def test_memory_is_printed_until_the_optimizer_has_its_state():
    words = MegatronWords(RUN._replace(first_step=4))
    said = [words.log_line(LINE | {"step": step}, 0.0).count("memory (MB)") for step in (5, 6, 7)]
    assert said == [1, 1, 0]


@pytest.mark.parametrize(
    ("split", "step", "place"),
    [
        ("valid", 20, "iteration 20"),
        ("valid", 50, "iteration 50 on validation set"),
        ("test", 50, "iteration 50 on test set"),
    ],
)
def test_a_validation_is_framed_and_its_perplexity_cut(split, step, place):
    row = {"split": split, "step": step, "loss": 2.0, "aux_loss": 30.0, "tokens": 8}
    above, line, below = MegatronWords(RUN).evaluation(row).splitlines()
    assert line == (
        f" validation loss at {place} | lm loss value: 2.000000E+00 | lm loss PPL: 7.389056E+00 | "
        "aux loss value: 3.000000E+01 | aux loss PPL: 4.851652E+08 | "
    )
    assert above == below == "-" * (len(line) + 1)


def test_all_tags_of_megatron_are_drawn_and_their_numbers_over_samples_are_the_same():
    words = MegatronWords(RUN)
    drawn: dict[str, float] = {}
    for row in (STEP, LINE | {"event": None}, {"step": 20, "split": "valid", "loss": 2.0}):
        row = {name: value for name, value in row.items() if value is not None}
        points = words.points(row)
        assert points.by_samples.items() <= points.by_step.items() and points.samples == 160
        drawn |= points.by_step
        drawn |= {f"{tag} vs samples": value for tag, value in points.by_samples.items()}
    side = {"router loss", "router loss vs samples"}
    assert drawn.keys() == TAGS_THERE | ALWAYS | side
    assert drawn["lm loss"] == 6.5 and drawn["throughput"] == 10.0
    assert drawn["iteration-time"] == 0.1028 and drawn["mem-allocated-count"] == 77


def test_a_process_draws_no_time_of_its_first_step():
    words = MegatronWords(RUN._replace(first_step=19))
    row = {name: value for name, value in LINE.items() if name != "event"}
    assert "iteration-time" not in words.points(row).by_step
    assert "iteration-time" in words.points(row | {"step": 21}).by_step


OWN = [[0.001, 0.02, 0.003], [0.002, 0.04, 0.001]]
"""[ranks][data, forward and backward, update] seconds."""
DOTS = "." * 31
TIMES = {
    (1, "max"): [
        "max time across ranks (ms):",
        f"    forward-backward {DOTS}: 40.00",
        f"    optimizer {DOTS}.......: 3.00",
    ],
    (2, "minmax"): [
        "(min, max) time across ranks (ms):",
        f"    forward-backward {DOTS}: (20.00, 40.00)",
        f"    optimizer {DOTS}.......: (1.00, 3.00)",
        f"    batch-generator {DOTS}.: (1.00, 2.00)",
    ],
    (1, "all"): [
        "times across ranks (ms):",
        "  forward-backward:",
        "     rank  0: 20.00",
        "     rank  1: 40.00",
        "  optimizer:",
        "     rank  0: 3.00",
        "     rank  1: 1.00",
    ],
    (0, "minmax"): [],
}


@pytest.mark.parametrize(("level", "spread"), TIMES)
def test_timers_are_printed_as_there_and_their_maximum_is_drawn(level, spread):
    words = MegatronWords(RUN._replace(timing_level=level, spread=spread))
    assert words.log_line(LINE | {"times": OWN}, 0.0).splitlines()[1:-1] == TIMES[level, spread]
    drawn = words.points(STEP | {"times": OWN}).by_step
    expected = {
        "forward-backward-time": 0.04,
        "optimizer-time": 0.003,
        "batch-generator-time": 0.002,
    }
    kept = list(expected)[: level + 1 if level else 0]
    assert {tag: value for tag, value in drawn.items() if tag in expected} == {
        tag: expected[tag] for tag in kept
    }


def test_a_checkpoint_has_megatrons_line_and_a_failed_one_has_not():
    words = MegatronWords(RUN)
    first, second = words.event({"step": 4, "event": "save"}, "ours").splitlines()
    assert first.endswith("saved checkpoint from iteration       4 to kept [ t 1/2, p 1/1 ]")
    assert second == "ours"
    assert words.event({"step": 4, "event": "save", "error": "full"}, "ours") == "ours"


def test_a_command_line_of_megatron_has_its_words():
    given = {}
    for rule in RULES:
        given |= {becomes.setting: becomes.value for becomes in rule({})}
    assert given["log_format"] == "megatron"


# ---- whole runs ------------------------------------------------------------------------------------------------

STEPS = 6
SETTINGS = {
    "num_layers": 2,
    "hidden_dropout": 0.1,
    "global_batch_size": 8,
    "rampup_batch_size": [4, 4, 12],
    "lr": 0.01,
    "lr_decay_style": "linear",
    "lr_decay_iters": 6,
    "lr_warmup_iters": 2,
    "train_iters": STEPS,
    "eval_interval": 3,
    "eval_iters": 1,
    "log_params_norm": True,
    "log_num_zeros_in_grad": True,
    "device": "cpu",
}
SIZES = [4, 4, 4, 8, 8, 8]
RATES_AFTER = [0.005, 0.01, 0.0075, 0.005, 0.0025, 0.0]
"""By hand: warm-up over 2 steps from 0, then linear to 0 at step 6; each is that of the step that follows."""
LAYOUTS = {
    "one": {},
    "tp2 pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
}
LOG_LINE = re.compile(
    r"iteration +(\d+)/ +6 \| consumed samples: +(\d+) \|.*? learning rate: (\S+) \| "
    r"global batch size: +(\d+) \| lm loss: (\S+) \|"
)


class Logged(NamedTuple):
    """What a run has printed and drawn."""

    said: list[str]
    rows: list[dict[str, Any]]
    events: EventAccumulator

    def drawn(self, tag: str) -> dict[int, float]:
        """x -> value."""
        return {point.step: point.value for point in self.events.Scalars(tag)}


def run_on_rank(folder: str, settings: dict[str, Any]) -> list[str]:
    """Trains. Returns: what this rank prints."""
    said: list[str] = []

    def say(report: Report, text: str, always: bool = False) -> None:
        said.extend(text.splitlines())

    told = {"output_dir": folder, "save": folder}
    config = with_fields(config_of(**settings), told | {"tensorboard_dir": f"{folder}/events"})
    with patch.object(step_log, "matmul_peak", lambda *args: 1.0), patch.object(Report, "say", say):
        run = built_run(config)
        with StopRequest(run.config.training) as stop:
            _Loop(run).run(stop)
        run.mesh.close()
    return said


def logged(folder: Path, settings: dict[str, Any]) -> Logged:
    world = world_of(config_of(**settings))
    arguments = (str(folder), settings)
    said = run_on_rank(*arguments) if world == 1 else on_ranks(world, run_on_rank, *arguments)[0]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    return Logged(said, [row for row in rows if "event" not in row], events)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> list[dict[str, Any]]:
    """The rows of the same run on one process, in our own words and one for each step."""
    folder = tmp_path_factory.mktemp("ours")
    return logged(folder, SETTINGS | {"log_interval": 1}).rows


def test_our_words_have_the_norm_of_the_weights_and_the_zeros_where_they_are_measured():
    row = {"step": 2, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1, "mfu": 0.5}
    row |= {
        "tokens_per_second": 9.0,
        "memory_bytes": 2**30,
        "params_norm": 12.3456,
        "num_zeros": 1234,
    }
    line = OwnWords(8).log_line(row, 5.0)
    assert " | grad norm 1.000 | params norm 12.346 | zeros in gradient 1,234 | lr " in line


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number_is_that_of_the_run_in_our_words(layout, ours, tmp_path):
    settings = SETTINGS | LAYOUTS[layout]
    settings |= {"log_interval": 2, "log_format": "megatron", "timing_log_level": 1}
    settings |= {"timing_log_option": "all"}
    there = logged(tmp_path, settings)
    steps = [row for row in ours if "split" not in row]
    losses = [row["loss"] for row in steps]
    samples = [row["consumed_samples"] for row in steps]
    expected = {
        "lm loss": losses,
        "grad-norm": [row["grad_norm"] for row in steps],
        "learning-rate": RATES_AFTER,
        "num-zeros": [row["num_zeros"] for row in steps],
        "batch-size": SIZES,
        "loss-scale": [1.0] * STEPS,
        "world-size": [world_of(config_of(**settings))] * STEPS,
    }
    for tag, values in expected.items():
        assert list(there.drawn(tag)) == list(range(1, STEPS + 1))
        # an element that is zero but for rounding is zero on some layouts
        within = 2 if tag == "num-zeros" else 1e-12
        assert list(there.drawn(tag).values()) == pytest.approx(values, rel=1e-6, abs=within), tag
        over_samples = there.drawn(f"{tag} vs samples")
        assert over_samples == dict(zip(samples, there.drawn(tag).values(), strict=True))
    valid = {row["step"]: row["loss"] for row in ours if row.get("split") == "valid"}
    assert there.drawn("lm loss validation") == pytest.approx(valid, rel=1e-6)
    perplexities = {step: math.exp(loss) for step, loss in valid.items()}
    assert there.drawn("lm loss validation ppl") == pytest.approx(perplexities, rel=1e-6)
    assert list(there.drawn("iteration-time")) == [2, 4, 6]
    norms = {step: steps[step - 1]["params_norm"] for step in (1, 2, 4, 6)}
    assert there.drawn("params-norm") == pytest.approx(norms, rel=1e-6)
    lines = [found for line in there.said if (found := LOG_LINE.search(line))]
    printed = [[float(word) for word in line.groups()] for line in lines]
    pairs = [losses[:1], losses[1:2], losses[2:4], losses[4:6]]
    means = [sum(pair) / len(pair) for pair in pairs]
    logged_steps = [1, 2, 4, 6]
    for line, step, mean in zip(printed, logged_steps, means, strict=True):
        facts = [step, samples[step - 1], RATES_AFTER[step - 1], SIZES[step - 1], mean]
        assert line == pytest.approx(facts, rel=1e-6)
    assert [row["step"] for row in there.rows if "split" not in row] == logged_steps
    assert list(there.drawn("forward-backward-time")) == logged_steps
    ranks = world_of(config_of(**settings))
    assert sum("     rank " in line for line in there.said) == len(logged_steps) * ranks * 2
    assert sum("validation loss at iteration" in line for line in there.said) == len(valid)


def test_a_resumed_run_keeps_its_points_over_samples(tmp_path):
    settings = SETTINGS | {"log_format": "megatron", "log_interval": 1, "eval_interval": 0}
    logged(tmp_path, settings | {"train_iters": 3})
    both = logged(tmp_path, settings | {"load": str(tmp_path)})
    assert list(both.drawn("lm loss vs samples")) == [4, 8, 12, 20, 28, 36]
    assert list(both.drawn("batch-size")) == [1, 2, 3, 4, 5, 6]


# ---- its own tools ---------------------------------------------------------------------------------------------


@pytest.mark.deep
def test_megatrons_tools_for_golden_values_read_the_events(tmp_path, monkeypatch):
    """They run in place, from a copy of Megatron-LM of August 2026."""
    repository = os.environ.get("MEGATRON_REPO")
    if repository is None:
        pytest.skip("needs MEGATRON_REPO, the path of a copy of Megatron-LM")
    there = logged(tmp_path, SETTINGS | {"log_format": "megatron", "log_interval": 1})
    ours_tests = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] == "tests"
    }
    for name in ours_tests:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(repository)
    tools = "tests.functional_tests.python_test_utils"
    collect = importlib.import_module(f"{tools}.get_test_results_from_tensorboard_logs")
    common = importlib.import_module(f"{tools}.common")
    output = tmp_path / "golden.json"
    words = ["--logs-dir", str(tmp_path / "events"), "--train-iters", str(STEPS)]
    words += ["--output-path", str(output), "--step-size", "1"]
    collect.collect_train_test_metrics.main(words, standalone_mode=False)
    golden = common.read_golden_values_from_json(output)
    rows = [row for row in there.rows if "split" not in row]
    losses = {row["step"]: round(row["loss"], 5) for row in rows}
    assert golden["lm loss"].values == pytest.approx(losses, abs=2e-5)
    seconds = {row["step"]: row["step_seconds"] for row in rows[1:]}
    assert golden["iteration-time"].values == pytest.approx(seconds, abs=2e-5)
    assert {"mem-allocated-bytes", "mem-max-allocated-bytes"} <= golden.keys()
    actual = common.read_tb_logs_as_list(str(tmp_path / "events"), train_iters=STEPS, step_size=1)
    checks = {"lm loss": [common.ApproximateTest(atol=0, rtol=1e-5)]}
    common.pipeline(True, golden, actual, checks)
