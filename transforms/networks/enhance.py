"""ELC's networks behind the latents: the feature transform for the machine, the enhanced decoder for people.

Sha et al.: "Extremely Low Bitrate Image Compression with Decoder-Side Enhancement for Human and Machine". The
residual-in-residual dense blocks (RRDB) are those of Wang et al., "ESRGAN", ECCV Workshops 2018, arXiv 1809.00219.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from transforms.chain import Chain
from transforms.networks.cheng import ResidualBlock, SubPixelConv
from transforms.networks.elic import ResidualBottleneck
from transforms.resample import Upsample

Layer = tf.keras.layers.Layer
Conv2D = tf.keras.layers.Conv2D

#: Scale of what a dense block, and a group of three, add to their input (ESRGAN).
RESIDUAL_SCALE = 0.2
DENSE_CONVS, DENSE_BLOCKS = 5, 3


# --- for the machine -------------------------------------------------------------------------------------------


class WideBottleneck(ResidualBottleneck):
    """x + [1x1 2c, ReLU, 3x3 2c, ReLU, 1x1 c](x): [B, H, W, c] -> [B, H, W, c]. Wider inside, not narrower."""

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(channels, hidden=2 * channels, name=name)


def feature_transform(latents: int, width: int, features: int) -> Chain:
    """FETM: y_hat [B, H, W, latents] -> what the classifier's later stages take, float32 [B, 2 H, 2 W, features]."""
    return Chain(
        latents,
        lambda: [
            Upsample(latents, name="up"),
            ResidualBlock(latents, name="block1"),
            WideBottleneck(latents, name="bottleneck1"),
            ResidualBlock(latents, name="block2"),
            Conv2D(width, 3, padding="same", name="widen"),
            ResidualBlock(width, name="block3"),
            WideBottleneck(width, name="bottleneck2"),
            ResidualBlock(width, name="block4"),
            Conv2D(features, 1, dtype="float32", name="features"),
        ],
        name="feature_transform",
    )


# --- for people ------------------------------------------------------------------------------------------------


class DenseBlock(Layer):
    """x + 0.2 [five 3x3 convolutions, each of all before it](x): [B, H, W, channels] -> the same shape."""

    def __init__(self, channels: int, growth: int, name: str | None = None):
        super().__init__(name=name)
        widths = [growth] * (DENSE_CONVS - 1) + [channels]
        self.convs = [Conv2D(w, 3, padding="same", name=f"conv{n}") for n, w in enumerate(widths)]

    def build(self, input_shape):
        *around, channels = input_shape
        for conv in self.convs:
            conv.build(tf.TensorShape([*around, channels]))
            channels += conv.filters
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        known = [x]
        for conv in self.convs[:-1]:
            known.append(tf.nn.leaky_relu(conv(tf.concat(known, -1)), 0.2))
        return x + RESIDUAL_SCALE * self.convs[-1](tf.concat(known, -1))


class RRDB(Layer):
    """x + 0.2 [three dense blocks](x): [B, H, W, channels] -> the same shape."""

    def __init__(self, channels: int, growth: int, name: str | None = None):
        super().__init__(name=name)
        self.blocks = [DenseBlock(channels, growth, name=f"dense{n}") for n in range(DENSE_BLOCKS)]

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        y = x
        for block in self.blocks:
            y = block(y)
        return x + RESIDUAL_SCALE * y


class EnhancementBlock(Layer):
    """[RRDBs, 3x3, sub-pixel, 3x3, ReLU](x) + [sub-pixel](x): [B, H, W, channels] -> [B, 2 H, 2 W, channels]."""

    def __init__(self, channels: int, growth: int, count: int, name: str | None = None):
        super().__init__(name=name)
        self.branch = Chain(
            channels,
            lambda: [
                *(RRDB(channels, growth, name=f"rrdb{n}") for n in range(count)),
                Conv2D(channels, 3, padding="same", name="trunk"),
                SubPixelConv(channels, name="up"),
                Conv2D(channels, 3, padding="same", activation="relu", name="conv"),
            ],
            name="branch",
        )
        self.skip = SubPixelConv(channels, name="skip")

    def build(self, input_shape):
        self.branch.build()
        self.skip.build(input_shape)
        super().build(input_shape)

    def call(self, x):
        return self.branch(x) + self.skip(x)


class FusionAttention(Layer):
    """f + bottleneck(f) * sigmoid(mask(f)): [B, H, W, c] -> [B, H, W, c]. The mask is per position and channel."""

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(name=name)
        self.value = ResidualBottleneck(channels, name="value")
        self.mask = Chain(
            channels,
            lambda: [
                Conv2D(channels // 4, 1, activation="relu", name="reduce"),
                Conv2D(channels // 4, 3, padding="same", activation="relu", name="spatial"),
                Conv2D(channels, 1, name="expand"),
            ],
            name="mask",
        )

    def build(self, input_shape):
        self.value.build(input_shape)
        self.mask.build()
        super().build(input_shape)

    def call(self, x):
        return x + self.value(x) * tf.sigmoid(self.mask(x))


class Enhancement(Layer):
    """The enhanced decoder behind its four stages: features [y1, y2, y3, y4] -> images, float32 [B, H, W, 3].

        y2 ─ reduce ──────────► E1 ─┐                         y2, y3, y4 at 1/8, 1/4, 1/2; `reduce` is shared
        y3 ─ reduce ───────────── + ┴► E2 ─┐
        y4 ─┬──────────────── concatenate ─┴─ fusion ─ 1x1 ─ + ─ sub-pixel ─ image
            └────────────────────────────────────────────────┘

    The last sum is ours: its 1x1 convolution starts at zero and the sub-pixel convolution as the decoder's, so that
    what is enhanced is the decoder's own image from the first step on.

    Args:
      width: channels of y1 ... y4.
      channels, growth, count: width of the enhancement blocks, growth and number of their RRDBs.
    """

    def __init__(self, width: int, channels: int, growth: int, count: int, name: str = "enhancement"):
        super().__init__(name=name)
        self.width, self.channels = width, channels
        self.reduce = Conv2D(channels, 1, name="reduce")
        self.first = EnhancementBlock(channels, growth, count, name="first")
        self.second = EnhancementBlock(channels, growth, count, name="second")
        self.fusion = FusionAttention(width + channels, name="fusion")
        self.fuse = Conv2D(width, 1, kernel_initializer="zeros", name="fuse")
        self.output_conv = SubPixelConv(3, dtype="float32", name="up1")

    def build(self, input_shape=None):
        def shape(channels):
            return tf.TensorShape([None, None, None, channels])

        for layer in (self.reduce, self.output_conv):
            layer.build(shape(self.width))
        for layer in (self.first, self.second):
            layer.build(shape(self.channels))
        for layer in (self.fusion, self.fuse):
            layer.build(shape(self.width + self.channels))
        super().build(input_shape)

    def call(self, features: Sequence[tf.Tensor]):
        _, y2, y3, y4 = features
        enhanced = self.second(self.reduce(y3) + self.first(self.reduce(y2)))
        return self.output_conv(y4 + self.fuse(self.fusion(tf.concat([y4, enhanced], -1))))
