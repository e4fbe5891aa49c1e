"""The encoder: collects passes, runs the lanes backwards and puts the streams together."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from models.entropy.rans.digests import combine, digest
from models.entropy.rans.exceptions import pack_exceptions
from models.entropy.rans.lanes import (
    MAX_LOG2_LANES,
    STATE_MIN,
    UNROLL,
    Coded,
    encode_rows,
    find_coded,
    least_lanes,
    place,
)
from models.entropy.rans.lookup import COST_ONE_BIT, EncoderTables, RansCoder
from models.entropy.rans.ops import CPU, counts_of, in_a_graph_once, length_of, ranks_of, require, shl, shr
from models.entropy.rans.signs import SignWords, pack_signs
from models.entropy.rans.stream import (
    CHECKSUM_WORD,
    EXTENDED_HEADER_WORDS,
    HEADER_WORDS,
    LONG_EXCEPTIONS,
    EncodedPass,
    checksum_of,
    to_strings,
)

LANE_OVERHEAD_BITS = 9  # of 32 bits of state, what a lane wastes if 16 of them carry sign bits
OVERHEAD_FRACTION = 125  # at most 1/125 = 0.8 % of the payload goes into lanes


class RansEncoder:
    """Collects passes and then codes them all, last symbol first, as rANS requires."""

    def __init__(self, coder: RansCoder) -> None:
        self._tables, self._precision = coder.encoder_tables(), coder.precision
        self._passes: list[EncodedPass] = []
        self._digests: list[tf.Tensor] = []
        self._position = tf.constant(0, tf.int64)

    def code(self, rows: tf.Tensor, symbols: tf.Tensor, folded: bool = True) -> tf.Tensor:
        """Records a pass.

        Args:
          rows: int32 `[B, N]`, row of the bank for each symbol.
          symbols: int32 `[B, N]`, any values.
          folded: whether the rows of this pass are folded: all of them or none.

        Returns:
          `symbols`, as the decoder's method of the same name does.

        Raises:
          tf.errors.InvalidArgumentError: a row is not in the bank, or not (un)folded as announced.
        """
        with tf.device(CPU):
            rows, symbols = tf.cast(rows, tf.int32), tf.cast(symbols, tf.int32)
            self._passes.append(_record(self._tables, rows, symbols, self._position, folded))
            self._digests.append(digest(symbols))
            self._position += tf.shape(symbols, out_type=tf.int64)[1]
        return symbols

    def cost_bits(self) -> tf.Tensor:
        """float64 `[B]`: ideal bits so far under the integer tables, without exceptions."""
        return tf.cast(self._total_cost(), tf.float64) / COST_ONE_BIT

    def _total_cost(self) -> tf.Tensor:
        return tf.add_n([p.cost for p in self._passes])

    def fingerprint(self, header: tf.Tensor | bytes = b"") -> tf.Tensor:
        """uint32 `[B]`: `fingerprint` of all passes recorded so far."""
        return combine(self._digests, header)

    def finish(self, log2_lanes: int | None = None) -> tf.Tensor:
        """Codes everything.

        Args:
          log2_lanes: 0 to 9, for all images that do not need more; by default as many lanes as cost little, for each
            image.

        Returns:
          string `[B]`.
        """
        if not self._passes:
            raise ValueError("nothing was coded")
        with tf.device(CPU):
            signs = pack_signs(self._passes)
            lanes = self._cheap_lanes(signs.in_last_pass) if log2_lanes is None else tf.constant(log2_lanes, tf.int64)
            lanes = tf.maximum(lanes, least_lanes(tf.add_n([p.coded.counts for p in self._passes])))
            return _assemble(self._passes, signs, lanes, self._precision)

    def _cheap_lanes(self, last_words: tf.Tensor) -> tf.Tensor:
        """log2 of the lanes `[B]`: the most that cost little.

        The choice is the encoder's alone, and in integers: a string must not depend on the batch it is in.
        """
        log2 = tf.range(MAX_LOG2_LANES + 1, dtype=tf.int64)[None]
        lanes = shl(tf.ones_like(log2), log2)
        overhead = LANE_OVERHEAD_BITS * lanes + 16 * tf.maximum(lanes - last_words[:, None], 0)
        cheap = overhead * OVERHEAD_FRACTION * COST_ONE_BIT <= self._total_cost()[:, None]
        return tf.reduce_sum(tf.cast(cheap, tf.int64), 1) - 1


@in_a_graph_once
def _record(
    tables: EncoderTables, rows: tf.Tensor, symbols: tf.Tensor, position: tf.Tensor, folded: bool
) -> EncodedPass:
    """A pass, see `RansEncoder.code`; position: int64 `[]`, number of symbols in the passes before."""
    batch, count = tf.unstack(tf.shape(symbols, out_type=tf.int64))
    coded_mask = tf.gather(tables.row_coded, rows)
    coded = find_coded(coded_mask)
    coded_rows = tf.gather(tf.reshape(rows, [-1]), coded.position)
    fits = tf.equal(tf.gather(tables.row_folded, coded_rows), folded)
    (coded_rows,) = require(fits, "a pass mixes folded and other rows", coded_rows)

    value = tf.gather(tf.reshape(symbols, [-1]), coded.position)
    first, length, offset, likely = tf.unstack(tf.gather(tables.row_info, coded_rows), num=4, axis=1)
    # Both may wrap, and harmlessly: |-2**31| is negative and so outside; a difference is exact mod 2**32.
    entry = tf.abs(value) if folded else value - offset
    outside = (entry < 0) | (entry >= length)
    packed = tf.gather(tables.entries, tf.where(outside, likely, first + entry))

    has_sign = ~outside & (entry > 0) if folded else tf.zeros_like(outside)
    sign_image = tf.boolean_mask(coded.image, has_sign)
    cost = shr(packed, 32) + tf.cast(has_sign, tf.int64) * COST_ONE_BIT

    flat = tf.reshape(symbols, [-1])
    exceptional = tf.reshape(~coded_mask, [-1]) & (flat != 0)
    exceptional = tf.tensor_scatter_nd_update(exceptional, coded.position[:, None], outside)
    where = tf.where(exceptional)[:, 0]
    image, index = where // tf.maximum(count, 1), where % tf.maximum(count, 1)
    return EncodedPass(
        coded=coded,
        packed=packed & 0xFFFFFFFF,
        cost=tf.math.unsorted_segment_sum(cost, coded.image, batch),
        sign=tf.cast(tf.boolean_mask(value, has_sign) < 0, tf.int64),
        sign_image=sign_image,
        sign_counts=counts_of(sign_image, batch),
        exceptions=tf.stack([image, position + index, tf.cast(tf.gather(flat, where), tf.int64)], 1),
    )


def _assemble(passes: Sequence[EncodedPass], signs: SignWords, log2_lanes: tf.Tensor, precision: int) -> tf.Tensor:
    """Runs the coder and puts the streams together: string `[B]`."""
    batch = length_of(log2_lanes)
    image_lanes = shl(tf.ones_like(log2_lanes), log2_lanes)
    lanes = tf.reduce_max(image_lanes)
    lane = tf.range(lanes)[None]

    in_lanes = tf.minimum(image_lanes, signs.in_last_pass)
    in_words = signs.count - in_lanes
    index = tf.minimum(in_words[:, None] + lane, tf.shape(signs.words, out_type=tf.int64)[1] - 1)
    hidden = tf.where(lane < in_lanes[:, None], tf.gather(signs.words, index, batch_dims=1), 0)
    rows, pass_of_row = _grid(passes, log2_lanes, lanes)
    states, emitted = _run(hidden + STATE_MIN, rows, precision)

    extra = pack_exceptions(passes, batch)
    header = tf.where(extra.words < LONG_EXCEPTIONS, tf.constant(HEADER_WORDS, tf.int64), EXTENDED_HEADER_WORDS)
    lanes_at = header + extra.words
    words_at = lanes_at + 2 * image_lanes
    per_row = tf.reduce_sum(tf.cast(emitted >= 0, tf.int64), 2)  # [B, R]
    total = words_at + tf.reduce_sum(per_row, 1) + in_words

    short_count = tf.minimum(extra.words, LONG_EXCEPTIONS)
    word0 = log2_lanes + shl(short_count, 4) + shl(total & 255, 8)
    head = tf.stack([word0, tf.zeros_like(word0), extra.words & 0xFFFF, shr(extra.words, 16)], 1)
    # (image, index, word) of everything; parts are masked where an image has less of them than the others
    parts = [
        _masked(head, tf.range(EXTENDED_HEADER_WORDS, dtype=tf.int64)[None] + 0 * header[:, None], header),
        (
            extra.image,
            tf.gather(header, extra.image) + shr(extra.index, 1),
            shl(extra.byte, 8 * (extra.index & 1)),
        ),
        _masked(states & 0xFFFF, lanes_at[:, None] + 2 * lane, words_at),
        _masked(shr(states, 16), lanes_at[:, None] + 2 * lane + 1, words_at),
        _place_emitted(emitted, per_row, pass_of_row, signs, words_at),
        _place_signs(per_row, pass_of_row, signs, in_words, words_at),
    ]
    image, index, word = (tf.concat(columns, 0) for columns in zip(*parts))
    words = tf.scatter_nd(tf.stack([image, index], 1), word, tf.stack([batch, tf.reduce_max(total)]))
    checksum = checksum_of(words, total)[:, None]
    is_checksum = tf.range(tf.shape(words)[1])[None] == CHECKSUM_WORD
    return to_strings(tf.where(is_checksum, checksum, words), total)


def _grid(passes: Sequence[EncodedPass], log2_lanes: tf.Tensor, lanes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Packed entries of all passes `[R, B, L]`, 0 where nothing is coded; the pass of each row `[R]`."""
    grids = [_grid_of(p.coded, p.packed, log2_lanes, lanes) for p in passes]
    heights = tf.stack([tf.shape(grid, out_type=tf.int64)[0] for grid in grids])
    return tf.concat(grids, 0), tf.repeat(tf.range(len(passes), dtype=tf.int64), heights)


@in_a_graph_once
def _grid_of(coded: Coded, packed: tf.Tensor, log2_lanes: tf.Tensor, lanes: tf.Tensor) -> tf.Tensor:
    """`_grid` of one pass."""
    where, height = place(coded, log2_lanes)
    shape = tf.stack([height, length_of(log2_lanes), lanes])
    return tf.reshape(tf.scatter_nd(where[:, None], packed, tf.reduce_prod(shape)[None]), shape)


def _run(states: tf.Tensor, rows: tf.Tensor, precision: int) -> tuple[tf.Tensor, tf.Tensor]:
    """States `[B, L]` at the start of the stream, and the word each symbol puts out `[B, R, L]`, or -1."""
    rest, cumulative = shr(rows, 16), rows & 0xFFFF
    frequency = (1 << precision) - rest
    limit = shl(frequency, 32 - precision)
    operands = tf.stack([limit, frequency, cumulative, rest], 1)
    shape = tf.shape(rows)
    states, before = encode_rows(states, tf.reshape(operands, tf.stack([-1, 4 * UNROLL, shape[1], shape[2]])))
    return states, tf.transpose(tf.where(before >= limit, before & 0xFFFF, -1), [1, 0, 2])


def _masked(values: tf.Tensor, index: tf.Tensor, end: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(image, index, value) of those `[B, W]` whose index is below `end` `[B]`."""
    keep = index < end[:, None]
    return tf.where(keep)[:, 0], tf.boolean_mask(index, keep), tf.boolean_mask(values, keep)


def _place_emitted(
    emitted: tf.Tensor, per_row: tf.Tensor, pass_of_row: tf.Tensor, signs: SignWords, words_at: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """rANS words: row by row, lane by lane, after the sign words of the passes before."""
    image, row, _ = tf.unstack(tf.where(emitted >= 0), num=3, axis=1)
    rank = ranks_of(image, tf.reduce_sum(per_row, 1))
    signs_before = tf.pad(signs.after, [[0, 0], [1, 0]])
    earlier = tf.gather_nd(signs_before, tf.stack([image, tf.gather(pass_of_row, row)], 1))
    return image, tf.gather(words_at, image) + rank + earlier, tf.boolean_mask(emitted, emitted >= 0)


def _place_signs(
    per_row: tf.Tensor, pass_of_row: tf.Tensor, signs: SignWords, in_words: tf.Tensor, words_at: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sign words that are not in lanes: after the rANS words of the pass in which the decoder needs them."""
    per_pass = tf.math.segment_sum(tf.transpose(per_row), pass_of_row)  # [P, B]
    emitted_after = tf.transpose(tf.cumsum(per_pass))
    j = tf.range(tf.shape(signs.words, out_type=tf.int64)[1])
    passes_before = tf.reduce_sum(tf.cast(signs.after[:, None] <= j[None, :, None], tf.int64), 2)
    needed_in = tf.minimum(passes_before, tf.shape(signs.after, out_type=tf.int64)[1] - 1)
    index = words_at[:, None] + tf.gather(emitted_after, needed_in, batch_dims=1) + j[None]
    keep = j[None] < in_words[:, None]
    return tf.where(keep)[:, 0], tf.boolean_mask(index, keep), tf.boolean_mask(signs.words, keep)
