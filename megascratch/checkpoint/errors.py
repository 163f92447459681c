"""The errors of saving and loading checkpoints, by what the caller can do about them."""

from megascratch.config.errors import UserError


class CheckpointError(RuntimeError):
    """A rank failed for a reason that is not the user's."""


class DamagedError(UserError):
    """The checkpoint is not what was written: another step of the run may be valid."""


class DiskError(UserError):
    """The disk or the store refused (no space, input/output error): a later save may succeed."""


class LeaseLostError(UserError):
    """Another writer has taken over the folder: this process must stop writing there."""
