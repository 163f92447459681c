"""Exceptions for errors that the user can fix: the command line prints their text and exits with code 2."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A setting, file or environment that cannot work. The text says what is wrong, the numbers, and what to do."""


class Problems:
    """Collects the errors of several checks, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Returns what `check` returns. If it raises UserError, keeps its text and returns None."""
        try:
            return check()
        except UserError as error:
            self.lines += str(error).splitlines()
            return None

    def require_none(self) -> None:
        """Raises: UserError with one line per problem, without duplicates."""
        if self.lines:
            raise UserError("\n".join(dict.fromkeys(self.lines)))


class SettingError(UserError):
    """An invalid setting. Every rank of a launch finds the same problem, so only the first one prints it."""


class RanksSilent(UserError):
    """Ranks that did not join the rendezvous in time although the settings are valid: a restart may help."""


class RanksDiffer(SettingError):
    """Ranks that start with different versions, code or settings; the text is a table, not a list of problems."""
