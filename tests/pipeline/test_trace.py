"""What the recorder says is what was compiled, and a step that went as simulated is played back as it went."""

import time
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from megascratch.parallel.collectives import all_gather_objects
from megascratch.pipeline import recorder as recorders
from megascratch.pipeline.passes import compile_order, completion_key, dependency_of, placement_of
from megascratch.pipeline.recorder import RankTiming, Recorder, clock_offset
from megascratch.pipeline.runtime import TensorSpec, run
from megascratch.pipeline.schedule import COMPUTE, Action
from megascratch.pipeline.simulate import TimedAction, simulate
from megascratch.pipeline.stage import Stage
from megascratch.pipeline.stage_times import StageTimes, cost_of, format_times, read_times
from megascratch.pipeline.trace import Trace
from tests.support.rank_pool import mesh_of, on_ranks

SCHEDULES = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved": 2,
    "zb_h1": 1,
    "zb_h2": 1,
    "zb_v": 2,
    "dualpipe_v": 2,
}
SPEC = TensorSpec((2,), torch.float32, torch.device("cpu"))


class Slow(nn.Module):
    """A stage that takes its time."""

    def __init__(self, last: bool):
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.ones(2)), last

    def forward(self, x: Tensor | None, batch: Tensor) -> Tensor:
        time.sleep(0.002)
        y = (batch if x is None else x) * self.weight
        return y.sum() if self.last else y


def traced(schedule: str, ranks: int, microbatches: int, chunks: int) -> Trace:
    """On a rank: one step under the clock."""
    mesh, placement = mesh_of(pp=ranks), placement_of(schedule, ranks, chunks)
    orders = compile_order(schedule, ranks, microbatches, chunks)
    mine = [placement.virtual_stage(mesh.pp.rank, chunk) for chunk in range(chunks)]
    stages = [Stage(Slow(v == placement.stages - 1), v, placement.stages) for v in mine]
    recorder = Recorder(mesh.pp, mesh.device)
    recorder.lead = 0.0  # these ranks really have one clock
    run(
        orders[mesh.pp.rank],
        stages,
        mesh.links,
        [torch.ones(2)] * microbatches,
        SPEC,
        placement=placement,
        recorder=recorder,
    )
    return Trace.of(orders, placement, all_gather_objects(recorder.notes(), mesh.pp))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_actions_run_in_the_compiled_order_and_after_what_they_need(schedule, ranks):
    trace = on_ranks(ranks, traced, schedule, ranks, 5, SCHEDULES[schedule])[0]
    assert trace.disorder is None
    at = {
        completion_key(rank, span.action): span
        for rank, spans in enumerate(trace.happened.spans)
        for span in spans
    }
    for rank, spans in enumerate(trace.happened.spans):
        compute = [span for span in spans if span.action.op in COMPUTE]
        assert all(before.end <= after.start for before, after in pairwise(compute))
        for span in compute:
            needed = dependency_of(rank, span.action, trace.placement)
            assert span.start <= span.end
            assert needed is None or at[needed].start <= at[needed].end <= span.start
        for span in spans:
            if span.action.op in ("RF", "RB"):
                use = completion_key(
                    rank, span.action._replace(op="F" if span.action.op == "RF" else "B")
                )
                assert span.start <= span.end <= at[use].start


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_that_went_as_simulated_is_played_back_as_it_went(schedule):
    """From its spans come back the times of the stages, the time of the step and its bubble."""
    placement = placement_of(schedule, 3, SCHEDULES[schedule])
    orders = compile_order(schedule, 3, 7, SCHEDULES[schedule])
    split = any(action.op == "I" for order in orders for action in order)
    times = [
        StageTimes(1 + 0.1 * v, 2 + 0.2 * v, 1.5 * split, 0.25) for v in range(placement.stages)
    ]
    simulated = simulate(orders, cost_of(times, placement), placement)
    late = [
        RankTiming([TimedAction(s.action, s.start + 9, s.end + 9) for s in spans], {})
        for spans in simulated.spans
    ]
    trace = Trace.of(orders, placement, late)
    assert trace.disorder is None
    for timeline in (trace.happened, trace.played, trace.typical):
        assert timeline.total == pytest.approx(simulated.total)
        assert timeline.bubble_rate == pytest.approx(simulated.bubble_rate)
    assert all(
        found[:3] == pytest.approx(wanted[:3])
        for found, wanted in zip(trace.times, times, strict=True)
    )


def test_a_message_takes_what_those_took_that_a_rank_stood_still_for():
    """Three forwards: the second message lay there for 5 units, until it was looked at."""
    first = [
        TimedAction(Action(op, m), 2.0 * m + (op == "SF"), 2.0 * m + 1)
        for m in range(3)
        for op in ("F", "SF")
    ]
    ends = {0: 1.5, 1: 8.0, 2: 9.0}
    second = [TimedAction(Action("RF", m), 0.0, ends[m]) for m in range(3)]
    second += [TimedAction(Action("F", m), ends[m], ends[m] + 1) for m in range(3)]
    orders = [[span.action for span in spans] for spans in (first, second)]
    waits = {Action("RF", 0): 1.5, Action("RF", 1): 0.0, Action("RF", 2): 0.0}
    trace = Trace.of(
        orders, placement_of("1f1b", 2), [RankTiming(first, {}), RankTiming(second, waits)]
    )
    assert list(trace._transfers().values()) == [0.5]
    assert [span.end for span in trace.played.spans[1] if span.action.op == "F"] == [2.5, 3.5, 4.5]


def test_times_are_read_as_they_are_written(tmp_path):
    times = [StageTimes(0.1, 1 / 3, 0.0, 2e-6), StageTimes(4.0, 5.0, 6.0, 7.0)]
    (tmp_path / "times.csv").write_text(format_times(times))
    found = read_times(str(tmp_path / "times.csv"))
    assert all(a == pytest.approx(b) for a, b in zip(found, times, strict=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spans: spans[::-1], r"rank 1 ran SB1 where its order has RF0"),
        (lambda spans: spans[:-1], r"rank 1 ran nothing where its order has SB1"),
        (lambda spans: [*spans, spans[1]], r"rank 1 ran F0 where its order has nothing"),
    ],
)
def test_the_first_action_out_of_order_is_named(change, told):
    orders = compile_order("1f1b", 2, 2)
    spans = simulate(orders, lambda rank, action: 1.0).spans
    trace = Trace.of(
        orders,
        placement_of("1f1b", 2),
        [RankTiming(spans[0], {}), RankTiming(change(spans[1]), {})],
    )
    assert trace.disorder == told


def _lead_of_a_clock_that_is_ahead() -> float:
    mesh = mesh_of(pp=3)
    recorders.perf_counter = lambda: time.perf_counter() + 1000.0 * mesh.pp.rank
    try:
        return clock_offset(mesh.pp, mesh.device)
    finally:
        recorders.perf_counter = time.perf_counter


def test_all_ranks_tell_the_time_of_the_first_ones_clock():
    assert [round(lead / 1000) for lead in on_ranks(3, _lead_of_a_clock_that_is_ahead)] == [0, 1, 2]


def test_without_a_recorder_the_runtime_reads_no_clock(monkeypatch):
    monkeypatch.setattr(recorders, "perf_counter", lambda: pytest.fail("the clock was read"))
    stage = Stage(Slow(last=True))
    assert len(run([Action("F", 0), Action("B", 0)], [stage], None, [torch.ones(2)], SPEC)) == 1
