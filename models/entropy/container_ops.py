"""`container.py` in TensorFlow ops, for batches inside a graph: headers written and read where no Python runs.

The same bytes, the same refusals. Strings that are not streams of the model raise InvalidArgumentError before memory is
allocated for what they claim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from models.entropy import container
from models.entropy.rans import CPU, require

_BYTES = np.array([bytes([i]) for i in range(256)] + [b""], dtype=object)
_NO_BYTE = 256
_FIXED = len(container.MAGIC) + 2 + container.WEIGHTS_ID_BYTES
_NUMBER = 5  # bytes of a LEB128 number, at most


class Streams(NamedTuple):
    """Parts of complete files, each [B]: header (string), height, width (int32), controls (uint8 [B, n]), payload
    (string), fingerprint (uint32)."""

    header: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor
    controls: tf.Tensor
    payload: tf.Tensor
    fingerprint: tf.Tensor


def headers(model_id: int, weights_id: bytes, height: tf.Tensor, width: tf.Tensor, controls: tf.Tensor) -> tf.Tensor:
    """Does what `container.header_bytes` does, for images of one size.

    Args:
      height, width: int scalars.
      controls: uint8 [B, n].

    Returns:
      string [B].
    """
    with tf.device(CPU):
        fixed = container.MAGIC + bytes([container.VERSION, model_id]) + weights_id
        height, width, fixed = require(
            _plausible(height, width), "an image of this size cannot be stored", height, width, tf.constant(fixed)
        )
        start = tf.strings.join([fixed, _leb128(height), _leb128(width), _leb128(tf.shape(controls)[1])])
        return tf.strings.join([tf.fill(tf.shape(controls)[:1], start), _to_string(tf.cast(controls, tf.int32))])


def pack(headers: tf.Tensor, payloads: tf.Tensor, fingerprints: tf.Tensor) -> tf.Tensor:
    """Does what `container.pack` does: string [B] from string [B], string [B] and uint32 [B]."""
    with tf.device(CPU):
        ends = tf.cast(tf.bitcast(fingerprints, tf.uint8), tf.int32)
        return tf.strings.join([headers, payloads, _to_string(ends)])


def unpack(streams: tf.Tensor, model_id: int, weights_id: bytes, control_bytes: int) -> Streams:
    """Does what `container.unpack` does for string [B], all of one model and weights, with `control_bytes` each.

    Raises:
      tf.errors.InvalidArgumentError: one is not.
    """
    with tf.device(CPU):
        most = _FIXED + 2 * _NUMBER + 1 + control_bytes
        length = tf.strings.length(streams)
        start = tf.cast(tf.io.decode_raw(streams, tf.uint8, fixed_length=most), tf.int32)
        magic, rest = start[:, : len(container.MAGIC)], start[:, len(container.MAGIC) :]
        (rest,) = require(magic == list(container.MAGIC), "not a stream of this zoo", rest)
        (rest,) = require(rest[:, 0] == container.VERSION, "stream of another format version", rest)
        (rest,) = require(rest[:, 1] == model_id, "stream of another model", rest)
        (rest,) = require(rest[:, 2:6] == list(weights_id), "stream written with other weights", rest)
        at = tf.fill(tf.shape(length), _FIXED)
        height, at = _read_leb128(start, at)
        width, at = _read_leb128(start, at)
        number, at = _read_leb128(start, at)
        height, width = require(at <= length, "truncated stream: it ends within its header", height, width)
        height, width = require(_plausible(height, width), "damaged stream (size)", height, width)
        (at,) = require(number == control_bytes, "damaged stream (control bytes)", at)
        controls = tf.gather(start, at[:, None] + tf.range(control_bytes)[None], axis=1, batch_dims=1)
        at += control_bytes
        end = length - container.FINGERPRINT_BYTES
        at, end = require(at <= end, "truncated stream: it ends before its payload", at, end)
        tail = tf.strings.substr(streams, end, tf.fill(tf.shape(end), container.FINGERPRINT_BYTES))
        return Streams(
            tf.strings.substr(streams, tf.zeros_like(at), at),
            height,
            width,
            tf.cast(controls, tf.uint8),
            tf.strings.substr(streams, at, end - at),
            tf.bitcast(tf.io.decode_raw(tail, tf.uint8, fixed_length=container.FINGERPRINT_BYTES), tf.uint32),
        )


def _plausible(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    return (height >= 1) & (width >= 1) & (pixels <= container.MAX_PIXELS)


def _to_string(values: tf.Tensor) -> tf.Tensor:
    """int32 [B, n], 0..255 or `_NO_BYTE`, to string [B]."""
    return tf.strings.reduce_join(tf.gather(tf.constant(_BYTES), values), -1)


def _leb128(value: tf.Tensor) -> tf.Tensor:
    """A scalar below 2^31 as a scalar string."""
    groups = tf.bitwise.right_shift(value, [0, 7, 14, 21, 28])
    following = tf.cast(tf.concat([groups[1:], [0]], 0) > 0, tf.int32)
    groups = (groups & 127) + 128 * following
    return _to_string(tf.where(tf.concat([[1], following[:-1]], 0) > 0, groups, _NO_BYTE))


def _read_leb128(data: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Numbers [B] that begin at `at` [B] in bytes int32 [B, n], and where they end."""
    last = tf.shape(data)[1] - 1
    group = tf.gather(data, tf.minimum(at[:, None] + tf.range(_NUMBER), last), axis=1, batch_dims=1)
    inside = tf.math.cumprod(tf.cast(group > 127, tf.int32), 1, exclusive=True)  # 1 up to the byte that ends the number
    count = tf.reduce_sum(inside, 1)
    ending = tf.gather(group, count - 1, axis=1, batch_dims=1)
    # A number above 2^31 shows as negative; one that ends in a zero byte is another spelling of a shorter one.
    sound = (ending < 128) & ((ending > 0) | (count == 1)) & ((count < _NUMBER) | (ending < 8))
    (group,) = require(sound, "damaged stream: a number in its header is malformed", group)
    places = tf.bitwise.left_shift(inside * (group & 127), 7 * tf.range(_NUMBER))
    return tf.reduce_sum(places, 1), at + count
