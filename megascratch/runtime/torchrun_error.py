"""Tells torchrun why a rank has ended, so that its report ends with the reason.

torchrun prints about 40 lines about its own processes after the error of a rank, and no flag makes it print less. The
error of a rank stands at the end of them, under "Root Cause", if the rank leaves it in the file that torchrun names.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "TORCHELASTIC_ERROR_FILE"


def tell_torchrun(text: str) -> None:
    """Leaves the reason for torchrun; does nothing in a process that torchrun has not started."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    # the form that torch.distributed.elastic.multiprocessing.errors reads
    reason = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
    with suppress(OSError):  # the reason is printed anyway
        Path(path).write_text(json.dumps({"message": reason}), encoding="utf-8")
