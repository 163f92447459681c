"""Deliberate breaks of the code, each with a layout on which the layout law must notice; applied inside the ranks.

A break replaces a function or a method for one run; the model's definition stays as it is, only how it is laid out is
wrong, as it would be after a plausible mistake. `space.py`: where things lie; `time.py`: when they happen; `gather.py`:
when ZeRO-1's weights are awaited; `state.py`: what survives; `gaps.py`: steps with nothing to learn; `patterns.py`:
which layer is of which kind; `terms.py`: losses in the middle of the model; `kept.py`: what no gradient moves;
`sequences.py`: sequences that ranks share, and what attention sees; `ropes.py`: windows and ropes of a layer.
"""

from contextlib import ExitStack
from unittest.mock import patch

from megascratch.config.settings import Config
from tests.support.breaks import (
    gaps,
    gather,
    patterns,
    ropes,
    sequences,
    space,
    state,
    terms,
    time,
)
from tests.support.breaks.replacing import Break

BREAKS: dict[str, Break] = {
    **space.BREAKS,
    **time.BREAKS,
    **gather.BREAKS,
    **state.BREAKS,
    **gaps.BREAKS,
    **patterns.BREAKS,
    **terms.BREAKS,
    **sequences.BREAKS,
    **ropes.BREAKS,
}


def run_broken(name: str, config: Config, steps: int) -> tuple:
    """On a rank: the run of the break of that name, with the break in force."""
    with ExitStack() as stack:
        for target, attribute, value in BREAKS[name].replacements:
            stack.enter_context(patch.object(target, attribute, value))
        return BREAKS[name].run(config, steps)
