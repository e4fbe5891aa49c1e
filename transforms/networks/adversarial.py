"""The patch discriminator of CompressNet, and the losses of the two players.

Raman et al.: "CompressNet: Generative Compression at Extremely Low Bitrates", WACV 2020; the discriminator is that of
Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, which judges patches; the
gradient penalty that of Gulrajani et al., "Improved Training of Wasserstein GANs", NIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from transforms.chain import Chain
from transforms.networks.sae import make_norm


def discriminator(widths: Sequence[int]) -> Chain:
    """Images in -1..1 [B, H, W, 3] -> logits of being a photograph, float32 [B, H / 16, W / 16, 1], a patch each.

    widths: channels at 1/2, 1/4, 1/8 and 1/16 of the resolution. In float32 throughout, for the penalty's sake.
    """

    def layers():
        def conv(filters, stride=2):
            start = tf.keras.initializers.RandomNormal(stddev=0.02)
            return tf.keras.layers.Conv2D(
                filters, 4, stride, padding="same", kernel_initializer=start, dtype="float32", name=f"conv{filters}"
            )

        def leaky_relu():
            return tf.keras.layers.LeakyReLU(0.2, dtype="float32")

        inner = [layer for width in widths[1:] for layer in (conv(width), leaky_relu(), _Instance())]
        return [conv(widths[0]), leaky_relu(), *inner, conv(1, stride=1)]

    return Chain(3, layers, name="discriminator", dtype="float32")


class _Instance(tf.keras.layers.Layer):
    """Instance normalisation that knows its output shape, as a `Chain` wants."""

    def __init__(self):
        super().__init__(dtype="float32")
        self.norm = make_norm("instance")

    def build(self, input_shape):
        self.norm.build(input_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        return self.norm(x)


def _cross_entropy(logits: tf.Tensor, real: bool) -> tf.Tensor:
    labels = tf.ones_like(logits) if real else tf.zeros_like(logits)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def generator_loss(judge, fakes: tf.Tensor) -> tf.Tensor:
    """Loss of a generator whose images [B, H, W, 3] `judge` takes for fakes: nats a patch, a scalar."""
    return _cross_entropy(judge(fakes), real=True)


def discriminator_loss(judge, photographs: tf.Tensor, fakes: tf.Tensor, penalty: float = 1.0) -> tf.Tensor:
    """Cross-entropy of both kinds, nats a patch, and `penalty` · the gradient penalty: a scalar.

    No gradient reaches what made the images. Each kind is judged by itself: the norm is each image's own.
    """
    fakes = tf.stop_gradient(fakes)
    loss = _cross_entropy(judge(photographs), real=True) + _cross_entropy(judge(fakes), real=False)
    return loss + penalty * gradient_penalty(judge, photographs, fakes) if penalty else loss


def gradient_penalty(judge, photographs: tf.Tensor, fakes: tf.Tensor) -> tf.Tensor:
    """Mean of (|∂ judge(x) / ∂x| - 1)² at random points x between pairs of images [B, H, W, 3]: a scalar.

    judge(x) is the mean over the patches of an image. Of their sum, which the gradient of `judge` would be, the norm is
    held at 1 only by verdicts that hardly differ: such a discriminator was at chance after 160 steps, where this one
    tells 99 % of pairs apart after 80 (res/doc/log/sae_spn.md).
    """
    share = tf.random.uniform([tf.shape(photographs)[0], 1, 1, 1])
    between = tf.stop_gradient(photographs + share * (fakes - photographs))
    with tf.GradientTape() as tape:
        tape.watch(between)
        verdict = tf.reduce_sum(tf.reduce_mean(judge(between), [1, 2, 3]))
    slope = tape.gradient(verdict, between)
    # The square root has no gradient at zero, and at the start the gradients of some images may be zero.
    norm = tf.sqrt(tf.reduce_sum(tf.square(slope), [1, 2, 3]) + 1e-12)
    return tf.reduce_mean(tf.math.squared_difference(norm, 1.0))
