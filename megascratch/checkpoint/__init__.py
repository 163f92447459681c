"""A checkpoint has no layout: global names and boxes go in, any layout reads any other's, bit for bit.

    path = save(folder, step, held, state, mesh.world)        # -> folder/step_00000123
    state = load(folder, held, mesh.world)                    # fills held in place

The checkpoint knows no model and no optimizer; what a rank holds is told by `parallel.held.Held` records.
"""

from megascratch.checkpoint.agreement import CheckpointError
from megascratch.checkpoint.folders import find, latest, steps
from megascratch.checkpoint.manifest import Manifest, read_manifest
from megascratch.checkpoint.reader import load
from megascratch.checkpoint.writer import save

__all__ = ["CheckpointError", "Manifest", "find", "latest", "load", "read_manifest", "save", "steps"]
