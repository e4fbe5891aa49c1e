"""Binary codes and the importance map that says how many of them a position keeps.

Li, Zuo, Gu, Zhao, Zhang: "Learning Convolutional Networks for Content-weighted Image Compression", CVPR 2018,
arXiv 1703.10553, sections 3.1 and 3.2.

    sigmoid codes ──► binarise ────────────────────► * ──► trimmed codes
                                                     ▲
    importance p in 0..1 ──► level Q(p) ──► mask: the first n / L · Q(p) of the n channels of a position

Three steps of it are piecewise constant. Forward they are what they are; backward each is a proxy with a slope.
"""

from __future__ import annotations

import tensorflow as tf


@tf.custom_gradient
def binarise(codes: tf.Tensor):
    """1 where a code in 0..1 is above 1/2, else 0. [...] -> the same shape and type.

    The gradient is that of the identity on 0..1 and zero outside (section 3.1).
    """

    def backward(gradient):
        return gradient * tf.cast((codes >= 0) & (codes <= 1), gradient.dtype)

    return tf.cast(codes > 0.5, codes.dtype), backward


def quantise(importance: tf.Tensor, levels: int) -> tf.Tensor:
    """Q(p): importance in 0..1 -> its level, float32 integers 0 .. levels - 1. No gradient: see `mask`."""
    # A sigmoid in float32 does reach 1, which belongs to the last level.
    return tf.clip_by_value(tf.floor(levels * tf.stop_gradient(importance)), 0.0, levels - 1.0)


def mask(level: tf.Tensor, channels: int, levels: int, importance: tf.Tensor | None = None) -> tf.Tensor:
    """Which channels of a position are kept: the first channels / levels · level of them.

    Args:
      level: float32 integers [B, H, W, 1], 0 .. levels (the quantiser gives no more than levels - 1).
      channels: n, a multiple of `levels`.
      levels: L.
      importance: p [B, H, W, 1] that the level was quantised from, where there is one: it gets the gradient.

    Returns:
      float32 [B, H, W, channels] of 0 and 1. Channel k, counted from 1, is in step ⌈k L / n⌉ of n / L channels, and
      kept where ⌈k L / n⌉ <= level. Its gradient is the proxy of section 3.2,

          ∂m_k / ∂p = L  where  L p - 1 <= ⌈k L / n⌉ < L p + 2,  else 0:

      the slope of a ramp as wide as one level, for the last step that is kept and the two after it.
    """
    step = tf.range(channels) // (channels // levels) + 1
    step = tf.cast(step, tf.float32)

    @tf.custom_gradient
    def kept(importance):
        def backward(gradient):
            position = levels * importance
            near = (position - 1 <= step) & (step < position + 2)
            return tf.reduce_sum(gradient * tf.cast(near, tf.float32), -1, keepdims=True) * levels

        return tf.cast(step <= level, tf.float32), backward

    return kept(level if importance is None else importance)


def bit_planes(level: tf.Tensor, count: int) -> tf.Tensor:
    """Levels, float32 integers [B, H, W, 1], in binary, the highest bit first: float32 0 or 1, [B, H, W, count]."""
    weights = 2.0 ** tf.range(count - 1, -1, -1, dtype=tf.float32)
    return tf.math.floormod(tf.floor(level / weights), 2.0)


def from_bit_planes(planes: tf.Tensor) -> tf.Tensor:
    """Inverse of `bit_planes`: [B, H, W, count] -> [B, H, W, 1]."""
    weights = 2.0 ** tf.range(planes.shape[-1] - 1, -1, -1, dtype=tf.float32)
    return tf.reduce_sum(planes * weights, -1, keepdims=True)
