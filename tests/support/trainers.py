"""On a rank: a trainer of the config's layout, and some steps on the samples that its state says are next."""

from typing import NamedTuple

from megascratch.checkpoint import load, save
from megascratch.config.fields import flat
from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedConfig
from megascratch.config.settings import Config
from megascratch.data.samples.microbatches import sample_numbers
from megascratch.training.start.inputs import own_schedule
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import synthetic_batch
from tests.support.rank_pool import mesh_for


class StepRecord(NamedTuple):
    """One step: the global loss and norm, and the samples that this rank has read."""

    loss: float
    norm: float
    samples: list[int]


def build_trainer(config: ResolvedConfig) -> Trainer:
    mesh = mesh_for(Layout.of(config.parallel), config.training.device)
    return Trainer(config, mesh, own_schedule(flat(config)))


def train_steps(trainer: Trainer, state: TrainState, steps: int) -> list[StepRecord]:
    """Each step at its own learning rate."""
    training, dp, played = trainer.config.training, trainer.mesh.dp, []
    size, total = training.micro_batch_size, training.global_batch_size
    for _ in range(steps):
        numbers = [
            sample_numbers(state.consumed_samples, m, size, dp.rank, dp.size)
            for m in range(total // (size * dp.size))
        ]
        result = trainer.train_step(
            [synthetic_batch(trainer.config, n) for n in numbers],
            1e-2 / (1 + state.step),
            state.step + 1,
        )
        state.step, state.consumed_samples = state.step + 1, state.consumed_samples + total
        played.append(
            StepRecord(
                trainer.global_loss(result.loss),
                result.grad_norm,
                [n for some in numbers for n in some],
            )
        )
    return played


def train_and_save(config: Config, folder: str) -> tuple[list[tuple[float, float]], list]:
    """On a rank: two steps, a checkpoint, two more steps without it; what these told and left."""
    trainer, state = build_trainer(config), TrainState()
    train_steps(trainer, state, 2)
    trainer.save_scalars(state)
    save(folder, state.step, trainer.held(), {"train_state": state.to_dict()}, trainer.mesh.control)
    told = [step[:2] for step in train_steps(trainer, state, 2)]
    return told, [held.tensor.clone() for held in trainer.held()]


def load_and_train(config: Config, folder: str) -> tuple[list[tuple[float, float]], list]:
    """On a rank: a new trainer goes on from the checkpoint."""
    trainer = build_trainer(config)
    state = TrainState.from_dict(load(folder, trainer.held(), trainer.mesh.control)["train_state"])
    trainer.restore(state)
    told = [step[:2] for step in train_steps(trainer, state, 2)]
    return told, [held.tensor.clone() for held in trainer.held()]
