"""Law 8 whole: a checkpoint of any layout goes on on any other, with the same bits, the same losses and the same data.

Seven layouts save, seven load: each pair's state is compared bit for bit, then some steps are trained, whose losses
must be those of the run that never stopped (law 1) and whose samples must be the next ones, each once.
"""

import random

import pytest
import torch

from megascratch.checkpoint import load, save
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
from megascratch.config.settings import Config
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import config_of, world_of
from tests.support.rank_pool import on_ranks
from tests.support.trainers import build_trainer, train_steps

TP, PP, DP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size"
LAYOUTS = {
    "one": {},
    "tp2 sp": {TP: 2, "sequence_parallel": True},
    "tp4": {TP: 4},
    "dp3": {DP: 3},
    "dp4 zero1": {DP: 4, "use_distributed_optimizer": True},
    "pp2 zb_v zero1": {
        PP: 2,
        DP: 2,
        "pipeline_schedule": "zb_v",
        "use_distributed_optimizer": True,
    },
    "tp2 pp2 interleaved": {TP: 2, PP: 2, "num_virtual_stages_per_pipeline_rank": 2},
}
MODEL = {
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "global_batch_size": 12,
    "lr": 1e-2,
    "vocab_size": 61,
    "num_query_groups": 2,
    "ddp_bucket_size": 1000,
}
BEFORE = 1  # steps until the checkpoint
TOLERANCE = 1e-9  # law 1, fp64


def config_for(layout) -> Config:
    return config_of(**MODEL | layout)


def differing(trainer: Trainer, folder) -> list[str]:
    """The names of which a box here has other bits than the checkpoint."""
    with OpenCheckpoint(folder) as contents:
        held = [item for item in trainer.held() if item.tensor.numel()]
        return [
            item.name
            for item in held
            if not torch.equal(
                item.tensor.contiguous().view(torch.uint8),
                contents.box(item.name, item.box).view(torch.uint8),
            )
        ]


def save_on(config: Config, folder) -> list[str]:
    """On a rank: some steps and a checkpoint; what of the memory it did not keep."""
    trainer, state = build_trainer(config), TrainState()
    train_steps(trainer, state, BEFORE)
    trainer.save_scalars(state)
    path = save(
        folder, state.step, trainer.held(), {"train_state": state.to_dict()}, trainer.mesh.control
    )
    return differing(trainer, path)


def load_on(config: Config, folder, steps: int) -> tuple[list[str], list[float], list[int]]:
    """On a rank: goes on from a checkpoint; differing tensors, losses and samples."""
    trainer = build_trainer(config)
    for item in trainer.held():
        item.tensor.fill_(torch.nan)
    state = TrainState.from_dict(load(folder, trainer.held(), trainer.mesh.control)["train_state"])
    different = differing(trainer, folder)
    trainer.restore(state)
    played = train_steps(trainer, state, steps)
    return (
        different,
        [step.loss for step in played],
        [number for step in played for number in step.samples],
    )


def on(config: Config, function, *args) -> list:
    ranks = world_of(config)
    return [function(config, *args)] if ranks == 1 else on_ranks(ranks, function, config, *args)


def prove(folder, layouts: dict[str, dict], pairs: list[tuple[str, str]], steps: int) -> None:
    expected = [
        step.loss
        for step in train_steps(build_trainer(config_for({})), TrainState(), BEFORE + steps)[
            BEFORE:
        ]
    ]
    folders = {
        name: folder / str(number) / f"step_{BEFORE:08d}" for number, name in enumerate(layouts)
    }
    for name in dict.fromkeys(saved for saved, _ in pairs):
        config = config_for(layouts[name])
        assert on(config, save_on, folders[name].parent) == [[]] * world_of(config), name
    for saved, loaded in pairs:
        config, pair = config_for(layouts[loaded]), f"{saved} -> {loaded}"
        answers = on(config, load_on, folders[saved], steps)
        for different, losses, _ in answers:
            assert different == [], pair
            assert losses == pytest.approx(expected, rel=TOLERANCE), pair
        total = config.training.global_batch_size
        next_ones = list(range(BEFORE * total, (BEFORE + steps) * total))
        # ranks that share a sample
        copies = world_of(config) // config.parallel.data_parallel_size
        assert sorted(number for *_, seen in answers for number in seen) == sorted(
            next_ones * copies
        ), pair


def test_a_checkpoint_of_any_layout_goes_on_on_another(tmp_path):
    """Each layout saves once and loads once."""
    names = list(LAYOUTS)
    prove(tmp_path, LAYOUTS, list(zip(names[2:] + names[:2], names, strict=True)), steps=2)


@pytest.mark.deep
def test_all_49_pairs(tmp_path):
    prove(tmp_path, LAYOUTS, [(saved, loaded) for loaded in LAYOUTS for saved in LAYOUTS], steps=20)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(6))
def test_pairs_of_random_layouts(tmp_path, seed):
    draw = random.Random(seed)
    layouts = {str(number): random_layout(draw) for number in range(4)}
    prove(tmp_path, layouts, [(a, b) for b in layouts for a in layouts if a != b], steps=20)


def random_layout(draw: random.Random) -> dict:
    """Of at most 4 ranks."""
    tp, pp, dp = draw.choice(
        [(t, p, d) for t in (1, 2, 4) for p in (1, 2, 4) for d in (1, 2, 3, 4) if t * p * d <= 4]
    )
    schedules = ["1f1b", "gpipe"] + ["zb_h1", "zb_v"] * (pp == 2) + ["zb_h1"] * (pp == 4)
    return {
        TP: tp,
        PP: pp,
        DP: dp,
        "use_distributed_optimizer": draw.random() < 0.5,
        "sequence_parallel": tp > 1 and draw.random() < 0.5,
        "pipeline_schedule": draw.choice(schedules),
        "micro_batch_size": draw.choice([1, 2] if 12 % (2 * dp) == 0 else [1]),
        "ddp_bucket_size": draw.choice([500, 3000, 100000]),
    }
