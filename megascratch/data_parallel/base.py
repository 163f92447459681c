"""The base class of data parallelism: reduces gradients, computes their norm and updates the weights of all chunks.

    begin(chunk, last)   before each backward               finish()          sums the gradients over the ranks
    norm_parts()         a part of the gradient norm        step(lr, factor)  updates the weights

The subclasses (`ddp.py`, `zero1.py`) differ in the range of each bucket that a rank updates, and in the collectives
before and after the update; everything else is here. Gradients are summed, not averaged: the loss is already divided by
the number of tokens of the whole batch (law 5).
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from megascratch.config.layout import View
from megascratch.config.settings import OptimConfig, ParallelConfig
from megascratch.data_parallel.bucket_layout import (
    BucketEntry,
    ParamRange,
    default_bucket_size,
    plan_buckets,
)
from megascratch.data_parallel.buckets import Bucket, Buckets
from megascratch.data_parallel.optimizer_shard import HOST, OptimizerShard, first_elements
from megascratch.data_parallel.partial_grads import (
    PartialGradReducer,
    PartialViews,
    partial_blocks,
)
from megascratch.data_parallel.sharded_optimizer import ShardedOptimizer, require_whole_matrices
from megascratch.data_parallel.without_gradient import boxes_without_gradient, tied_pieces
from megascratch.optim import optimizer_kind
from megascratch.optim.grad_norm import GlobalNorm
from megascratch.optim.schedules import NO_OTHERS, OtherRates
from megascratch.parallel.collectives import all_reduce, start_all_reduce
from megascratch.parallel.device_kind import widest_dtype
from megascratch.parallel.kept_state import saved_buffers
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.pending import Pending
from megascratch.parallel.shard import MODEL_AXES, Shard, ShardSlice, flat_boxes
from megascratch.parallel.sharded_tensor import (
    ShardedTensor,
    box_view,
    held_piece,
    pieces_in_range,
)
from megascratch.parallel.told import told
from megascratch.runtime.faults import fault_point

Kind = Literal["grads", "master"]


class DataParallel(ABC):
    """Owns the memory of the weights, their gradients and the optimizer; the modules keep views of it."""

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        shards: dict[str, Shard],
        mesh: Mesh,
        optim: OptimConfig,
        parallel: ParallelConfig,
    ):
        """
        Args:
            chunks: this rank's model chunks; their parameters have global names.
            shards: the table of the whole model: every weight by name, those of other stages included.
            optim: settings of the optimizer; the learning rate is given at each step.
            parallel: `ddp_bucket_size`, `overlap_grad_reduce` and the settings of optimizer offload are used.

        Raises:
            ValueError: a parameter or a saved buffer has no shard or another shape than its shard; only one copy of a
                tied weight is frozen, or all weights are; the optimizer needs whole matrices and the layout cuts them.
        """
        self.shards = shards
        self.mesh = mesh
        self.modules = chunks
        for chunk in chunks:
            for name, tensor in (*chunk.named_parameters(), *saved_buffers(chunk)):
                self._check(name, tensor)
        self.decouples = optim.decoupled_lr is not None
        tied = self._trained_ties()
        sizes = self._bucket_sizes(chunks, parallel.ddp_bucket_size)
        self.chunks: list[Buckets] = []
        for chunk in chunks:
            buckets = self._buckets(chunk, tied, sizes)
            summed = any(bucket.axis.size > 1 for bucket in buckets)
            overlap = parallel.overlap_grad_reduce and summed
            self.chunks.append(Buckets(buckets, self._reduce, overlap))
        offloaded = parallel.optimizer_offload_fraction if parallel.optimizer_cpu_offload else 0.0
        ranges: list[tuple[Bucket, int, int]] = []
        for chunk_buckets in self.chunks:
            for bucket in chunk_buckets.buckets:
                start, stop = self._range(bucket)
                ranges.append((bucket, start, stop))
        kind = optimizer_kind(optim)
        if kind.needs_whole_matrices:
            require_whole_matrices(optim.optimizer, shards, mesh.layout, ranges)
        in_host_memory = first_elements([stop - start for _, start, stop in ranges], offloaded)
        self.owned: list[OptimizerShard] = []  # the ranges that this rank updates
        for (bucket, start, stop), host in zip(ranges, in_host_memory, strict=True):
            self.owned.append(OptimizerShard.of(bucket, start, stop, kind.state_names, host))
        self.partial = self._partial_reducers()
        self.tied = [self._copies(name) for name in sorted(tied)]
        self.global_norm = GlobalNorm(
            self._counted(), self._counted_elsewhere(), shards, mesh.position, mesh.device
        )
        self.update = ShardedOptimizer(self.owned, shards, optim)
        self.layers_await = False

    # ---- what subclasses define ---------------------------------------------------------------------------------

    @abstractmethod
    def _range(self, bucket: Bucket) -> tuple[int, int]:
        """The elements of the bucket that this rank updates."""

    @abstractmethod
    def _reduce(self, bucket: Bucket) -> Pending:
        """Starts to sum the gradients of this rank's range over the data-parallel ranks."""

    @abstractmethod
    def _share_weights(self) -> None:
        """Starts to send the weights that each rank updated to all ranks: `arriving` in each bucket."""

    @abstractmethod
    def _replica(self, bucket: Bucket) -> int:
        """The number of this rank among the data ranks that hold the same range of the bucket."""

    @abstractmethod
    def _replicas(self, bucket: Bucket) -> int:
        """How many data ranks hold the same range of the bucket."""

    # ---- one training step --------------------------------------------------------------------------------------

    def begin(self, chunk: int, last: bool) -> None:
        """Called before each backward of a chunk; `last`: the last micro-batch of the chunk in this step."""
        self.chunks[chunk].begin(last)

    def finish(self) -> None:
        """Completes the gradients: waits for the reductions, then sums partial and tied gradients over the ranks."""
        fault_point("gradient.finish")
        for chunk in self.chunks:
            chunk.finish()
        for chunk in self.chunks:
            chunk.wait()
        for reducer in self.partial:
            reducer.add_up()
        for copies in self.tied:
            if len(copies) == 2:  # in a V the first rank also holds the last stage
                copies[0].add_(copies[1])
                copies[1].copy_(copies[0])
        apart = [copies[0] for copies in self.tied if len(copies) == 1]
        reductions = [start_all_reduce(grads, self.mesh.embedding) for grads in apart]
        for reduction in reductions:
            reduction.wait()

    def zeros(self) -> Tensor:
        """After `finish`: how many elements are 0 of the gradients that this rank counts in the norm, a scalar in the
        widest type. The ranks together count each element of the model once."""
        total = torch.zeros((), dtype=widest_dtype(self.mesh.device), device=self.mesh.device)
        for views in self._counted("grads").values():
            for view in views:
                total += view.numel() - view.count_nonzero()
        return total

    def weight_norm_parts(self) -> Tensor:
        """This rank's part of each slot of the norm of all weights (of their masters, if they have some), in the widest
        type [slots + 1]: the sums of all ranks are those of one process."""
        parts = self._weight_norm(False).parts()
        if any(owned.in_host_memory for owned in self.owned):
            parts = parts + self._weight_norm(True).parts().to(parts)
        return parts

    def norm_parts(self) -> Tensor:
        """After `finish`: this rank's part of each slot of the global gradient norm (`GlobalNorm.parts`)."""
        fault_point("gradient.norm")
        return self.global_norm.parts()

    @torch.no_grad()
    def step(self, lr: float, factor: float = 1.0, others: OtherRates = NO_OTHERS) -> None:
        """Updates the weights with `factor` (clipping / loss scale) times their gradients.

        Args:
            others: the rates of the step in addition to `lr`.
        """
        self.await_weights()  # of layers that no forward has used since the last step
        fault_point("optimizer.step")
        for owned in self.owned:
            if factor != 1.0:
                owned.grads.mul_(factor)
        self.update(lr, others)
        self._publish()

    def overlap_param_gather(self, layers: Iterable[nn.Module]) -> None:
        """Overlaps the gather of updated weights with the next forward: from now on `step` returns while weights are
        still arriving, and each layer waits for its own weights before its forward.

        Args:
            layers: together hold every parameter. `state` waits for all weights; any other code that reads a parameter
                must call `await_weights` first.
        """
        for layer in layers:
            trained = [weight for weight in layer.parameters() if weight.requires_grad]
            buckets = {weight.grad_sink.bucket: None for weight in trained}  # type: ignore[attr-defined]
            layer.register_forward_pre_hook(_awaiting(list(buckets)))
        self.layers_await = True

    def await_weights(self) -> None:
        """Waits until the updated weights of all ranks have arrived."""
        for chunk in self.chunks:
            for bucket in chunk.buckets:
                bucket.await_weights()

    # ---- state for checkpoints ----------------------------------------------------------------------------------

    def state(self) -> dict[str, list[ShardedTensor]]:
        """The boxes that this rank holds of ``param.*``, ``buffer.*``, the optimizer's state
        (``optim.exp_avg.*`` ...) and, for bf16 and fp16 weights, ``optim.master.*``. To restore them, copy into the
        tensors and call `loaded`."""
        self.await_weights()
        trained = self._boxes(lambda owned: owned.kinds)
        return trained | boxes_without_gradient(self.modules, self.shards, self.mesh)

    def gradients(self) -> dict[str, list[ShardedTensor]]:
        """After `finish` and before `step`: the boxes of ``grad.*``, the complete gradients in this rank's ranges."""
        return self._boxes(lambda owned: {"grad": owned.grads})

    @torch.no_grad()
    def loaded(self, masters: bool = True) -> None:
        """Called after the tensors of `state` were filled, on all ranks: computes the weights from the masters, or
        without `masters` (only ``param.*`` was filled) the masters from the weights."""
        for owned in self.owned:
            owned.loaded(masters)
        self._publish()

    def scalars(self) -> dict[str, int]:
        """The state that is stored in addition to the tensors."""
        return {"steps": self.update.steps}

    def load_scalars(self, saved: dict[str, int]) -> None:
        """Restores `scalars`; older checkpoints call the steps "adam_steps"."""
        self.update.steps = saved["steps"] if "steps" in saved else saved["adam_steps"]

    # ---- set-up -------------------------------------------------------------------------------------------------

    def _bucket_sizes(self, chunks: Sequence[nn.Module], wanted: int | None) -> dict[View, int]:
        """The number of elements of a bucket, by view."""
        weights: Counter[View] = Counter()
        for chunk in chunks:
            for name, weight in chunk.named_parameters():
                if weight.requires_grad:
                    weights[self.shards[name].view] += weight.numel()
        sizes = {}
        for view, elements in weights.items():
            data_ranks = self.mesh.data_of(view).size
            sizes[view] = wanted or default_bucket_size(elements, data_ranks)
        return sizes

    def _buckets(self, chunk: nn.Module, tied: set[str], sizes: Mapping[View, int]) -> list[Bucket]:
        parameters = dict(chunk.named_parameters())
        uses = Counter(
            id(parameter) for _, parameter in chunk.named_parameters(remove_duplicate=False)
        )
        entries = []
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                continue
            shard = self.shards[name]
            # ranges are alike on two stages only if the bucket holds nothing else
            on_stages = self._name(name) in tied or "pp" in shard.axes
            shape = tuple(parameter.shape)
            alone = on_stages or uses[id(parameter)] > 1
            decoupled = self.decouples and shard.is_vocabulary
            entries.append(
                BucketEntry(
                    name, shape, parameter.dtype, shard.view, shard.decays, alone, decoupled
                )
            )
        data_ranks = {view: self.mesh.data_of(view).size for view in sizes}
        buckets = []
        for plan in plan_buckets(entries, sizes, data_ranks):
            buckets.append(Bucket(plan, parameters, self.mesh.data_of(plan.view)))
        return buckets

    def _check(self, name: str, tensor: Tensor) -> None:
        if name not in self.shards:
            raise ValueError(f"{name} has no shard: its layer must add an entry to `shards`")
        expected = self.shards[name].local_shape(self.mesh.layout)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but its shard says {expected}"
            )

    def _trained_ties(self) -> set[str]:
        """The tied weights, of which the first and the last stage hold a copy, that are trained.

        Raises: ValueError, on all ranks, if no weight is trained, or if one copy is trained and the other is frozen.
        """
        names = sorted({shard.tied for shard in self.shards.values() if shard.tied})
        trained = [0] * (
            len(names) + 1
        )  # copies of each tied weight; the last number is of all weights
        frozen = [0] * (len(names) + 1)
        for chunk in self.modules:
            for name, parameter in chunk.named_parameters():
                tied = self.shards[name].tied
                counts = trained if parameter.requires_grad else frozen
                counts[-1] += 1
                if tied is not None:
                    counts[names.index(tied)] += 1
        mine = torch.tensor([trained, frozen], device=self.mesh.device)
        imagined = [[1] * len(trained), [0] * len(frozen)]  # no setting freezes a weight
        trained, frozen = told(all_reduce(mine, self.mesh.world), imagined)
        if not trained[-1]:
            raise ValueError("all weights are frozen: there is nothing to train")
        ties = set()
        for name, copies_trained, copies_frozen in zip(names, trained, frozen, strict=False):
            if copies_trained and copies_frozen:
                raise ValueError(
                    f"{name} is frozen on one stage and trained on the other: freeze both copies, or none"
                )
            if copies_trained:
                ties.add(name)
        return ties

    def _name(self, name: str) -> str:
        """The name of the weight; for a tied copy, the name of the weight it is tied to."""
        return self.shards[name].tied or name

    def _copies(self, name: str) -> list[Tensor]:
        """The gradients of this rank's copies of a tied weight. Each has its own bucket; all have the same range."""
        copies = []
        for owned, place in self._places():
            if self._name(place.name) == name:
                copies.append(owned.grads)
        return copies

    def _places(self) -> Iterator[tuple[OptimizerShard, ParamRange]]:
        for owned in self.owned:
            for place in owned.bucket.plan.places:
                yield owned, place

    def _pieces(self, owned: OptimizerShard, place: ParamRange) -> list[ShardSlice]:
        """The slices of a parameter in this rank's range; the replicas of one copy of the model are numbered."""
        start, stop = owned.range_of(place)
        pieces = pieces_in_range(self.shards[place.name], self.mesh.position, start, stop)
        return tied_pieces(pieces, place.name, self.shards[place.name])

    def _boxes(
        self, kinds: Callable[[OptimizerShard], dict[str, Tensor]]
    ) -> dict[str, list[ShardedTensor]]:
        held: dict[str, list[ShardedTensor]] = defaultdict(list)
        for owned, place in self._places():
            for kind, flat in kinds(owned).items():
                name = f"{kind}.{self._name(place.name)}"
                for piece in self._pieces(owned, place):
                    held[name].append(self._held(name, place, flat, owned, piece))
        return dict(held)

    def _held(
        self, name: str, place: ParamRange, flat: Tensor, owned: OptimizerShard, piece: ShardSlice
    ) -> ShardedTensor:
        shard = self.shards[place.name]
        local_shape = shard.local_shape(self.mesh.layout)
        view = box_view(flat, place.start - owned.start, local_shape, piece.local)
        bucket = owned.bucket
        piece = piece.replicated(bucket.axis.name, self._replica(bucket), self._replicas(bucket))
        return held_piece(name, shard, piece, view)

    def _counted(
        self, kind: Kind = "grads", hosts: Collection[bool] = (False, True)
    ) -> dict[str, list[Tensor]]:
        """The views that count in a norm, by name: one replica of each, no tied copies.

        Args:
            kind: of which tensor of the shards.
            hosts: whether the shards in host memory count, and whether those on the device.
        """
        counted: dict[str, list[Tensor]] = defaultdict(list)
        for owned, place in self._places():
            if self._replica(owned.bucket) == 0 and owned.in_host_memory in hosts:
                counted[place.name] += self._first_copies(owned, place, kind)
        return counted

    def _weight_norm(self, in_host_memory: bool) -> GlobalNorm:
        """The norm of the weights in host memory, or of those on the device."""
        device = HOST if in_host_memory else self.mesh.device
        views = self._counted("master", (in_host_memory,))
        return GlobalNorm(views, (), self.shards, self.mesh.position, device)

    def _counted_elsewhere(self) -> list[Tensor]:
        """The views of gradients that the first replica counts in the norm."""
        views: list[Tensor] = []
        for owned, place in self._places():
            if self._replica(owned.bucket) > 0:
                views += self._first_copies(owned, place, "grads")
        return views

    def _first_copies(self, owned: OptimizerShard, place: ParamRange, kind: Kind) -> list[Tensor]:
        """The views of a parameter's tensor that no lower rank of this copy of the model holds."""
        flat = owned.grads if kind == "grads" else owned.master
        views = []
        for piece in self._pieces(owned, place):
            if piece.copy == 0:
                views.append(self._held(place.name, place, flat, owned, piece).tensor)
        return views

    def _partial_reducers(self) -> list[PartialGradReducer]:
        """One for each axis over which gradients of this rank are partial, outermost first."""
        blocks: dict[str, list[PartialViews]] = defaultdict(list)
        for owned, place in self._places():
            shard = self.shards[place.name]
            begin, end = owned.range_of(place)
            shape = shard.local_shape(self.mesh.layout)
            ranges = flat_boxes(shape, begin, end)
            for block in partial_blocks(shard, self.mesh.position):
                overlaps = [flat.overlap(block.local) for flat in ranges]
                views = []
                for box in overlaps:
                    if box is not None:
                        views.append(box_view(owned.grads, place.start - owned.start, shape, box))
                if views:
                    blocks[block.axis].append(PartialViews(views, block.slot, block.slots))
        names = dict.fromkeys(axis for axes in MODEL_AXES.values() for axis in axes)
        return [
            PartialGradReducer(blocks[axis], self.mesh.model_axis(axis))
            for axis in names
            if axis in blocks
        ]

    def _publish(self) -> None:
        """Sends the weights that this rank updated to all ranks; waits for them unless the layers do."""
        fault_point("weights.share")
        self._share_weights()
        if not self.layers_await:
            self.await_weights()


def _awaiting(buckets: Sequence[Bucket]) -> Callable[[nn.Module, tuple], None]:
    """A forward-pre-hook that waits for weights; kept out of compiled graphs, like all communication."""

    @torch.compiler.disable
    def await_weights(layer: nn.Module, args: tuple) -> None:
        for bucket in buckets:
            bucket.await_weights()

    return await_weights
