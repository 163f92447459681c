"""Watches the ranks of a run: finds stragglers (slow ranks), and checks that replicas of the state are still equal."""

import socket

from megascratch.config.settings import GuardConfig
from megascratch.parallel.grid import Grid
from megascratch.runtime.timers import CommTimer, StepTimer
from megascratch.training.health.replicas import check_replicas
from megascratch.training.health.straggler import Stragglers
from megascratch.training.trainer import Trainer


class RunMonitor:
    """Checks replicas and finds stragglers at the intervals that the settings ask for. Called by all ranks. Only the
    first rank looks at the times of all others: they keep and compute nothing that grows with the world.

    Args:
        timed: gather the times of all ranks for the log, also if no straggler is looked for.
    """

    def __init__(self, guard: GuardConfig, trainer: Trainer, timed: bool = False):
        self.every = guard.check_replicas_every
        self.trainer = trainer
        self.mesh = trainer.mesh
        self.checked = -1
        self.timed = timed
        self.times: list[list[float]] = []
        """[ranks][phases] own seconds in the newest step that was logged; on the first rank, if they are gathered."""
        self.watches = guard.log_straggler and self.mesh.world.size > 1
        self.phases = StepTimer(self.mesh.waits or CommTimer(self.mesh.device))
        self.stragglers: Stragglers | None = None  # on the first rank
        if not self.watches:
            return
        hosts = self.mesh.control.gather(socket.gethostname())
        if self.mesh.is_first:
            sizes = self.mesh.layout.sizes("dense")
            stages = Grid(sizes).groups(*(sizes.keys() - {"pp"}))
            self.stragglers = Stragglers(
                stages, hosts, guard.straggler_factor, guard.straggler_intervals
            )

    def begin(self, logged: bool) -> None:
        """Called before each step: measures the phases of the steps that are logged."""
        if logged:
            self.phases.start()
        else:
            self.phases.stop()

    def slow_ranks(self) -> list[str]:
        """Called after a step that was logged. Returns: on the first rank one line for each straggler; [] on others."""
        if not self.watches and not self.timed:
            return []
        self.times = self.mesh.control.gather(self.phases.stop())
        return [] if self.stragglers is None else self.stragglers.lines(self.times)

    def check_due(self, step: int) -> None:
        """Called after each step: checks the replicas if `check_replicas_every` says so. Raises: ReplicasDiffer."""
        if self.every and step % self.every == 0:
            self.check_before_save(step)

    def check_before_save(self, step: int) -> None:
        """Checks the replicas before a checkpoint, so that a broken state is not saved. Raises: ReplicasDiffer."""
        if self.every and self.checked != step:
            check_replicas(self.trainer, step)
            self.checked = step
