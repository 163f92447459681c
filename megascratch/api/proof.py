"""Checks of a config without training it: that layouts compute the same model, and what a rank would need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from megascratch.api.run_config import RunConfig, config_of, loaded_of
from megascratch.api.surroundings import hidden_main, kept_environment
from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.resolve import Device
from megascratch.dry_run.run import ImaginedRank, run_rank
from megascratch.dry_run.settings import imagined_run
from megascratch.training.start.inputs import open_tokenizer, own_schedule
from megascratch.verification.layouts import Case, every_layout, own_layout, random_layouts
from megascratch.verification.pool import Pool
from megascratch.verification.shrink import EOD, for_proof
from megascratch.verification.verify import Verdict, verify_case

GRACE = 5.0  # seconds until the other ranks are ended after one has failed


def verify(
    config: RunConfig | str | Path,
    *layouts: Mapping[str, Any],
    max_world: int | None = None,
    random: int | None = None,
    steps: int = 5,
    precision: Literal["fp64", "fp32", "bf16", "fp16"] = "fp64",
    full_size: bool = False,
    timeout: float = 120.0,
) -> list[Verdict]:
    """Checks that layouts compute the same model as one process, as `megascratch verify` does, on the CPU.

        ms.verify(config, {"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2})

    Args:
        layouts: each is settings that replace those of the config; default: the config's own layout.
        max_world: in place of `layouts`, every legal layout of up to so many ranks.
        random: with `max_world`, only so many of them, drawn by the config's `seed`.
        steps: training steps that are compared.
        precision: of the comparison.
        full_size: do not shrink the model.
        timeout: seconds after which a run of a layout has failed.

    Returns: a verdict for each layout: `passed`, `message` (why it failed), `worst` (the largest differences).
    Raises: UserError for settings or layouts that are not legal.
    """
    config = config_of(config)
    for name, number in {"steps": steps, "max_world": max_world, "random": random}.items():
        if number is not None and number < 1:
            raise UserError(f"{name} ({number}) must be at least 1")
    if layouts and max_world is not None:
        raise UserError("layouts and max_world both choose the layouts: give one of them")
    if random is not None and max_world is None:
        raise UserError(f"random ({random}) needs max_world, the largest number of ranks")
    cases = _cases(config, layouts, max_world, random, steps, precision, full_size)
    pool = Pool(timeout, "cpu", GRACE)
    verdicts = []
    with hidden_main(), kept_environment():
        try:
            for case in cases:
                verdicts.append(verify_case(case, steps, precision, pool))
        finally:
            pool.close()
    return verdicts


def _cases(
    config: RunConfig,
    layouts: Sequence[Mapping[str, Any]],
    max_world: int | None,
    random: int | None,
    steps: int,
    precision: str,
    full_size: bool,
) -> list[Case]:
    """The layouts to verify, all legal. Raises: UserError."""
    loaded = loaded_of(config)
    settings = {**_proof(config, steps, precision), "device": "cpu"}
    if max_world is None:
        cases = []
        for layout in layouts or [{}]:
            asked = _proof(config.replace(**layout), steps, precision)
            cases.append(own_layout({**asked, "device": "cpu"}, full_size))
    elif random is None:
        cases = every_layout(settings, max_world, (), full_size)
    else:
        given = loaded.origins.places
        cases = random_layouts(settings, max_world, random, settings["seed"], (), given, full_size)
    size = min(case.config.model.vocab_size for case in cases)
    if size <= EOD:
        raise UserError(
            f"vocab-size ({size}) must be above {EOD} for synthetic text: use {EOD + 1} or more"
        )
    for case in cases:
        own_schedule(flat(case.config))
    return cases


def _proof(config: RunConfig, steps: int, precision: str) -> dict[str, Any]:
    """The settings without what only a real run needs."""
    loaded = loaded_of(config)
    settings = flat(loaded.config)
    if settings["vocab_size"] is None:
        tokenizer = open_tokenizer(loaded.config.data, None)
        settings["vocab_size"] = tokenizer.vocab_size if tokenizer else None
    return for_proof(settings, steps, precision)


def dry_run_rank(
    config: RunConfig | str | Path, world: int, rank: int = 0, device_kind: Device = "cuda"
) -> ImaginedRank:
    """Runs the program of one rank without the other ranks and without memory, as `megascratch dry-run` does.

    Args:
        world: ranks of the run.
        rank: the one that is run.
        device_kind: `cpu` or `cuda`: the device of each rank.

    Returns: its parameters, its memory in bytes (`memory.peak`), its traffic, operations and kernels.
    Raises: UserError for settings that are not legal on so many ranks, or a rank that is not one of them.
    """
    run = imagined_run(loaded_of(config_of(config)), world, device_kind)
    if not 0 <= rank < world:
        raise UserError(f"rank ({rank}) is outside of {world:,} ranks: use 0 to {world - 1}")
    return run_rank(run, rank)
