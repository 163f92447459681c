"""Plain data parallelism (DDP): every rank keeps all weights, gradients and moments; one all-reduce per bucket.

(Li et al. 2020, arXiv 2006.15704, section 3.)
"""

from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.buckets import Bucket
from megascratch.parallel.collectives import start_all_reduce
from megascratch.parallel.pending import Pending


class DDP(DataParallel):
    """Plain data parallelism."""

    def _range(self, bucket: Bucket) -> tuple[int, int]:
        return 0, bucket.plan.size

    def _reduce(self, bucket: Bucket) -> Pending:
        return start_all_reduce(bucket.grads, bucket.axis)

    def _share_weights(self) -> None:
        """Does nothing: all ranks have made the same update."""

    def _replica(self, bucket: Bucket) -> int:
        return bucket.axis.rank

    def _replicas(self, bucket: Bucket) -> int:
        return bucket.axis.size
