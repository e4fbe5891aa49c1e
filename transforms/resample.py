"""Convolutions that halve or double the resolution, as every codec of the zoo uses them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transforms.starts.linear import Stage


class Downsample(tf.keras.layers.Conv2D):
    """Convolution of stride 2, zero padded: [B, H, W, C] -> [B, H / 2, W / 2, filters], H and W even."""

    def __init__(self, filters: int, kernel_size: int = 5, **kwargs):
        super().__init__(filters, kernel_size, strides=2, padding="same", **kwargs)

    def init_linear(self, stage: Stage) -> None:
        """See `transforms/starts/linear.py`. Channels beyond the stage's keep their random start."""
        value = self.kernel.numpy()
        value[..., : stage.kernel.shape[-1]] = 0
        self.kernel.assign(place_block(value, stage.kernel))


class Subsample(tf.keras.layers.Layer):
    """A 1x1 convolution of every other row and column: [B, H, W, C] -> [B, H / 2, W / 2, filters], H and W even.

    Not a convolution of stride 2: with a 1x1 kernel, TensorFlow 2.14 corrupts memory on CPUs in the kernel's gradient.
    """

    def __init__(self, filters: int, name: str | None = None):
        super().__init__(name=name)
        self.conv = tf.keras.layers.Conv2D(filters, 1, name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)
        super().build(input_shape)

    def call(self, x):
        return self.conv(x[:, ::2, ::2])


class Upsample(tf.keras.layers.Conv2DTranspose):
    """Transposed convolution of stride 2: [B, H, W, C] -> [B, 2H, 2W, filters].

    With few output channels (`subpixel=True`) the same map is computed as a 3x3 convolution to 4 * filters channels
    and a depth-to-space: oneDNN's transposed convolution from 192 to 3 channels took twice as long.
    """

    def __init__(self, filters: int, kernel_size: int = 5, subpixel: bool = False, **kwargs):
        if subpixel and kernel_size != 5:
            raise ValueError("the sub-pixel form is written for 5x5 kernels")
        super().__init__(filters, kernel_size, strides=2, padding="same", **kwargs)
        self.subpixel = subpixel

    def call(self, inputs):
        if not self.subpixel:
            return super().call(inputs)
        x = tf.nn.conv2d(inputs, subpixel_kernel(tf.cast(self.kernel, inputs.dtype)), 1, "SAME")
        x = tf.nn.depth_to_space(x, 2)
        return x + tf.cast(self.bias, x.dtype) if self.use_bias else x

    def init_linear(self, stage: Stage) -> None:
        """See `transforms/starts/linear.py`. Channels beyond the stage's have no part in what it makes at first."""
        value = self.kernel.numpy()
        value[:, :, : stage.kernel.shape[2]] = 0
        self.kernel.assign(place_block(value, stage.kernel))


class SpaceToDepth(tf.keras.layers.Layer):
    """[B, factor H, factor W, C] -> [B, H, W, factor² C]."""

    def __init__(self, factor: int, name: str | None = None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.factor = factor

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        height, width = (size and size // self.factor for size in (height, width))
        return tf.TensorShape([batch, height, width, channels * self.factor**2])

    def call(self, x):
        return tf.nn.space_to_depth(x, self.factor)


class DepthToSpace(tf.keras.layers.Layer):
    """[B, H, W, factor² C] -> [B, factor H, factor W, C]."""

    def __init__(self, factor: int, name: str | None = None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.factor = factor

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        height, width = (size and size * self.factor for size in (height, width))
        return tf.TensorShape([batch, height, width, channels // self.factor**2])

    def call(self, x):
        return tf.nn.depth_to_space(x, self.factor)


def place_block(kernel: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Puts [2, 2, A, B] into [K, K, at least A, at least B], K odd, and returns the latter.

    Where a convolution of stride 2, or a transposed one, with TensorFlow's "same" padding meets the pixels of its 2x2
    blocks.
    """
    first = (kernel.shape[0] - 2) // 2
    kernel[first : first + 2, first : first + 2, : block.shape[2], : block.shape[3]] = block
    return kernel


def pad_to_multiple(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Repeats the last row and column of [B, H, W, C] until H and W are multiples of `factor`."""
    for axis in (1, 2):
        size = tf.shape(x)[axis]
        x = tf.gather(x, tf.minimum(tf.range(-(-size // factor) * factor), size - 1), axis=axis)
    return x


def subpixel_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """3x3 kernel [3, 3, C_in, 4 * C_out] of the transposed convolution with `kernel` [5, 5, C_out, C_in], stride 2.

    With TensorFlow's "same" padding input i reaches output p through tap k = p + 1 - 2 i. Output p = 2 a + phase sees
    the inputs a - 1, a, a + 1 through the taps 3 + phase, 1 + phase and phase - 1 (no tap if negative or above 4).
    """
    c_out, c_in = kernel.shape[2:]
    # Reversed and padded to six, the taps of one input lie together: (4, 3), (2, 1), (0, -).
    taps = tf.pad(tf.reverse(kernel, [0, 1]), [[0, 1], [0, 1], [0, 0], [0, 0]])
    taps = tf.reshape(taps, [3, 2, 3, 2, c_out, c_in])
    taps = tf.reverse(taps, [1, 3])  # within a pair: phase 0 before phase 1
    return tf.reshape(tf.transpose(taps, [0, 2, 5, 1, 3, 4]), [3, 3, c_in, 4 * c_out])
