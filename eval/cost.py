"""What a call costs: seconds, and memory on Linux."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_PROCESS = Path("/proc/self")
#: Written to `clear_refs`, it sets the peak back to what is resident now; see proc(5).
_RESET_PEAK = "5"


class Cost(NamedTuple):
    """Of one call.

    Attributes:
      seconds: that it took.
      megabytes: how far the resident memory of the process rose above what it was before; None where the system does
        not tell. What was loaded before, such as weights, is not in it.
    """

    seconds: float
    megabytes: float | None


def measure(call: Callable[..., Any], *args: Any) -> tuple[Any, Cost]:
    """Calls with arguments; returns the result and what it cost."""
    before = _start_of_peak()
    started = time.perf_counter()
    result = call(*args)
    seconds = time.perf_counter() - started
    return result, Cost(seconds, None if before is None else (_resident("VmHWM") - before) / 1e6)


def _start_of_peak() -> int | None:
    """Lets the peak of resident memory begin anew. Returns bytes resident now, or None where that is not possible."""
    if sys.platform != "linux":
        return None
    try:
        # Freed memory that the allocator keeps would be used again without the memory rising.
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        return _resident("VmRSS")
    except (OSError, AttributeError, LookupError):  # another C library, or a /proc of fewer files
        return None


def _resident(name: str) -> int:
    """Bytes of an entry of /proc/self/status. LookupError if there is none."""
    for line in (_PROCESS / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise LookupError(name)
