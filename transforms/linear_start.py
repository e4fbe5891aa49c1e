"""A start for analysis and synthesis: the linear transform of a classical codec.

Where strided convolutions are joined by layers that can pass on what they are given, such as residual blocks, a
network can begin as any linear transform in stages of 2x2 blocks: the convolutions hold it, the other layers do nothing
at first, and what else the network can do it learns from there. Here each stage takes the principal components of four
neighbours, which pack most of the energy into the fewest channels, and the synthesis begins as the inverse. No picture
is needed for it: how much pixels resemble their neighbours differs little between photographs.

A random start has to learn first that a picture can be taken apart and put together again, which takes thousands of
steps, and the more the higher the rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from transforms.chain import Chain
from transforms.resample import Downsample, Upsample

#: Correlation of pixels at a distance of 1 and that of red, green and blue of a pixel: of photographs, roughly.
PIXEL_CORRELATION = 0.99
COLOUR_CORRELATION = 0.93


def principal_components(widths: Sequence[int]) -> list[np.ndarray]:
    """The stages of an orthonormal transform of RGB blocks, each of which takes four neighbours of the one before.

    Args:
      widths: at most so many components each stage has, fine to coarse.

    Returns:
      [2, 2, channels in, channels out] of each stage, the components of the most energy first.
    """
    stages, transform = [], np.eye(3).reshape(3, 1, 1, 3)  # of a block: [components, height, width, 3]
    for width in widths:
        count, side = transform.shape[0], transform.shape[1]
        four = np.zeros([2, 2, count, 2 * side, 2 * side, 3])
        for y, x in np.ndindex(2, 2):
            four[y, x, :, y * side : (y + 1) * side, x * side : (x + 1) * side] = transform
        flat = four.reshape(4 * count, -1)
        _, vectors = np.linalg.eigh(flat @ covariance(2 * side) @ flat.T)
        chosen = vectors[:, ::-1][:, : min(width, 4 * count)]
        stages.append(chosen.reshape(2, 2, count, -1).astype(np.float32))
        transform = (chosen.T @ flat).reshape(-1, 2 * side, 2 * side, 3)
    return stages


def covariance(side: int) -> np.ndarray:
    """Of the values of a square block [side, side, 3] of photographs, roughly: float64 [3 side², 3 side²]."""
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    colours = np.full([3, 3], COLOUR_CORRELATION) + (1 - COLOUR_CORRELATION) * np.eye(3)
    return np.kron(PIXEL_CORRELATION**distance, colours)


def best_step(lmbda: float) -> float:
    """The step for values that are all worth coding at a λ of the loss bpp + λ · MSE, in units of normalised images.

    Of variance D = step² / 12 is the distortion then, and three values a pixel cost 3/2 log2 (1 / D) bits more or less,
    with the slope -λ where D = 3 / (2 ln 2 λ).
    """
    return float(np.sqrt(18 / (np.log(2) * lmbda)) / 255)


def begin(analysis: Chain, synthesis: Chain, step: float) -> None:
    """Lets two transforms, built but not trained, begin as that transform and its inverse.

    Layers in between are convolutions of stride 1 before the first stage or behind the last, or have a method
    `pass_through()`: not trained yet, they then give what they are given, and can still learn all that they could.

    step: that of the quantiser, in the units of the images: latents are the components, divided by it.
    """
    down = [layer for layer in analysis.layers if isinstance(layer, Downsample)]
    up = [layer for layer in synthesis.layers if isinstance(layer, Upsample)][::-1]
    stages = principal_components([layer.filters for layer in down])
    for number, (stage, encode, decode) in enumerate(zip(stages, down, up, strict=True)):
        scale = 1 / step if number + 1 == len(stages) else 1.0
        _place(encode.kernel, stage * scale)
        _place(decode.kernel, stage / scale, whole_input=True)
    for chain in (analysis, synthesis):
        for layer in chain.layers:
            if hasattr(layer, "pass_through"):
                layer.pass_through()
            elif isinstance(layer, tf.keras.layers.Conv2D) and layer.strides == (1, 1):
                _pass_colours(layer.kernel)


def _pass_colours(kernel: tf.Variable) -> None:
    """Lets a convolution to or from the picture's resolution take the colours to the first channels, or from them."""
    value = kernel.numpy()
    value[..., :3] = 0
    value[kernel.shape[0] // 2, kernel.shape[1] // 2, :3, :3] = np.eye(3)
    kernel.assign(value)


def _place(kernel: tf.Variable, stage: np.ndarray, whole_input: bool = False) -> None:
    """Puts a stage where the 5x5 taps of a convolution of stride 2, or of a transposed one, meet a 2x2 block.

    kernel: [5, 5, fine, coarse] in both cases. Channels beyond the stage's keep their random start; they are not to
    be in the others' way: for a convolution, in what makes the components, for a transposed one, in what they make.
    """
    fine, coarse = stage.shape[2:]
    value = kernel.numpy()
    if whole_input:
        value[:, :, :fine] = 0
    else:
        value[..., :coarse] = 0
    value[1:3, 1:3, :fine, :coarse] = stage
    kernel.assign(value)
