"""The kinds of data parallelism by name: DDP and ZeRO-1, with the same interface."""

from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.ddp import DDP
from megascratch.data_parallel.zero1 import Zero1

DATA_PARALLEL: dict[str, type[DataParallel]] = {"ddp": DDP, "zero1": Zero1}
