"""One thread per process before torch is imported: the tests run several ranks on few cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
