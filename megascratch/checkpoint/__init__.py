"""Saves and loads checkpoints that any parallel layout can read: a run may resume on another layout, bit for bit.

    path = save(folder, step, held, state, mesh.control)      # -> folder/step_00000123
    state = load(folder, held, mesh.control)                  # fills held in place

    saver = AsyncSaver(folder, own, lease=acquire(folder))   # during training: see async_saver.py

A checkpoint stores global tensor names and boxes, no ranks. It knows neither the model nor the optimizer: a rank
describes what it holds as `parallel.sharded_tensor.ShardedTensor` records.
"""

from megascratch.checkpoint.async_saver import AsyncSaver, Outcome
from megascratch.checkpoint.backend.backend import acquire
from megascratch.checkpoint.backend.local_lease import Lease
from megascratch.checkpoint.errors import (
    CheckpointError,
    DamagedError,
    DiskError,
    LeaseLostError,
)
from megascratch.checkpoint.format.manifest import Manifest
from megascratch.checkpoint.load import load, load_newest
from megascratch.checkpoint.retention import RetentionPolicy, prune
from megascratch.checkpoint.save import save
from megascratch.checkpoint.steps import (
    latest,
    latest_valid,
    list_steps,
    quarantine,
    read_manifest,
    resolve,
)

__all__ = [
    "AsyncSaver",
    "CheckpointError",
    "DamagedError",
    "DiskError",
    "Lease",
    "LeaseLostError",
    "Manifest",
    "Outcome",
    "RetentionPolicy",
    "acquire",
    "latest",
    "latest_valid",
    "list_steps",
    "load",
    "load_newest",
    "prune",
    "quarantine",
    "read_manifest",
    "resolve",
    "save",
]
