"""A start for analysis and synthesis: the linear transform of a classical codec.

Where layers that halve or double the resolution are joined by others that can pass on what they are given, such as
residual blocks, a network can begin as any linear transform in stages of 2x2 blocks: the former hold it, the others do
nothing at first, and what else the network can do it learns from there. Here each stage takes the principal components
of four neighbours, which pack most of the energy into the fewest channels, and the synthesis begins as the inverse. No
image is needed for it: how much pixels resemble their neighbours differs little between photographs.

Layers say themselves how they do it. One that changes the resolution has a method `init_linear(stage)`, and begins as a
`Stage` or, in a synthesis, as its transpose; others have `init_identity()`, or are convolutions of stride 1 before the
first stage or behind the last.

A random start has to learn first that an image can be taken apart and put together again, which takes thousands of
steps, and the more the higher the rate.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from transforms.chain import Chain

#: Correlations in photographs, roughly: of pixels at a distance of 1, and of red, green and blue of a pixel.
PIXEL_CORRELATION = 0.99
COLOUR_CORRELATION = 0.93


@dataclasses.dataclass(frozen=True)
class Stage:
    """A linear map of 2x2 neighbours.

    kernel: float32 [2, 2, fine, coarse], channels at the finer and at the coarser resolution.
    covariance: of the four neighbours, float64 [4 fine, 4 fine], in the order of the kernel.
    """

    kernel: np.ndarray
    covariance: np.ndarray

    def times(self, factor: float) -> Stage:
        """The stage with `factor` times its kernel."""
        return dataclasses.replace(self, kernel=self.kernel * np.float32(factor))

    def past_first(self, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The stage in two ways, for a layer with a skip that sees but the first of the four neighbours.

        The skip gives what the first neighbour tells of the components, the other way the rest of them as well as a
        map of that rank can (reduced-rank regression).

        Returns:
          float32: skip [fine, coarse]; take [2, 2, fine, r] and give [r, coarse], the other way's two halves, r at most
          `rank` and no larger than it need be.
        """
        fine, coarse = self.kernel.shape[2:]
        whole = self.kernel.reshape(-1, coarse).astype(np.float64)
        skip = np.linalg.lstsq(self.covariance[:fine, :fine], self.covariance[:fine] @ whole, rcond=None)[0]
        rest = whole.copy()
        rest[:fine] -= skip
        power, directions = np.linalg.eigh(rest.T @ self.covariance @ rest)
        give = directions[:, power > 1e-6 * power[-1]][:, ::-1][:, :rank].T
        take = (rest @ give.T).reshape(2, 2, fine, -1)
        return skip.astype(np.float32), take.astype(np.float32), give.astype(np.float32)


def principal_components(widths: Sequence[int]) -> list[Stage]:
    """The stages of an orthonormal transform of RGB blocks, each of which takes four neighbours of the one before.

    Args:
      widths: at most so many components each stage has, fine to coarse.

    Returns:
      The stages, the components of the most energy first.
    """
    stages, transform = [], np.eye(3).reshape(3, 1, 1, 3)  # of a block: [components, height, width, 3]
    for width in widths:
        count, side = transform.shape[0], transform.shape[1]
        four = np.zeros([2, 2, count, 2 * side, 2 * side, 3])
        for y, x in np.ndindex(2, 2):
            four[y, x, :, y * side : (y + 1) * side, x * side : (x + 1) * side] = transform
        flat = four.reshape(4 * count, -1)
        of_four = flat @ covariance(2 * side) @ flat.T
        _, vectors = np.linalg.eigh(of_four)
        chosen = vectors[:, ::-1][:, : min(width, 4 * count)]
        stages.append(Stage(chosen.reshape(2, 2, count, -1).astype(np.float32), of_four))
        transform = (chosen.T @ flat).reshape(-1, 2 * side, 2 * side, 3)
    return stages


def covariance(
    side: int, correlation: float = PIXEL_CORRELATION, colour_correlation: float = COLOUR_CORRELATION
) -> np.ndarray:
    """Models the covariance of a square block [side, side, 3] of photographs: float64 [3 side², 3 side²].

    correlation: of pixels at a distance of 1; colour_correlation: of the colours of a pixel.
    """
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    colours = np.full([3, 3], colour_correlation) + (1 - colour_correlation) * np.eye(3)
    return np.kron(correlation**distance, colours)


@functools.cache
def block_components(
    side: int, deviation: float, correlation: float, colour_correlation: float = COLOUR_CORRELATION
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the principal components of square blocks of photographs whose pixels have a standard deviation.

    correlation, colour_correlation: as of `covariance`.

    Returns:
      Components [3 side², 3 side²], one a row over (row, column, colour), most energy first; their standard deviations
      [3 side²] in the units of `deviation`.
    """
    energy, vectors = np.linalg.eigh(covariance(side, correlation, colour_correlation))
    return vectors.T[::-1], deviation * np.sqrt(np.maximum(energy[::-1], 0))


def best_step(lmbda: float) -> float:
    """The step for values that are all worth coding at a λ of the loss bpp + λ · MSE, in units of normalised images.

    Of variance D = step² / 12 is the distortion then, and three values a pixel cost 3/2 log2 (1 / D) bits more or less,
    with the slope -λ where D = 3 / (2 ln 2 λ).
    """
    return float(np.sqrt(18 / (np.log(2) * lmbda)) / 255)


def begin(analysis: Chain, synthesis: Chain, step: float) -> None:
    """Builds two transforms and lets them begin as that transform and its inverse; they can still learn all they could.

    step: that of the quantiser, in the units of the images: latents are the components, divided by it.
    """
    analysis.build()
    synthesis.build()
    down = [layer for layer in analysis.layers if hasattr(layer, "init_linear")]
    up = [layer for layer in synthesis.layers if hasattr(layer, "init_linear")][::-1]
    if len(down) != len(up):
        raise ValueError(f"{len(down)} layers halve the resolution, and {len(up)} double it")
    stages = principal_components([layer.filters for layer in down])
    for number, (stage, encode, decode) in enumerate(zip(stages, down, up)):
        scale = 1 / step if number + 1 == len(stages) else 1.0
        encode.init_linear(stage.times(scale))
        decode.init_linear(stage.times(1 / scale))
    for chain in (analysis, synthesis):
        for layer in chain.layers:
            if hasattr(layer, "init_identity"):
                layer.init_identity()
            elif (
                isinstance(layer, tf.keras.layers.Conv2D)
                and layer.strides == (1, 1)
                and not hasattr(layer, "init_linear")
            ):
                _pass_colours(layer.kernel)


def _pass_colours(kernel: tf.Variable) -> None:
    """Lets a convolution to or from the image's resolution take the colours to the first channels, or from them."""
    value = kernel.numpy()
    value[..., :3] = 0
    value[kernel.shape[0] // 2, kernel.shape[1] // 2, :3, :3] = np.eye(3)
    kernel.assign(value)
