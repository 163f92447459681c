"""The variables that a launcher (torchrun, or `megascratch pretrain --nproc-per-node`) sets for each rank of a run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchEnvironment:
    """Reads the variables that say which rank this process is. Without a launcher it is rank 0 of 1.

    Each variable is read and parsed when it is asked for, so a wrong value is an error only where it matters.

    Raises: ValueError, by each property, if its variable is not a number.
    """

    variables: Mapping[str, str]

    @property
    def rank(self) -> int:
        """The number of this process among all ranks."""
        return int(self.variables.get("RANK", "0"))

    @property
    def world_size(self) -> int:
        """The number of ranks of the run, on all machines."""
        return int(self.variables.get("WORLD_SIZE", "1"))

    @property
    def local_rank(self) -> int:
        """The number of this process among the ranks of its machine."""
        return int(self.variables.get("LOCAL_RANK", "0"))

    @property
    def local_world_size(self) -> int | None:
        """The number of ranks on this machine; None: the launcher does not say."""
        text = self.variables.get("LOCAL_WORLD_SIZE")
        return int(text) if text else None

    @property
    def attempt(self) -> int:
        """How many times the launcher has restarted the ranks."""
        return int(self.variables.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_environment() -> LaunchEnvironment:
    """The environment of this process as it is now."""
    return LaunchEnvironment(os.environ)
