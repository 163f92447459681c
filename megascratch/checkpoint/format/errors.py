"""What can go wrong with a checkpoint, told apart by what follows from it."""

from megascratch.config.errors import UserError


class CheckpointError(RuntimeError):
    """A rank failed for a reason that is not the user's."""


class DamagedError(UserError):
    """The checkpoint is not what was written: another step of the run may be sound."""


class DiskError(UserError):
    """The disk or the store refused (no room, input/output error): a later save may work."""


class LeaseLostError(UserError):
    """Another writer has taken the folder over: this one must not write there any more."""
