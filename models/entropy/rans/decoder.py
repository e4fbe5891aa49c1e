"""The decoder: takes streams apart and runs the lanes forwards, pass by pass."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from models.entropy.rans.digests import combine, digest
from models.entropy.rans.exceptions import unpack_exceptions
from models.entropy.rans.lanes import (
    MAX_LOG2_LANES,
    STATE_MIN,
    UNROLL,
    Coded,
    decode_rows,
    find_coded,
    least_lanes,
    place,
)
from models.entropy.rans.lookup import DecoderTables, RansCoder
from models.entropy.rans.ops import CPU, in_a_graph_once, length_of, require, shl, shr
from models.entropy.rans.signs import decode_signs
from models.entropy.rans.stream import (
    CHECKSUM_WORD,
    EXTENDED_HEADER_WORDS,
    FINGERPRINT_WORDS,
    HEADER_WORDS,
    LONG_EXCEPTIONS,
    MIN_WORDS,
    State,
    checksum_of,
)

#: The grid in which a batch is decoded has no more cells than this, and this many for each symbol. Its rows are those
#: of the slowest stream and its lanes those of the widest, and with streams that are made for it it is nearly empty.
SPARSE_CELLS, SPARSE_FACTOR = 1 << 26, 4


class RansDecoder:
    """Decodes passes in the order they were coded.

    Attributes:
      complete: bool `[B]`, whether the last pass was wholly in the stream; always true unless `partial`.
    """

    def __init__(self, coder: RansCoder, strings: tf.Tensor, partial: bool = False) -> None:
        """Reads the headers.

        Args:
          coder: of the same bank as the encoder's.
          strings: string `[B]`.
          partial: streams may be cut off anywhere, and may have up to 4 more bytes behind their end. Passes
            that are wholly there are decoded; the first other one and all after it are zeros. There are no
            checksums then.

        Raises:
          tf.errors.InvalidArgumentError: a stream is damaged. `code` and `finish` may find that out as well.
            The message starts with `coder:`; out of a graph, which adds to it, `describe` extracts it.
        """
        self._tables, self._partial = coder.decoder_tables(), partial
        self._digests: list[tf.Tensor] = []
        with tf.device(CPU):
            self._state = _start(tf.convert_to_tensor(strings), partial)
        self.complete = self._state["alive"]

    def code(self, rows: tf.Tensor, symbols: Any = None, folded: bool = True) -> tf.Tensor:
        """Decodes a pass.

        Args:
          rows: int32 `[B, N]`, row of the bank for each symbol.
          symbols: ignored; for the encoder's method of the same name.
          folded: whether the rows of this pass are folded.

        Returns:
          int32 `[B, N]`.
        """
        del symbols
        with tf.device(CPU):
            decoded, self._state = _decode(self._tables, self._state, tf.cast(rows, tf.int32), folded, self._partial)
            self._digests.append(digest(decoded))
        self.complete = self._state["alive"]
        return decoded

    def fingerprint(self, header: tf.Tensor | bytes = b"") -> tf.Tensor:
        """uint32 `[B]`: `fingerprint` of all passes decoded so far."""
        return combine(self._digests, header)

    def finish(self) -> None:
        """Checks that the streams end where they should. Does nothing if `partial`."""
        if self._partial:
            return
        with tf.device(CPU):
            s = self._state
            lane = tf.range(tf.shape(s["lanes"], out_type=tf.int64)[1])[None]
            final = tf.where(lane < s["signs_in_lanes"][:, None], s["lanes"] & 0xFFFF, 0) + STATE_MIN
            require(tf.equal(s["lanes"], final), "damaged stream (final state)")
            require(tf.equal(s["next"], s["end"]), "damaged stream (data left over)")
            require(
                tf.equal(s["exceptions_used"], length_of(s["exceptions"])),
                "damaged stream (exceptions left over)",
            )


def _start(strings: tf.Tensor, partial: bool) -> State:
    """Takes the streams apart as far as that needs no tables."""
    length = tf.cast(tf.strings.length(strings), tf.int64)
    if not partial:
        strings, length = require(length % 2 == 0, "truncated stream (odd length)", strings, length)
    width = tf.maximum(tf.reduce_max(shr(length + 1, 1)), EXTENDED_HEADER_WORDS)
    words = tf.io.decode_raw(strings, tf.uint16, fixed_length=tf.cast(2 * width, tf.int32))
    words = tf.pad(tf.cast(words, tf.int64), [[0, 0], [0, 1]])
    word0, count = words[:, 0], shr(length, 1)

    surplus = (count - shr(word0, 8)) & 255
    declared = tf.maximum(count - surplus, 0)
    whole = surplus <= FINGERPRINT_WORDS if partial else surplus == 0
    whole &= (declared >= MIN_WORDS) & tf.equal(checksum_of(words, declared), words[:, CHECKSUM_WORD])
    log2_lanes = word0 & 15
    if not partial:
        word0, words, log2_lanes = require(whole, "truncated or damaged stream (checksum)", word0, words, log2_lanes)
    log2_lanes, words = require(log2_lanes <= MAX_LOG2_LANES, "damaged stream (lanes)", log2_lanes, words)
    count = tf.where(whole, declared, count)

    short_count = shr(word0, 4) & 15
    extended = tf.equal(short_count, LONG_EXCEPTIONS)
    exception_words = tf.where(extended, words[:, 2] + shl(words[:, 3], 16), short_count)
    header = tf.where(extended, tf.constant(EXTENDED_HEADER_WORDS, tf.int64), HEADER_WORDS)
    image_lanes = shl(tf.ones_like(log2_lanes), log2_lanes)
    lanes_at = header + exception_words
    words_at = lanes_at + 2 * image_lanes
    alive = words_at <= count
    if partial:
        lanes_at, exception_words = tf.where(alive, lanes_at, 0), tf.where(alive, exception_words, 0)
        words_at = tf.where(alive, words_at, 1)
    else:
        # Every size below comes from here.
        gated = require(alive, "damaged stream (sizes)", lanes_at, words_at, exception_words)
        lanes_at, words_at, exception_words = gated

    row_words = tf.shape(words, out_type=tf.int64)[1]
    start = tf.range(length_of(length)) * row_words
    flat = tf.reshape(words, [-1])
    lane = tf.range(tf.reduce_max(image_lanes))[None]
    used = (lane < image_lanes[:, None]) & alive[:, None]
    low = tf.where(used, (start + lanes_at)[:, None] + 2 * lane, 0)
    lanes = tf.where(used, tf.gather(flat, low) + shl(tf.gather(flat, low + 1), 16), STATE_MIN)
    (lanes,) = require(lanes >= STATE_MIN, "damaged stream (lane state)", lanes)
    zero = tf.zeros_like(start)
    return {
        "words": flat,
        "start": start,
        "end": start + count,
        "next": start + words_at,
        "log2_lanes": log2_lanes,
        "coded": zero,
        "lanes": lanes,
        "sign_bits": zero,
        "sign_word": zero,
        "signs_in_lanes": zero,
        "exceptions": unpack_exceptions(flat, start + header, exception_words),
        "exceptions_used": tf.constant(0, tf.int64),
        "position": tf.constant(0, tf.int64),
        "alive": alive,
        "whole": whole,
    }


@in_a_graph_once
def _decode(
    tables: DecoderTables, state: State, rows: tf.Tensor, folded: bool, partial: bool
) -> tuple[tf.Tensor, State]:
    """One pass: int32 `[B, N]`, and the state after it."""
    batch, count = tf.unstack(tf.shape(rows, out_type=tf.int64))
    coded_mask = tf.gather(tables.row_coded, rows)
    if partial:
        coded_mask &= state["alive"][:, None]
    coded = find_coded(coded_mask)
    total = state["coded"] + coded.counts
    plausible = state["log2_lanes"] >= least_lanes(total)
    (counts,) = require(plausible, "damaged stream (too few lanes for its symbols)", coded.counts)
    coded = coded._replace(counts=counts)
    coded_rows = tf.gather(tf.reshape(rows, [-1]), coded.position)

    entry, lanes, following = _decode_entries(tables, state, coded, coded_rows)
    alive = following <= state["end"]
    if not partial:
        entry, following = require(alive, "truncated or damaged stream (words)", entry, following)
    else:  # it may have run far beyond the streams: let it idle at a harmless place
        alive &= state["alive"]
        following = tf.where(alive, following, state["start"] + 1)
    state = state | {"coded": total, "lanes": lanes, "next": following, "alive": alive}

    if folded:
        value, state = decode_signs(state, entry, coded, partial)
    else:
        value = entry + tf.gather(tables.row_offsets, coded_rows)
    symbols = tf.scatter_nd(coded.position[:, None], value, tf.stack([batch * count]))

    image, position, exception = tf.unstack(state["exceptions"], num=3, axis=1)
    position -= state["position"]
    here = (position >= 0) & (position < count)
    index = tf.boolean_mask(image * count + position, here)
    exception = tf.cast(tf.boolean_mask(exception, here), tf.int32)
    symbols = tf.reshape(tf.tensor_scatter_nd_update(symbols, index[:, None], exception), tf.stack([batch, count]))
    if partial:
        symbols = tf.where(state["alive"][:, None], symbols, 0)
    return symbols, state | {
        "position": state["position"] + count,
        "exceptions_used": state["exceptions_used"] + length_of(index),
    }


def _decode_entries(
    tables: DecoderTables, state: State, coded: Coded, coded_rows: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Runs the lanes: entry in its row of each coded symbol, int32 `[K]`; states; next word to read."""
    where, height = place(coded, state["log2_lanes"])
    shape = tf.shape(state["lanes"], out_type=tf.int64)
    cells = height * shape[0] * shape[1]
    dense = cells <= SPARSE_CELLS + SPARSE_FACTOR * tf.reduce_sum(coded.counts)
    (cells,) = require(dense, "the streams of a batch differ too much in length: they can be decoded alone", cells)
    grid = tf.fill(cells[None], tf.constant(tables.null_row << tables.precision, tf.int64))
    keys = shl(tf.cast(coded_rows, tf.int64), tables.precision)
    grid = tf.tensor_scatter_nd_update(grid, where[:, None], keys)
    # A symbol takes one word at most: with that many behind them, no damaged stream can make the loop read
    # outside.
    words = tf.concat([state["words"], tf.zeros(tf.stack([height * shape[1]]), tf.int64)], 0)
    lanes, last, keys = decode_rows(
        state["lanes"],
        state["next"][:, None] - 1,
        words,
        tf.reshape(grid, tf.stack([height // UNROLL, UNROLL, shape[0], shape[1]])),
        tables.slots,
        tf.constant(tables.precision, tf.int64),
    )
    entry = tf.gather(tables.slot_entries, tf.gather(keys, where))
    return tf.cast(entry, tf.int32), lanes, last[:, 0] + 1
