"""Files that this process has open already: `-`, /dev/stdout, /dev/fd/3, /proc/self/fd/3, and links to these.

Such a name must not be opened again: a file would be read from its start, and writing would cut off what it holds.
These functions read and write the open descriptor.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from pathlib import Path

from models.io.errors import UserError

#: What `-` stands for.
STDIN, STDOUT = Path("/dev/stdin"), Path("/dev/stdout")

_MAX_LINKS = 40  # as Linux


def descriptor_of(path: str | os.PathLike) -> int | None:
    """Returns the number of the descriptor of this process that a path names, or None."""
    path = os.fspath(path)
    folders = rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd"
    for _ in range(_MAX_LINKS):
        folder, name = os.path.realpath(os.path.dirname(path)), os.path.basename(path)
        if re.fullmatch(folders, folder) and re.fullmatch(r"\d+", name):
            return int(name)
        path = os.path.join(folder, name)
        try:
            path = os.path.join(folder, os.readlink(path))
        except OSError:  # no link, or nothing there
            return None
    return None


def check_writable(number: int, path: str | os.PathLike) -> None:
    """Raises a UserError if the descriptor, which the user calls `path`, is not open for writing."""
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except (OSError, OverflowError):
        mode = os.O_RDONLY
    if mode == os.O_RDONLY:
        raise UserError(f"{path}: is not open for writing")


def write(number: int, data: bytes) -> None:
    """Writes all data to the descriptor, after what Python has printed to it. OSError if that fails."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(number, rest) :]


def read(number: int) -> bytes:
    """Reads from the descriptor to its end. OSError if that fails."""
    with open(number, "rb", closefd=False) as file:
        return file.read()
