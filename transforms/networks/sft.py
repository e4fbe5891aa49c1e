"""The transforms of SFT: convolutions and GDN, modulated at every position by a condition.

Song, Choi, Han: "Variable-Rate Deep Image Compression through Spatially-Adaptive Feature Transform", ICCV 2021,
arXiv 2108.09551, section 3 and the appendix. A transform comes with a condition network, which turns what steers the
transform (its *guide*: the quality map, or what the decoder recovers of it) into one condition for each resolution:

            guide ──┬──► condition network ──► condition 0 ──► condition 1 ──► condition 2 ...
                    │                             │                │               │
        x ──────────┴─► conv, GDN ──────────────► SFT ─► conv, GDN ► SFT ─► conv ─► SFT ... ──►

Convolutions pad with zeros where the paper reflects: a latent of a single row has nothing to reflect, and images may
have any size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from transforms.chain import Chain
from transforms.gdn import GDN
from transforms.resample import Downsample, Upsample

Layer = tf.keras.layers.Layer


def _variance(gain: float, up: bool = False) -> tf.keras.initializers.Initializer:
    """Kernels that multiply the variance by `gain`. With Keras' default a condition that is upsampled four times is
    down to a hundredth, and the layers it should steer are not steered for thousands of steps.

    up: for transposed convolutions of stride 2, of whose taps each output sees a quarter. (Keras calls their inputs
      fan_out.)
    """
    if up:
        return tf.keras.initializers.VarianceScaling(4 * gain, "fan_out")
    return tf.keras.initializers.VarianceScaling(gain)


def _conv(filters: int, size: int, activation=None, gain: float = 1.0, **kwargs) -> Layer:
    kernel = _variance(gain * (2 if activation else 1))
    return tf.keras.layers.Conv2D(
        filters, size, padding="same", activation=activation, kernel_initializer=kernel, **kwargs
    )


def _down(filters: int, size: int = 5, activation=None, **kwargs) -> Layer:
    return Downsample(
        filters, size, activation=activation, kernel_initializer=_variance(2 if activation else 1), **kwargs
    )


def _up(filters: int, size: int = 5, activation=None, **kwargs) -> Layer:
    return Upsample(
        filters, size, activation=activation, kernel_initializer=_variance(2 if activation else 1, up=True), **kwargs
    )


@dataclasses.dataclass(frozen=True)
class Modulation:
    """The sizes of what carries a condition.

    features: channels of a condition, at every resolution.
    hidden: hidden channels between a condition and its factors and offsets.
    kernel_size: of the convolutions within an SFT layer.
    """

    features: int
    hidden: int
    kernel_size: int


class SFT(Layer):
    """Spatial feature transform: x * (1 + gamma) + beta, both convolved from the condition (paper, Fig. 3).

    ([B, H, W, channels], condition [B, H, W, features]) -> [B, H, W, channels].

    Args:
      channels: of the input.
      sizes: of the condition and the layers within.
      scale: which of a transform's conditions this layer takes; 0 is that of its input's resolution.
    """

    def __init__(self, channels: int, sizes: Modulation, scale: int, name: str | None = None):
        super().__init__(name=name)
        self.sizes = sizes
        self.scale = scale
        size = sizes.kernel_size
        self.hidden = _conv(sizes.hidden, size, "relu", name="hidden")
        # Near the identity at first: with a dozen random modulations training would start far from a codec.
        self.gamma_beta = _conv(2 * channels, size, gain=0.1, name="gamma_beta")

    def build(self, input_shape):
        self.hidden.build([None, None, None, self.sizes.features])
        self.gamma_beta.build([None, None, None, self.sizes.hidden])
        super().build(input_shape)

    def call(self, x, condition):
        gamma, beta = tf.split(self.gamma_beta(self.hidden(condition)), 2, -1)
        return x * (1 + gamma) + beta

    def init_identity(self) -> None:
        """See `transforms/starts/linear.py`."""
        self.gamma_beta.kernel.assign(tf.zeros_like(self.gamma_beta.kernel))

    def compute_output_shape(self, input_shape):
        return input_shape


class SFTResidualBlock(Layer):
    """x + conv(lrelu(SFT(conv(lrelu(SFT(x)))))), 3x3 convolutions (paper, Fig. 3). Arguments as of `SFT`."""

    def __init__(self, channels: int, sizes: Modulation, scale: int, name: str | None = None):
        super().__init__(name=name)
        self.scale = scale
        self.sft1 = SFT(channels, sizes, scale, name="sft1")
        self.conv1 = _conv(channels, 3, name="conv1")
        self.sft2 = SFT(channels, sizes, scale, name="sft2")
        self.conv2 = _conv(channels, 3, name="conv2")

    def build(self, input_shape):
        for layer in (self.sft1, self.conv1, self.sft2, self.conv2):
            layer.build(input_shape)
        super().build(input_shape)

    def call(self, x, condition):
        y = self.conv1(tf.nn.leaky_relu(self.sft1(x, condition), 0.2))
        return x + self.conv2(tf.nn.leaky_relu(self.sft2(y, condition), 0.2))

    def init_identity(self) -> None:
        """See `transforms/starts/linear.py`."""
        self.conv2.kernel.assign(tf.zeros_like(self.conv2.kernel))

    def compute_output_shape(self, input_shape):
        return input_shape


class ConditionNet(Layer):
    """Conditions [B, H, W, features], then at half (with `up` at twice) the resolution of the one before, and so on.

    [B, H, W, channels] -> list of `steps` + 1 tensors.

    Args:
      channels: of the input.
      widths: channels of the convolutions before the first condition.
      features: channels of a condition.
      steps: how often the resolution changes.
      up: whether it rises.
    """

    def __init__(self, channels: int, widths: Sequence[int], features: int, steps: int, up: bool = False, name=None):
        super().__init__(name=name)
        resample = _up if up else _down

        def first() -> list[Layer]:
            convs = [_conv(w, 3, _lrelu, name=f"conv{n}") for n, w in enumerate(widths)]
            return [*convs, _conv(features, 3, name="features")]

        def step() -> list[Layer]:
            return [resample(features, 3, _lrelu, name="resample"), _conv(features, 1, name="features")]

        self.stages = [Chain(channels, first, name="stage0")]
        self.stages += [Chain(features, step, name=f"stage{n + 1}") for n in range(steps)]

    def build(self, input_shape=None):
        for stage in self.stages:
            stage.build()
        super().build(input_shape)

    def call(self, x):
        conditions = []
        for stage in self.stages:
            x = stage(x)
            conditions.append(x)
        return conditions


def _lrelu(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.leaky_relu(x, 0.1)


class Conditioned(Chain):
    """A chain of layers among which are SFT layers, and the condition network that feeds those.

    (x [B, H, W, channels], guide [B, H, W, G]) -> what the last layer gives. The condition network sees guide and x.

    Args:
      channels: of x.
      make_layers: returns the layers.
      make_condition: returns the condition network.
    """

    def __init__(
        self,
        channels: int,
        make_layers: Callable[[], Sequence[Layer]],
        make_condition: Callable[[], ConditionNet],
        name: str | None = None,
    ):
        def make_all() -> Sequence[Layer]:
            self.condition = make_condition()
            self.condition.build()
            return make_layers()

        super().__init__(channels, make_all, name=name)

    def call(self, x, guide):
        conditions = self.condition(tf.concat([tf.cast(guide, x.dtype), x], -1))
        for layer in self.layers:
            x = layer(x, conditions[layer.scale]) if isinstance(layer, (SFT, SFTResidualBlock)) else layer(x)
        return x


def analysis(widths: Sequence[int], latents: int, sizes: Modulation, condition_widths: Sequence[int]) -> Conditioned:
    """g_a: (images [B, H, W, 3], quality map [B, H, W, 1]) -> y [B, H / 16, W / 16, latents].

    widths: channels at full, 1/2, 1/4 and 1/8 of the resolution.
    """
    n0, n1, n2, n3 = widths
    return Conditioned(
        3,
        lambda: [
            _conv(n0, 5, name="conv0"),
            GDN(name="gdn0"),
            SFT(n0, sizes, 0, name="sft0"),
            _down(n1, name="down1"),
            GDN(name="gdn1"),
            SFT(n1, sizes, 1, name="sft1"),
            _down(n2, name="down2"),
            GDN(name="gdn2"),
            SFT(n2, sizes, 2, name="sft2"),
            _down(n3, name="down3"),
            GDN(name="gdn3"),
            SFT(n3, sizes, 3, name="sft3"),
            _down(latents, name="down4"),
            SFTResidualBlock(latents, sizes, 4, name="residual4a"),
            SFTResidualBlock(latents, sizes, 4, name="residual4b"),
        ],
        lambda: ConditionNet(4, condition_widths, sizes.features, 4, name="condition"),
        name="analysis",
    )


def hyper_analysis(latents: int, channels: int, sizes: Modulation, condition_widths: Sequence[int]) -> Conditioned:
    """h_a: (y [B, H, W, latents], quality map [B, H, W, 1]) -> z [B, H / 4, W / 4, channels], H, W multiples of 4."""
    return Conditioned(
        latents,
        lambda: [
            _conv(channels, 3, name="conv0"),
            SFT(channels, sizes, 0, name="sft0"),
            tf.keras.layers.LeakyReLU(0.2, name="lrelu0"),
            _down(channels, name="down1"),
            SFT(channels, sizes, 1, name="sft1"),
            tf.keras.layers.LeakyReLU(0.2, name="lrelu1"),
            _down(channels, name="down2"),
            SFTResidualBlock(channels, sizes, 2, name="residual2a"),
            SFTResidualBlock(channels, sizes, 2, name="residual2b"),
        ],
        lambda: ConditionNet(latents + 1, condition_widths, sizes.features, 2, name="condition"),
        name="hyper_analysis",
    )


class Synthesis(Conditioned):
    """g_s: (y_hat [B, H, W, latents], z_hat [B, ceil(H / 4), ceil(W / 4), channels]) -> images [B, 16 H, 16 W, 3].

    The decoder has no quality map: what guides the synthesis is recovered from the hyper-latent by `f_c` (paper,
    section 3.3).

    Args:
      widths: channels at full, 1/2, 1/4 and 1/8 of the resolution, as of the analysis.
      latents, channels: of y_hat and z_hat.
      recovered: channels of what f_c recovers.
      sizes: of the conditions.
      condition_widths: of the condition network.
    """

    def __init__(
        self,
        widths: Sequence[int],
        latents: int,
        channels: int,
        recovered: int,
        sizes: Modulation,
        condition_widths: Sequence[int],
        name: str = "synthesis",
    ):
        n0, n1, n2, n3 = widths

        def make_condition() -> ConditionNet:
            self.f_c = Chain(
                channels,
                lambda: [
                    _up(2 * recovered, 3, _lrelu, name="up6"),
                    _up(recovered, 5, _lrelu, name="up5"),
                    _conv(recovered, 3, name="conv4"),
                ],
                name="f_c",
            )
            self.f_c.build()
            return ConditionNet(latents + recovered, condition_widths, sizes.features, 4, up=True, name="condition")

        super().__init__(
            latents,
            lambda: [
                SFTResidualBlock(latents, sizes, 0, name="residual4a"),
                SFTResidualBlock(latents, sizes, 0, name="residual4b"),
                _up(n3, name="up4"),
                GDN(inverse=True, name="igdn3"),
                SFT(n3, sizes, 1, name="sft3"),
                _up(n2, name="up3"),
                GDN(inverse=True, name="igdn2"),
                SFT(n2, sizes, 2, name="sft2"),
                _up(n1, name="up2"),
                GDN(inverse=True, name="igdn1"),
                SFT(n1, sizes, 3, name="sft1"),
                _up(n0, name="up1"),
                GDN(inverse=True, name="igdn0"),
                SFT(n0, sizes, 4, name="sft0"),
                _conv(3, 5, gain=0.1, dtype="float32", name="conv0"),
            ],
            make_condition,
            name=name,
        )

    def call(self, y_hat, z_hat):
        guide = self.f_c(z_hat)[:, : tf.shape(y_hat)[1], : tf.shape(y_hat)[2]]
        return super().call(y_hat, guide)
