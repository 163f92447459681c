"""One row of the table of mistakes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple


class Mistake(NamedTuple):
    """A command that a user might type in the folder that `world.py` makes."""

    name: str
    words: str
    """The command line, without `megascratch`, as a shell would read it."""
    says: tuple[str, ...]
    """Parts that the message must have: the setting or file, and what to do."""
    fix: str
    """The command line that the user types next; it must work."""
    files: Mapping[str, str | bytes] = {}
    """Files that are there in addition: name -> content."""
    prepare: Callable[[], None] | None = None
    """What else happened before the command; runs in the folder."""
    during: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is so while the command runs, and no longer when the fix runs."""
    fixed_files: Mapping[str, str | bytes] = {}
    """Files that the user writes as a part of the fix."""
    repair: Callable[[], None] | None = None
    """What else the user does as a part of the fix."""
    env: Mapping[str, str] = {}
    """Environment variables of the command; the fix runs without them."""
    absent: tuple[str, ...] = ()
    """Libraries that are not installed; the fix runs with them."""
    needs: str | None = None
    """A library without which the row is skipped."""
    leaves: tuple[str, ...] = ()
    """Folders that the refused run has made and not filled."""
    code: int = 2
    torch: bool = False
    """The message needs a tensor or a device, so torch may be imported."""
    fix_needs_torch: bool = False
    """The fix of a message that needs no torch computes something."""
    fix_is_slow: bool = False
    """The fix runs in the deep tests alone."""
