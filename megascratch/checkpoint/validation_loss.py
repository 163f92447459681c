"""Stores the validation loss of a checkpoint in a small file next to its manifest.

    step_00000120/validation.json    {"valid_loss": 2.345}

A checkpoint is written before its weights are validated, so that a run that is killed during validation loses nothing;
the loss is added afterwards. The file is written in one call and is optional: without it the loss is unknown.
"""

import json
import math

from megascratch.checkpoint.backend.backend import step_at
from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.steps import read_manifest
from megascratch.storage.path import Place

FILE = "validation.json"
MOST_BYTES = 4096
"""No such file is larger."""


def write_loss(step: Place, loss: float) -> None:
    """Writes the loss of a step. Raises: OSError, StoreError."""
    step_at(step).put(FILE, json.dumps({"valid_loss": loss}).encode() + b"\n")


def known_loss(step: Place) -> float:
    """The loss of a valid step, from the file or (older versions) the manifest; nan if unknown. Raises: StoreError."""
    loss = read_loss(step)
    if not math.isnan(loss):
        return loss
    in_manifest = read_manifest(step).state.get("valid_loss")
    return in_manifest if isinstance(in_manifest, float) else math.nan


def read_loss(step: Place) -> float:
    """The loss in the file; nan if the file is missing or damaged. Raises: StoreError."""
    try:
        file = step_at(step).open(FILE)
    except DamagedError:
        return math.nan  # there is no file
    try:
        content = bytearray(min(file.size, MOST_BYTES))
        file.read_into(0, memoryview(content))
        record = json.loads(content)
    except (DamagedError, ValueError, RecursionError):
        return math.nan
    finally:
        file.close()
    loss = record.get("valid_loss") if isinstance(record, dict) else None
    return loss if isinstance(loss, float) else math.nan
