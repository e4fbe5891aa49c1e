"""The transforms of CWIC.

Li, Zuo, Gu, Zhao, Zhang: "Learning Convolutional Networks for Content-weighted Image Compression", CVPR 2018,
arXiv 1703.10553, Fig. 2 and 3; kernel sizes and widths as in the authors' release.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from transforms.chain import Chain
from transforms.resample import DepthToSpace
from transforms.residual import Residual

Layer = tf.keras.layers.Layer


def _conv(filters: int, size: int, name: str, stride: int = 1, **kwargs) -> Layer:
    """A convolution as all of them are here: zero padded, He's initialisation, ReLU unless told otherwise."""
    kwargs = {"activation": "relu", "kernel_initializer": "he_normal", **kwargs}
    return tf.keras.layers.Conv2D(filters, size, stride, padding="same", name=name, **kwargs)


class ResidualBlock(Residual):
    """ReLU(x + [3x3 hidden, ReLU, 3x3 c](x)): [B, H, W, c] -> [B, H, W, c]. No normalisation.

    The second convolution starts at zero: a deep stack then trains like a shallow one at first. (In the authors'
    release another ReLU stands before the sum, where a branch can only add, and a zero would never learn.)
    """

    def __init__(self, channels: int, hidden: int, name: str | None = None):
        second = _conv(channels, 3, "second", activation=None, kernel_initializer="zeros")
        super().__init__(_conv(hidden, 3, "first"), second, name=name)

    def call(self, x):
        return tf.nn.relu(super().call(x))


def encoder(widths: Sequence[int], hidden: int) -> Chain:
    """Images [B, H, W, 3] -> features [B, H / 8, W / 8, widths[1]] for the codes and the importance map.

    widths: channels at 1/4 and 1/8 of the resolution. hidden: inner channels of the residual blocks.
    """
    n1, n2 = widths
    return Chain(
        3,
        lambda: [
            _conv(n1, 8, "conv1", stride=4),
            ResidualBlock(n1, hidden, name="block1"),
            _conv(n2, 4, "conv2", stride=2),
            ResidualBlock(n2, hidden, name="block2"),
            _conv(n2, 3, "conv3"),
            ResidualBlock(n2, hidden, name="block3"),
        ],
        name="encoder",
    )


def code_head(features: int, codes: int) -> Chain:
    """Features -> codes in 0..1, float32 [B, H / 8, W / 8, codes].

    It starts four times as loud as usual: a code that hardly leaves 1/2 crosses it with every step of the training.
    """
    loud = tf.keras.initializers.VarianceScaling(16.0, "fan_avg")
    return Chain(
        features,
        lambda: [_conv(codes, 1, "conv", activation="sigmoid", kernel_initializer=loud, dtype="float32")],
        name="code_head",
    )


def importance_net(features: int, hidden: int, start: float) -> Chain:
    """Features -> importance p in 0..1, float32 [B, H / 8, W / 8, 1] (section 3.2).

    start: what it gives at first, about everywhere: training then begins at the rate that is asked for.
    """
    bias = tf.keras.initializers.Constant(math.log(start / (1 - start)))
    return Chain(
        features,
        lambda: [
            _conv(hidden, 3, "conv1"),
            _conv(hidden, 3, "conv2"),
            _conv(
                1,
                1,
                "conv3",
                activation="sigmoid",
                kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
                bias_initializer=bias,
                dtype="float32",
            ),
        ],
        name="importance_net",
    )


def decoder(codes: int, widths: Sequence[int], hidden: int) -> Chain:
    """Trimmed codes [B, H / 8, W / 8, codes] -> images, float32 [B, H, W, 3].

    widths: channels at 1/8, 1/4 and the full resolution; the first two divisible by 4 and 16.

    It starts with images near grey, which are less wrong than random colours.
    """
    n1, n2, n3 = widths
    quiet = tf.keras.initializers.VarianceScaling(0.01, "fan_avg")
    return Chain(
        codes,
        lambda: [
            _conv(n1, 3, "conv1"),
            ResidualBlock(n1, hidden, name="block1"),
            _conv(n1, 3, "conv2"),
            ResidualBlock(n1, hidden, name="block2"),
            DepthToSpace(2),
            _conv(n2, 3, "conv3"),
            ResidualBlock(n2, hidden, name="block3"),
            DepthToSpace(4),
            _conv(n3, 3, "conv4"),
            _conv(3, 1, "conv5", activation=None, kernel_initializer=quiet, dtype="float32"),
        ],
        name="decoder",
    )
