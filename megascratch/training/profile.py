"""Profiles some steps of a run with torch.profiler (--profile): a trace of each rank, for chrome://tracing or Perfetto.

{output_dir}/profile/rank-0.json.gz
"""

from collections.abc import Callable
from pathlib import Path

from torch.profiler import profile

from megascratch.config.resolve import ResolvedTraining
from megascratch.parallel.axis import Axis


class StepProfile:
    """Records the steps from profile_step_start on, and none from profile_step_end on. An error never stops
    training: it is a warning of the first rank, and other ranks write nothing.

    Args:
        say: prints a message of the first rank.
    """

    def __init__(self, training: ResolvedTraining, world: Axis, say: Callable[[str], None]):
        chosen = training.profile_ranks
        self._is_on = training.profile and (not chosen or world.rank in chosen)
        self._first = training.profile_step_start
        self._last = training.profile_step_end - 1
        self._steps = f"{self._first} to {self._last}"
        self._file = Path(training.output_dir) / "profile" / f"rank-{world.rank}.json.gz"
        self._say = say
        self._running: profile | None = None
        self._began = 0  # the first step that was recorded

    def begin(self, step: int) -> None:
        """Called before each step."""
        if self._is_on and self._running is None and self._first <= step <= self._last:
            self._running = profile()
            self._running.start()
            self._began = step

    def end(self, step: int) -> None:
        """Called after each step: writes the trace after the last one."""
        if step >= self._last:
            self.close(step)

    def close(self, step: int) -> None:
        """Writes what has been recorded up to this step, if the trace is not written yet."""
        running = self._running
        if running is None and self._is_on:
            self._say(f"warning: nothing is profiled: {self._steps} are not steps of this run")
            self._is_on = False
        if running is None:
            return
        self._running = None
        self._is_on = False
        running.stop()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(self._file))
        except (OSError, RuntimeError) as error:
            self._say(f"warning: no profile could be written: {error}; training continues")
            return
        self._say(f"profile of steps {self._began} to {step}: {self._file}")
