"""One program for each table or figure of the documents."""

from __future__ import annotations

import sys
from collections.abc import Callable

from models.io.errors import UserError


def exit_code(run: Callable, args) -> int:
    """Runs a program with its parsed arguments; returns its exit code: 1, after one line, for a bad input."""
    try:
        return run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
