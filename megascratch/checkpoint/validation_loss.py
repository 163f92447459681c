"""The validation loss of a checkpoint, kept beside its manifest: a checkpoint is written before the validation of its
weights begins, so that a run that is killed meanwhile has lost nothing.

    step_00000120/validation.json    {"valid_loss": 2.345}

The file appears whole or not at all. It is optional: a checkpoint without it has no known loss.
"""

import json
import math

from megascratch.checkpoint.backend.backend import step_at
from megascratch.checkpoint.format.errors import DamagedError
from megascratch.checkpoint.steps import read_manifest
from megascratch.storage.path import Place

FILE = "validation.json"
MOST_BYTES = 4096
"""More than such a file ever has."""


def write_loss(step: Place, loss: float) -> None:
    """Raises: OSError, StoreError where it cannot be written."""
    step_at(step).put(FILE, json.dumps({"valid_loss": loss}).encode() + b"\n")


def known_loss(step: Place) -> float:
    """Of a sound step; older versions kept it in the manifest. nan where none is known. Raises: StoreError."""
    loss = read_loss(step)
    if not math.isnan(loss):
        return loss
    in_manifest = read_manifest(step).state.get("valid_loss")
    return in_manifest if isinstance(in_manifest, float) else math.nan


def read_loss(step: Place) -> float:
    """What the file says; nan where there is none, or a damaged one. Raises: StoreError."""
    try:
        file = step_at(step).open(FILE)
    except DamagedError:
        return math.nan  # there is none
    try:
        content = bytearray(min(file.size, MOST_BYTES))
        file.read_into(0, memoryview(content))
        found = json.loads(content)
    except (DamagedError, ValueError, RecursionError):
        return math.nan
    finally:
        file.close()
    loss = found.get("valid_loss") if isinstance(found, dict) else None
    return loss if isinstance(loss, float) else math.nan
