"""models/tools/target_size.py: the last position that fits, in few sizes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tools.target_size import largest_within


class Sizes:
    """Of positions, and which of them were asked for."""

    def __init__(self, sizes):
        self.sizes, self.asked = list(sizes), []

    def __call__(self, position):
        self.asked.append(position)
        return self.sizes[position]

    def __len__(self):
        return len(self.sizes)

    def largest_within(self, limit):
        return largest_within(limit, len(self), self)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=300), st.integers(1, 10**7))
def test_rising_sizes(sizes, limit):
    sizes = Sizes(sorted(sizes))
    assert sizes.largest_within(limit) == sum(size <= limit for size in sizes.sizes) - 1
    assert len(set(sizes.asked)) == len(sizes.asked) <= 2 * math.log2(len(sizes)) + 3


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 100))
def test_any_sizes(sizes, limit):
    """Files of neighbours can fall by chance."""
    sizes = Sizes(sizes)
    best = sizes.largest_within(limit)
    assert -1 <= best < len(sizes)
    assert best == -1 or sizes.sizes[best] <= limit
    assert best == len(sizes) - 1 or sizes.sizes[best + 1] > limit
    assert best in (-1, *sizes.asked)


@pytest.mark.parametrize("growth", [4, 6, 11])
@pytest.mark.parametrize("bend", [-0.4, 0, 0.4])
def test_sizes_as_of_pictures_are_found_at_once(growth, bend):
    """The middle, the first guess, and little more than the two of which one fits and the other does not."""
    share = np.linspace(0, 1, 161)
    sizes = (20_000 * growth ** (share + bend * share * (1 - share))).astype(int)
    counts = []
    for limit in np.linspace(sizes[0], sizes[-1], 50).astype(int):
        search = Sizes(sizes)
        search.largest_within(limit)
        counts.append(len(search.asked))
    assert np.mean(counts) < 5.5
