"""The best quality whose file is not above a size, in few files: each may take minutes."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Assumed growth of sizes from the first position to the last, until two are known. ELIC's grow 6 times, SFT's 11.
GROWTH = 7
#: So many positions are found by lines. If that was not enough sizes are no such curve, and bisection is next.
LINES = 4


def largest_within(limit: int, count: int, size_of: Callable[[int], int]) -> int:
    """Finds the last of the positions 0 to `count` - 1 whose size is at most `limit`; -1 if there is none.

    Sizes rise with the position, nearly exponentially, so the next position to look at lies on a straight line of log
    size through two known ones (regula falsi). Where that is beside a known one and does not close in on the limit, the
    step from there is twice the last one; and bisection finds what is not found soon.
    Where sizes do not always rise, the result is a position that fits and whose next does not.

    Args:
      limit: at least 1.
      count: at least 1.
      size_of: the size of a position, at least 1; asked for each position at most once.
    """
    inside, outside = -1, count  # the last position known to fit, the first known not to
    over: dict[int, float] = {}  # how far the log sizes of positions are above that of the limit
    slope, step = math.log(GROWTH) / max(count - 1, 1), 1
    position = count // 2
    while True:
        over[position] = math.log(size_of(position) / limit)
        width = outside - inside
        if over[position] <= 0:
            inside = position
        else:
            outside = position
        if outside - inside == 1:
            return inside
        # The two that are nearest to the limit tell the slope there.
        near, *others = sorted(over, key=lambda known: abs(over[known]))
        if others and over[near] != over[others[0]]:
            slope = (over[others[0]] - over[near]) / (others[0] - near)
        step = 2 * step if outside - inside > width / 2 else 1
        if len(over) > LINES:
            guess = (inside + outside) // 2
        elif near == inside:
            guess = max(math.floor(near - over[near] / slope), near + step // 2)
        else:
            guess = min(math.floor(near - over[near] / slope), near - step // 2)
        position = min(max(guess, inside + 1), outside - 1)
