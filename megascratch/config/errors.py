"""The exceptions for what a user can mend: the command line prints their text and exits with code 2."""


class UserError(ValueError):
    """A setting, file or environment that cannot work; the text gives the law, the numbers and a legal value."""


class SettingError(UserError):
    """A broken setting: every rank of a launch finds the same, so only the first one says it."""
