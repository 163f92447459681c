"""One rank's part of a training step: forward and backward over the micro-batches, gradient reduction, clipping and the
optimizer step. Does not depend on files, the clock or the data set.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.config.resolve import ResolvedConfig, ResolvedParallel
from megascratch.data.samples.batch import Batch
from megascratch.data_parallel import DATA_PARALLEL
from megascratch.model.build import build_chunks, compile_blocks
from megascratch.model.loss_terms import LANGUAGE_MODEL, LossTerm, loss_terms
from megascratch.model.table import weight_table
from megascratch.optim.grad_norm import clip_factor, norm_of
from megascratch.optim.loss_scale import LossScale
from megascratch.optim.schedules import NO_OTHERS, OtherRates
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.device_kind import widest_dtype
from megascratch.parallel.kept_state import KeepsState, view_of
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.pending import CommunicationError
from megascratch.parallel.sample_cut import SampleCut, positions_of_ranks
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.parallel.side_loss import SideLosses, TermSum
from megascratch.parallel.told import told
from megascratch.pipeline import runtime
from megascratch.pipeline.csv_schedule import CsvSchedule
from megascratch.pipeline.passes import Orders, compile_order, placement_of
from megascratch.pipeline.recorder import NullRecorder
from megascratch.pipeline.runtime import TensorSpec
from megascratch.pipeline.schedule import Action, Placement
from megascratch.pipeline.stage import Stage
from megascratch.runtime.heartbeat import at_step, doing
from megascratch.runtime.timers import StepTimer
from megascratch.training.hardware import parameter_dtype
from megascratch.training.state import TrainState
from megascratch.training.step_numbers import Announcement, StepNumbers, sum_over_ranks

Judge = Callable[[float, float], str]
"""Global loss and gradient norm -> what is wrong with the step, '' for nothing. Called before the weights change."""


def not_finite(loss: float, grad_norm: float) -> str:
    """The judge that needs no settings: says which number is not finite; '' if both are."""
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return "" if math.isfinite(loss) else f"the loss is {loss}"


def nothing_updated(wrong: str, step: int) -> str:
    """The message with which a run stops after a bad step."""
    return (
        f"{wrong} at step {step}: nothing was updated; look at the data of this step, or lower --lr"
    )


class StepResult(NamedTuple):
    """The result of a step. `loss` is this rank's part of the global loss (the parts of all ranks add up to it: law 5);
    all other fields are global. The loss is that of the language model, without side terms."""

    loss: Tensor  # fp64 scalar on the device; 0 where the loss was not computed
    global_loss: float  # nan where no token was learned, as is grad_norm
    grad_norm: float
    skipped: bool  # nothing was updated
    wrong: str  # the judge's verdict, '' for none; an fp16 overflow is not wrong
    tokens: int  # learned tokens of the global batch
    side_terms: dict[str, TermSum]  # every term of the objective but the language model's
    exit_code: int  # for which any rank asks to stop; 0: none
    saving: bool  # a save is under way on any rank
    num_zeros: int | None = (
        None  # elements of the gradient that are 0; None if they are not counted
    )

    @property
    def overflowed(self) -> bool:
        """Whether the update was skipped because fp16 gradients overflowed."""
        return self.skipped and not self.wrong and self.tokens > 0


class _Update(NamedTuple):
    """What all ranks agree on after the backward of a step."""

    numbers: StepNumbers
    grad_norm: float
    overflowed: bool
    wrong: str


class Trainer:
    """Model chunks, schedule, gradients and optimizer of one rank.

    Args:
        schedule: the one of --pipeline-schedule-csv, if the settings name one.
    """

    def __init__(self, config: ResolvedConfig, mesh: Mesh, schedule: CsvSchedule | None = None):
        self.config = config
        self.mesh = mesh
        model = config.model
        parallel = config.parallel
        training = config.training
        dtype = parameter_dtype(config.optim)
        self.table = schedule
        self.placement = _placement(parallel) if schedule is None else schedule.placement
        self.chunks = build_chunks(model, parallel, mesh, dtype, training.seed, self.placement)
        self.shards = weight_table(model, parallel, mesh.layout)
        for chunk in self.chunks:
            chunk.set_recompute(parallel)
            chunk.set_loss_chunks(training.loss_chunk_rows)
        self.keeping: list[KeepsState] = []
        for chunk in self.chunks:
            self.keeping += [layer for layer in chunk.modules() if isinstance(layer, KeepsState)]
        if training.compile:
            compile_blocks(self.chunks)
        kind = "zero1" if parallel.use_distributed_optimizer else "ddp"
        self.data_parallel = DATA_PARALLEL[kind](
            self.chunks, self.shards, mesh, config.optim, parallel
        )
        if (
            parallel.use_distributed_optimizer
            and parallel.overlap_param_gather
            and mesh.data.size > 1
        ):
            self.data_parallel.overlap_param_gather(
                part for chunk in self.chunks for part in chunk.parts()
            )
        self.stages = []
        for number, chunk in enumerate(self.chunks):
            virtual_stage = self.placement.virtual_stage(mesh.pp.rank, number)
            self.stages.append(Stage(chunk, virtual_stage, self.placement.stages))
        self.spec = self._spec(training.micro_batch_size)
        self.terms = loss_terms(model)
        self.scale = LossScale.start(config.optim)
        if mesh.links is not None:
            runtime.connect(mesh.links, mesh.device)

    def train_step(
        self,
        batches: Sequence[Batch],
        lr: float,
        step: int = 0,
        recorder: NullRecorder | None = None,
        judge: Judge | None = None,
        phases: StepTimer | None = None,
        announce: Callable[[], Announcement] = Announcement,
        others: OtherRates = NO_OTHERS,
    ) -> StepResult:
        """Forward, backward, gradient reduction, clipping and the update, unless something is wrong with the step.

        If the global batch has no token to learn, nothing is updated either: no weight, no moment, no count of
        updates, no loss scale. The judge is not called then, because there is no loss.

        Args:
            batches: the micro-batches of this data-parallel rank, with whole samples.
            recorder: records the actions of the pipeline.
            judge: says what is wrong with a step; such a step is not applied. None: a number that is not finite is an
                error.
            phases: measures the parts of the step.
            announce: called after the backward: what this rank tells all others in the result.
            others: the rates of the step in addition to `lr`.

        Raises:
            FloatingPointError: without a judge, if loss or gradients are not finite (fp16 with a dynamic scale skips
                the update instead).
        """
        phases = phases or StepTimer()
        at_step(step)
        doing("the number of valid tokens")
        own = self._own_tokens(batches)
        counts = self._counts(own)
        weights = self._weights(counts)
        loss_grad = self._loss_grad(batches, weights)
        batches = self._on_device(own, weights)
        with torch.no_grad():
            for layer in self.keeping:
                layer.begin_step()
        losses = runtime.run(
            self.orders(len(batches))[self.mesh.pp.rank],
            self.stages,
            self.mesh.links,
            batches,
            self.spec,
            loss_grad,
            self._before_backward,
            step,
            self.placement,
            recorder,
        )
        phases.lap("forward and backward")
        tokens = counts[LANGUAGE_MODEL]
        loss_part = self._loss_part(losses) / max(tokens, 1.0)
        parts = torch.cat((loss_part.view(1), self._side_parts(batches)))
        try:
            update = self._update(parts, tokens, lr, judge or not_finite, announce, others)
        except CommunicationError as error:
            raise CommunicationError(f"gradients and weights of step {step}: {error}") from error
        if update.wrong and judge is None:
            raise FloatingPointError(nothing_updated(update.wrong, step))
        if tokens and not update.wrong:
            # a step that is not applied says nothing about the scale
            self.scale = self.scale.after(update.overflowed, self.config.optim)
        phases.lap("update")
        skipped = update.overflowed or bool(update.wrong) or not tokens
        numbers = update.numbers
        return StepResult(
            loss=loss_part,
            global_loss=numbers.terms[0] if tokens else math.nan,
            grad_norm=update.grad_norm,
            skipped=skipped,
            wrong=update.wrong,
            tokens=round(tokens),
            side_terms=self._side_sums(numbers, counts),
            exit_code=numbers.exit_code,
            saving=numbers.saving,
            num_zeros=numbers.num_zeros,
        )

    def _side_sums(self, numbers: StepNumbers, counts: Mapping[str, float]) -> dict[str, TermSum]:
        """The side terms of a step by name."""
        totals = zip(self._side_terms, numbers.terms[1:], strict=True)
        return {term.name: TermSum(total, counts[term.name]) for term, total in totals}

    def _update(
        self,
        parts: Tensor,
        tokens: float,
        lr: float,
        judge: Judge,
        announce: Callable[[], Announcement],
        others: OtherRates,
    ) -> _Update:
        """Updates the weights if nothing is wrong and there was a token to learn."""
        doing("the sums of the gradients")
        self.data_parallel.finish()
        doing("the numbers of the step")
        numbers = self._agreed(parts, announce())
        if not tokens:
            return _Update(numbers, math.nan, overflowed=False, wrong="")
        norm = numbers.norm / self.scale.scale
        if numbers.overflow and math.isfinite(norm):
            norm = math.nan  # another data rank has seen it
        overflowed = not math.isfinite(norm) and self.config.optim.fp16 and not self._at_its_floor()
        wrong = "" if overflowed else judge(numbers.terms[0], norm)
        doing("the optimizer's step")
        if not overflowed and not wrong:
            factor = clip_factor(norm, self.config.optim.clip_grad) / self.scale.scale
            self.data_parallel.step(lr, factor, others)
            self._change_kept_state()
        return _Update(numbers, norm, overflowed, wrong)

    def _agreed(self, parts: Tensor, own: Announcement) -> StepNumbers:
        """The numbers of the step, summed over all ranks."""
        counts_zeros = self.config.training.log_num_zeros_in_grad
        zeros = self.data_parallel.zeros() if counts_zeros else None
        return sum_over_ranks(self.data_parallel.norm_parts(), parts, own, self.mesh.world, zeros)

    @torch.no_grad()
    def _change_kept_state(self) -> None:
        """Lets layers change the state that no gradient moves, after a step that was taken.

        Raises: RuntimeError if one replaces a tensor, which checkpoints would not see.
        """
        doing("the state that layers keep")
        for layer in self.keeping:
            before = list(layer.buffers(recurse=False))
            layer.step_taken(self.mesh.data_of(view_of(layer)))
            for old, new in zip(before, layer.buffers(recurse=False), strict=True):
                if new is not old:
                    raise RuntimeError(
                        f"{type(layer).__name__} has replaced a buffer: change it in place"
                    )

    def _at_its_floor(self) -> bool:
        """Whether the loss scale cannot fall any further, so that skipping a step does not help against an overflow."""
        optim = self.config.optim
        return optim.loss_scale is None and self.scale.scale <= optim.min_loss_scale

    def evaluate(self, batches: Sequence[Batch]) -> Tensor:
        """The sum and the number of tokens of each of `terms` in one global batch over all ranks, fp64 [terms, 2].
        Changes no state. The micro-batches have whole samples, and may have another size than those of training."""
        self._set_training(False)
        try:
            pp = self.mesh.pp
            orders = compile_order(
                "forward_only", pp.size, len(batches), len(self.chunks), placement=self.placement
            )
            order = orders[pp.rank]
            nothing = {term.name: 0.0 for term in self.terms}  # has a gradient
            on_device = self._on_device(self._own_tokens(batches), nothing)
            spec = self._spec(len(batches[0].ids))
            losses = runtime.evaluate(
                order, self.stages, self.mesh.links, on_device, spec, placement=self.placement
            )
        finally:
            self._set_training(True)
        return self._sums_and_tokens(losses, on_device)

    def params_norm(self) -> float:
        """The norm of all weights, of the masters where weights have some. Called by all ranks; each weight counts
        once, and padding not at all."""
        slots = self.data_parallel.weight_norm_parts()[:-1]
        return told(norm_of(all_reduce(slots, self.mesh.world)), 1.0)

    def _spec(self, micro_batch_size: int) -> TensorSpec:
        """What stages send each other for a micro-batch."""
        sequence = self.config.data.seq_length
        sequence //= self.mesh.cp.size
        if self.config.parallel.sequence_parallel:
            sequence //= self.mesh.tp.size
        hidden = (sequence, micro_batch_size, self.config.model.hidden_size)  # [s,b,h]
        return TensorSpec(hidden, parameter_dtype(self.config.optim), self.mesh.device)

    def global_loss(self, part: Tensor) -> float:
        """Adds the parts of all ranks; the same number on every rank (law 9)."""
        return told(all_reduce(part.clone(), self.mesh.world), 1.0)

    def held(self) -> list[ShardedTensor]:
        """Every state tensor that this rank holds, with its global name and box. Each call returns the same list, of
        views into memory that is never moved; after the call they have the newest content."""
        self.data_parallel.await_weights()
        return self._held

    def saved(self) -> list[ShardedTensor]:
        """What a checkpoint stores of `held`: all of it, or without save_optim the weights and what layers keep. Each
        call returns the same list."""
        held = self.held()
        return held if self.config.training.save_optim else self._without_optimizer

    @cached_property
    def _without_optimizer(self) -> list[ShardedTensor]:
        return [item for item in self._held if not item.name.startswith("optim.")]

    @cached_property
    def _held(self) -> list[ShardedTensor]:
        everything: list[ShardedTensor] = []
        for boxes in self.data_parallel.state().values():
            everything += boxes
        return everything

    def save_scalars(self, state: TrainState) -> None:
        """Copies the loss scale and the optimizer's scalars into the state that a checkpoint stores."""
        state.loss_scale = vars(self.scale).copy()
        state.optimizer = self.data_parallel.scalars()

    def restore(self, state: TrainState) -> None:
        """Restores the scalars, after the tensors of `held()` were filled, and refreshes what depends on them."""
        self.scale = LossScale(**state.loss_scale)
        self.data_parallel.load_scalars(state.optimizer)
        self.data_parallel.loaded()

    def use_weights(self) -> None:
        """Called instead of `restore` after only the weights of `held()` were filled: the optimizer starts with them,
        without any history."""
        self.data_parallel.loaded(masters=False)

    def orders(self, microbatches: int) -> Orders:
        """The actions that each rank of the pipeline runs in a step."""
        if self.table is not None:
            return self.table.of(microbatches)
        parallel = self.config.parallel
        return compile_order(
            parallel.pipeline_schedule,
            self.mesh.pp.size,
            microbatches,
            len(self.chunks),
            parallel.microbatch_group_size_per_virtual_pipeline_stage,
        )

    def _own_tokens(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches with this rank's tokens of each sample: all of them, unless context ranks share it."""
        cp = self.mesh.cp
        if cp.size == 1:
            return list(batches)
        order = self.config.parallel.context_parallel_order
        found = []
        for batch in batches:
            positions = positions_of_ranks(order, batch.sample_length, cp.size, batch.host_starts)
            found.append(batch.cut(SampleCut(positions, batch.host_starts), cp.rank))
        return found

    def _before_backward(self, action: Action, last: bool) -> None:
        self.data_parallel.begin(action.chunk, last)

    @property
    def _side_terms(self) -> tuple[LossTerm, ...]:
        """The terms that are joined in the middle of the model: all but the language model's."""
        return self.terms[1:]

    def _counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The number of tokens of the global batch that each term counts. Every rank has all that it needs: the ranks
        of a stage have all micro-batches together."""
        mine = self._own_counts(batches)
        if self.mesh.data.size > 1:
            mine = all_reduce(mine.to(self.mesh.device), self.mesh.data)
        names = [term.name for term in self.terms]
        return dict(zip(names, told(mine, [1.0] * len(names)), strict=True))

    def _own_counts(self, batches: Sequence[Batch]) -> Tensor:
        """As `_counts`, of these micro-batches alone: fp64 [terms]."""
        counts = []
        for term in self.terms:
            counts.append(torch.stack([term.count(batch) for batch in batches]).sum())
        return torch.stack(counts)

    def _weights(self, counts: Mapping[str, float]) -> dict[str, float]:
        """The gradient of each term's sum. Without any token of a term, its gradients are 0 anyway."""
        weights = {}
        for term in self.terms:
            weights[term.name] = self.scale.scale * term.coefficient / max(counts[term.name], 1.0)
        return weights

    def _loss_grad(
        self, batches: Sequence[Batch], weights: Mapping[str, float]
    ) -> float | list[float]:
        """The gradient of the sum of the losses of each micro-batch: its term's weight, or with the mean of means
        1 / (tokens of the micro-batch x micro-batches of all ranks), with the loss scale. The micro-batches have whole
        samples."""
        if self.config.training.calculate_per_token_loss:
            return weights[LANGUAGE_MODEL]
        model = self.terms[0]
        counts = torch.stack([model.count(batch) for batch in batches])
        microbatches = len(batches) * self.mesh.dp.size
        grads = []
        for tokens in told(counts, [1.0] * len(batches)):
            grads.append(self.scale.scale * model.coefficient / (max(tokens, 1.0) * microbatches))
        return grads

    def _on_device(self, batches: Sequence[Batch], weights: Mapping[str, float]) -> list[Batch]:
        """The micro-batches, each with a record of its own for the side terms."""
        found = []
        for batch in batches:
            found.append(replace(batch.to(self.mesh.device), side_losses=SideLosses(weights)))
        return found

    def _loss_part(self, losses: Sequence[Tensor]) -> Tensor:
        """This rank's part of the loss. All tensor ranks of the last stage have the same loss: the first contributes
        it, the others contribute 0."""
        widest = widest_dtype(self.mesh.device)
        if not losses or not self.mesh.tp.is_first:
            return torch.zeros((), dtype=widest, device=self.mesh.device)
        return torch.stack([loss.to(widest) for loss in losses]).sum()

    def _side_parts(self, batches: Sequence[Batch]) -> Tensor:
        """This rank's sums of the side terms in a step or an evaluation that has run, fp64 [side terms]."""
        widest = widest_dtype(self.mesh.device)
        parts = torch.zeros(len(self._side_terms), dtype=widest, device=self.mesh.device)
        for number, term in enumerate(self._side_terms):
            for batch in batches:
                assert batch.side_losses is not None
                parts[number] += batch.side_losses.total(term.name)
        return parts

    def _sums_and_tokens(self, losses: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """What `evaluate` returns. The ranks without a loss of the head contribute no tokens either."""
        sums = torch.cat((self._loss_part(losses).view(1), self._side_parts(batches)))
        has_loss = bool(losses) and self.mesh.tp.is_first
        tokens = self._own_counts(batches).to(sums) * has_loss
        return all_reduce(torch.stack((sums, tokens), 1), self.mesh.world)

    def _set_training(self, training: bool) -> None:
        for chunk in self.chunks:
            chunk.train(training)


def _placement(parallel: ResolvedParallel) -> Placement:
    """Which rank holds which chunk of the model."""
    return placement_of(
        parallel.pipeline_schedule,
        parallel.pipeline_model_parallel_size,
        parallel.num_virtual_stages_per_pipeline_rank,
    )
