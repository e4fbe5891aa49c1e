"""The transforms of ELC's base codec.

The residual blocks and their order are those of Cheng, Sun, Takeuchi, Katto: "Learned Image Compression with
Discretized Gaussian Mixture Likelihoods and Attention Modules", CVPR 2020, arXiv 2001.01568, as Sha et al. use them,
with the same number of channels N everywhere.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transforms.chain import Chain
from transforms.gdn import GDN
from transforms.networks.elic import Attention
from transforms.resample import Downsample, Subsample, place_block
from transforms.starts.linear import Stage

Layer = tf.keras.layers.Layer
Conv2D = tf.keras.layers.Conv2D

#: Slope of the leaky ReLUs below zero.
SLOPE = 0.01


def leaky_relu(x: tf.Tensor) -> tf.Tensor:
    """max(x, SLOPE x)."""
    return tf.nn.leaky_relu(x, SLOPE)


class SubPixelConv(Conv2D):
    """A 3x3 convolution to 4 * channels and a depth-to-space: [B, H, W, C] -> [B, 2 H, 2 W, channels]."""

    def __init__(self, channels: int, **kwargs):
        super().__init__(4 * channels, 3, padding="same", **kwargs)

    def call(self, x):
        x = tf.nn.conv2d(x, self.kernel, 1, "SAME") + self.bias
        return tf.nn.depth_to_space(x, 2)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        height, width = (size and 2 * size for size in (height, width))
        return tf.TensorShape([batch, height, width, self.filters // 4])

    def init_linear(self, stage: Stage) -> None:
        """See `transforms/starts/linear.py`. Channels beyond the stage's have no part in what it makes at first."""
        fine, coarse = stage.kernel.shape[2:]
        value = self.kernel.numpy()
        by_phase = value.reshape(*value.shape[:3], 4, -1)  # a view: [3, 3, coarse, phase, fine]
        by_phase[..., :fine] = 0
        by_phase[1, 1, :coarse, :, :fine] = stage.kernel.reshape(4, fine, coarse).transpose(2, 0, 1)
        self.kernel.assign(value)


class _Residual(Layer):
    """first, leaky ReLU, second, last; plus the skip. The subclasses say what these are."""

    def __init__(self, first: Layer, second: Layer, last: Layer | None = None, skip: Layer | None = None, name=None):
        super().__init__(name=name)
        # Not attributes of the class, whose layers Keras would not find.
        self.first, self.second, self.last, self.skip = first, second, last, skip

    def build(self, input_shape):
        self.first.build(input_shape)
        shape = self.first.compute_output_shape(input_shape)
        self.second.build(shape)
        if self.last is not None:
            self.last.build(shape)
        if self.skip is not None:
            self.skip.build(input_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return self.first.compute_output_shape(input_shape)

    def call(self, x):
        y = self.second(leaky_relu(self.first(x)))
        y = leaky_relu(y) if self.last is None else self.last(y)
        return y + (x if self.skip is None else self.skip(x))


class ResidualBlock(_Residual):
    """x + [3x3, leaky ReLU, 3x3, leaky ReLU](x): [B, H, W, channels] -> the same shape."""

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(
            Conv2D(channels, 3, padding="same", name="first"),
            Conv2D(channels, 3, padding="same", name="second"),
            name=name,
        )

    def init_identity(self) -> None:
        """See `transforms/starts/linear.py`: nearly so. At zero the last leaky ReLU would have next to no gradient."""
        self.second.kernel.assign(0.01 * self.second.kernel)


class ResidualDown(_Residual):
    """[3x3 stride 2, leaky ReLU, 3x3, GDN](x) + [1x1](every other x): [B, H, W, C] -> [B, H / 2, W / 2, channels]."""

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(
            Downsample(channels, 3, name="first"),
            Conv2D(channels, 3, padding="same", name="second"),
            GDN(name="gdn"),
            Subsample(channels, name="skip"),
            name=name,
        )
        self.filters = channels

    def init_linear(self, stage: Stage) -> None:
        """See `transforms/starts/linear.py`. Channels beyond the stage's keep their random start.

        What the skip does not see goes through the first convolution as x and as -x: the difference of their leaky
        ReLUs is linear.
        """
        skip, take, give = stage.past_first(self.filters // 2)
        fine, coarse = skip.shape
        rank = len(give)
        first, second, past = (layer.kernel.numpy() for layer in (self.first, self.second, self.skip.conv))
        first[..., : 2 * rank] = 0
        self.first.kernel.assign(place_block(first, np.concatenate([take, -take], -1)))
        second[..., :coarse] = 0
        second[1, 1, : 2 * rank, :coarse] = np.concatenate([give, -give]) / (1 + SLOPE)
        self.second.kernel.assign(second)
        past[..., :coarse] = 0
        past[0, 0, :fine, :coarse] = skip
        self.skip.conv.kernel.assign(past)
        self.last.init_identity()


class ResidualUp(_Residual):
    """[sub-pixel, leaky ReLU, 3x3, inverse GDN](x) + [sub-pixel](x): [B, H, W, C] -> [B, 2 H, 2 W, channels]."""

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(
            SubPixelConv(channels, name="first"),
            Conv2D(channels, 3, padding="same", name="second"),
            GDN(inverse=True, name="igdn"),
            SubPixelConv(channels, name="skip"),
            name=name,
        )

    def init_linear(self, stage: Stage) -> None:
        """See `transforms/starts/linear.py`. The skip does it all; the other way begins near silence."""
        self.skip.init_linear(stage)
        self.second.kernel.assign(0.01 * self.second.kernel)
        self.last.init_identity()


def analysis(width: int) -> Chain:
    """g_a: images [B, H, W, 3] -> y [B, H / 16, W / 16, width]."""
    return Chain(
        3,
        lambda: [
            ResidualDown(width, name="down1"),
            ResidualBlock(width, name="block1"),
            ResidualDown(width, name="down2"),
            Attention(width, name="attention2"),
            ResidualBlock(width, name="block2"),
            ResidualDown(width, name="down3"),
            ResidualBlock(width, name="block3"),
            Downsample(width, 3, name="down4"),
            Attention(width, name="attention4"),
        ],
        name="analysis",
    )


#: Behind how many layers of the synthesis its features y1, y2, y3 and y4 come out, at 1/16, 1/8, 1/4 and 1/2.
STAGE_ENDS = (2, 4, 7, 9)


def _synthesis_stages(width: int) -> list[Layer]:
    return [
        Attention(width, name="attention4"),
        ResidualBlock(width, name="block4"),
        ResidualUp(width, name="up4"),
        ResidualBlock(width, name="block3"),
        ResidualUp(width, name="up3"),
        Attention(width, name="attention2"),
        ResidualBlock(width, name="block2"),
        ResidualUp(width, name="up2"),
        ResidualBlock(width, name="block1"),
    ]


def synthesis(width: int) -> Chain:
    """g_s: y_hat [B, H / 16, W / 16, width] -> images, float32 [B, H, W, 3]."""
    return Chain(
        width,
        lambda: [*_synthesis_stages(width), SubPixelConv(3, dtype="float32", name="up1")],
        name="synthesis",
    )


class SynthesisStages(Chain):
    """The synthesis without its last layer: y_hat -> the features [y1, y2, y3, y4], [B, H / 2^k, W / 2^k, width]."""

    def __init__(self, width: int):
        super().__init__(width, lambda: _synthesis_stages(width), name="synthesis_stages")

    def call(self, x):
        features = []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number in STAGE_ENDS:
                features.append(x)
        return features


def hyper_analysis(width: int) -> Chain:
    """h_a: y [B, H, W, width] -> z, float32 [B, H / 4, W / 4, width], H and W multiples of 4."""
    return Chain(
        width,
        lambda: [
            Conv2D(width, 3, padding="same", activation=leaky_relu, name="conv1"),
            Downsample(width, activation=leaky_relu, name="down2"),
            Downsample(width, dtype="float32", name="down3"),
        ],
        name="hyper_analysis",
    )
