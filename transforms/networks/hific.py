"""Adversarial training: a discriminator that knows the latents, and least-squares losses.

The discriminator is that of Mentzer et al., "High-Fidelity Generative Image Compression" (HiFiC), NeurIPS 2020,
arXiv 2006.09965, Fig. A7; the losses are those of Mao et al., "Least Squares Generative Adversarial Networks", ICCV
2017, on a sigmoid output as in ELC.
"""

from __future__ import annotations

import warnings

import tensorflow as tf

Layer = tf.keras.layers.Layer
Conv2D = tf.keras.layers.Conv2D


def _reflect(x: tf.Tensor) -> tf.Tensor:
    """Reflects one row and column on each side: [B, H, W, C] -> [B, H + 2, W + 2, C]."""
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")


class ConditionalDiscriminator(Layer):
    """Judges how real each part of an image is, given its latents: 0 (decoded) to 1 (a photograph).

    Images [B, H, W, 3] (about -1/2..1/2) and latents [B, H / 16, W / 16, C] -> float32 [B, H / 16, W / 16, 1]; both
    sides of the latents at least 2. float32 under any precision policy.

    The kernels of the strided convolutions are divided by their spectral norm, in place, each time it is called with
    `training=True`: do so in the discriminator's own step only.

    Args:
      latents: C.
      width: channels at 1/2, doubled at each of three further halvings (64 in the paper).
    """

    def __init__(self, latents: int, width: int = 64, name: str = "discriminator"):
        with warnings.catch_warnings():  # that TensorFlow Addons is at its end: the versions here are fixed
            warnings.simplefilter("ignore")
            from tensorflow_addons.layers import SpectralNormalization  # takes seconds, and only training needs it

        super().__init__(name=name, dtype="float32")
        self.latents = latents
        self.condition = Conv2D(12, 3, dtype="float32", name="condition")
        self.downs = [
            SpectralNormalization(Conv2D(width << n, 4, strides=2, dtype="float32", name=f"down{n}"), dtype="float32")
            for n in range(4)
        ]
        self.score = Conv2D(1, 1, dtype="float32", name="score")

    def build(self, input_shape=None):
        def shape(channels):
            return tf.TensorShape([None, None, None, channels])

        self.condition.build(shape(self.latents))
        channels = 3 + 12
        for down in self.downs:
            down.build(shape(channels))
            channels = down.layer.filters
        self.score.build(shape(channels))
        super().build(input_shape)

    def call(self, images, latents, training=False):
        condition = tf.nn.leaky_relu(self.condition(_reflect(latents)), 0.2)
        condition = tf.repeat(tf.repeat(condition, 16, axis=1), 16, axis=2)
        x = tf.concat([images, condition], -1)
        for down in self.downs:
            x = tf.nn.leaky_relu(down(_reflect(x), training=training), 0.2)
        return tf.sigmoid(self.score(x))


def lsgan_discriminator_loss(real: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
    """0.5 (mean (D(x) - 1)² + mean D(x_hat)²), a scalar; scores of any shape."""
    return 0.5 * (tf.reduce_mean(tf.square(real - 1)) + tf.reduce_mean(tf.square(decoded)))


def lsgan_generator_loss(decoded: tf.Tensor) -> tf.Tensor:
    """0.5 (D(x_hat) - 1)², the mean of each image's scores [B, H, W, 1]: [B]."""
    return 0.5 * tf.reduce_mean(tf.square(decoded - 1), [1, 2, 3])
