"""The encoder and the decoder of CompressNet.

Raman et al.: "CompressNet: Generative Compression at Extremely Low Bitrates", WACV 2020, section 3; kernel sizes and
widths as in the authors' release. Borders are mirrored with the edge repeated: a row of latents has nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import tensorflow as tf

from transforms import switches
from transforms.chain import Chain
from transforms.resample import DepthToSpace

Layer = tf.keras.layers.Layer

#: Side of the block of pixels that a position of the latents stands for.
BLOCK = 16
#: How maps are normalised. All in float32, whatever the convolutions compute in.
NORMS = ("instance", "channel", "none")


class ICNR(tf.keras.initializers.Initializer):
    """Starts a convolution so that a pixel shuffle by 2 of its output repeats pixels, without a checkerboard.

    Aitken et al., arXiv 1707.02937. The four kernels that make the four pixels of a cell begin as copies of one.

    Args:
      initializer: of that one kernel.
    """

    def __init__(self, initializer="he_normal"):
        self.initializer = tf.keras.initializers.get(initializer)

    def __call__(self, shape, dtype=None, **kwargs):
        kernel = self.initializer([*shape[:-1], shape[-1] // 4], dtype=dtype, **kwargs)
        return tf.tile(kernel, [1, 1, 1, 4])  # the order of tf.nn.depth_to_space

    def get_config(self):
        return {"initializer": tf.keras.initializers.serialize(self.initializer)}


def make_norm(kind: str, name: str = "norm") -> Layer:
    """A layer that normalises maps [B, H, W, C].

    "instance" has mean 0 and variance 1 for each channel of an image (paper): a statistic of the whole image, so
    a crop of an image has another one, and the mean brightness of an image is lost. "channel" has them for
    each position over its channels (Mentzer et al., HiFiC, NeurIPS 2020, who met the same): what a position becomes
    does not depend on how large the image is. "none" leaves them as they are: with few channels, what is left of a
    position after either says little of how bright it is.
    """
    if kind == "none":
        return tf.keras.layers.Activation("linear", dtype="float32", name=name)
    if kind == "channel":
        return tf.keras.layers.LayerNormalization(epsilon=1e-5, dtype="float32", name=name)
    with warnings.catch_warnings():  # that it is at its end: the versions here are fixed
        warnings.simplefilter("ignore")
        from tensorflow_addons.layers import InstanceNormalization  # not above: only some weights need it

    return InstanceNormalization(epsilon=1e-5, dtype="float32", name=name)


class Conv(Layer):
    """Mirrored borders and a convolution of stride 1: [B, H, W, C] -> [B, H, W, filters]."""

    def __init__(self, filters: int, size: int = 3, initializer="he_normal", name: str | None = None, **kwargs):
        super().__init__(name=name)
        self.border = size // 2
        self.conv = tf.keras.layers.Conv2D(filters, size, kernel_initializer=initializer, name="conv", **kwargs)

    def build(self, input_shape):
        self.conv.build(input_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return tf.TensorShape([*input_shape[:-1], self.conv.filters])

    def call(self, x):
        b = self.border
        return self.conv(tf.pad(x, [[0, 0], [b, b], [b, b], [0, 0]], "SYMMETRIC"))


class EncoderBlock(Conv):
    """Convolution, ReLU, normalisation."""

    def __init__(self, filters: int, size: int, norm: str, name: str | None = None):
        super().__init__(filters, size, name=name, activation="relu")
        self.norm = make_norm(norm)

    def build(self, input_shape):
        super().build(input_shape)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, x):
        return self.norm(super().call(x))


class DecoderBlock(Conv):
    """Convolution, normalisation, ReLU. icnr: a pixel shuffle follows."""

    def __init__(self, filters: int, norm: str, icnr: bool = False, name: str | None = None):
        super().__init__(filters, 3, ICNR() if icnr else "he_normal", name=name)
        self.norm = make_norm(norm)

    def build(self, input_shape):
        super().build(input_shape)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, x):
        return tf.nn.relu(self.norm(super().call(x)))


class SharedBlocks(Layer):
    """x + scale · [two convolutions](x), `count` times with one set of weights: [B, H, W, C] -> the same shape."""

    def __init__(self, channels: int, count: int, norm: str, icnr: bool, name: str | None = None):
        super().__init__(name=name)
        self.count = count
        # Nothing else keeps the sum from growing with the number of blocks.
        self.scale = count**-0.5 if norm == "none" else 1.0
        self.first = DecoderBlock(channels, norm, name="first")
        self.second = DecoderBlock(channels, norm, icnr, name="second")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(input_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        for _ in range(self.count):
            x += self.scale * tf.cast(self.second(self.first(x)), x.dtype)
        return x


class Upsample(Conv):
    """Doubles the resolution, then normalisation and ReLU: [B, H, W, C] -> [B, 2 H, 2 W, filters].

    Args:
      filters: output channels.
      norm: as of `make_norm`.
      switching: "none": a pixel shuffle, then a convolution. "true": a convolution, then unpooling by the switches that
        `call` is given. "predicted": the same by switches that another convolution predicts from its output.
      icnr: a pixel shuffle follows.
    """

    def __init__(self, filters: int, norm: str, switching: str = "none", icnr: bool = False, name: str | None = None):
        super().__init__(filters, 3, ICNR() if icnr else "he_normal", name=name)
        self.switching = switching
        self.shuffle = DepthToSpace(2) if switching == "none" else None
        self.norm = make_norm(norm)
        classes = switches.CELL * filters
        self.predictor = Conv(classes, name="predictor") if switching == "predicted" else None

    def build(self, input_shape):
        super().build(self.shuffle.compute_output_shape(input_shape) if self.shuffle else input_shape)
        shape = tf.TensorShape([None, None, None, self.conv.filters])
        self.norm.build(shape)
        if self.predictor:
            self.predictor.build(shape)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return tf.TensorShape([batch, height and 2 * height, width and 2 * width, self.conv.filters])

    def call(self, x, switch=None):
        """switch: int32 [B, H, W, filters], for "true".

        Returns the upsampled map; the same before the ReLU; the logits of the switches, [B, H, W, filters, 4], for
        "predicted", else None.
        """
        logits = None
        if self.switching == "none":
            y = super().call(self.shuffle(x))
        else:
            y = super().call(x)
            if self.switching == "predicted":
                logits = self.predictor(y)
                logits = tf.reshape(logits, tf.concat([tf.shape(y), [switches.CELL]], 0))
                switch = tf.argmax(logits, -1, output_type=tf.int32)
            y = switches.unpool(y, switch)
        y = self.norm(y)
        return tf.nn.relu(y), y, logits


class Encoder(Chain):
    """Images in -1..1 [B, H, W, 3] -> latents before they are quantised, float32 [B, H / 16, W / 16, latents], and
    the maps before each max-pooling: [B, H, W, widths[0]] .. [B, H / 8, W / 8, widths[3]].

    Args:
      widths: channels at the full resolution, 1/2, 1/4, 1/8 and 1/16.
      latents: channels of the latents.
      norm: as of `make_norm`. The latents themselves are only normalised under "instance": over so few channels
        "channel" would take away a good part of what they say.
      linear: whether a 16x16 convolution of the image is added to the latents (not in the paper). What max-pooling
        passes on tells little of where in a block something is; see `transforms/starts/levels.py`.
    """

    def __init__(self, widths: Sequence[int], latents: int, norm: str, linear: bool = False):
        def layers():
            sizes = [7, *[3] * (len(widths) - 1)]
            blocks = [EncoderBlock(w, size, norm, name=f"block{k}") for k, (w, size) in enumerate(zip(widths, sizes))]
            last = EncoderBlock(latents, 3, norm, name="last") if norm == "instance" else Conv(latents, name="last")
            return [*blocks, last]

        super().__init__(3, layers, name="encoder")
        self.linear = tf.keras.layers.Conv2D(latents, BLOCK, BLOCK, dtype="float32", name="linear") if linear else None

    def build(self, input_shape=None):
        super().build(input_shape)
        if self.linear is not None and not self.linear.built:
            self.linear.build([None, None, None, 3])

    def call(self, images):
        maps, x = [], images
        for block in self.layers[:-2]:
            maps.append(block(x))
            x = switches.pool(maps[-1])
        latents = tf.cast(self.layers[-1](self.layers[-2](x)), tf.float32)
        return latents if self.linear is None else latents + self.linear(images), maps


class Decoder(Chain):
    """Latents [B, H, W, latents] -> images, float32 [B, 16 H, 16 W, 3] in -1..1; and, for the training, the maps of
    the four upsamplings before their ReLU, coarse to fine, and what those predict of the switches.

    Args:
      widths: as of the encoder, of which the last one must be divisible by 4 where a shuffle takes it, and so on.
      latents: channels of the latents.
      blocks: how often the shared residual block is applied.
      norm: as of `make_norm`.
      switching: of each of the four upsamplings, coarse to fine; see `Upsample`.
      linear: whether a transposed 16x16 convolution of the latents is added to the image, as in the encoder.
    """

    def __init__(
        self,
        widths: Sequence[int],
        latents: int,
        blocks: int,
        norm: str,
        switching: Sequence[str],
        linear: bool = False,
    ):
        coarse_to_fine = tuple(reversed(widths))
        shuffled = [kind == "none" for kind in switching] + [False]  # whether a shuffle takes the output of step k - 1

        def layers():
            return [
                DecoderBlock(coarse_to_fine[0], norm, shuffled[0], name="first"),
                SharedBlocks(coarse_to_fine[0], blocks, norm, shuffled[0], name="residual"),
                *(
                    Upsample(width, norm, kind, follows, name=f"upsample{k}")
                    for k, (width, kind, follows) in enumerate(zip(coarse_to_fine[1:], switching, shuffled[1:]))
                ),
                Conv(3, 7, "glorot_uniform", name="last", activation="tanh", dtype="float32"),
            ]

        super().__init__(latents, layers, name="decoder")
        self.linear = None
        if linear:
            self.linear = tf.keras.layers.Conv2DTranspose(3, BLOCK, BLOCK, dtype="float32", name="linear")

    def build(self, input_shape=None):
        super().build(input_shape)
        if self.linear is not None and not self.linear.built:
            self.linear.build([None, None, None, self.channels])

    def call(self, latents, switch=()):
        """switch: those of the upsamplings that are "true", coarse to fine, int32 [B, H, W, C] each."""
        x, switch = latents, iter(switch)
        maps, logits = [], []
        for layer in self.layers[:-1]:
            if isinstance(layer, Upsample):
                x, y, predicted = layer(x, next(switch) if layer.switching == "true" else None)
                maps.append(y)
                logits.append(predicted)
            else:
                x = layer(x)
        images = self.layers[-1](x)
        return images if self.linear is None else images + self.linear(latents), maps, logits
