"""Fingerprints of symbols: what a decoder must have arrived at."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from models.entropy.rans.ops import CPU


def digest(symbols: tf.Tensor) -> tf.Tensor:
    """Hashes each image's symbols by FarmHash64: int32 `[B, ...]` to uint8 `[B, 8]`."""
    with tf.device(CPU):
        batch = tf.shape(symbols)[0]
        return tf.fingerprint(tf.reshape(tf.cast(symbols, tf.int32), tf.stack([batch, -1])))


def fingerprint(passes: Sequence[tf.Tensor], header: tf.Tensor | bytes = b"") -> tf.Tensor:
    """Computes the fingerprint of what a decoder must have arrived at.

    Args:
      passes: the symbols of each pass, int32 `[B, N]`, in coding order.
      header: the header's bytes, a string for all images or `[B]`.

    Returns:
      uint32 `[B]`.
    """
    return combine([digest(symbols) for symbols in passes], header)


def combine(digests: Sequence[tf.Tensor], header: tf.Tensor | bytes) -> tf.Tensor:
    """Computes `fingerprint` of the passes' digests, uint8 `[B, 8]` each."""
    with tf.device(CPU):
        header = tf.broadcast_to(header, tf.shape(digests[0])[:1])
        hashes = tf.fingerprint(tf.concat([*digests, tf.fingerprint(header)], 1))
        return tf.bitcast(hashes[:, :4], tf.uint32)
