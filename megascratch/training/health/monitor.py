"""Watches the ranks of a run: finds stragglers (slow ranks), and checks that replicas of the state are still equal."""

import socket

import torch

from megascratch.config.settings import GuardConfig
from megascratch.parallel.collectives import all_gather, all_gather_objects
from megascratch.parallel.grid import Grid
from megascratch.runtime.timers import StepTimer
from megascratch.training.health.replicas import check_replicas
from megascratch.training.health.straggler import Stragglers
from megascratch.training.trainer import Trainer


class RunMonitor:
    """Checks replicas and finds stragglers at the intervals that the settings ask for. Called by all ranks."""

    def __init__(self, guard: GuardConfig, trainer: Trainer):
        self.every = guard.check_replicas_every
        self.trainer = trainer
        self.mesh = trainer.mesh
        self.checked = -1
        self.watches = guard.log_straggler and self.mesh.world.size > 1
        self.phases = StepTimer(self.mesh.waits)
        hosts = all_gather_objects(socket.gethostname(), self.mesh.world) if self.watches else []
        ranks = Grid(self.mesh.layout.sizes("dense"))
        stages = [ranks.coords(rank)["pp"] for rank in range(self.mesh.world.size)]
        self.stragglers = Stragglers(
            stages, hosts, guard.straggler_factor, guard.straggler_intervals
        )

    def begin(self, logged: bool) -> None:
        """Called before each step: measures the phases of the steps that are logged."""
        if self.watches and logged:
            self.phases.start()
        else:
            self.phases.stop()

    def slow_ranks(self) -> list[str]:
        """Called after a step that was logged: one line for each straggler."""
        if not self.watches:
            return []
        own = torch.tensor([self.phases.stop()], dtype=torch.float64, device=self.mesh.device)
        return self.stragglers.lines(all_gather(own, self.mesh.world).tolist())

    def check_due(self, step: int) -> None:
        """Called after each step: checks the replicas if `check_replicas_every` says so. Raises: ReplicasDiffer."""
        if self.every and step % self.every == 0:
            self.check_before_save(step)

    def check_before_save(self, step: int) -> None:
        """Checks the replicas before a checkpoint, so that a broken state is not saved. Raises: ReplicasDiffer."""
        if self.every and self.checked != step:
            check_replicas(self.trainer, step)
            self.checked = step
