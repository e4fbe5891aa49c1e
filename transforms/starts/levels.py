"""A start for SAE-SPN: five-level latents that are digits of the principal components of 16x16 blocks.

Five levels are too few for how bright a block is, and more than enough for a fine detail. So a component is carried by
as many latents as pay for themselves. Those of one component compare it with thresholds that lie between each other's:
n latents, each of steps n·Δ wide, tell 4 n + 1 steps of Δ apart, and the decoder takes their mean. A context model
makes the later ones cheap, since the first ones say most of it.

The principal components are those of a model of photographs, as in `transforms/starts/linear.py`: no image is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transforms.quantizers import LIMIT
from transforms.starts.linear import block_components

#: Side of the blocks.
SIDE = 16
#: Of neighbouring pixels and of the colours of a pixel, and the standard deviation of pixels in -1..1. So the model has
#: about the deviations of blocks of photographs: 12.7 for brightness, 4.9 and 2.3 for colour, 2.5 and 2.2 for slopes.
PIXEL_CORRELATION, COLOUR_CORRELATION, DEVIATION = 0.98, 0.8, 0.5


class Digit(NamedTuple):
    """What one latent carries.

    component: which one, 0 the one of the most energy.
    step: the width of its levels, in units of images in -1..1.
    offset: what is added to the component, in steps.
    share: what its level adds to the component when decoding, in units of images.
    """

    component: int
    step: float
    offset: float
    share: float


def begin(analysis, synthesis, groups: Sequence[int]) -> list[Digit]:
    """Initialises two 16x16 convolutions, of stride 16, as that transform and its inverse. Returns what latents carry.

    Args:
      analysis: built, images in -1..1 [B, H, W, 3] -> latents before they are quantised [B, H / 16, W / 16, C].
      synthesis: built, levels of the latents -> images.
      groups: channels of the latents that are predicted together, coarse to fine; their sum is C.
    """
    components, deviations = principal_components()
    digits = allocate(deviations, groups)
    blocks = components[[digit.component for digit in digits]].reshape(-1, SIDE, SIDE, 3)
    steps, offsets, shares = (np.array([getattr(d, name) for d in digits]) for name in ("step", "offset", "share"))
    analysis.kernel.assign((blocks / steps[:, None, None, None]).transpose(1, 2, 3, 0))
    analysis.bias.assign(offsets)
    synthesis.kernel.assign((blocks * shares[:, None, None, None]).transpose(1, 2, 3, 0))
    return digits


def principal_components() -> tuple[np.ndarray, np.ndarray]:
    """See `block_components`: of 16x16 blocks of images in -1..1."""
    return block_components(SIDE, DEVIATION, PIXEL_CORRELATION, COLOUR_CORRELATION)


def allocate(deviations: np.ndarray, groups: Sequence[int]) -> list[Digit]:
    """The digits in the order of the latents: each goes to the component whose error it lowers most.

    Latents of one component are in different groups, so that the later ones are predicted from the earlier.
    """
    most = len(groups)
    errors = [_best(2 * LIMIT * count + 1)[1] for count in range(most + 1)]  # for deviation 1; without any it is 1
    counts = np.zeros(len(deviations), int)
    for _ in range(sum(groups)):
        gains = [d**2 * (errors[n] - errors[n + 1]) if n < most else 0 for d, n in zip(deviations, counts)]
        counts[np.argmax(gains)] += 1
    free, placed = list(groups), [[] for _ in groups]
    for component in np.argsort(-counts, kind="stable"):
        step = float(deviations[component]) * _best(2 * LIMIT * int(counts[component]) + 1)[0]
        for number in range(counts[component]):
            k = next(k for k, group in enumerate(placed) if free[k] and all(d.component != component for d in group))
            offset = (number + 0.5) / counts[component] - 0.5
            placed[k].append(Digit(int(component), step * counts[component], offset, step))
            free[k] -= 1
    return [digit for group in placed for digit in group]


@functools.cache
def _best(levels: int) -> tuple[float, float]:
    """The best step of a uniform quantiser of so many levels for a normal variable of deviation 1, and its error."""
    values = np.linspace(-6, 6, 6001)
    density = np.exp(-(values**2) / 2)
    density /= density.sum()

    def error(step: float) -> float:
        even = 0.5 * (levels % 2 == 0)
        level = np.clip(np.round(values / step - even), -(levels // 2), (levels - 1) // 2) + even
        return float(density @ np.square(values - step * level))

    return min(((float(step), error(step)) for step in np.geomspace(0.05, 2, 200)), key=lambda found: found[1])
