"""The exceptions for what a user can mend: the command line prints their text and exits with code 2."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A setting, file or environment that cannot work; the text gives the law, the numbers and a legal value."""


class Problems:
    """Collects what several checks refuse, so that a user is told everything at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def attempt(self, check: Callable[[], T]) -> T | None:
        """What `check` returns; None, and its complaint is kept, where it raises UserError."""
        try:
            return check()
        except UserError as error:
            self.lines += str(error).splitlines()
            return None

    def require_none(self) -> None:
        """Raises: UserError with one line per complaint, each once."""
        if self.lines:
            raise UserError("\n".join(dict.fromkeys(self.lines)))


class SettingError(UserError):
    """A broken setting: every rank of a launch finds the same, so only the first one says it."""


class RanksSilent(UserError):
    """Ranks that did not come in time, although nothing is wrong with the settings: another start may mend it."""


class RanksDiffer(SettingError):
    """Ranks that do not start alike; the text is a table, not a list of problems."""
