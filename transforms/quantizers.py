"""The five-level quantiser of CompressNet: hard forward, soft backward.

Raman et al.: "CompressNet: Generative Compression at Extremely Low Bitrates", WACV 2020; the soft assignment is that of
Agustsson et al., "Soft-to-Hard Vector Quantization", NIPS 2017.

For a file a level is three bits, of which a 0 needs only the first:

    non-zero?  ──no──► 0
        └─yes──► negative?  large?       +-1 where it is not large, +-2 where it is
"""

from __future__ import annotations

import tensorflow as tf

#: The largest level: there are -2, -1, 0, 1 and 2.
LIMIT = 2


def _moments(x: tf.Tensor, sigma: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of the levels l with the weights softmax(-sigma · (x - l)²): each float32 of the shape of x."""
    levels = tf.range(-LIMIT, LIMIT + 1, dtype=tf.float32)
    weights = tf.nn.softmax(-sigma * tf.math.squared_difference(x[..., None], levels))
    mean = tf.reduce_sum(weights * levels, -1)
    return mean, tf.reduce_sum(weights * tf.math.squared_difference(levels, mean[..., None]), -1)


def soft(x: tf.Tensor, sigma: float = 1.0) -> tf.Tensor:
    """The soft assignment: float32 [...] -> within -2 .. 2, of the same shape. Its slope is 2 sigma · the variance."""
    return _moments(x, sigma)[0]


def quantise(x: tf.Tensor, sigma: float = 1.0) -> tf.Tensor:
    """The nearest level: float32 [...] -> integers -2 .. 2 of the same shape. Its gradient is that of `soft`."""

    @tf.custom_gradient
    def nearest(x):
        return tf.clip_by_value(
            tf.round(x), -LIMIT, LIMIT
        ), lambda gradient: gradient * 2 * sigma * _moments(x, sigma)[1]

    return nearest(x)


def to_bits(levels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Levels, float32 [...] -> whether each is not 0, negative, and +-2: float32 0 or 1, three times [...]."""
    return tuple(tf.cast(bit, tf.float32) for bit in (levels != 0, levels < 0, tf.abs(levels) > 1))


def from_bits(nonzero: tf.Tensor, negative: tf.Tensor, large: tf.Tensor) -> tf.Tensor:
    """Inverse of `to_bits`. Where a level is 0 the two other bits do not matter."""
    return nonzero * (1 - 2 * negative) * (1 + large)
