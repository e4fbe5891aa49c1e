"""Transforms of patches: all of the work at an eighth and a sixteenth of the resolution.

The paper's transforms begin at half of the resolution, where a layer of few channels moves many numbers and does little
with them: their time goes into memory, not into arithmetic. Here a picture is cut into patches of 8x8 pixels, which are
the channels of what follows, so layers are wide and few; what a synthesis gives are patches again. After Jia et al.,
"Towards Practical Real-Time Neural Video Compression", CVPR 2025, whose codecs work at a single low resolution. The
residual blocks are of two 3x3 convolutions, as matrix units of processors like them best. Not in ELIC's paper.

Wide layers must learn slowly. Adam changes each weight by about its learning rate, so what a layer gives changes by
that times the number of its inputs, and at a rate that suits narrow layers wide ones fall apart. Here kernels are
stored in units of what they may change by (the equalised learning rate of Karras et al., "Progressive Growing of GANs",
ICLR 2018, with the proportions of Yang et al., "Tensor Programs V", 2022).

    images ─► patches 8x8 ─► 3x3 ─► blocks ─► 2x2 to one ─► 3x3 ─► blocks ─► y          (analysis; synthesis: reversed)
    [H, W, 3]  [H/8, W/8, 192]                 [H/16, W/16, 4 width]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from transforms.chain import Chain
from transforms.networks.detail import components
from transforms.resample import DepthToSpace, SpaceToDepth
from transforms.residual import Residual

#: Side of a patch, in pixels, and how many numbers it is.
PATCH = 8
VALUES = 3 * PATCH * PATCH
#: Of what is below 0: hidden units of a plain ReLU can die, and at low resolutions most did (res/doc/elic.md).
SLOPE = 0.1
#: Kernels of so many inputs learn at the rate that an optimizer has, those of more at one that is lower in proportion.
FULL_RATE = 200


def unit(kernel_shape: Sequence[int]) -> float:
    """What a kernel [3, 3, inputs, outputs] is stored in units of: 1 for few inputs, less for many."""
    return min(1.0, FULL_RATE / math.prod(kernel_shape[:-1]))


class InUnits(tf.keras.initializers.Initializer):
    """Another initializer's kernel, in units of `unit`."""

    def __init__(self, kernel: tf.keras.initializers.Initializer):
        self.kernel = kernel

    def __call__(self, shape, dtype=None, **kwargs):
        return self.kernel(shape, dtype, **kwargs) / unit(shape)


class Conv(tf.keras.layers.Conv2D):
    """3x3 convolution, zero padded, [B, H, W, C] -> [B, H, W, filters]; its kernel is stored in units of `unit`."""

    def __init__(self, filters: int, kernel_initializer: str = "glorot_uniform", **kwargs):
        initializer = InUnits(tf.keras.initializers.get(kernel_initializer))
        super().__init__(filters, 3, padding="same", kernel_initializer=initializer, **kwargs)

    def convolution_op(self, inputs, kernel):
        """See Keras' `Conv2D`."""
        return super().convolution_op(inputs, kernel * unit(kernel.shape))

    def centre(self, matrix: np.ndarray) -> None:
        """Makes it the map of each place by itself that a matrix [inputs, outputs] is, for as many as both have.

        Outputs beyond the matrix keep their random start; inputs beyond it have no part in the others.
        """
        value = self.kernel.numpy()
        rows, columns = min(matrix.shape[0], value.shape[2]), min(matrix.shape[1], value.shape[3])
        value[..., :columns] = 0
        value[1, 1, :rows, :columns] = matrix[:rows, :columns] / unit(value.shape)
        self.kernel.assign(value)


def _leaky_relu(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.leaky_relu(x, SLOPE)


class ResidualBlock(Residual):
    """x + 3x3(leaky ReLU(3x3(x))), [B, H, W, channels] -> the same. Begins as the identity.

    hidden: channels between the two convolutions.
    """

    def __init__(self, channels: int, hidden: int, name: str | None = None):
        first = Conv(hidden, activation=_leaky_relu, name="first")
        super().__init__(first, Conv(channels, kernel_initializer="zeros", name="second"), name=name)


def _blocks(count: int, channels: int, hidden: int, name: str) -> list[ResidualBlock]:
    return [ResidualBlock(channels, hidden, name=f"{name}{n}") for n in range(count)]


def analysis(widths: Sequence[int], blocks: Sequence[int], latents: int) -> Chain:
    """Images [B, H, W, 3] -> y [B, H / 16, W / 16, latents].

    widths: channels at 1/8 of the resolution, and between the convolutions of a block at 1/16.
    blocks: residual blocks at 1/8 and at 1/16.
    """
    fine, coarse = widths
    return Chain(
        3,
        lambda: [
            SpaceToDepth(PATCH),
            Conv(fine, name="embed"),
            *_blocks(blocks[0], fine, fine, "fine"),
            SpaceToDepth(2),
            Conv(latents, name="join"),
            *_blocks(blocks[1], latents, coarse, "coarse"),
        ],
        name="analysis",
    )


def synthesis(widths: Sequence[int], blocks: Sequence[int], latents: int) -> Chain:
    """The mirror of `analysis`: y_hat [B, H / 16, W / 16, latents] -> images [B, H, W, 3], float32."""
    fine, coarse = widths
    return Chain(
        latents,
        lambda: [
            *_blocks(blocks[1], latents, coarse, "coarse"),
            Conv(4 * fine, name="part"),
            DepthToSpace(2),
            *_blocks(blocks[0], fine, fine, "fine"),
            Conv(VALUES, name="pixels"),
            DepthToSpace(PATCH, dtype="float32"),
        ],
        name="synthesis",
    )


def reach(blocks: Sequence[int]) -> int:
    """How far a pixel or latent reaches through either of the two, in pixels, rounded up to a latent's side."""
    fine, coarse = blocks
    far = PATCH * (1 + 2 * fine) + 2 * PATCH * (1 + 2 * coarse)
    return -(-far // (2 * PATCH)) * 2 * PATCH


def begin(analysis: Chain, synthesis: Chain, step: float) -> None:
    """Builds both and lets them begin as a linear transform of 16x16 blocks and its inverse; see `linear_start`.

    step: that of the quantiser, in the units of the images: latents are the components, divided by it.
    """
    analysis.build()
    latents = _convolutions(analysis)[1].filters
    whole = components(0, latents).reshape(2, PATCH, 2, PATCH, 3, latents).transpose(0, 2, 1, 3, 4, 5)
    whole = whole.reshape(4 * VALUES, latents)  # in the order of patches of patches: 2x2 of 8x8
    begin_as(analysis, synthesis, Affine(whole / step), Affine(whole.T * step))


@dataclasses.dataclass(frozen=True)
class Affine:
    """x -> x matrix + constant. matrix: [inputs, outputs]; constant: [outputs] or 0."""

    matrix: np.ndarray
    constant: np.ndarray | float = 0.0


class Fit:
    """The affine map that tells y from x with the least squared error, of all samples so far."""

    def __init__(self):
        self._squares, self._products = 0.0, 0.0

    def see(self, x: np.ndarray, y: np.ndarray) -> None:
        """x: [..., inputs], y: [..., outputs], with the same samples."""
        x, y = (np.asarray(v, np.float64).reshape(-1, np.shape(v)[-1]) for v in (x, y))
        x = np.concatenate([x, np.ones([len(x), 1])], 1)
        self._squares, self._products = self._squares + x.T @ x, self._products + x.T @ y

    def best(self) -> Affine:
        """The map; a millionth of the mean square keeps it small where samples say nothing."""
        ridge = 1e-6 * np.trace(self._squares) / len(self._squares) * np.eye(len(self._squares))
        found = np.linalg.solve(self._squares + ridge, self._products)
        return Affine(found[:-1], found[-1])


def blocks_of(images: tf.Tensor) -> tf.Tensor:
    """Images [B, H, W, 3] -> their blocks of 16x16 as these transforms see them, [B, H / 16, W / 16, 4 VALUES]."""
    return tf.nn.space_to_depth(tf.nn.space_to_depth(images, PATCH), 2)


def begin_as(analysis: Chain, synthesis: Chain, forward: Affine, inverse: Affine) -> None:
    """Builds both and lets them begin as affine maps from `blocks_of` images to latents, and back."""
    analysis.build()
    synthesis.build()
    (embed, join), (part, pixels) = _convolutions(analysis), _convolutions(synthesis)
    embed.centre(np.eye(VALUES))
    pixels.centre(np.eye(VALUES))
    join.centre(_per_patch(forward.matrix, embed.filters))
    part.centre(_per_patch(inverse.matrix.T, embed.filters).T)
    join.bias.assign(forward.constant + np.zeros(join.filters))
    constant = inverse.constant + np.zeros(4 * VALUES)
    part.bias.assign(_per_patch(constant[:, None], embed.filters)[:, 0])


def _convolutions(chain: Chain) -> list[Conv]:
    return [layer for layer in chain.layers if isinstance(layer, Conv)]


def _per_patch(matrix: np.ndarray, width: int) -> np.ndarray:
    """[4 VALUES, n] -> [4 width, n]: the first channels are the patch, others have no part."""
    parts = matrix.reshape(4, VALUES, -1)[:, :width]
    return np.pad(parts, [(0, 0), (0, width - parts.shape[1]), (0, 0)]).reshape(4 * width, -1)
