"""States and lanes: which symbol goes through which rANS state, and the loops that move all states by one row.

An image has L = 1 .. 512 lanes, each an rANS state. Coded symbol k of a pass belongs to row k // L and lane k % L of a
grid, and one step of a loop moves all lanes by one row.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from models.entropy.rans.ops import CPU, counts_of, length_of, ranks_of, shl, shr

MAX_LOG2_LANES = 9
STATE_MIN = 1 << 16
UNROLL = 4  # rows per loop iteration: the loop's own overhead is worth about 5 kernels; 8 gains nothing more
#: Most rows of a stream of less than 512 lanes. Encoders take more lanes if need be: a nearly empty, huge image must
#: not take seconds. Decoders refuse more rows: a few bytes that claim one lane for millions of symbols would take
#: minutes.
MAX_ROWS = 1 << 14


@tf.function(
    input_signature=[tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None, 4 * UNROLL, None, None], tf.int64)],
    autograph=False,
)
def encode_rows(state: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Codes all rows, the last one first, as rANS is a stack.

    Args:
      state: `[B, L]`, at the end of the stream.
      rows: `[R / UNROLL, UNROLL * 4, B, L]`, four numbers for each symbol: the state from which a word is put
        out, the frequency, the cumulative frequency, total - frequency.

    Returns:
      The states at the start of the stream `[B, L]`, and before coding each row `[R, B, L]`.
    """
    with tf.device(CPU):
        steps = tf.shape(rows)[0]

        def body(i, state, before):
            operands = tf.unstack(tf.gather(rows, i), num=4 * UNROLL)
            seen = [None] * UNROLL
            for k in reversed(range(UNROLL)):
                limit, frequency, cumulative, rest = operands[4 * k : 4 * k + 4]
                seen[k] = state
                state = tf.where(state >= limit, shr(state, 16), state)
                # = state // frequency * total + cumulative + state % frequency
                state += cumulative + tf.raw_ops.Div(x=state, y=frequency) * rest
            return i - 1, state, before.write(i, tf.stack(seen))

        before = tf.TensorArray(tf.int64, steps, element_shape=[UNROLL, None, None])
        loop = tf.while_loop(lambda i, *_: i >= 0, body, [steps - 1, state, before], parallel_iterations=1)
        lanes = tf.shape(state)
        return loop[1], tf.reshape(loop[2].stack(), tf.stack([-1, lanes[0], lanes[1]]))


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.int64),
        tf.TensorSpec([None, 1], tf.int64),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None, UNROLL, None, None], tf.int64),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([], tf.int64),
    ],
    autograph=False,
)
def decode_rows(
    state: tf.Tensor,
    last: tf.Tensor,
    words: tf.Tensor,
    rows: tf.Tensor,
    slots: tf.Tensor,
    precision: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes rows, the first one first.

    Args:
      state: `[B, L]`.
      last: `[B, 1]`, index in `words` of the last word read.
      words: `[W]`, with room for B * L more words per row behind the last valid one.
      rows: `[R / UNROLL, UNROLL, B, L]`, table row << precision.
      slots: the tables, see `RansCoder`.
      precision: scalar.

    Returns:
      state, last, and for each symbol of the grid its key `[R * B * L]`: table row << precision | slot.
    """
    with tf.device(CPU):
        steps = tf.shape(rows)[0]
        mask = shl(tf.ones_like(precision), precision) - 1

        def body(i, state, last, keys):
            seen = []
            for row in tf.unstack(tf.gather(rows, i), num=UNROLL):
                key = (state & mask) + row
                slot = tf.gather(slots, key)
                state = shr(slot, 32) * shr(state, precision) + (slot & 0xFFFFFFFF)
                short = state < STATE_MIN
                position = tf.cumsum(tf.cast(short, tf.int64), 1) + last
                state = tf.where(short, shl(state, 16) + tf.gather(words, position), state)
                last = tf.ensure_shape(position[:, -1:], [None, 1])
                seen.append(key)
            return i + 1, state, last, keys.write(i, tf.stack(seen))

        keys = tf.TensorArray(tf.int64, steps, element_shape=[UNROLL, None, None])
        loop = tf.while_loop(lambda i, *_: i < steps, body, [0, state, last, keys], parallel_iterations=1)
        return loop[1], loop[2], tf.reshape(loop[3].stack(), [-1])


class Coded(NamedTuple):
    """The coded symbols of a pass, image by image. All int64.

    Attributes:
      position: `[K]`, index in the flattened `[B * N]`.
      image: `[K]`, which image of the batch.
      rank: `[K]`, position among the coded symbols of that image.
      counts: `[B]`, number of coded symbols.
    """

    position: tf.Tensor
    image: tf.Tensor
    rank: tf.Tensor
    counts: tf.Tensor


def find_coded(coded: tf.Tensor) -> Coded:
    """Finds the coded symbols, given their mask `[B, N]`."""
    batch, symbols = tf.unstack(tf.shape(coded, out_type=tf.int64))
    position = tf.where(tf.reshape(coded, [-1]))[:, 0]
    image = position // tf.maximum(symbols, 1)
    counts = counts_of(image, batch)
    return Coded(position, image, ranks_of(image, counts), counts)


def place(coded: Coded, log2_lanes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Places coded symbols in the grid `[R, B, L]` of a pass: flat index `[K]`; and R.

    R is a multiple of UNROLL. L is the number of lanes of the image that has most; others leave lanes idle.
    """
    lanes = shl(1, tf.reduce_max(log2_lanes))
    rows = tf.reduce_max(shr(coded.counts - 1, log2_lanes) + 1)
    rows = (tf.maximum(rows, 1) + UNROLL - 1) // UNROLL * UNROLL  # at least one: an empty loop cannot be stacked
    shift = tf.gather(log2_lanes, coded.image)
    row, lane = shr(coded.rank, shift), coded.rank & (shl(tf.ones_like(shift), shift) - 1)
    return (row * length_of(coded.counts) + coded.image) * lanes + lane, rows


def least_lanes(symbols: tf.Tensor) -> tf.Tensor:
    """Finds log2 of the fewest lanes `[B]` that streams of these numbers of coded symbols `[B]` may have."""
    fewer = shl(tf.ones([MAX_LOG2_LANES], tf.int64), tf.range(MAX_LOG2_LANES))
    return tf.reduce_sum(tf.cast(symbols[:, None] > fewer * MAX_ROWS, tf.int64), 1)
