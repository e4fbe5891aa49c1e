"""The terminal of a command line: one that is closed, full or gone, and a user who presses Ctrl-C.

Only the standard library, and little of it: a process calls `prepare` before its slow imports.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys

#: Paths of files that are being written. An interrupt removes them.
unfinished: set[str] = set()

# Nobody is there to read: nothing to report.
_NO_READER = (errno.EPIPE, errno.EBADF)


class _Unfailing(io.FileIO):
    """A stream whose writes never fail. What cannot be written is dropped, and `failure` keeps the first error."""

    failure: OSError | None = None

    def write(self, data) -> int | None:
        """Writes, or drops the data."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes


def prepare() -> None:
    """Prepares the process of a command line, once and before anything is printed.

    Messages that standard output or error cannot take are dropped, and no work stops for them. Names that are not valid
    text are printed with escapes. Ctrl-C ends the process with one line and exit code 130.
    """
    _hold_standard_descriptors()
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        setattr(sys, name, _unfailing(stream, number))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, _stop)


def finish(code: int) -> int:
    """Flushes standard output, reports what it could not take, and returns the exit code of the process."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Unfailing):  # not prepared: a library or a test calls
        return code
    sys.stdout.flush()
    if raw.failure is None or raw.failure.errno in _NO_READER:
        return code
    print(f"error: standard output: {os.strerror(raw.failure.errno).lower()}", file=sys.stderr)
    return code or 1


def report_error(message: str) -> int:
    """Prints one line on stderr, and returns the exit code of an error."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 1


def _hold_standard_descriptors() -> None:
    """Opens descriptors 0 to 2 where they are closed: the next file opened would get that number, and all messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. Read-only, so that a result that is sent there is refused.
            os.open(os.devnull, os.O_RDONLY)


def _unfailing(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    """A text stream to the descriptor that behaves as `stream`, but never fails."""
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unfailing(number, "w", closefd=False)),
        encoding=getattr(stream, "encoding", None),
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", number == 2),
        write_through=getattr(stream, "write_through", False),
    )


def _stop(signum: int, frame) -> None:
    """Ends the process here and now. An exception would surface in callbacks of libraries, which print it."""
    del frame
    for path in list(unfinished):
        with contextlib.suppress(OSError):
            os.unlink(path)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the signal may have come within a write
            stream.flush()
    with contextlib.suppress(OSError):
        # A progress bar may stand in the line.
        os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(128 + signum)
