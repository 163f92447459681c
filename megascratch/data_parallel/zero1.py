"""ZeRO-1, the distributed optimizer: each data-parallel rank keeps masters and moments of one range of each bucket.

Reduce-scatter the gradients, update this rank's range, all-gather the weights: the traffic of one all-reduce, with
1/ranks of the optimizer's memory (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1). The gathers may overlap with
the next forward: the first layer that needs a bucket waits for it.
"""

from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.buckets import Bucket
from megascratch.parallel.collectives import start_all_gather, start_reduce_scatter
from megascratch.parallel.pending import Pending


class Zero1(DataParallel):
    """ZeRO-1. A range may begin or end inside a weight: `state` splits it into boxes."""

    def _range(self, bucket: Bucket) -> tuple[int, int]:
        length = bucket.plan.size // bucket.axis.size
        start = bucket.axis.rank * length
        return start, start + length

    def _reduce(self, bucket: Bucket) -> Pending:
        if bucket.axis.size == 1:
            return Pending("reduce_scatter", bucket.axis, None, bucket.grads)
        start, stop = self._range(bucket)
        return start_reduce_scatter(bucket.grads, bucket.axis, bucket.grads[start:stop])

    def _share_weights(self) -> None:
        for chunk in self.chunks:
            for bucket in reversed(chunk.buckets):  # the next forward needs the last ones first
                if bucket.axis.size == 1:
                    continue
                start, stop = self._range(bucket)
                bucket.arriving = start_all_gather(
                    bucket.weights[start:stop], bucket.axis, bucket.weights
                )

    def _replica(self, bucket: Bucket) -> int:
        return 0

    def _replicas(self, bucket: Bucket) -> int:
        return 1
