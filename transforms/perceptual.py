"""A perceptual loss: how far two pictures are apart in the features of a network that was trained to classify.

Johnson, Alahi, Fei-Fei: "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

#: The last layer of VGG-16 that is looked at: at a quarter of the resolution, after seven convolutions.
LAYER = "block3_conv3"


def vgg16(weights: str = "imagenet") -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from images, float32 [B, H, W, 3] in 0..255, to features [B, H / 4, W / 4, 256], float32.

    The weights are constants of that function: nobody trains, saves or ships them.

    Args:
      weights: "imagenet", those of keras.applications, fetched once; or a file of them, without the top layers.

    Raises:
      Exception: they cannot be had; whatever Keras raises then.
    """
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32")
    try:
        network = tf.keras.applications.VGG16(include_top=False, weights=weights)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    steps = []
    for layer in network.layers[1:]:
        steps.append([tf.constant(value) for value in layer.get_weights()])
        if layer.name == LAYER:
            break

    def features(images: tf.Tensor) -> tf.Tensor:
        x = tf.keras.applications.vgg16.preprocess_input(images)
        for step in steps:
            if step:
                kernel, bias = step
                x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME") + bias)
            else:
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return x

    return features


def loss(features: Callable, images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """Squared error of the features of a reconstruction [B, H, W, 3], 0..255, in parts of those of the images'.

    A scalar; relative, since networks differ by orders of magnitude in the size of what they give.
    """
    expected = tf.stop_gradient(features(images))
    error = tf.reduce_mean(tf.math.squared_difference(features(reconstruction), expected))
    return error / tf.maximum(tf.reduce_mean(tf.square(expected)), 1e-9)
