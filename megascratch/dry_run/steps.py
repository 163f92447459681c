"""Tells others where a training step is: at which action of the pipeline, or before or after all of them."""

import re
from collections.abc import Callable, Sequence

from megascratch.pipeline.recorder import NullRecorder
from megascratch.pipeline.schedule import Action
from megascratch.runtime.timers import StepTimer

START = "start"
"""The name of the time before the first action."""
UPDATE = "update"
"""The name of the time after the last action of a step."""
At = Callable[[str], object]
"""Called with the name of what begins: START, an action such as F3.1, or UPDATE."""


class ActionNames(NullRecorder):
    """The recorder of a step that tells which action begins."""

    def __init__(self, listeners: Sequence[At]):
        self.listeners = listeners

    def begins(self, action: Action) -> None:
        for at in self.listeners:
            at(str(action))


class PhaseNames(StepTimer):
    """The timer of a step that tells when the last action has run, and when the step has ended."""

    def __init__(self, listeners: Sequence[At]):
        super().__init__()
        self.listeners = listeners

    def lap(self, phase: str) -> None:
        for at in self.listeners:
            at(UPDATE if phase == "forward and backward" else START)


def operation_of(during: str) -> str:
    """The operation of an action: F for F3.1; START and UPDATE stay as they are."""
    return re.sub(r"\d+(\.\d+)?$", "", during)
