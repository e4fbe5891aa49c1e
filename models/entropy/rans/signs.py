"""Signs of the symbols of folded rows: raw bits in words between the passes, the last of them in the lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from models.entropy.rans.lanes import Coded
from models.entropy.rans.ops import counts_of, length_of, ranks_of, require, shl, shr
from models.entropy.rans.stream import EncodedPass, State


def words_for(bits: tf.Tensor) -> tf.Tensor:
    """Counts the 16-bit words that hold a number of bits."""
    return shr(bits + 15, 4)


class SignWords(NamedTuple):
    """The raw sign bits of all passes, packed. int64.

    Attributes:
      words: `[B, M]`, bits of all passes one after the other, low bits first.
      count: `[B]`, number of valid words.
      after: `[B, P]`, how many of them the decoder has read after each pass.
      in_last_pass: `[B]`, how many of them it reads in the last pass that has any coded symbol. Only then
        will the lanes be left as they are, so only these can be kept in the lanes' final states.
    """

    words: tf.Tensor
    count: tf.Tensor
    after: tf.Tensor
    in_last_pass: tf.Tensor


def pack_signs(passes: Sequence[EncodedPass]) -> SignWords:
    """Packs the sign bits of all passes into words, in coding order."""
    bits = words = in_last_pass = tf.zeros_like(passes[0].sign_counts)
    after, bit_index = [], []
    for p in passes:
        bit_index.append(tf.gather(bits, p.sign_image) + ranks_of(p.sign_image, p.sign_counts))
        bits += p.sign_counts
        in_last_pass = tf.where(p.coded.counts > 0, words_for(bits) - words, in_last_pass)
        words = words_for(bits)
        after.append(words)
    width = tf.maximum(tf.reduce_max(words), 1)
    bit, image = tf.concat(bit_index, 0), tf.concat([p.sign_image for p in passes], 0)
    value = shl(tf.concat([p.sign for p in passes], 0), bit & 15)
    shape = tf.stack([length_of(words), width])
    packed = tf.scatter_nd(tf.stack([image, shr(bit, 4)], 1), value, shape)  # adds up the bits of a word
    return SignWords(packed, words, tf.stack(after, 1), in_last_pass)


def decode_signs(state: State, entry: tf.Tensor, coded: Coded, partial: bool) -> tuple[tf.Tensor, State]:
    """Reads the signs of a pass and gives them to the non-zero ones of `entry` `[K]`.

    Words that do not follow in the stream are in the lanes. That can only be so in the last pass that codes
    anything, and there the encoder put as many of them into the lanes as these hold.
    """
    batch, lanes = tf.unstack(tf.shape(state["lanes"], out_type=tf.int64))
    nonzero = tf.where(entry > 0)[:, 0]
    image = tf.gather(coded.image, nonzero)
    counts = counts_of(image, batch)
    words_before, bits_after = words_for(state["sign_bits"]), state["sign_bits"] + counts
    needed = words_for(bits_after) - words_before
    in_lanes = tf.maximum(needed - (state["end"] - state["next"]), 0)
    most = tf.minimum(needed, shl(tf.ones_like(needed), state["log2_lanes"]))
    plausible = (in_lanes == 0) | (tf.equal(in_lanes, most) & tf.equal(state["signs_in_lanes"], 0))
    alive = state["alive"]
    if partial:
        alive &= plausible & ((in_lanes == 0) | state["whole"])
        in_lanes, needed = tf.where(alive, in_lanes, 0), tf.where(alive, needed, 0)
    else:
        in_lanes, needed = require(plausible, "truncated or damaged stream (signs)", in_lanes, needed)
    in_words = needed - in_lanes

    # One place to look up a word: the streams, then the word left over from the pass before, then the lanes.
    stream_words = length_of(state["words"])
    pool = tf.concat([state["words"], state["sign_word"], tf.reshape(state["lanes"] & 0xFFFF, [-1])], 0)

    def address(image: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
        """Index in `pool` of the `word`-th new word of this pass, -1 for the one left over."""
        beyond = word - tf.gather(in_words, image)
        in_stream = tf.where(
            beyond < 0, tf.gather(state["next"], image) + word, stream_words + batch + image * lanes + beyond
        )
        return tf.where(word < 0, stream_words + image, in_stream)

    bit = tf.gather(state["sign_bits"], image) + ranks_of(image, counts)
    at = address(image, shr(bit, 4) - tf.gather(words_before, image))
    if partial:
        at = tf.where(tf.gather(alive, image), at, 0)
    sign = tf.cast(shr(tf.gather(pool, at), bit & 15) & 1, tf.int32)
    signed = tf.tensor_scatter_nd_sub(entry, nonzero[:, None], 2 * sign * tf.gather(entry, nonzero))
    return signed, state | {
        "next": state["next"] + in_words,
        "sign_bits": bits_after,
        "sign_word": tf.gather(pool, address(tf.range(batch), needed - 1)),
        "signs_in_lanes": state["signs_in_lanes"] + in_lanes,
        "alive": alive,
    }
