"""The one exception that a user's mistake becomes, and how others are worded."""


class UserError(ValueError):
    """Something the user can put right: its text is one line that says what and where.

    The command line prints it to stderr and exits with 1; a library user catches it as a ValueError.
    """


def reason(error: Exception) -> str:
    """Returns the system's message of an error, in lower case, without its number or the path."""
    return (getattr(error, "strerror", None) or one_line(error)).lower()


def one_line(error: BaseException) -> str:
    """Returns the text of any exception on one line; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
