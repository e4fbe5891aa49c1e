"""A start for transforms with binary codes, CWIC's: bits that compare components of a linear transform with thresholds.

As `transforms/starts/linear.py`, for codes of 8x8 blocks. Each component has bits that say whether it is above t_1,
t_2, … and others that say whether it is below -t_1, -t_2, …: of both there are as many as it is worth, the first
components most. Bits that are 0, such as those that an importance map takes away, mean "small": a position without any
is grey. The decoder adds up what each bit that is 1 is worth, and transforms back to pixels.

That is a poor codec, since n bits can tell 2^n blocks apart and these tell fewer. But bits that follow from each other
are cheap once a context model knows it, and what the networks can do beyond that they learn from here much sooner than
from codes that mean nothing yet.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from transforms.chain import Chain
from transforms.starts.linear import block_components

#: Of neighbouring pixels. Smaller than that of `linear_start`: what counts for bits is how large components get where
#: images are busy. (Of 0.96 to 0.99 the one with the smallest error on photographs.)
PIXEL_CORRELATION = 0.97
#: Standard deviation of the values of photographs in -1/2..1/2, roughly.
DEVIATION = 0.25
#: What is below this many steps of a quantiser becomes 0, where the mid-point would be half a step: densities fall.
DEAD_ZONE = 0.6
MOST_STEPS = 15
#: The first component of a white block.
BRIGHTEST = 0.5 * np.sqrt(192)
#: Shape of the generalised Gaussian of the other components: rare values are larger than a Laplacian's.
SHAPE = 0.4
#: Brings pixels in -1/2..1/2, and some beyond, above 0, where ReLU leaves them as they are.
OFFSET = 0.75


class Bit(NamedTuple):
    """One bit: whether a component, or its opposite, is above a threshold.

    component: which one, 0 the one of the most energy.
    opposite: whether the opposite of the component is compared.
    threshold: in the units of the images.
    step: between thresholds of this component.
    worth: what the bit adds to the component, or takes from it, in the units of the images.
    share: of blocks, in which it is 1.
    """

    component: int
    opposite: bool
    threshold: float
    step: float
    worth: float
    share: float


def begin(encoder: Chain, code_head: Chain, decoder: Chain) -> list[Bit]:
    """Builds three chains of `transforms/networks/cwic.py` and initialises them as that transform. Returns the bits.

    Raises:
      ValueError: they are too narrow for 8x8 blocks.
    """
    for chain in (encoder, code_head, decoder):
        chain.build()
    first, second, third = _convolutions(encoder)
    (head,) = _convolutions(code_head)
    of_codes, to_blocks, to_quarters, to_pixels, to_colours = _convolutions(decoder)
    fine, coarse = min(48, first.filters // 2), min(192, second.filters // 2, of_codes.filters // 2)
    least = ((to_blocks, 192), (to_quarters, 48), (to_pixels, 3))
    if min(fine, coarse) < 3 or any(layer.filters < channels for layer, channels in least):
        raise ValueError("a linear start takes wider transforms: --start random")
    bits = best_bits(head.filters, coarse)
    quarters, blocks = principal_components(4)[0][:fine], principal_components(8)[0][:coarse]

    # Components of 4x4 pixels, then of 8x8, as what is positive of them and what is negative.
    _hold(first, _with_opposites(quarters.T.reshape(4, 4, 3, fine)))
    inside = np.einsum("kyaxbc,fabc->yxfk", blocks.reshape(-1, 2, 4, 2, 4, 3), quarters.reshape(fine, 4, 4, 3))
    _hold(second, _with_opposites(_of_opposites(inside)))
    _hold(third, np.eye(2 * coarse)[None, None])
    compared, biases = np.zeros([1, 1, 2 * coarse, len(bits)]), np.zeros(len(bits))
    summed = np.zeros([1, 1, len(bits), 2 * coarse])
    for code, bit in enumerate(bits):
        half = 2 * bit.component + bit.opposite
        gain = 4 / bit.step  # the sigmoid rises by as much as the quantiser, over one step of it
        compared[0, 0, half, code] = gain
        biases[code] = -gain * bit.threshold
        summed[0, 0, code, half] = bit.worth
    _hold(head, compared, biases)
    # Sums of what bits are worth, components to pixels of 8x8, and these to their places.
    _hold(of_codes, summed)
    wide = np.zeros([1, 1, coarse, 4, to_blocks.filters // 4])
    wide[..., :48] = blocks.reshape(-1, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(coarse, 4, 48)
    offset = np.zeros([4, to_blocks.filters // 4])
    offset[:, :48] = OFFSET
    _hold(to_blocks, _of_opposites(wide.reshape(1, 1, coarse, -1)), offset.reshape(-1), only=offset.reshape(-1) > 0)
    wide = np.zeros([1, 1, 48, 16, to_quarters.filters // 16])
    wide[..., :3] = np.eye(48).reshape(48, 16, 3)
    _hold(to_quarters, wide.reshape(1, 1, 48, -1), only=wide.sum((0, 1, 2)).reshape(-1) > 0)
    _hold(to_pixels, np.eye(3)[None, None])
    _hold(to_colours, np.eye(3)[None, None], np.full(3, -OFFSET))
    return bits


def _convolutions(chain: Chain) -> list[tf.keras.layers.Conv2D]:
    """Those of a chain itself, not those of its blocks, which pass on what is not negative."""
    return [layer for layer in chain.layers if isinstance(layer, tf.keras.layers.Conv2D)]


def _hold(layer, block: np.ndarray, bias: np.ndarray | None = None, only: np.ndarray | None = None) -> None:
    """Lets the first input and output channels of a convolution be `block` [height, width, in, out] in its middle.

    Output channels beyond those of the block, or that `only` [out] does not say, keep their random start.
    """
    value, biases = layer.kernel.numpy(), layer.bias.numpy()
    height, width, inputs, outputs = block.shape
    chosen = np.flatnonzero(np.ones(outputs, bool) if only is None else only)
    # For SAME padding with a kernel as much larger than its stride as these are.
    top, left = (value.shape[0] - height) // 2, (value.shape[1] - width) // 2
    value[..., chosen] = 0
    value[top : top + height, left : left + width, :inputs, chosen] = block[..., chosen]
    biases[chosen] = 0 if bias is None else bias[chosen]
    layer.kernel.assign(value)
    layer.bias.assign(biases)


def _with_opposites(kernel: np.ndarray) -> np.ndarray:
    """[..., out] -> [..., 2 out], each output and its opposite side by side: behind ReLU nothing is lost."""
    return np.stack([kernel, -kernel], -1).reshape(*kernel.shape[:-1], -1)


def _of_opposites(kernel: np.ndarray) -> np.ndarray:
    """[..., in, out] -> [..., 2 in, out], for inputs that come in opposite halves."""
    return np.stack([kernel, -kernel], -2).reshape(*kernel.shape[:-2], -1, kernel.shape[-1])


def principal_components(side: int) -> tuple[np.ndarray, np.ndarray]:
    """See `block_components`: of square blocks of images in -1/2..1/2."""
    return block_components(side, DEVIATION, PIXEL_CORRELATION)


def best_bits(count: int, components: int) -> list[Bit]:
    """The bits that tell blocks apart best, an even number of them, in the order of the channels of the codes.

    Brightness comes first, the thresholds in the middle of what is left before those between; then the lowest
    thresholds of the other components, those above, and so on. A bit is best predicted from those of its own component,
    and a context model sees those of the groups before: see `groups`. All components have about the same step.
    """
    deviations = principal_components(8)[1][:components]
    stages = _stages(count)
    number = 2**stages - 1
    step = BRIGHTEST / (number + 0.5)
    pairs = []
    for k in [(2 * k + 1) << (stages - 1 - s) for s in range(stages) for k in range(2**s)]:
        threshold = (k - 0.5) * step
        pairs.append((0, threshold, step, step, (1 - threshold / BRIGHTEST) / 2))
    steps = np.geomspace(0.05, 4, 60)
    _, others = min((_with_step(deviations, step, count // 2 - number) for step in steps), key=lambda found: found[0])
    pairs += sorted(others, key=lambda pair: pair[1])
    return [Bit(pair[0], opposite, *(float(x) for x in pair[1:])) for pair in pairs for opposite in (False, True)]


def _stages(count: int) -> int:
    """How often the range of brightness is halved by the first ones of `count` bits."""
    return max(count.bit_length() - 4, 1)


def _with_step(deviations: np.ndarray, step: float, count: int) -> tuple[float, list[tuple]]:
    """`count` pairs of bits for all components but the first with one step, those that lower the squared error most:
    what is left of it, and the pairs as `Bit` has them."""
    found, error = [], 0.0
    for c in range(1, len(deviations)):
        values = deviations[c] * _magnitudes()
        level = np.floor(values / step + 1 - DEAD_ZONE).astype(int)
        number = np.bincount(level)
        levels = np.bincount(level, values) / np.maximum(number, 1)
        levels[0] = 0
        error += float(np.mean(values**2))
        for k in range(1, min(len(levels), MOST_STEPS + 1)):
            if not number[k]:
                break
            beyond = values[level >= k]
            gain = float(np.sum((beyond - levels[k - 1]) ** 2 - (beyond - levels[k]) ** 2) / len(values))
            pair = c, (k - 1 + DEAD_ZONE) * step, step, levels[k] - levels[k - 1], len(beyond) / len(values) / 2
            found.append((gain, pair))
    found.sort(key=lambda one: -one[0])
    if len(found) < count:
        return np.inf, []
    return error - sum(gain for gain, _ in found[:count]), [pair for _, pair in found[:count]]


@functools.cache
def _magnitudes() -> np.ndarray:
    """Values as frequent as the magnitudes of a component of standard deviation 1, [1000], rising."""
    # Of a variable that is distributed as Gamma(1 / SHAPE), to the power 1 / SHAPE.
    powers = np.linspace(0, 40, 400_001)[1:]
    share = np.cumsum(powers ** (1 / SHAPE - 1) * np.exp(-powers))
    values = np.interp((np.arange(1000) + 0.5) / 1000, share / share[-1], powers) ** (1 / SHAPE)
    return values / np.sqrt(np.mean(values**2))
