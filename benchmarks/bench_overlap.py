"""How much of the communication of a step is exposed, that is, waited for, with each overlap on and off: the same 25 M
Llama on two ranks.

    python benchmarks/bench_overlap.py --trace traces

Pairs of steps with and without the overlap alternate in the same processes, and the second of each pair counts; one
thread per rank, gloo, fp32. For each kind of communication it prints, per step of rank 0 (medians): how often it was
waited for, how long it was under way (over all calls, from the start to the end, or where gloo does not tell the end to
that of the wait), and how long the rank stood still in `wait`. With --trace it also writes a chrome trace of two steps
of each rank, for chrome://tracing or ui.perfetto.dev: every wait is marked there, and gloo's own events show what ran
beside computation.

A gradient reduction and a weight gather are switched off by their settings; the reduction of a layer's input gradient
and the sends of a pipeline, which have none, are waited for at once. It ends with code 1 where the losses with and
without the overlap are not the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import llama_25m as llama
import torch.distributed as dist
from ranks import RANKS, fresh
from same_work import Losses, first_losses, require_same_work
from torch.profiler import ProfilerActivity, profile, record_function

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data_parallel import ddp, zero1
from megascratch.layers import linear
from megascratch.parallel.pending import Pending
from megascratch.pipeline.runtime import _Player
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import mesh_of

ZERO1 = {"data_parallel_size": RANKS, "use_distributed_optimizer": True}
GRADIENTS = "gradient reduction"
WEIGHTS = "weight gather"
INPUTS = "input gradient's reduction"
REGATHER = "input gathered again"
SENDS = "send"
RECEIVES = "receive"


class Scene(NamedTuple):
    """A layout, what differs with its overlap off, and which calls are watched: (module, name) -> kind."""

    layout: dict[str, Any]
    off: dict[str, Any]
    watched: dict[tuple[Any, str], str]


SCENES = {
    "TP 2": Scene(
        {"tensor_model_parallel_size": RANKS}, {}, {(linear, "start_all_reduce"): INPUTS}
    ),
    "TP 2 + SP": Scene(
        {"tensor_model_parallel_size": RANKS, "sequence_parallel": True},
        {},
        {(linear, "start_reduce_scatter"): INPUTS, (linear, "start_all_gather"): REGATHER},
    ),
    "DP 2": Scene(
        {"data_parallel_size": RANKS},
        {"overlap_grad_reduce": False},
        {(ddp, "start_all_reduce"): GRADIENTS},
    ),
    "ZeRO-1": Scene(
        ZERO1,
        {"overlap_grad_reduce": False, "overlap_param_gather": False},
        {(zero1, "start_reduce_scatter"): GRADIENTS, (zero1, "start_all_gather"): WEIGHTS},
    ),
    "PP 2, 1F1B": Scene({"pipeline_model_parallel_size": RANKS}, {}, {}),
}


class Note(NamedTuple):
    """One communication, in seconds."""

    kind: str
    under_way: float
    exposed: float


class Watch:
    """Notes of all watched communication of a rank."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.at_once = False  # wait where the communication starts

    def starter(self, kind: str, start: Callable[..., Pending]) -> Callable[..., Pending]:
        """`start` with its Pending watched."""

        def started(*args: Any, **kwargs: Any) -> Pending:
            begin = time.perf_counter()
            ends = []
            pending = start(*args, **kwargs)
            work = pending.work
            plain = pending.wait
            assert work is not None
            with suppress(RuntimeError):  # gloo tells the end of some collectives, not of all
                if isinstance(work, dist.Work):  # a long gather on a CPU is several messages
                    work.get_future().add_done_callback(lambda _: ends.append(time.perf_counter()))

            def wait() -> Any:
                return (
                    self.waited(kind, begin, ends, plain) if pending.work is not None else plain()
                )

            pending.wait = wait  # type: ignore[method-assign]
            if self.at_once:
                wait()
            return pending

        return started

    def waited(self, kind: str, begin: float, ends: list[float], wait: Callable[[], Any]) -> Any:
        asked = time.perf_counter()
        with record_function(f"wait: {kind}"):
            result = wait()
        now = time.perf_counter()
        self.notes.append(Note(kind, min([*ends, now]) - begin, now - asked))
        return result

    @contextmanager
    def on(self, scene: Scene) -> Iterator[None]:
        """Watches the scene's calls and all transfers between stages."""
        patches = [
            patch.object(*call, self.starter(kind, getattr(*call)))
            for call, kind in scene.watched.items()
        ]
        post = _Player._post
        wait = _Player._wait
        begins = {}

        def watched_post(player: _Player, action: Any, tensor: Any, outwards: bool) -> Any:
            begin = time.perf_counter()
            transfer = post(player, action, tensor, outwards)
            begins[transfer.action] = begin
            if outwards and self.at_once:
                watched_wait(player, transfer)
            return transfer

        def watched_wait(player: _Player, transfer: Any) -> Any:
            if transfer.action not in begins:
                return transfer.tensor
            kind = SENDS if transfer.action.op in ("SF", "SB") else RECEIVES
            return self.waited(
                kind, begins.pop(transfer.action), [], lambda: wait(player, transfer)
            )

        patches += [
            patch.object(_Player, "_post", watched_post),
            patch.object(_Player, "_wait", watched_wait),
        ]
        for change in patches:
            change.start()
        try:
            yield
        finally:
            for change in patches:
                change.stop()


class Row(NamedTuple):
    """Of one kind in one step: medians, seconds."""

    kind: str
    calls: float
    under_way: float
    exposed: float


def trainer_of(settings: dict[str, Any], samples: int) -> Callable[[], float]:
    """A whole training step, which gives its loss."""
    sizes = [
        settings.get(f"{axis}_parallel_size", 1)
        for axis in ("tensor_model", "pipeline_model", "data")
    ]
    tp, pp, dp = sizes
    micro = 1 if pp > 1 else samples
    values = (
        llama.SETTINGS | settings | {"micro_batch_size": micro, "global_batch_size": samples * dp}
    )
    trainer = Trainer(resolve(with_fields(Config(), values), RANKS), mesh_of(tp, pp, dp))
    batches = llama.batches(*llama.samples(samples, seed=trainer.mesh.dp.rank), micro)
    return lambda: trainer.train_step(batches, llama.LR).global_loss


Found = dict[str, tuple[float, list[Row]]]


def measure(
    name: str, samples: int, bucket: int, steps: int, trace: str | None
) -> tuple[Losses, Found]:
    """On a rank: the first losses with and without the overlap; state of the overlap -> (seconds of a step, rows)."""
    scene = SCENES[name]
    watch = Watch()
    layout = scene.layout | {"ddp_bucket_size": bucket}
    states = {"on": trainer_of(layout, samples), "off": trainer_of(layout | scene.off, samples)}
    losses = first_losses(states["on"], states["off"])
    seconds: dict[str, list[float]] = {state: [] for state in states}
    notes: dict[str, list[list[Note]]] = {state: [] for state in states}
    with watch.on(scene):
        for number in range(steps + 1):
            for state, step in states.items():
                taken = _second_step(watch, state == "off" and not scene.off, step)
                if number > 0:  # warm
                    seconds[state].append(taken)
                    notes[state].append(watch.notes)
        if trace is not None:
            for state, step in states.items():
                with profile(activities=[ProfilerActivity.CPU]) as profiler:
                    _second_step(watch, state == "off" and not scene.off, step)
                file = f"{name.lower().replace(' ', '-').replace(',', '')}-{state}-rank{dist.get_rank()}.json"
                profiler.export_chrome_trace(str(Path(trace) / file))
    return losses, {
        state: (statistics.median(seconds[state]), rows_of(notes[state])) for state in states
    }


def _second_step(watch: Watch, at_once: bool, step: Callable[[], object]) -> float:
    """Of two: what the first leaves under way ends in the second."""
    watch.notes = []
    watch.at_once = at_once
    dist.barrier()
    step()
    watch.notes = []
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def rows_of(steps: list[list[Note]]) -> list[Row]:
    found = []
    for kind in dict.fromkeys(note.kind for notes in steps for note in notes):
        mine = [[note for note in notes if note.kind == kind] for notes in steps]
        calls = statistics.median(len(notes) for notes in mine)
        times = (
            [sum(getattr(note, name) for note in notes) for notes in mine]
            for name in ("under_way", "exposed")
        )
        found.append(Row(kind, calls, *map(statistics.median, times)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", metavar="FOLDER", help="where chrome traces go")
    parser.add_argument(
        "--samples", type=int, default=4, help="of 256 tokens in a step of a data-parallel rank"
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ddp-bucket-size", type=int, default=2_000_000)
    parser.add_argument("--only", choices=SCENES, nargs="+", default=list(SCENES))
    args = parser.parse_args()
    if args.trace is not None:
        Path(args.trace).mkdir(parents=True, exist_ok=True)
    print(
        f"{'':<12}{'overlap':<9}{'step':>9}   {'':<28}{'calls':>5}{'under way':>12}{'exposed':>12}"
    )
    for name in args.only:
        losses, found = fresh(
            measure, name, args.samples, args.ddp_bucket_size, args.steps, args.trace
        )[0]
        require_same_work(f"{name:<12}", losses)
        for state, (seconds, rows) in found.items():
            for row in rows:
                print(
                    f"{name:<12}{state:<9}{seconds * 1e3:6.0f} ms   {row.kind:<28}{row.calls:5.0f}"
                    f"{row.under_way * 1e3:9.1f} ms{row.exposed * 1e3:9.1f} ms",
                    flush=True,
                )


if __name__ == "__main__":
    main()
