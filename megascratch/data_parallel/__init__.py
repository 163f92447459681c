"""The flavours of data parallelism by name; all have the same verbs."""

from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.ddp import Replicated
from megascratch.data_parallel.zero1 import ZeroOne

DATA_PARALLEL: dict[str, type[DataParallel]] = {"ddp": Replicated, "zero1": ZeroOne}
