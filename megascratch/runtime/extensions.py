"""The notice that the C++ extensions of csrc/ were not built: the package works without them, but slower."""

import os
import warnings

TOLD = "MEGASCRATCH_TOLD_OF_EXTENSIONS"
"""Set in the environment, which the processes that this one starts inherit, once the notice was given."""


def warn_once_that_they_are_missing() -> None:
    """Warns, whichever extension is missed first, and once in a run: not in the processes that this one starts, and not
    on ranks after the first, which import the same package."""
    if TOLD in os.environ or os.environ.get("RANK", "0") != "0":
        return
    os.environ[TOLD] = "1"
    warnings.warn(
        "the C++ extensions are not built (pip install -e . needs a C++17 compiler): on a CPU the layers use torch's "
        "own operations, and the order of samples is made in Python: the same model and the same samples, but slower, "
        "for large corpora about 100 times",
        stacklevel=3,
    )
