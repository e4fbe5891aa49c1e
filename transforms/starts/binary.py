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

import dataclasses
import functools
import statistics

import numpy as np
import tensorflow as tf

from transforms.chain import Chain
from transforms.starts.linear import covariance

#: Of neighbouring pixels. Smaller than that of `linear_start`: what counts for bits is how large components get where
#: images are busy. (Of 0.96 to 0.99 the one with the smallest error on photographs.)
PIXEL_CORRELATION = 0.97
#: Standard deviation of the values of photographs in -1/2..1/2, roughly.
DEVIATION = 0.25
#: What is below this many steps of a quantiser becomes 0, where the mid-point would be half a step: densities fall.
DEAD_ZONE = 0.6
MOST_STEPS = 15
#: Brings pixels in -1/2..1/2, and some beyond, above 0, where ReLU leaves them as they are.
OFFSET = 0.75


@dataclasses.dataclass(frozen=True)
class Bits:
    """A pair of bits: whether a component is above a threshold, and whether it is below its opposite.

    component: which one, 0 the one of the most energy.
    threshold: in the units of the images.
    step: between thresholds of this component.
    worth: what each of the two adds to the component, or takes from it, in the units of the images.
    """

    component: int
    threshold: float
    step: float
    worth: float


def begin(encoder: Chain, code_head: Chain, decoder: Chain) -> None:
    """Builds three chains of `transforms/networks/cwic.py` and initialises them as that transform.

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
    pairs = best_bits(head.filters // 2, coarse)
    quarters, blocks = principal_components(4)[0][:fine], principal_components(8)[0][:coarse]

    # Components of 4x4 pixels, then of 8x8, as what is positive of them and what is negative.
    _hold(first, _with_opposites(quarters.T.reshape(4, 4, 3, fine)))
    inside = np.einsum("kyaxbc,fabc->yxfk", blocks.reshape(-1, 2, 4, 2, 4, 3), quarters.reshape(fine, 4, 4, 3))
    _hold(second, _with_opposites(_of_opposites(inside)))
    _hold(third, np.eye(2 * coarse)[None, None])
    compared, biases = np.zeros([1, 1, 2 * coarse, 2 * len(pairs)]), np.zeros(2 * len(pairs))
    summed = np.zeros([1, 1, 2 * len(pairs), 2 * coarse])
    for k, bits in enumerate(pairs):
        for sign in (0, 1):
            code, half = 2 * k + sign, 2 * bits.component + sign
            gain = 4 / bits.step  # the sigmoid rises by as much as the quantiser, over one step of it
            compared[0, 0, half, code] = gain
            biases[code] = -gain * bits.threshold
            summed[0, 0, code, half] = bits.worth
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


@functools.cache
def principal_components(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of square blocks of photographs: components [3 side², 3 side²], one a row over (row, column, colour), most energy
    first; and their standard deviations [3 side²] in the units of the images."""
    energy, vectors = np.linalg.eigh(covariance(side, PIXEL_CORRELATION))
    return vectors.T[::-1], DEVIATION * np.sqrt(np.maximum(energy[::-1], 0))


def best_bits(count: int, components: int) -> list[Bits]:
    """The pairs of bits that lower the squared error of blocks most, each after those before it.

    A step more of a component changes the thresholds of all of its steps; each pair has those of the last one.
    """
    deviations = principal_components(8)[1][:components]
    # The first component is mostly brightness, of which photographs have all.
    quantisers = [_quantisers(c == 0) for c in range(components)]
    steps, order = np.zeros(components, int), []
    for _ in range(count):
        # A component with all of its steps gains nothing by another.
        errors = [[q[min(n, MOST_STEPS)][0] for n in (steps[c], steps[c] + 1)] for c, q in enumerate(quantisers)]
        gains = deviations**2 * [now - then for now, then in errors]
        chosen = int(np.argmax(gains))
        order.append((chosen, steps[chosen]))
        steps[chosen] += 1
    result = []
    for c, k in order:
        _, step, levels = quantisers[c][steps[c]]
        numbers = (k + DEAD_ZONE) * step, step, levels[k + 1] - levels[k]
        result.append(Bits(c, *(float(deviations[c] * number) for number in numbers)))
    return result


@functools.cache
def _quantisers(gaussian: bool) -> list[tuple[float, float, np.ndarray]]:
    """Of n steps on each side of 0, for n = 0 to MOST_STEPS, of a magnitude with standard deviation 1: the least
    squared error, the step, and what it is taken for after 0 to n steps. It is Gaussian, or else Laplacian."""
    places = (np.arange(1000) + 0.5) / 1000
    if gaussian:
        values = np.array([statistics.NormalDist().inv_cdf((1 + p) / 2) for p in places])
    else:
        values = -np.log(1 - places) / np.sqrt(2)
    return [_quantiser(values, n) for n in range(MOST_STEPS + 1)]


def _quantiser(values: np.ndarray, steps: int) -> tuple[float, float, np.ndarray]:
    """One of `_quantisers`, for magnitudes that are as frequent as these values."""
    best = None
    for step in np.geomspace(0.05, 4, 60):
        level = np.clip(np.floor(values / step + 1 - DEAD_ZONE), 0, steps).astype(int)
        number = np.bincount(level, minlength=steps + 1)
        levels = np.bincount(level, values, steps + 1) / np.maximum(number, 1)
        levels[0] = 0
        if steps and not number.all():
            continue  # too large a step for so many of them
        error = float(np.mean((values - levels[level]) ** 2))
        if best is None or error < best[0]:
            best = error, step, levels
    return best
