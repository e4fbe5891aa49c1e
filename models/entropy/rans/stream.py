"""Stream layout that encoder and decoder share: the words around the states, and what passes hand on.

The format is `res/doc/bitstream.md`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from models.entropy.rans.lanes import Coded
from models.entropy.rans.ops import length_of, shr

HEADER_WORDS = 2
EXTENDED_HEADER_WORDS = 4
CHECKSUM_WORD = 1
LONG_EXCEPTIONS = 15  # in the header's 4-bit count: the true count follows in an extended header
MIN_WORDS = HEADER_WORDS + 2  # header and one lane
FINGERPRINT_WORDS = 2  # what a container may have left behind a payload in partial mode
CHECKSUM_MODULUS = 65521


State = dict[str, tf.Tensor]
"""What a decoder carries from pass to pass.

All are int64 but for `alive` and `whole`. Indices are into the flat `words`.

words [W]              all streams of the batch, one after the other, with zeros between
start, end [B]         where each stream begins and ends
next [B]               the next word to read
log2_lanes [B]
coded [B]              number of coded symbols so far
lanes [B, L]           rANS states
sign_bits [B]          sign bits read so far
sign_word [B]          the sign word read last, of which bits may be left
signs_in_lanes [B]     number of sign words in the final states, once they were read
exceptions [X, 3]      image, position, value
exceptions_used []
position []            number of symbols decoded of each image
alive [B]              everything so far was wholly there (partial mode; else always true)
whole [B]              the stream is not cut off
"""


class EncodedPass(NamedTuple):
    """An encoded pass, kept until the stream is written.

    int64; K coded symbols, S non-zero ones of folded rows, X exceptions.

    Attributes:
      coded: see `Coded`.
      packed: `[K]`, (total - frequency) << 16 | cumulative frequency.
      cost: `[B]`, ideal code length without exceptions, in units of 1 / COST_ONE_BIT bits.
      sign: `[S]`, 1 for a negative symbol.
      sign_image: `[S]`.
      sign_counts: `[B]`.
      exceptions: `[X, 3]`, image, position in the stream of symbols, value.
    """

    coded: Coded
    packed: tf.Tensor
    cost: tf.Tensor
    sign: tf.Tensor
    sign_image: tf.Tensor
    sign_counts: tf.Tensor
    exceptions: tf.Tensor


def checksum_of(words: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Computes the checksum of the first `count` `[B]` of `words` `[B, W]`: a sum weighted by position."""
    j = tf.range(tf.shape(words, out_type=tf.int64)[1])[None]
    weight = tf.where((j < count[:, None]) & (j != CHECKSUM_WORD), j % (CHECKSUM_MODULUS - 1) + 1, 0)
    return tf.reduce_sum((words + 1) * weight, 1) % CHECKSUM_MODULUS


_BYTES = np.array([bytes([i]) for i in range(256)] + [b""], dtype=object)


def to_strings(words: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Writes the first `count` `[B]` words of each row of `[B, W]`, little-endian: string `[B]`."""
    pair = tf.stack([words & 255, shr(words, 8)], 2)
    valid = tf.range(tf.shape(words, out_type=tf.int64)[1])[None] < count[:, None]
    pair = tf.where(valid[..., None], pair, 256)
    pair = tf.reshape(pair, tf.stack([length_of(count), -1]))
    return tf.strings.reduce_join(tf.gather(tf.constant(_BYTES), pair), -1)
