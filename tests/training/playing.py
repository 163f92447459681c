"""On a rank: a trainer of the config's layout, and some steps on the samples that its state says are next."""

from typing import NamedTuple

from megascratch.config.settings import Config
from megascratch.data.loader import sample_numbers
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer
from tests.laws.runs import batch_of
from tests.pool import mesh_of


class Played(NamedTuple):
    """One step: the global loss and norm, and the samples that this rank has read."""

    loss: float
    norm: float
    samples: list[int]


def build(config: Config) -> Trainer:
    sizes = config.parallel
    tp, pp, dp = sizes.tensor_model_parallel_size, sizes.pipeline_model_parallel_size, sizes.data_parallel_size or 1
    return Trainer(config, mesh_of(tp, pp, dp, config.training.device or "cpu"))


def play(trainer: Trainer, state: TrainState, steps: int) -> list[Played]:
    """Each step at its own learning rate."""
    training, dp, played = trainer.config.training, trainer.mesh.dp, []
    size, total = training.micro_batch_size, training.global_batch_size
    for _ in range(steps):
        numbers = [sample_numbers(state.consumed_samples, m, size, dp.rank, dp.size)
                   for m in range(total // (size * dp.size))]  # fmt: skip
        result = trainer.train_step(
            [batch_of(trainer.config, n) for n in numbers], 1e-2 / (1 + state.step), state.step + 1
        )
        state.step, state.consumed_samples = state.step + 1, state.consumed_samples + total
        played.append(Played(trainer.global_loss(result.loss), result.grad_norm, [n for some in numbers for n in some]))
    return played
