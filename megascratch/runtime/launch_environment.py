"""The variables that a launcher (torchrun, or `megascratch pretrain --nproc-per-node`) sets for each rank of a run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from megascratch.config.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")


@dataclass(frozen=True)
class LaunchEnvironment:
    """Reads the variables that say which rank this process is. Without a launcher it is rank 0 of 1.

    Raises: UserError, by each property and by `check`, if a variable is not a number.
    """

    variables: Mapping[str, str]

    def check(self) -> None:
        """Reads every variable once, so that a wrong value ends a command before it begins."""
        for name in NAMES:
            if self.variables.get(name):
                self._number(name, 0)
        self._check_number_of("RANK", self.rank, "WORLD_SIZE", self.world_size)
        if self.local_world_size is not None:
            self._check_number_of(
                "LOCAL_RANK", self.local_rank, "LOCAL_WORLD_SIZE", self.local_world_size
            )

    def _check_number_of(self, name: str, rank: int, size_name: str, size: int) -> None:
        """Raises: UserError unless there is a rank of this number among so many."""
        if size < 1:
            raise UserError(f"{size_name} is {size}, but must be at least 1: unset {size_name}")
        if not 0 <= rank < size:
            raise UserError(
                f"{name} is {rank}, but {size_name} is {size}, so it must be from 0 to {size - 1}: start with "
                f"--nproc-per-node or torchrun, or unset {name} and {size_name}"
            )

    def _number(self, name: str, default: int) -> int:
        text = self.variables.get(name) or str(default)
        try:
            return int(text)
        except ValueError as error:
            raise UserError(
                f"{name} is {text!r}, which is not a number: start with --nproc-per-node or torchrun, or unset {name}"
            ) from error

    @property
    def rank(self) -> int:
        """The number of this process among all ranks."""
        return self._number("RANK", 0)

    @property
    def world_size(self) -> int:
        """The number of ranks of the run, on all machines."""
        return self._number("WORLD_SIZE", 1)

    @property
    def local_rank(self) -> int:
        """The number of this process among the ranks of its machine."""
        return self._number("LOCAL_RANK", 0)

    @property
    def local_world_size(self) -> int | None:
        """The number of ranks on this machine; None: the launcher does not say."""
        if not self.variables.get("LOCAL_WORLD_SIZE"):
            return None
        return self._number("LOCAL_WORLD_SIZE", 1)

    @property
    def attempt(self) -> int:
        """How many times the launcher has restarted the ranks."""
        return self._number("TORCHELASTIC_RESTART_COUNT", 0)


def launch_environment() -> LaunchEnvironment:
    """The environment of this process as it is now."""
    return LaunchEnvironment(os.environ)
