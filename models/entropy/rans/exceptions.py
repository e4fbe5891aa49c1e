"""Exceptions: symbols that no table holds, listed at the start of a stream with their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from models.entropy.rans.ops import counts_of, length_of, ranks_of, require, shl, shr, sum_before
from models.entropy.rans.stream import EncodedPass

VARINT_MAX_BYTES = 5


class ExceptionBytes(NamedTuple):
    """The exceptions of all images as bytes, `[T]` each, and how many words they fill `[B]`. All int64."""

    image: tf.Tensor
    index: tf.Tensor
    byte: tf.Tensor
    words: tf.Tensor


def pack_exceptions(passes: Sequence[EncodedPass], batch: tf.Tensor) -> ExceptionBytes:
    """Writes two LEB128 numbers per exception: the symbols between it and the one before; its value in zigzag."""
    exceptions = tf.concat([p.exceptions for p in passes], 0)
    exceptions = tf.gather(exceptions, tf.argsort(exceptions[:, 0], stable=True))
    image, position, value = tf.unstack(exceptions, num=3, axis=1)
    same_image = tf.concat([[-1], image[:-1]], 0) == image
    previous = tf.where(same_image, tf.concat([[-1], position[:-1]], 0), -1)
    zigzag = shl(value, 1) ^ shr(value, 63)

    numbers = tf.reshape(tf.stack([position - previous - 1, zigzag], 1), [-1, 1])
    k = tf.range(VARINT_MAX_BYTES, dtype=tf.int64)[None]
    groups = shr(numbers, 7 * k)
    used = (groups > 0) | (k == 0)
    groups = (groups & 127) + tf.where(shr(numbers, 7 * (k + 1)) > 0, tf.constant(128, tf.int64), 0)
    byte_image = tf.boolean_mask(tf.repeat(image, 2)[:, None] + tf.zeros_like(k), used)
    counts = counts_of(byte_image, batch)
    return ExceptionBytes(byte_image, ranks_of(byte_image, counts), tf.boolean_mask(groups, used), shr(counts + 1, 1))


def unpack_exceptions(words: tf.Tensor, at: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Reads the exceptions in `count` `[B]` words from `at` `[B]` on: `[X, 3]`, image, position, value."""
    j = tf.range(tf.reduce_max(count))[None]
    valid = j < count[:, None]
    word = tf.gather(words, tf.boolean_mask(at[:, None] + j, valid))
    byte = tf.reshape(tf.stack([word & 255, shr(word, 8)], 1), [-1])
    image = tf.repeat(tf.where(valid)[:, 0], 2)

    # LEB128: bytes below 128 end a number
    ends = byte < 128
    end = tf.where(ends)[:, 0]
    number = sum_before(tf.cast(ends, tf.int64))
    begin = tf.concat([tf.zeros([1], tf.int64), end + 1], 0)
    k = tf.range(length_of(byte)) - tf.gather(begin, number)
    within_image = tf.equal(tf.gather(tf.concat([image, [-1]], 0), tf.range(1, length_of(image) + 1)), image)
    sound = (ends | within_image) & (k < VARINT_MAX_BYTES)
    byte, number, image, end, k = require(sound, "damaged stream (exceptions)", byte, number, image, end, k)
    numbers = tf.math.unsorted_segment_sum(shl(byte & 127, 7 * k), number, length_of(end))

    # pairs of numbers; a single one left over is the zero byte that fills the last word
    image = tf.gather(image, end)
    per_image = counts_of(image, length_of(count))
    rank = ranks_of(image, per_image)
    first = (rank % 2 == 0) & (rank + 1 < tf.gather(per_image, image))
    gap, zigzag = tf.boolean_mask(numbers, first), tf.boolean_mask(numbers, rank % 2 == 1)
    image = tf.boolean_mask(image, first)
    image, gap, zigzag = require(zigzag < 1 << 32, "damaged stream (exceptions)", image, gap, zigzag)
    before = sum_before(gap + 1)  # symbols before an exception's gap, counted through all images
    position = before + gap - tf.gather(before, tf.gather(sum_before(shr(per_image, 1)), image))
    return tf.stack([image, position, shr(zigzag, 1) ^ -(zigzag & 1)], 1)
