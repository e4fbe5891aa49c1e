"""A distance between pictures as a trained network sees them.

Zhang, Isola, Efros, Shechtman, Wang: "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR
2018 (LPIPS), without its calibration: all channels weigh the same. So it is a loss, and not LPIPS to be reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

#: A network: images float32 [B, H, W, 3] in 0..255 -> activations of some of its layers, [B, H_k, W_k, C_k] each.
Features = Callable[[tf.Tensor], Sequence[tf.Tensor]]

VGG16_LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")


def vgg16(weights: str) -> Features:
    """VGG16 of keras.applications: the five layers that LPIPS takes.

    weights: "imagenet", which Keras downloads, or a weights file of Keras' for VGG16 without its top.
    """
    net = tf.keras.applications.VGG16(include_top=False, weights=weights)
    net.trainable = False
    cut = tf.keras.Model(net.input, [net.get_layer(name).output for name in VGG16_LAYERS])
    # Keras' weights expect BGR with the mean of ImageNet taken off, on the 0..255 scale.
    return lambda images: cut(tf.keras.applications.vgg16.preprocess_input(images), training=False)


def distance(features: Features, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Of images float32 [B, H, W, 3] in 0..255 -> [B], 0 for equal pictures.

    At each position of each layer the activations are scaled to length 1; squared differences are summed over channels,
    averaged over positions, and summed over layers.
    """
    total = 0.0
    for x, y in zip(features(a), features(b)):
        x, y = (tf.math.l2_normalize(tf.cast(v, tf.float32), axis=-1, epsilon=1e-10) for v in (x, y))
        total += tf.reduce_mean(tf.reduce_sum(tf.math.squared_difference(x, y), -1), [1, 2])
    return total
