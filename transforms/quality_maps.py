"""Quality maps to train with: float32 [B, H, W, 1] in 0..1, drawn as the paper draws them.

Song, Choi, Han, ICCV 2021 (see transforms/networks/sft.py), section 4.1: one map in five is uniform, one has a level
for each
class of a segmentation mask, one is a gradient, two are sums of Gaussians. TensorFlow operations only, of static shape
where the batch has one: they run within a training step, compiled or not.
"""

from __future__ import annotations

import tensorflow as tf

#: Kinds of maps and how often each is drawn. Without masks the other kinds share their probability.
SHARES = {"uniform": 0.2, "classes": 0.2, "gradient": 0.2, "gaussians": 0.4}
#: Class ids of masks are below this: COCO's stuff and things, and 255 for neither.
MAX_CLASSES = 256
MAX_GAUSSIANS = 20
#: Variance of a Gaussian, per axis, in square pixels: some 40 pixels wide, whatever the size of the image.
VARIANCES = (1000.0, 3000.0)


def training_maps(shape, masks: tf.Tensor | None = None) -> tf.Tensor:
    """A random map for each image of a batch.

    Args:
      shape: (B, H, W), numbers or scalar tensors.
      masks: int32 [B, H, W], the class of each pixel, 0..255; None where there are no masks.
    """
    shares = {kind: share for kind, share in SHARES.items() if kind != "classes" or masks is not None}
    draw = tf.random.uniform([shape[0]]) * sum(shares.values())
    maps, upper = None, 0.0
    for kind, share in shares.items():
        drawn = classes(masks) if kind == "classes" else KINDS[kind](shape)
        maps = drawn if maps is None else tf.where((draw >= upper)[:, None, None, None], drawn, maps)
        upper += share
    return maps


def uniform(shape) -> tf.Tensor:
    """One level for the whole image; each end of the range is drawn exactly, one time in a hundred."""
    level = tf.clip_by_value(tf.random.uniform([shape[0], 1, 1, 1], -0.01, 1.01), 0.0, 1.0)
    return tf.broadcast_to(level, [*shape, 1])


def classes(masks: tf.Tensor) -> tf.Tensor:
    """One level per class of each mask, int32 [B, H, W]."""
    levels = tf.random.uniform([tf.shape(masks)[0], MAX_CLASSES])
    return tf.gather(levels, masks, batch_dims=1)[..., None]


def gradient(shape) -> tf.Tensor:
    """Makes maps that change linearly from one edge to the opposite one, from the top or from the left."""
    start, end, axis = tf.unstack(tf.random.uniform([3, shape[0], 1, 1, 1]))
    rows, columns = (tf.cast(tf.range(n), tf.float32) / tf.cast(tf.maximum(n - 1, 1), tf.float32) for n in shape[1:])
    place = tf.where(axis < 0.5, rows[None, :, None, None], columns[None, None, :, None])
    return start + (end - start) * place


def gaussians(shape) -> tf.Tensor:
    """A sum of 1 to 20 Gaussians at random places, scaled to a random maximum of 0.5 to 1."""
    count = tf.random.uniform([shape[0], 1], 1, MAX_GAUSSIANS + 1, tf.int32)
    present = tf.cast(tf.range(MAX_GAUSSIANS) < count, tf.float32)

    def profile(size) -> tf.Tensor:
        """Along one axis: [B, MAX_GAUSSIANS, size]."""
        size = tf.cast(size, tf.float32)
        centre = tf.random.uniform([shape[0], MAX_GAUSSIANS, 1]) * size
        variance = tf.random.uniform([shape[0], MAX_GAUSSIANS, 1], *VARIANCES)
        return tf.exp(-tf.square(tf.range(size) - centre) / (2 * variance))

    total = tf.einsum("bk,bkh,bkw->bhw", present, profile(shape[1]), profile(shape[2]))[..., None]
    top = tf.random.uniform([shape[0], 1, 1, 1], 0.5, 1.0)
    return total * top / tf.reduce_max(total, [1, 2, 3], keepdims=True)


KINDS = {"uniform": uniform, "gradient": gradient, "gaussians": gaussians}
