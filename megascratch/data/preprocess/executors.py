"""Runs the work units of `megascratch preprocess`: in this process, on worker processes of this machine, or on Ray.

A worker process answers over its own pipe, so its death is noticed at once and only its own units are repeated. It
already has the next unit while it works, and when it next sends an event it notices if its parent has died.
"""

import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from megascratch.config.errors import UserError
from megascratch.config.printable import plain_warnings
from megascratch.data.preprocess.encode import EncodeStep, Job, encode_unit, forget_tokenizer
from megascratch.data.preprocess.output_shards import Summary
from megascratch.data.preprocess.work_units import InputSpan, WorkUnit
from megascratch.data.text.parquet import death_in_words
from megascratch.data.text.sources import needed

Event = EncodeStep | Summary
Engine = Callable[[Job, Iterator[WorkUnit]], Generator[Event, None, None]]
AHEAD = 2  # units that a worker has at a time
DEATHS = 3  # worker deaths on the same unit before the run fails


def in_process(job: Job, units: Iterator[WorkUnit]) -> Generator[Event, None, None]:
    """Runs one unit after the other in this process."""
    for unit in units:
        yield from encode_unit(job, unit)


def on_processes(job: Job, units: Iterator[WorkUnit], count: int) -> Generator[Event, None, None]:
    """Runs the units on `count` processes. Raises: a worker's UserError, or one where workers keep dying on a unit."""
    forget_tokenizer()
    pool = _WorkerPool(job, units, count)
    try:
        while pool.fill():
            yield from pool.events()
    finally:
        pool.end()


class _Worker:
    """A worker process and the units that were sent to it."""

    def __init__(self, job: Job, warns: bool):
        # the same on every system, and safe whatever threads are running
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.units: deque[WorkUnit] = deque()
        self.raw_bytes = 0  # how much of the first unit is encoded
        self.process: BaseProcess = spawn.Process(
            target=_serve, args=(theirs, job, warns), daemon=True
        )
        self.process.start()
        theirs.close()  # else this process would hold the pipe of a dead worker open

    def send(self, unit: WorkUnit) -> None:
        self.units.append(unit)
        with suppress(OSError):  # it died: the next read from its pipe reports that
            self.pipe.send(unit)

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


class _WorkerPool:
    """The workers, and the units that they still have to do."""

    def __init__(self, job: Job, units: Iterator[WorkUnit], count: int):
        self._job = job
        self._units = units
        self._count = count
        self._again: deque[WorkUnit] = deque()
        self._deaths: dict[int, int] = {}
        self._workers: list[_Worker] = []

    def fill(self) -> bool:
        """Hands out units, to the worker with the fewest first; False: all units are done."""
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.units), default=None)
            all_are_busy = worker is None or len(worker.units) > 0
            starts = all_are_busy and len(self._workers) < self._count
            if worker and not starts and len(worker.units) == AHEAD:
                return True
            unit = self._again.popleft() if self._again else next(self._units, None)
            if unit is None:
                return any(worker.units for worker in self._workers)
            if starts or worker is None:
                # only as many workers as there are units
                worker = _Worker(self._job, warns=not self._workers)
                self._workers.append(worker)
            worker.send(unit)

    def events(self) -> Generator[Event, None, None]:
        """The events of the workers that have sent one; waits for the first."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                event = worker.pipe.recv()
            except (OSError, EOFError):
                self._handle_death(worker)
                continue
            if isinstance(event, UserError):
                raise event
            if isinstance(event, Summary):
                worker.units.popleft()
                worker.raw_bytes = 0
            else:
                worker.raw_bytes += event.raw_bytes
            yield event

    def _handle_death(self, worker: _Worker) -> None:
        """Queues the units of a dead worker again; it died on the first of them."""
        worker.process.join(timeout=5)
        self._workers.remove(worker)
        self._again.extendleft(reversed(worker.units))
        if not worker.units:
            return
        first = worker.units[0]
        self._deaths[first.number] = self._deaths.get(first.number, 0) + 1
        if self._deaths[first.number] < DEATHS:
            return
        code = worker.process.exitcode
        span = _span_at(first, worker.raw_bytes)
        if span.format == "parquet":
            raise UserError(f"{span.name} cannot be read as Parquet: {death_in_words(code)}")
        raise UserError(
            f"{DEATHS} worker processes died on {span.name} from byte {span.start:,} on "
            f"(exit code {code}; -9 is often too little memory); free memory, or use fewer "
            f"--workers or a smaller --max-document-bytes"
        )

    def end(self) -> None:
        for worker in self._workers:
            worker.end()


def _span_at(unit: WorkUnit, raw_bytes: int) -> InputSpan:
    """The part of a unit that is being read after `raw_bytes` of it are encoded."""
    for span in unit.spans:
        if raw_bytes < span.raw_bytes:
            return span
        raw_bytes -= span.raw_bytes
    return unit.spans[-1]


def _serve(pipe: Connection, job: Job, warns: bool) -> None:
    """Main loop of a worker, until its parent closes the pipe. Only one worker warns: the others would repeat it."""
    plain_warnings()
    if not warns:
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    try:
        while True:
            unit = pipe.recv()
            try:
                for event in encode_unit(job, unit):
                    pipe.send(event)
            except UserError as error:
                pipe.send(error)
    except (OSError, EOFError):
        os._exit(0)  # the parent has finished or died


def on_ray(job: Job, units: Iterator[WorkUnit]) -> Generator[Event, None, None]:
    """Runs the units on a Ray cluster: the one in RAY_ADDRESS or of this machine, else a new one of this machine alone.

    All its machines must see the input, the tokenizer and the output folder under the same paths. A task that is lost
    with its worker is given to another one. Raises: a task's UserError, or one where a task is lost repeatedly.
    """
    ray = needed("ray", "ray", "--engine ray")
    ray.init(ignore_reinit_error=True, include_dashboard=False, logging_level="ERROR")
    task = ray.remote(_summary).options(max_retries=DEATHS - 1)
    most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[object, WorkUnit] = {}
    try:
        for unit in units:
            running[task.remote(job, unit)] = unit
            if len(running) >= most:
                yield from _finished(ray, running)
        while running:
            yield from _finished(ray, running)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _finished(ray: object, running: dict[object, WorkUnit]) -> Generator[Event, None, None]:
    (reference,), _ = ray.wait(list(running), num_returns=1)  # type: ignore[attr-defined]
    unit = running.pop(reference)
    try:
        summary = ray.get(reference)  # type: ignore[attr-defined]
    except UserError as error:
        raise UserError(str(error.args[0])) from None  # Ray's own class contains its traceback
    except ray.exceptions.RayError as error:  # type: ignore[attr-defined]
        first = unit.spans[0]
        raise UserError(f"Ray failed on {first.name} from byte {first.start:,}: {error}") from error
    yield summary
    yield EncodeStep(
        documents=summary.keys[0].documents,
        tokens=sum(key.tokens for key in summary.keys),
        text_bytes=sum(key.text_bytes for key in summary.keys),
        raw_bytes=sum(span.raw_bytes for span in unit.spans),
    )


def _summary(job: Job, unit: WorkUnit) -> Event:
    *_, summary = encode_unit(job, unit)
    return summary
