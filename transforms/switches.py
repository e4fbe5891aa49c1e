"""Max-pooling with switches, which say where in each 2x2 cell the maximum was, and unpooling.

    0 1        A switch numbers the pixel of its cell that was the largest, channel by channel.
    2 3        Unpooling puts each value back at that pixel, and zeros at the three others.

Zhao, Mathieu, Goroshin, LeCun: "Stacked What-Where Auto-encoders", ICLR 2016 workshop, arXiv 1506.02351.

Pooling gives what `tf.nn.max_pool_with_argmax` gives, and unpooling what `MaxUnpooling2D` of TensorFlow Addons does,
for windows of 2x2. But a switch is a number of 0 .. 3, a class that can be predicted and two bits that can be coded,
where those have an index into the whole image; and nothing is scattered.
"""

from __future__ import annotations

import tensorflow as tf

#: Pixels of a cell: a predictor that knows nothing is right in a quarter of the cases.
CELL = 4


def _cells(x: tf.Tensor) -> tf.Tensor:
    """[B, 2 H, 2 W, C] -> [B, H, W, C, 4]."""
    shape = tf.shape(x)
    x = tf.reshape(x, [shape[0], shape[1] // 2, 2, shape[2] // 2, 2, x.shape[-1]])
    x = tf.transpose(x, [0, 1, 3, 5, 2, 4])
    return tf.reshape(x, [shape[0], shape[1] // 2, shape[2] // 2, x.shape[3], CELL])


def pool(x: tf.Tensor) -> tf.Tensor:
    """The largest of each 2x2 cell: [B, H, W, C] -> [B, H / 2, W / 2, C], H and W even."""
    return tf.nn.max_pool2d(x, 2, 2, "VALID")


def find(x: tf.Tensor) -> tf.Tensor:
    """The switches of `pool`: [B, H, W, C] -> int32 0 .. 3, [B, H / 2, W / 2, C]; the first of several maxima."""
    return tf.argmax(_cells(x), -1, output_type=tf.int32)


def decided(x: tf.Tensor) -> tf.Tensor:
    """Tells whether a cell has one maximum: [B, H, W, C] -> bool [B, H / 2, W / 2, C].

    Where ReLU has left nothing but zeros, the switch is 0 by convention: nothing that could be predicted wrongly, or
    rightly.
    """
    cells = _cells(x)
    return tf.reduce_sum(tf.cast(cells == tf.reduce_max(cells, -1, keepdims=True), tf.int32), -1) == 1


def unpool(x: tf.Tensor, switch: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] and switches, int32 [B, H, W, C] -> [B, 2 H, 2 W, C], zero but for one pixel of each cell."""
    shape = tf.shape(x)
    x = x[..., None] * tf.one_hot(switch, CELL, dtype=x.dtype)
    x = tf.reshape(x, [shape[0], shape[1], shape[2], x.shape[3], 2, 2])
    x = tf.transpose(x, [0, 1, 4, 2, 5, 3])
    return tf.reshape(x, [shape[0], 2 * shape[1], 2 * shape[2], x.shape[-1]])


def prediction(logits: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Measures how well switches are predicted, over the cells that are `decided`.

    Args:
      logits: of the four classes, [B, H, W, C, 4].
      x: the map before pooling, [B, 2 H, 2 W, C]. It gets no gradient.

    Returns:
      The mean cross-entropy in nats (chance: ln 4) and the share of right predictions (chance: 1/4): float32 scalars.
    """
    logits, x = tf.cast(logits, tf.float32), tf.stop_gradient(x)
    switch, weight = find(x), tf.cast(decided(x), tf.float32)
    total = tf.maximum(tf.reduce_sum(weight), 1.0)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=switch, logits=logits)
    right = tf.cast(tf.argmax(logits, -1, output_type=tf.int32) == switch, tf.float32)
    return tf.reduce_sum(weight * entropy) / total, tf.reduce_sum(weight * right) / total
