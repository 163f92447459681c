"""The settings of a dry run: those of `megascratch pretrain` with the same laws. What only a run needs is not asked
for: data, a length, a checkpoint, the files of a tokenizer.
"""

from functools import partial
from typing import Any, NamedTuple

from megascratch.config.errors import Problems, SettingError, UserError
from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import broken_laws
from megascratch.config.load import Loaded
from megascratch.config.resolve import Device, Found, ResolvedConfig, Values, derive
from megascratch.config.settings import DataConfig
from megascratch.pipeline.csv_schedule import CsvSchedule
from megascratch.training.start.inputs import open_tokenizer, own_schedule
from megascratch.training.start.settings import LegalSettings

_SOURCES = ("data_path", "train_data_path", "valid_data_path", "test_data_path")
_STEPS = 1_000_000  # for a run whose length is not given: more than any warm-up


class ImaginedRun(NamedTuple):
    """What a dry run is of."""

    config: ResolvedConfig
    schedule: CsvSchedule | None  # that of --pipeline-schedule-csv
    kind: Device  # of the device of each rank
    notices: list[str]  # settings that a dry run does not follow


def imagined_run(loaded: Loaded, world: int, kind: Device) -> ImaginedRun:
    """Derives and checks the settings of a run of `world` ranks.

    Args:
        kind: of the device of each rank; the setting `device` does not matter.

    Raises: UserError with everything that is wrong, and the nearest values that would pass.
    """
    notices = []
    if loaded.config.training.compile:
        loaded = loaded._replace(config=with_fields(loaded.config, {"compile": False}))
        notices.append("compile is not followed: operations and memory are those without it")
    settings = imagined_settings(loaded, world, {"device": kind})
    wrong = Problems()
    schedule = wrong.attempt(partial(own_schedule, flat(settings.config)))
    given = loaded.config.model.vocab_size
    vocab_size = wrong.attempt(partial(_vocab_size, loaded.config.data, given))
    wrong.require_none()
    config = settings.resolve(Found(vocab_size=vocab_size))
    return ImaginedRun(config, schedule, kind, notices)


def imagined_settings(loaded: Loaded, world: int, changes: Values) -> LegalSettings:
    """Derives and checks the settings of a run of `world` ranks; data and a length need not be given.

    Args:
        changes: settings that have other values than the user's.

    Raises: SettingError with everything that is wrong, and the nearest values that would pass.
    """
    given = flat(loaded.config) | dict(changes)
    given |= _stand_ins(given)
    derived = derive(given, world)
    problems = loaded.problems + broken_laws(given, derived, world, loaded.unread)
    if problems:
        raise SettingError("\n".join(problems))
    return LegalSettings(given, with_fields(loaded.config, derived), world)


def _stand_ins(given: Values) -> dict[str, Any]:
    """Values for what a dry run does not need, where it is not given."""
    values: dict[str, Any] = {}
    if not any(given[name] for name in _SOURCES):
        values["mock_data"] = True
    if given["train_iters"] is None and given["train_samples"] is None:
        values["train_iters"] = _STEPS
    return values


def _vocab_size(data: DataConfig, given: int | None) -> int | None:
    """The size of the vocabulary. Raises: UserError if it is not given and the tokenizer cannot be read."""
    if given is not None:
        return given
    try:
        tokenizer = open_tokenizer(data, None)
    except UserError as error:
        raise UserError(
            f"{error}; a dry run only needs the size of the vocabulary: give --vocab-size, or the tokenizer"
        ) from error
    return tokenizer.vocab_size if tokenizer else None
