"""What a sink is: it takes each row of a run's report. Needs no library of any sink."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from megascratch.training.words.interface import Row, Words

NONE = "none"


class RunIdentity(NamedTuple):
    """What a sink may want to know about a run when it begins."""

    project: str
    name: str
    id: str
    """The same whenever the run resumes."""
    folder: str
    """The folder of the run."""
    tensorboard_dir: str
    config: Mapping[str, Any]
    """Setting -> value, for all settings."""
    config_text: str
    """The same as YAML."""
    first_step: int
    """The steps that are done already: 0, or those of the checkpoint that the run resumes from."""
    words: Words
    """They give the numbers of a row their tags."""


class Sink(Protocol):
    """Takes the numbers of a run. Any error that a method raises ends the sink and not the run."""

    def add(self, row: Row) -> None:
        """Takes a row of metrics.jsonl, and with `--log-format megatron` also one of each step (event `iteration`). Its
        step may be that of an earlier row: a checkpoint is reported when it is complete."""

    def close(self, exit_code: int) -> str:
        """Called once, after the last row. Returns: how to look at the numbers; '' for nothing."""


OpenSink = Callable[[RunIdentity], Sink]
"""Called on the first rank before the first row."""


class Needed(NamedTuple):
    """A library that a sink needs."""

    module: str
    extra: str
    """The extra of this package that installs it."""


NEEDED = {
    "wandb": Needed("wandb", "wandb"),
    "trackio": Needed("trackio", "trackio"),
    "otel": Needed("opentelemetry.exporter.otlp.proto.http", "otel"),
}
"""Sink -> what it needs. TensorBoard comes with the package."""


def missing_libraries(sinks: Sequence[str]) -> list[str]:
    """One line for each sink whose library is not installed."""
    lines = []
    for name in sinks:
        needed = NEEDED.get(name)
        if needed is not None and not _is_installed(needed.module):
            lines.append(
                f"--log-to {name} needs {needed.module}, which is not installed: "
                f"pip install 'megascratch[{needed.extra}]'"
            )
    return lines


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that contains it is missing, too
        return False
