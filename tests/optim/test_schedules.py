"""Rates of a step beside hand-made values, and updates by them beside plain loops with torch's optimizer.

The values of weight decay and of rates in samples are those of megatron-core 0.16.1's OptimizerParamScheduler, which
`test_megatron_core.py` asks itself.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megascratch.config.fields import with_fields
from megascratch.config.resolve import ResolvedTraining, resolve
from megascratch.config.settings import Config, OptimConfig
from megascratch.optim.lr_schedule import learning_rate
from megascratch.optim.schedules import OtherRates, rates_of_step
from megascratch.training.state import TrainState, next_rates
from tests.support import synthetic_grads
from tests.support.rank_pool import on_ranks

COSINE = {"lr": 1.0, "min_lr": 0.25, "lr_decay_style": "cosine"}


def training(**values: Any) -> ResolvedTraining:
    base = {"global_batch_size": 8, "vocab_size": 9, "train_iters": 20}
    return resolve(with_fields(Config(), base | values), 1).training


def grown(style: str, **values: Any) -> list[float | None]:
    """The weight decay at every fifth of the run, and after its end."""
    optim = OptimConfig(
        weight_decay_incr_style=style,
        start_weight_decay=0.0,
        end_weight_decay=0.4,
        lr_decay_iters=20,
        **values,
    )
    return [rates_of_step(optim, training(), n, 8 * n)[1].weight_decay for n in (0, 5, 10, 20, 30)]


@pytest.mark.parametrize("unit", ["steps", "samples"])
def test_weight_decay_grows_over_the_run(unit):
    quarter = 0.4 * (1 - 0.5**0.5) / 2
    linear = [0.0, 0.1, 0.2, 0.4, 0.4]
    assert grown("linear", lr_schedule_unit=unit) == pytest.approx(linear, abs=1e-15)
    cosine = [0.0, quarter, 0.2, 0.4, 0.4]
    assert grown("cosine", lr_schedule_unit=unit) == pytest.approx(cosine, abs=1e-15)


def test_weight_decay_grows_by_samples_in_a_run_of_samples():
    optim = OptimConfig(
        weight_decay_incr_style="linear",
        start_weight_decay=0.1,
        end_weight_decay=0.3,
        lr_decay_samples=100,
    )
    run = training(train_iters=None, train_samples=100)
    assert rates_of_step(optim, run, 10**6, 25)[1].weight_decay == pytest.approx(0.15)


def test_a_length_in_steps_counts_full_batches_of_samples():
    optim = OptimConfig(lr=1.0, lr_decay_iters=10, lr_warmup_iters=2, lr_schedule_unit="samples")
    rates = [learning_rate(optim, 10**6, samples, 8) for samples in (0, 8, 16, 48, 80, 81)]
    assert rates == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="batch_size"):
        learning_rate(optim, 1, 8)


def test_an_inverse_square_root_without_warm_up_falls_from_the_second_sample():
    optim = OptimConfig(
        lr=1.0,
        lr_decay_style="inverse-square-root",
        lr_decay_iters=10,
        lr_schedule_unit="samples",
    )
    assert [learning_rate(optim, 0, n, 16) for n in (0, 16, 64)] == [1.0, 0.25, 0.125]


def test_the_decoupled_rate_has_the_shape_of_the_others():
    optim = OptimConfig(
        **COSINE, lr_decay_iters=10, lr_warmup_iters=2, decoupled_lr=0.5, decoupled_min_lr=0.1
    )
    rates = [rates_of_step(optim, training(), n, 0) for n in (0, 1, 2, 6, 10)]
    assert [lr for lr, _ in rates] == pytest.approx([0.0, 0.5, 1.0, 0.625, 0.25])
    decoupled = [others.decoupled_lr for _, others in rates]
    assert decoupled == pytest.approx([0.0, 0.25, 0.5, 0.3, 0.1])


def test_the_decoupled_rate_ends_at_min_lr_without_its_own_end():
    optim = OptimConfig(**COSINE, lr_decay_iters=10, decoupled_lr=0.5)
    assert rates_of_step(optim, training(), 10, 0)[1].decoupled_lr == 0.25


def test_without_schedules_of_their_own_there_are_no_other_rates():
    optim = OptimConfig(lr_decay_iters=10)
    assert rates_of_step(optim, training(), 3, 0)[1] == OtherRates()


@pytest.mark.parametrize("waits, rates", [(True, [0.0, 0.0, 0.25]), (False, [0.0, 0.25, 0.5])])
def test_a_schedule_that_waits_stands_still_while_steps_overflow(waits, rates):
    values = {
        "fp16": True,
        "lr": 1.0,
        "lr_warmup_iters": 4,
        "lr_schedule_waits_for_overflows": waits,
        "train_iters": 20,
        "vocab_size": 9,
    }
    config = resolve(with_fields(Config(), values), 1)
    state = TrainState()
    found = []
    for overflowed in (True, False, False):
        found.append(next_rates(config.optim, config.training, state)[0])
        state.count(8, overflowed)
        state = TrainState.from_dict(state.to_dict())  # a resumed run stands where it stood
    assert found == rates


def test_a_state_of_an_older_checkpoint_has_not_overflowed():
    old = {"step": 3, "consumed_samples": 24, "unknown": 1}
    assert (TrainState.from_dict(old).overflow_steps, TrainState.from_dict(old).step) == (0, 3)


# ---- updates ----------------------------------------------------------------------------------------------------

STEPS = range(4)
DECAYS = [0.0, 0.1, 0.2, 0.4]


class PlainGroups:
    """torch's AdamW with a group for embedding and output layer, at three times the rate, and a growing decay."""

    def __init__(self, groups: list[dict]):
        decaying = groups[0]["params"]
        draw = synthetic_grads.draw
        ends = [draw(tuple(w.shape), name) for w in decaying for name in ("embedding", "head")]
        ours = [w for w in decaying if any(torch.equal(w, end) for end in ends)]
        assert ours
        rest = [w for w in decaying if all(w is not each for each in ours)]
        self.inner = synthetic_grads.torchs_adamw(
            [{"params": ours}, {"params": rest}, {"params": groups[1]["params"]}]
        )
        self.state = self.inner.state
        self.param_groups = [{}]
        self.steps = 0

    def step(self) -> None:
        lr = self.param_groups[0]["lr"]
        decay = DECAYS[self.steps]
        rates = zip(self.inner.param_groups, (3 * lr, lr, lr), (decay, decay, 0.0), strict=True)
        for group, rate, shrinks in rates:
            group |= {"lr": rate, "weight_decay": shrinks}
        self.steps += 1
        self.inner.step()


def error_of_groups(flavour: str, layout: dict[str, int], tied: bool, place: dict) -> float:
    """The largest error of weights and moments after updates with all rates."""
    rates = {
        "decoupled_lr": 0.1,
        "weight_decay_incr_style": "linear",
        "start_weight_decay": 0.0,
        "end_weight_decay": 1.0,
    }
    model, stage, shards = synthetic_grads.build(flavour, layout, tied=tied, rates=rates, **place)
    whole, _ = synthetic_grads.serial(STEPS, tied, PlainGroups)
    for step in STEPS:
        synthetic_grads.accumulate(model, stage, shards, step)
        factor = synthetic_grads.clip_factor(
            synthetic_grads.norm(model), synthetic_grads.OPTIM.clip_grad
        )
        lr = synthetic_grads.RATES[step]
        model.step(lr, factor, OtherRates(3 * lr, DECAYS[step]))
    return synthetic_grads.worst(model, whole)


HALF = {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.5}


@pytest.mark.parametrize("place", [{}, HALF], ids=["device", "half"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "flavour, layout", [("ddp", {}), ("zero1", {"tp": 2, "dp": 2}), ("zero1", {"pp": 2, "dp": 2})]
)
def test_embedding_and_output_layer_move_at_their_own_rate(flavour, layout, tied, place):
    ranks = torch.Size(layout.values()).numel()
    args = (flavour, layout, tied, place)
    assert max(on_ranks(ranks, error_of_groups, *args)) < 1e-12


def test_positions_do_not_count_as_embedding():
    shards = synthetic_grads.table_of(1, True, synthetic_grads.LAYERS)
    own = SimpleNamespace(**{name: shard.is_vocabulary for name, shard in shards.items()})
    assert own.embedding and own.head and not own.positions
