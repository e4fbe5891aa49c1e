"""The transforms of ELIC.

He, Yang, Peng, Ma, Qin, Wang: "ELIC: Efficient Learned Image Compression with Unevenly Grouped Space-Channel
Contextual Adaptive Coding", CVPR 2022, arXiv 2203.10886. Residual bottleneck blocks stand where earlier codecs have
GDN; the attention is Cheng et al.'s (CVPR 2020) simplified one, with the paper's bottleneck as residual unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from transforms.chain import Chain
from transforms.resample import Downsample, Upsample

Layer = tf.keras.layers.Layer
Conv2D = tf.keras.layers.Conv2D

#: Where the gate of an attention that passes through begins, before its sigmoid: next to closed, not so far that it
#: could not open.
CLOSED = -6.0


class _SameShape(Layer):
    """A layer whose output has the shape of its input."""

    def compute_output_shape(self, input_shape):
        return input_shape


class ResidualBottleneck(_SameShape):
    """x + [1x1 c/2, ReLU, 3x3 c/2, ReLU, 1x1 c](x); with `final_relu` a ReLU after the sum (in the attention).

    [B, H, W, c] -> [B, H, W, c]. hidden: inner channels, c/2 by default.
    """

    def __init__(self, channels: int, final_relu: bool = False, hidden: int | None = None, name: str | None = None):
        super().__init__(name=name)
        hidden = hidden or channels // 2
        self.reduce = Conv2D(hidden, 1, activation="relu", name="reduce")
        self.spatial = Conv2D(hidden, 3, padding="same", activation="relu", name="spatial")
        self.expand = Conv2D(channels, 1, name="expand")
        self.final_relu = final_relu

    def build(self, input_shape):
        for layer in (self.reduce, self.spatial, self.expand):
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        super().build(input_shape)

    def call(self, x):
        x = x + self.expand(self.spatial(self.reduce(x)))
        return tf.nn.relu(x) if self.final_relu else x

    def init_identity(self) -> None:
        """See `transforms/starts/linear.py`."""
        self.expand.kernel.assign(tf.zeros_like(self.expand.kernel))


class Attention(_SameShape):
    """x + trunk(x) * sigmoid(mask(x)), trunk and mask of three residual units each. [B, H, W, c] -> [B, H, W, c]."""

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(name=name)
        self.trunk = [ResidualBottleneck(channels, True, name=f"trunk{n}") for n in range(3)]
        self.mask = [ResidualBottleneck(channels, True, name=f"mask{n}") for n in range(3)]
        self.gate = Conv2D(channels, 1, name="gate")

    def build(self, input_shape):
        for layer in (*self.trunk, *self.mask, self.gate):
            layer.build(input_shape)
        super().build(input_shape)

    def call(self, x):
        trunk = mask = x
        for unit in self.trunk:
            trunk = unit(trunk)
        for unit in self.mask:
            mask = unit(mask)
        return x + trunk * tf.sigmoid(self.gate(mask))

    def init_identity(self) -> None:
        """See `transforms/starts/linear.py`: it passes its input on, and adds next to nothing."""
        for unit in self.trunk:
            unit.init_identity()
        self.gate.kernel.assign(tf.zeros_like(self.gate.kernel))
        self.gate.bias.assign(tf.fill(self.gate.bias.shape, CLOSED))


def _bottlenecks(channels: int, stage: int) -> list[Layer]:
    return [ResidualBottleneck(channels, name=f"bottleneck{stage}{letter}") for letter in "abc"]


def analysis(widths: Sequence[int], latents: int) -> Chain:
    """g_a: images [B, H, W, 3] -> y [B, H / 16, W / 16, latents] (paper, Fig. 3).

    widths: channels at 1/2, 1/4 and 1/8 of the resolution.
    """
    n1, n2, n3 = widths
    return Chain(
        3,
        lambda: [
            Downsample(n1, name="down1"),
            *_bottlenecks(n1, 1),
            Downsample(n2, name="down2"),
            *_bottlenecks(n2, 2),
            Attention(n2, name="attention2"),
            Downsample(n3, name="down3"),
            *_bottlenecks(n3, 3),
            Downsample(latents, name="down4"),
            Attention(latents, name="attention4"),
        ],
        name="analysis",
    )


def synthesis(widths: Sequence[int], latents: int) -> Chain:
    """g_s, the mirror of `analysis`: y_hat [B, H / 16, W / 16, latents] -> images [B, H, W, 3]."""
    n1, n2, n3 = widths
    return Chain(
        latents,
        lambda: [
            Attention(latents, name="attention4"),
            Upsample(n3, name="up4"),
            *_bottlenecks(n3, 3),
            Upsample(n2, name="up3"),
            Attention(n2, name="attention2"),
            *_bottlenecks(n2, 2),
            Upsample(n1, name="up2"),
            *_bottlenecks(n1, 1),
            Upsample(3, subpixel=True, dtype="float32", name="up1"),
        ],
        name="synthesis",
    )


def hyper_analysis(latents: int, channels: int) -> Chain:
    """h_a: y [B, H, W, latents] -> z [B, H / 4, W / 4, channels], H and W multiples of 4. No activation at the end."""
    return Chain(
        latents,
        lambda: [
            Conv2D(channels, 3, padding="same", activation="relu", name="conv1"),
            Downsample(channels, activation="relu", name="down2"),
            Downsample(channels, dtype="float32", name="down3"),
        ],
        name="hyper_analysis",
    )
