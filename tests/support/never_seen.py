"""Laws of runs that left out, repeated or resumed steps."""

from megascratch.optim.loss_scale import LossScale
from tests.support.layout_runs import config_of
from tests.support.rank_pool import on_ranks
from tests.support.whole_runs import Case, Step, run_and_plan

EVERY = {
    "global_batch_size": 4,
    "num_layers": 2,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "device": "cpu",
    "eval_iters": 1,
    "lr_decay_style": "cosine",
    "lr_decay_iters": 9,
    "lr_warmup_iters": 2,
    "min_lr": 1e-3,
}
SPIKY = {"check_for_spiky_loss": True, "spiky_loss_window": 2}
FP16 = {
    "fp64": False,
    "fp16": True,
    "initial_loss_scale": 1024.0,
    "hysteresis": 1,
    "loss_scale_window": 3,
}
SKIP = {"on_bad_step": "skip"}
BACK = {"on_bad_step": "rollback", "save_interval": 2}


def equal_steps(*numbers: int) -> list[Step]:
    """Of four samples each; a number that is left out is a step whose samples are left out, too."""
    return [Step(number, 4 * (number - 1), 4) for number in numbers]


def scaled(steps: list[Step], number: int, scale: LossScale) -> list[Step]:
    return [step._replace(scale=scale) if step.number == number else step for step in steps]


RAMP = {"global_batch_size": 6, "rampup_batch_size": [2, 2, 12]}
SCHEDULE = {"global_batch_size": 6, "step_batch_size_schedule": "0:2 6s:4 14s:6"}
GROWING = [
    Step(1, 0, 2),
    Step(2, 2, 2),
    Step(3, 4, 2),
    Step(4, 6, 4),
    Step(5, 10, 4),
    Step(6, 14, 6),
    Step(7, 20, 6),
]
CASES: dict[str, Case] = {
    "a step without numbers is skipped": Case(SKIP | SPIKY, equal_steps(1, 2, 4, 5, 6), {3: "nan"}),
    "two spikes in a row are skipped": Case(
        SKIP | SPIKY, equal_steps(1, 2, 3, 6, 7), {4: "spike", 5: "spike"}
    ),
    "a spike is skipped in fp16": Case(SKIP | SPIKY | FP16, equal_steps(1, 2, 4, 5), {3: "spike"}),
    "a step overflows": Case(
        FP16, scaled(equal_steps(1, 2, 4, 5, 6), 4, LossScale(512.0, 0, 0)), {3: "nan"}
    ),
    "back over good steps": Case(
        BACK | SPIKY | {"spiky_loss_window": 9},
        equal_steps(1, 2, 3, 4, 5),
        {4: "nan"},
        unread=range(8, 16),
    ),
    "back over a spike, with the loss scale of then": Case(
        BACK | SPIKY | FP16, equal_steps(1, 2, 3, 4, 5), {4: "spike"}, unread=range(8, 16)
    ),
    "back while the checkpoint is still being written": Case(
        BACK | {"save_interval": 1},
        equal_steps(1, 2, 3, 4),
        {3: "nan"},
        unread=range(8, 12),
        held_up=2,
    ),
    "a batch that grows": Case(RAMP, GROWING),
    "a batch that grows in a run that is resumed": Case(RAMP, GROWING, parts=(2, 4)),
    "a batch that grows by a schedule in a run that is resumed": Case(
        SCHEDULE, GROWING, parts=(2, 4)
    ),
}
LAYOUTS = {
    "one": {},
    "zero1": {"data_parallel_size": 2, "use_distributed_optimizer": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}


def the_run_is_its_plan(name: str, layout: str = "one") -> None:
    """The law."""
    case = CASES[name]
    config = config_of(**EVERY | case.settings | LAYOUTS[layout])
    wrong = (
        [run_and_plan(config, case)] if layout == "one" else on_ranks(2, run_and_plan, config, case)
    )
    assert not any(wrong), wrong
