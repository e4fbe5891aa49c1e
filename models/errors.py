"""The one exception that a user's mistake becomes."""


class UserError(ValueError):
    """Something the user can put right: its text is one line that says what and where.

    The command line prints it to stderr and exits with 1; a library user catches it as a ValueError.
    """
