"""Two losses on the activations of a network that was trained to classify.

`loss` is that of Johnson, Alahi, Fei-Fei: "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV
2016: one layer, relative to what the layer gives. `distance` is that of Zhang, Isola, Efros, Shechtman, Wang: "The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018 (LPIPS), without its calibration: all
channels weigh the same. So it is a loss, and not LPIPS to be reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

#: A network: images float32 [B, H, W, 3] in 0..255 -> activations of some of its layers, [B, H_k, W_k, C_k] each.
Features = Callable[[tf.Tensor], Sequence[tf.Tensor]]

#: The one layer for `loss`: at a quarter of the resolution, after seven convolutions.
JOHNSON = ("block3_conv3",)
#: The five for `distance`.
LPIPS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")


def vgg16(weights: str = "imagenet", layers: Sequence[str] = LPIPS) -> Features:
    """VGG-16 of keras.applications: the activations of these of its layers, float32, in the network's order.

    The weights are constants of the function, in float32 under any precision policy: nobody trains, saves or ships
    them.

    Args:
      weights: "imagenet", which Keras fetches once; or a file of Keras' for VGG16 without its top.

    Raises:
      Exception: they cannot be had; whatever Keras raises then.
    """
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32")
    try:
        network = tf.keras.applications.VGG16(include_top=False, weights=weights)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    names = [layer.name for layer in network.layers]
    last = max(names.index(name) for name in layers)
    steps = [(layer.name, [tf.constant(v) for v in layer.get_weights()]) for layer in network.layers[1 : last + 1]]

    def features(images: tf.Tensor) -> list[tf.Tensor]:
        # Keras' weights expect BGR with the mean of ImageNet taken off, on the 0..255 scale.
        x, found = tf.keras.applications.vgg16.preprocess_input(images), []
        for name, values in steps:
            if values:
                kernel, bias = values
                x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME") + bias)
            else:
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
            if name in layers:
                found.append(x)
        return found

    return features


def loss(features: Features, images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """Squared error of the features of a reconstruction [B, H, W, 3], 0..255, in parts of those of the images'.

    A scalar, the mean of the layers'; relative, since networks differ by orders of magnitude in the size of what they
    give.
    """
    errors = []
    for expected, actual in zip(features(images), features(reconstruction)):
        expected = tf.stop_gradient(expected)
        error = tf.reduce_mean(tf.math.squared_difference(actual, expected))
        errors.append(error / tf.maximum(tf.reduce_mean(tf.square(expected)), 1e-9))
    return tf.add_n(errors) / len(errors)


def distance(features: Features, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Measures the distance, [B], of images float32 [B, H, W, 3] in 0..255: 0 for equal ones.

    At each position of each layer the activations are scaled to length 1; squared differences are summed over channels,
    averaged over positions, and summed over layers.
    """
    return between(features(a), features(b))


def between(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
    """As `distance`, of the activations of two lots of images."""
    total = 0.0
    for x, y in zip(a, b):
        x, y = (tf.math.l2_normalize(tf.cast(v, tf.float32), axis=-1, epsilon=1e-10) for v in (x, y))
        total += tf.reduce_mean(tf.reduce_sum(tf.math.squared_difference(x, y), -1), [1, 2])
    return total
