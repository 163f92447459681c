"""The one exception for what a user can mend: the command line prints its text and exits with code 2."""


class UserError(ValueError):
    """A setting, file or environment that cannot work; the text gives the law, the numbers and a legal value."""
