"""A checkpoint has no layout: global names and boxes go in, any layout reads any other's, bit for bit.

    path = save(folder, step, held, state, mesh.world)        # -> folder/step_00000123
    state = load(folder, held, mesh.world)                    # fills held in place

    saver = Saver(folder, mesh.world, own, device, lease=acquire(folder))      # beside training: see saver.py

The checkpoint knows no model and no optimizer; what a rank holds is told by `parallel.held.Held` records.
"""

from megascratch.checkpoint.errors import CheckpointError, DamagedError, DiskError, LeaseLostError
from megascratch.checkpoint.folders import find, latest, newest_sound, read_manifest, set_aside, steps
from megascratch.checkpoint.lease import Lease
from megascratch.checkpoint.manifest import Manifest
from megascratch.checkpoint.places import acquire
from megascratch.checkpoint.reader import load, load_newest
from megascratch.checkpoint.retention import Keep, prune
from megascratch.checkpoint.saver import Outcome, Saver
from megascratch.checkpoint.writer import save

__all__ = [
    "CheckpointError", "DamagedError", "DiskError", "Keep", "Lease", "LeaseLostError", "Manifest", "Outcome", "Saver",
    "acquire", "find", "latest", "load", "load_newest", "newest_sound", "prune", "read_manifest", "save",
    "set_aside", "steps",
]  # fmt: skip
