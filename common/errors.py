"""The one exception that stands for a user's mistake."""


class BadInput(ValueError):
    """Input that the user can mend: the command line prints its message as one line and exits with code 2."""
