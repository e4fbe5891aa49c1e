"""Interleaved rANS coder in stock TensorFlow ops: batches of integer symbols to strings and back.

Stock ops only, so an exported SavedModel runs in any TensorFlow runtime; the same code runs eagerly and
traced. All that is coded for one picture shares one stream, in *passes*: the network runs between them, and a
pass may depend on all before it.

    encoder                                            decoder
    enc = RansEncoder(coder)                           dec = RansDecoder(coder, strings)
    z = enc.code(z_rows, z, folded=False)              z = dec.code(z_rows, folded=False)
    y = enc.code(rows_from(z), y)                      y = dec.code(rows_from(z))
    strings = enc.finish()                             dec.finish()

A picture has L = 1 .. 512 lanes, each an rANS state. Coded symbol k of a pass belongs to row k // L and lane
k % L of a grid, and one step of a loop moves all lanes by one row. What the loops cost is the number of
kernels they launch, not the arithmetic. So everything that can be done for all rows at once is done outside
of them: finding the tables' entries, signs, exceptions.

The format is described in res/doc/bitstream.md. Numbers there and here: states are below 2**32 and at least
2**16, words are 16 bits. They are carried in int64, which TensorFlow's kernels handle as quickly as int32 at
these sizes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models.entropy.tables import CdfBank

MAX_LOG2_LANES = 9
STATE_MIN = 1 << 16

UNROLL = 4  # rows per loop iteration: the loop's own overhead is worth about 5 kernels; 8 gains nothing more
CPU = "/cpu:0"  # small kernels in sequence are slow on a GPU, and there a gather out of range is not an error

HEADER_WORDS = 2
EXTENDED_HEADER_WORDS = 4
CHECKSUM_WORD = 1
LONG_EXCEPTIONS = 15  # in the header's 4-bit count: the true count follows in an extended header
MIN_WORDS = HEADER_WORDS + 2  # header and one lane
FINGERPRINT_WORDS = 2  # what a container may have left behind a payload in partial mode
CHECKSUM_MODULUS = 65521
VARINT_MAX_BYTES = 5

COST_ONE_BIT = 1 << 16  # code lengths are in fixed point: the choice of lanes must not depend on rounding
LANE_OVERHEAD_BITS = 9  # of 32 bits of state, what a lane wastes if 16 of them carry sign bits
OVERHEAD_FRACTION = 125  # at most 1/125 = 0.8 % of the payload goes into lanes
#: Of a stream of less than 512 lanes. Encoders take more lanes if need be: a nearly empty, huge picture must not take
#: seconds. Decoders hold them to it: a few bytes that claim one lane for millions of symbols would take minutes.
MAX_ROWS = 1 << 14
#: The grid in which a batch is decoded has no more cells than this, and this many for each symbol. Its rows are those
#: of the slowest stream and its lanes those of the widest, and with streams that are made for it it is nearly empty.
SPARSE_CELLS, SPARSE_FACTOR = 1 << 26, 4

_i32, _i64 = tf.int32, tf.int64


class _EncoderTables(NamedTuple):
    """What the encoder looks up, see `_encoder_arrays` and `_decoder_arrays`."""

    entries: tf.Tensor
    row_info: tf.Tensor
    row_coded: tf.Tensor
    row_folded: tf.Tensor


class _DecoderTables(NamedTuple):
    """What the decoder looks up, see `_decoder_arrays`."""

    slots: tf.Tensor
    slot_entries: tf.Tensor
    row_offsets: tf.Tensor
    row_coded: tf.Tensor
    precision: int
    null_row: int


class RansCoder(tf.Module):
    """The tables of a bank in the form that encoder and decoder look them up.

    They are non-trainable variables, so that the signatures of a SavedModel share one copy.
    """

    def __init__(self, bank: CdfBank, name: str | None = None) -> None:
        super().__init__(name=name)
        self.precision = bank.precision
        self.null_row = len(bank)
        arrays = _decoder_arrays(bank) | _encoder_arrays(bank)
        with tf.init_scope(), tf.device(CPU):
            variables = {k: tf.Variable(v, trainable=False, name=k) for k, v in arrays.items()}
        self.slots: tf.Variable = variables["slots"]
        self.slot_entries: tf.Variable = variables["slot_entries"]
        self.entries: tf.Variable = variables["entries"]
        self.row_info: tf.Variable = variables["row_info"]
        self.row_offsets: tf.Variable = variables["row_offsets"]
        self.row_coded: tf.Variable = variables["row_coded"]
        self.row_folded: tf.Variable = variables["row_folded"]

    def encoder_tables(self) -> _EncoderTables:
        tables = self.entries, self.row_info, self.row_coded, self.row_folded
        return _EncoderTables(*map(tf.convert_to_tensor, tables))

    def decoder_tables(self) -> _DecoderTables:
        tables = self.slots, self.slot_entries, self.row_offsets, self.row_coded
        return _DecoderTables(*map(tf.convert_to_tensor, tables), self.precision, self.null_row)


def _decoder_arrays(bank: CdfBank) -> dict[str, np.ndarray]:
    """Tables indexed by `row << precision | slot`, and what is known of a row."""
    frequencies = bank.frequencies.astype(np.int64)
    total = 1 << bank.precision
    entry = np.repeat(np.arange(len(frequencies)), frequencies)  # each row fills exactly `total` slots
    entry_in_row = entry - np.repeat(bank.starts, total)
    slot = np.tile(np.arange(total, dtype=np.int64), len(bank))
    slots = frequencies[entry] << 32 | slot - _cumulative(bank)[entry]
    # The null row pads grids: one symbol of probability 1, which leaves a state as it is.
    null = np.int64(total) << 32 | np.arange(total, dtype=np.int64)
    return {
        "slots": np.concatenate([slots, null]),
        "slot_entries": entry_in_row.astype(np.int16),
        "row_offsets": bank.offsets,
        "row_coded": bank.coded,
    }


def _encoder_arrays(bank: CdfBank) -> dict[str, np.ndarray]:
    """What the encoder looks up.

    Per entry: cost << 32 | (total - frequency) << 16 | cumulative frequency. Per row: first entry,
    length, offset, and the entry that is coded in place of an exception.
    """
    total = 1 << bank.precision
    frequencies = bank.frequencies.astype(np.int64)
    cost = np.rint((bank.precision - np.log2(frequencies)) * COST_ONE_BIT).astype(np.int64)
    # In place of an exception: 0 in a folded row, as anything else would need a sign bit.
    likely = np.array([0 if bank.folded[r] else np.argmax(bank.row(r)) for r in range(len(bank))]) + bank.starts
    return {
        "entries": cost << 32 | (total - frequencies) << 16 | _cumulative(bank),
        "row_info": np.stack([bank.starts, bank.lengths, bank.offsets, likely], 1).astype(np.int32),
        "row_folded": bank.folded,
    }


def _cumulative(bank: CdfBank) -> np.ndarray:
    """int64 `[entries]`: the sum of the frequencies before each entry in its row."""
    running = np.cumsum(bank.frequencies, dtype=np.int64) - bank.frequencies
    return running % (1 << bank.precision)


def _in_a_graph_once(function: Callable) -> Callable:
    """A function that many passes call: one function of the graph in which they do, plain ops eagerly.

    What a pass needs is some 200 ops, which take Python half a second to put into a graph.
    """
    once = tf.function(function, autograph=False)

    @functools.wraps(function)
    def call(*arguments):
        return (function if tf.executing_eagerly() else once)(*arguments)

    return call


# ------------------------------------------------------------------------------------------------ fingerprint


def digest(symbols: tf.Tensor) -> tf.Tensor:
    """FarmHash64 of each picture's symbols: int32 `[B, ...]` to uint8 `[B, 8]`."""
    with tf.device(CPU):
        batch = tf.shape(symbols)[0]
        return tf.fingerprint(tf.reshape(tf.cast(symbols, _i32), tf.stack([batch, -1])))


def fingerprint(passes: Sequence[tf.Tensor], header: tf.Tensor | bytes = b"") -> tf.Tensor:
    """Fingerprint of what a decoder must have arrived at.

    Args:
      passes: the symbols of each pass, int32 `[B, N]`, in coding order.
      header: the header's bytes, a string for all pictures or `[B]`.

    Returns:
      uint32 `[B]`.
    """
    return _combine([digest(symbols) for symbols in passes], header)


def _combine(digests: Sequence[tf.Tensor], header: tf.Tensor | bytes) -> tf.Tensor:
    with tf.device(CPU):
        header = tf.broadcast_to(header, tf.shape(digests[0])[:1])
        hashes = tf.fingerprint(tf.concat([*digests, tf.fingerprint(header)], 1))
        return tf.bitcast(hashes[:, :4], tf.uint32)


# -------------------------------------------------------------------------------------------------- small ops


def _shl(a: Any, n: Any) -> tf.Tensor:
    a = a if tf.is_tensor(a) else tf.constant(a, _i64)
    return tf.bitwise.left_shift(a, tf.cast(n, a.dtype))


def _shr(a: tf.Tensor, n: Any) -> tf.Tensor:
    return tf.bitwise.right_shift(a, tf.cast(n, a.dtype))


def _size(t: tf.Tensor) -> tf.Tensor:
    """Number of elements of a vector, int64."""
    return tf.shape(t, out_type=_i64)[0]


def _before(counts: tf.Tensor) -> tf.Tensor:
    """Exclusive running sum."""
    return tf.cumsum(counts, exclusive=True)


def _count(image: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    """How often each picture occurs in `image` `[K]`: int64 `[B]`."""
    return tf.math.unsorted_segment_sum(tf.ones_like(image), image, batch)


def _rank(image: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Position of each element among those of its own picture, for `image` `[K]` in ascending order."""
    return tf.range(_size(image)) - tf.gather(_before(counts), image)


def _words_for(bits: tf.Tensor) -> tf.Tensor:
    return _shr(bits + 15, 4)


def _checksum(words: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Checksum of the first `count` `[B]` of `words` `[B, W]`: a sum weighted by position."""
    j = tf.range(tf.shape(words, out_type=_i64)[1])[None]
    weight = tf.where((j < count[:, None]) & (j != CHECKSUM_WORD), j % (CHECKSUM_MODULUS - 1) + 1, 0)
    return tf.reduce_sum((words + 1) * weight, 1) % CHECKSUM_MODULUS


def require(condition: tf.Tensor, message: str, *tensors: tf.Tensor) -> list[tf.Tensor]:
    """Returns `tensors` in a form that exists only if `condition` holds everywhere.

    Whatever determines the size of an allocation or an index must come from here, or in a graph a damaged
    header would do its harm before the check has run.
    """
    message, holds = f"coder: {message}", tf.reduce_all(condition)
    if tf.executing_eagerly():
        if not holds:
            raise tf.errors.InvalidArgumentError(None, None, message)
        return list(tensors)
    with tf.control_dependencies([tf.raw_ops.Assert(condition=holds, data=[message])]):
        return [tf.identity(t) for t in tensors]


def describe(error: tf.errors.OpError) -> str:
    """The coder's one-line message, `coder: ...`, out of an error that a graph has wrapped into more text.

    An error that is not the coder's keeps its own message.
    """
    found = re.search(r"coder: [^\]\n]*", error.message)
    return found.group() if found else error.message


# -------------------------------------------------------------------------------------------------- the loops


@tf.function(
    input_signature=[tf.TensorSpec([None, None], _i64), tf.TensorSpec([None, 4 * UNROLL, None, None], _i64)],
    autograph=False,
)
def _encode_rows(state: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
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
                state = tf.where(state >= limit, _shr(state, 16), state)
                # = state // frequency * total + cumulative + state % frequency
                state += cumulative + tf.raw_ops.Div(x=state, y=frequency) * rest
            return i - 1, state, before.write(i, tf.stack(seen))

        before = tf.TensorArray(_i64, steps, element_shape=[UNROLL, None, None])
        loop = tf.while_loop(lambda i, *_: i >= 0, body, [steps - 1, state, before], parallel_iterations=1)
        lanes = tf.shape(state)
        return loop[1], tf.reshape(loop[2].stack(), tf.stack([-1, lanes[0], lanes[1]]))


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], _i64),
        tf.TensorSpec([None, 1], _i64),
        tf.TensorSpec([None], _i64),
        tf.TensorSpec([None, UNROLL, None, None], _i64),
        tf.TensorSpec([None], _i64),
        tf.TensorSpec([], _i64),
    ],
    autograph=False,
)
def _decode_rows(
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
        mask = _shl(tf.ones_like(precision), precision) - 1

        def body(i, state, last, keys):
            seen = []
            for row in tf.unstack(tf.gather(rows, i), num=UNROLL):
                key = (state & mask) + row
                slot = tf.gather(slots, key)
                state = _shr(slot, 32) * _shr(state, precision) + (slot & 0xFFFFFFFF)
                short = state < STATE_MIN
                position = tf.cumsum(tf.cast(short, _i64), 1) + last
                state = tf.where(short, _shl(state, 16) + tf.gather(words, position), state)
                last = tf.ensure_shape(position[:, -1:], [None, 1])
                seen.append(key)
            return i + 1, state, last, keys.write(i, tf.stack(seen))

        keys = tf.TensorArray(_i64, steps, element_shape=[UNROLL, None, None])
        loop = tf.while_loop(lambda i, *_: i < steps, body, [0, state, last, keys], parallel_iterations=1)
        return loop[1], loop[2], tf.reshape(loop[3].stack(), [-1])


# --------------------------------------------------------------------------------------------------- the grid


class _Coded(NamedTuple):
    """The coded symbols of a pass, picture by picture. All int64.

    Attributes:
      position: `[K]`, index in the flattened `[B * N]`.
      image: `[K]`, which picture of the batch.
      rank: `[K]`, position among the coded symbols of that picture.
      counts: `[B]`, number of coded symbols.
    """

    position: tf.Tensor
    image: tf.Tensor
    rank: tf.Tensor
    counts: tf.Tensor


def _find_coded(coded: tf.Tensor) -> _Coded:
    """From the mask `[B, N]` of what is coded."""
    batch, symbols = tf.unstack(tf.shape(coded, out_type=_i64))
    position = tf.where(tf.reshape(coded, [-1]))[:, 0]
    image = position // tf.maximum(symbols, 1)
    counts = _count(image, batch)
    return _Coded(position, image, _rank(image, counts), counts)


def _place(coded: _Coded, log2_lanes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where coded symbols lie in the grid `[R, B, L]` of a pass: flat index `[K]`; and R.

    R is a multiple of UNROLL. L is the number of lanes of the picture that has most; others leave lanes idle.
    """
    lanes = _shl(1, tf.reduce_max(log2_lanes))
    rows = tf.reduce_max(_shr(coded.counts - 1, log2_lanes) + 1)
    rows = (tf.maximum(rows, 1) + UNROLL - 1) // UNROLL * UNROLL  # at least one: an empty loop cannot be stacked
    shift = tf.gather(log2_lanes, coded.image)
    row, lane = _shr(coded.rank, shift), coded.rank & (_shl(tf.ones_like(shift), shift) - 1)
    return (row * _size(coded.counts) + coded.image) * lanes + lane, rows


def _least_lanes(symbols: tf.Tensor) -> tf.Tensor:
    """log2 of the fewest lanes `[B]` that a stream may have, of so many coded symbols `[B]` in all its passes."""
    fewer = _shl(tf.ones([MAX_LOG2_LANES], _i64), tf.range(MAX_LOG2_LANES))
    return tf.reduce_sum(tf.cast(symbols[:, None] > fewer * MAX_ROWS, _i64), 1)


# ---------------------------------------------------------------------------------------------------- encoder


class _EncodedPass(NamedTuple):
    """What the encoder keeps of a pass. int64; K coded symbols, S non-zero ones of folded rows, X exceptions.

    Attributes:
      coded: see `_Coded`.
      packed: `[K]`, (total - frequency) << 16 | cumulative frequency.
      cost: `[B]`, ideal code length without exceptions, in units of 1 / COST_ONE_BIT bits.
      sign: `[S]`, 1 for a negative symbol.
      sign_image: `[S]`.
      sign_counts: `[B]`.
      exceptions: `[X, 3]`, picture, position in the stream of symbols, value.
    """

    coded: _Coded
    packed: tf.Tensor
    cost: tf.Tensor
    sign: tf.Tensor
    sign_image: tf.Tensor
    sign_counts: tf.Tensor
    exceptions: tf.Tensor


class RansEncoder:
    """Collects passes and then codes them all, last symbol first, as rANS requires."""

    def __init__(self, coder: RansCoder) -> None:
        self._tables, self._precision = coder.encoder_tables(), coder.precision
        self._passes: list[_EncodedPass] = []
        self._digests: list[tf.Tensor] = []
        self._position = tf.constant(0, _i64)

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
            rows, symbols = tf.cast(rows, _i32), tf.cast(symbols, _i32)
            self._passes.append(_record(self._tables, rows, symbols, self._position, folded))
            self._digests.append(digest(symbols))
            self._position += tf.shape(symbols, out_type=_i64)[1]
        return symbols

    def cost_bits(self) -> tf.Tensor:
        """float64 `[B]`: ideal bits so far under the integer tables, without exceptions."""
        return tf.cast(self._total_cost(), tf.float64) / COST_ONE_BIT

    def _total_cost(self) -> tf.Tensor:
        return tf.add_n([p.cost for p in self._passes])

    def fingerprint(self, header: tf.Tensor | bytes = b"") -> tf.Tensor:
        """uint32 `[B]`: `fingerprint` of all passes recorded so far."""
        return _combine(self._digests, header)

    def finish(self, log2_lanes: int | None = None) -> tf.Tensor:
        """Codes everything.

        Args:
          log2_lanes: 0 to 9, for all pictures that do not need more; by default as many lanes as cost little, for each
            picture.

        Returns:
          string `[B]`.
        """
        if not self._passes:
            raise ValueError("nothing was coded")
        with tf.device(CPU):
            signs = _pack_signs(self._passes)
            lanes = self._cheap_lanes(signs.in_last_pass) if log2_lanes is None else tf.constant(log2_lanes, _i64)
            lanes = tf.maximum(lanes, _least_lanes(tf.add_n([p.coded.counts for p in self._passes])))
            return _assemble(self._passes, signs, lanes, self._precision)

    def _cheap_lanes(self, last_words: tf.Tensor) -> tf.Tensor:
        """log2 of the lanes `[B]`: the most that cost little.

        The choice is the encoder's alone, and in integers: a string must not depend on the batch it is in.
        """
        log2 = tf.range(MAX_LOG2_LANES + 1, dtype=_i64)[None]
        lanes = _shl(tf.ones_like(log2), log2)
        overhead = LANE_OVERHEAD_BITS * lanes + 16 * tf.maximum(lanes - last_words[:, None], 0)
        cheap = overhead * OVERHEAD_FRACTION * COST_ONE_BIT <= self._total_cost()[:, None]
        return tf.reduce_sum(tf.cast(cheap, _i64), 1) - 1


@_in_a_graph_once
def _record(
    tables: _EncoderTables, rows: tf.Tensor, symbols: tf.Tensor, position: tf.Tensor, folded: bool
) -> _EncodedPass:
    """A pass, see `RansEncoder.code`; position: int64 `[]`, number of symbols in the passes before."""
    batch, count = tf.unstack(tf.shape(symbols, out_type=_i64))
    coded_mask = tf.gather(tables.row_coded, rows)
    coded = _find_coded(coded_mask)
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
    cost = _shr(packed, 32) + tf.cast(has_sign, _i64) * COST_ONE_BIT

    flat = tf.reshape(symbols, [-1])
    exceptional = tf.reshape(~coded_mask, [-1]) & (flat != 0)
    exceptional = tf.tensor_scatter_nd_update(exceptional, coded.position[:, None], outside)
    where = tf.where(exceptional)[:, 0]
    image, index = where // tf.maximum(count, 1), where % tf.maximum(count, 1)
    return _EncodedPass(
        coded=coded,
        packed=packed & 0xFFFFFFFF,
        cost=tf.math.unsorted_segment_sum(cost, coded.image, batch),
        sign=tf.cast(tf.boolean_mask(value, has_sign) < 0, _i64),
        sign_image=sign_image,
        sign_counts=_count(sign_image, batch),
        exceptions=tf.stack([image, position + index, tf.cast(tf.gather(flat, where), _i64)], 1),
    )


class _SignWords(NamedTuple):
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


def _pack_signs(passes: Sequence[_EncodedPass]) -> _SignWords:
    bits = words = in_last_pass = tf.zeros_like(passes[0].sign_counts)
    after, bit_index = [], []
    for p in passes:
        bit_index.append(tf.gather(bits, p.sign_image) + _rank(p.sign_image, p.sign_counts))
        bits += p.sign_counts
        in_last_pass = tf.where(p.coded.counts > 0, _words_for(bits) - words, in_last_pass)
        words = _words_for(bits)
        after.append(words)
    width = tf.maximum(tf.reduce_max(words), 1)
    bit, image = tf.concat(bit_index, 0), tf.concat([p.sign_image for p in passes], 0)
    value = _shl(tf.concat([p.sign for p in passes], 0), bit & 15)
    shape = tf.stack([_size(words), width])
    packed = tf.scatter_nd(tf.stack([image, _shr(bit, 4)], 1), value, shape)  # adds up the bits of a word
    return _SignWords(packed, words, tf.stack(after, 1), in_last_pass)


class _ExceptionBytes(NamedTuple):
    """The exceptions of all pictures as bytes, `[T]` each, and how many words they fill `[B]`. All int64."""

    image: tf.Tensor
    index: tf.Tensor
    byte: tf.Tensor
    words: tf.Tensor


def _pack_exceptions(passes: Sequence[_EncodedPass], batch: tf.Tensor) -> _ExceptionBytes:
    """Two LEB128 numbers per exception: the symbols between it and the one before; its value in zigzag."""
    exceptions = tf.concat([p.exceptions for p in passes], 0)
    exceptions = tf.gather(exceptions, tf.argsort(exceptions[:, 0], stable=True))
    image, position, value = tf.unstack(exceptions, num=3, axis=1)
    same_image = tf.concat([[-1], image[:-1]], 0) == image
    previous = tf.where(same_image, tf.concat([[-1], position[:-1]], 0), -1)
    zigzag = _shl(value, 1) ^ _shr(value, 63)

    numbers = tf.reshape(tf.stack([position - previous - 1, zigzag], 1), [-1, 1])
    k = tf.range(VARINT_MAX_BYTES, dtype=_i64)[None]
    groups = _shr(numbers, 7 * k)
    used = (groups > 0) | (k == 0)
    groups = (groups & 127) + tf.where(_shr(numbers, 7 * (k + 1)) > 0, tf.constant(128, _i64), 0)
    byte_image = tf.boolean_mask(tf.repeat(image, 2)[:, None] + tf.zeros_like(k), used)
    counts = _count(byte_image, batch)
    return _ExceptionBytes(byte_image, _rank(byte_image, counts), tf.boolean_mask(groups, used), _shr(counts + 1, 1))


def _assemble(passes: Sequence[_EncodedPass], signs: _SignWords, log2_lanes: tf.Tensor, precision: int) -> tf.Tensor:
    """Runs the coder and puts the streams together: string `[B]`."""
    batch = _size(log2_lanes)
    image_lanes = _shl(tf.ones_like(log2_lanes), log2_lanes)
    lanes = tf.reduce_max(image_lanes)
    lane = tf.range(lanes)[None]

    in_lanes = tf.minimum(image_lanes, signs.in_last_pass)
    in_words = signs.count - in_lanes
    index = tf.minimum(in_words[:, None] + lane, tf.shape(signs.words, out_type=_i64)[1] - 1)
    hidden = tf.where(lane < in_lanes[:, None], tf.gather(signs.words, index, batch_dims=1), 0)
    rows, pass_of_row = _grid(passes, log2_lanes, lanes)
    states, emitted = _run(hidden + STATE_MIN, rows, precision)

    extra = _pack_exceptions(passes, batch)
    header = tf.where(extra.words < LONG_EXCEPTIONS, tf.constant(HEADER_WORDS, _i64), EXTENDED_HEADER_WORDS)
    lanes_at = header + extra.words
    words_at = lanes_at + 2 * image_lanes
    per_row = tf.reduce_sum(tf.cast(emitted >= 0, _i64), 2)  # [B, R]
    total = words_at + tf.reduce_sum(per_row, 1) + in_words

    short_count = tf.minimum(extra.words, LONG_EXCEPTIONS)
    word0 = log2_lanes + _shl(short_count, 4) + _shl(total & 255, 8)
    head = tf.stack([word0, tf.zeros_like(word0), extra.words & 0xFFFF, _shr(extra.words, 16)], 1)
    # (picture, index, word) of everything; parts are masked where a picture has less of them than the others
    parts = [
        _masked(head, tf.range(EXTENDED_HEADER_WORDS, dtype=_i64)[None] + 0 * header[:, None], header),
        (
            extra.image,
            tf.gather(header, extra.image) + _shr(extra.index, 1),
            _shl(extra.byte, 8 * (extra.index & 1)),
        ),
        _masked(states & 0xFFFF, lanes_at[:, None] + 2 * lane, words_at),
        _masked(_shr(states, 16), lanes_at[:, None] + 2 * lane + 1, words_at),
        _place_emitted(emitted, per_row, pass_of_row, signs, words_at),
        _place_signs(per_row, pass_of_row, signs, in_words, words_at),
    ]
    image, index, word = (tf.concat(columns, 0) for columns in zip(*parts))
    words = tf.scatter_nd(tf.stack([image, index], 1), word, tf.stack([batch, tf.reduce_max(total)]))
    checksum = _checksum(words, total)[:, None]
    is_checksum = tf.range(tf.shape(words)[1])[None] == CHECKSUM_WORD
    return _to_strings(tf.where(is_checksum, checksum, words), total)


def _grid(passes: Sequence[_EncodedPass], log2_lanes: tf.Tensor, lanes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Packed entries of all passes `[R, B, L]`, 0 where nothing is coded; the pass of each row `[R]`."""
    grids = [_grid_of(p.coded, p.packed, log2_lanes, lanes) for p in passes]
    heights = tf.stack([tf.shape(grid, out_type=_i64)[0] for grid in grids])
    return tf.concat(grids, 0), tf.repeat(tf.range(len(passes), dtype=_i64), heights)


@_in_a_graph_once
def _grid_of(coded: _Coded, packed: tf.Tensor, log2_lanes: tf.Tensor, lanes: tf.Tensor) -> tf.Tensor:
    """`_grid` of one pass."""
    where, height = _place(coded, log2_lanes)
    shape = tf.stack([height, _size(log2_lanes), lanes])
    return tf.reshape(tf.scatter_nd(where[:, None], packed, tf.reduce_prod(shape)[None]), shape)


def _run(states: tf.Tensor, rows: tf.Tensor, precision: int) -> tuple[tf.Tensor, tf.Tensor]:
    """States `[B, L]` at the start of the stream, and the word each symbol puts out `[B, R, L]`, or -1."""
    rest, cumulative = _shr(rows, 16), rows & 0xFFFF
    frequency = (1 << precision) - rest
    limit = _shl(frequency, 32 - precision)
    operands = tf.stack([limit, frequency, cumulative, rest], 1)
    shape = tf.shape(rows)
    states, before = _encode_rows(states, tf.reshape(operands, tf.stack([-1, 4 * UNROLL, shape[1], shape[2]])))
    return states, tf.transpose(tf.where(before >= limit, before & 0xFFFF, -1), [1, 0, 2])


def _masked(values: tf.Tensor, index: tf.Tensor, end: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(picture, index, value) of those `[B, W]` whose index is below `end` `[B]`."""
    keep = index < end[:, None]
    return tf.where(keep)[:, 0], tf.boolean_mask(index, keep), tf.boolean_mask(values, keep)


def _place_emitted(
    emitted: tf.Tensor, per_row: tf.Tensor, pass_of_row: tf.Tensor, signs: _SignWords, words_at: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """rANS words: row by row, lane by lane, after the sign words of the passes before."""
    image, row, _ = tf.unstack(tf.where(emitted >= 0), num=3, axis=1)
    rank = _rank(image, tf.reduce_sum(per_row, 1))
    signs_before = tf.pad(signs.after, [[0, 0], [1, 0]])
    earlier = tf.gather_nd(signs_before, tf.stack([image, tf.gather(pass_of_row, row)], 1))
    return image, tf.gather(words_at, image) + rank + earlier, tf.boolean_mask(emitted, emitted >= 0)


def _place_signs(
    per_row: tf.Tensor, pass_of_row: tf.Tensor, signs: _SignWords, in_words: tf.Tensor, words_at: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sign words that are not in lanes: after the rANS words of the pass in which the decoder needs them."""
    per_pass = tf.math.segment_sum(tf.transpose(per_row), pass_of_row)  # [P, B]
    emitted_after = tf.transpose(tf.cumsum(per_pass))
    j = tf.range(tf.shape(signs.words, out_type=_i64)[1])
    passes_before = tf.reduce_sum(tf.cast(signs.after[:, None] <= j[None, :, None], _i64), 2)
    needed_in = tf.minimum(passes_before, tf.shape(signs.after, out_type=_i64)[1] - 1)
    index = words_at[:, None] + tf.gather(emitted_after, needed_in, batch_dims=1) + j[None]
    keep = j[None] < in_words[:, None]
    return tf.where(keep)[:, 0], tf.boolean_mask(index, keep), tf.boolean_mask(signs.words, keep)


_BYTES = np.array([bytes([i]) for i in range(256)] + [b""], dtype=object)


def _to_strings(words: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The first `count` `[B]` words of each row of `[B, W]`, little-endian: string `[B]`."""
    pair = tf.stack([words & 255, _shr(words, 8)], 2)
    valid = tf.range(tf.shape(words, out_type=_i64)[1])[None] < count[:, None]
    pair = tf.where(valid[..., None], pair, 256)
    return tf.strings.reduce_join(tf.gather(tf.constant(_BYTES), tf.reshape(pair, tf.stack([_size(count), -1]))), -1)


# ---------------------------------------------------------------------------------------------------- decoder

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
exceptions [X, 3]      picture, position, value
exceptions_used []
position []            number of symbols decoded of each picture
alive [B]              everything so far was wholly there (partial mode; else always true)
whole [B]              the stream is not cut off
"""


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
            decoded, self._state = _decode(self._tables, self._state, tf.cast(rows, _i32), folded, self._partial)
            self._digests.append(digest(decoded))
        self.complete = self._state["alive"]
        return decoded

    def fingerprint(self, header: tf.Tensor | bytes = b"") -> tf.Tensor:
        """uint32 `[B]`: `fingerprint` of all passes decoded so far."""
        return _combine(self._digests, header)

    def finish(self) -> None:
        """Checks that the streams end where they should. Does nothing if `partial`."""
        if self._partial:
            return
        with tf.device(CPU):
            s = self._state
            lane = tf.range(tf.shape(s["lanes"], out_type=_i64)[1])[None]
            final = tf.where(lane < s["signs_in_lanes"][:, None], s["lanes"] & 0xFFFF, 0) + STATE_MIN
            require(tf.equal(s["lanes"], final), "damaged stream (final state)")
            require(tf.equal(s["next"], s["end"]), "damaged stream (data left over)")
            require(
                tf.equal(s["exceptions_used"], _size(s["exceptions"])),
                "damaged stream (exceptions left over)",
            )


def _start(strings: tf.Tensor, partial: bool) -> State:
    """Takes the streams apart as far as that needs no tables."""
    length = tf.cast(tf.strings.length(strings), _i64)
    if not partial:
        strings, length = require(length % 2 == 0, "truncated stream (odd length)", strings, length)
    width = tf.maximum(tf.reduce_max(_shr(length + 1, 1)), EXTENDED_HEADER_WORDS)
    words = tf.io.decode_raw(strings, tf.uint16, fixed_length=tf.cast(2 * width, _i32))
    words = tf.pad(tf.cast(words, _i64), [[0, 0], [0, 1]])
    word0, count = words[:, 0], _shr(length, 1)

    surplus = (count - _shr(word0, 8)) & 255
    declared = tf.maximum(count - surplus, 0)
    whole = surplus <= FINGERPRINT_WORDS if partial else surplus == 0
    whole &= (declared >= MIN_WORDS) & tf.equal(_checksum(words, declared), words[:, CHECKSUM_WORD])
    log2_lanes = word0 & 15
    if not partial:
        word0, words, log2_lanes = require(whole, "truncated or damaged stream (checksum)", word0, words, log2_lanes)
    log2_lanes, words = require(log2_lanes <= MAX_LOG2_LANES, "damaged stream (lanes)", log2_lanes, words)
    count = tf.where(whole, declared, count)

    short_count = _shr(word0, 4) & 15
    extended = tf.equal(short_count, LONG_EXCEPTIONS)
    exception_words = tf.where(extended, words[:, 2] + _shl(words[:, 3], 16), short_count)
    header = tf.where(extended, tf.constant(EXTENDED_HEADER_WORDS, _i64), HEADER_WORDS)
    image_lanes = _shl(tf.ones_like(log2_lanes), log2_lanes)
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

    row_words = tf.shape(words, out_type=_i64)[1]
    start = tf.range(_size(length)) * row_words
    flat = tf.reshape(words, [-1])
    lane = tf.range(tf.reduce_max(image_lanes))[None]
    used = (lane < image_lanes[:, None]) & alive[:, None]
    low = tf.where(used, (start + lanes_at)[:, None] + 2 * lane, 0)
    lanes = tf.where(used, tf.gather(flat, low) + _shl(tf.gather(flat, low + 1), 16), STATE_MIN)
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
        "exceptions": _unpack_exceptions(flat, start + header, exception_words),
        "exceptions_used": tf.constant(0, _i64),
        "position": tf.constant(0, _i64),
        "alive": alive,
        "whole": whole,
    }


def _unpack_exceptions(words: tf.Tensor, at: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Exceptions `[X, 3]`: picture, position, value. They lie in `count` `[B]` words from `at` `[B]` on."""
    j = tf.range(tf.reduce_max(count))[None]
    valid = j < count[:, None]
    word = tf.gather(words, tf.boolean_mask(at[:, None] + j, valid))
    byte = tf.reshape(tf.stack([word & 255, _shr(word, 8)], 1), [-1])
    image = tf.repeat(tf.where(valid)[:, 0], 2)

    # LEB128: bytes below 128 end a number
    ends = byte < 128
    end = tf.where(ends)[:, 0]
    number = _before(tf.cast(ends, _i64))
    begin = tf.concat([tf.zeros([1], _i64), end + 1], 0)
    k = tf.range(_size(byte)) - tf.gather(begin, number)
    within_image = tf.equal(tf.gather(tf.concat([image, [-1]], 0), tf.range(1, _size(image) + 1)), image)
    sound = (ends | within_image) & (k < VARINT_MAX_BYTES)
    byte, number, image, end, k = require(sound, "damaged stream (exceptions)", byte, number, image, end, k)
    numbers = tf.math.unsorted_segment_sum(_shl(byte & 127, 7 * k), number, _size(end))

    # pairs of numbers; a single one left over is the zero byte that fills the last word
    image = tf.gather(image, end)
    per_image = _count(image, _size(count))
    rank = _rank(image, per_image)
    first = (rank % 2 == 0) & (rank + 1 < tf.gather(per_image, image))
    gap, zigzag = tf.boolean_mask(numbers, first), tf.boolean_mask(numbers, rank % 2 == 1)
    image = tf.boolean_mask(image, first)
    image, gap, zigzag = require(zigzag < 1 << 32, "damaged stream (exceptions)", image, gap, zigzag)
    before = _before(gap + 1)  # symbols before an exception's gap, counted through all pictures
    position = before + gap - tf.gather(before, tf.gather(_before(_shr(per_image, 1)), image))
    return tf.stack([image, position, _shr(zigzag, 1) ^ -(zigzag & 1)], 1)


@_in_a_graph_once
def _decode(
    tables: _DecoderTables, state: State, rows: tf.Tensor, folded: bool, partial: bool
) -> tuple[tf.Tensor, State]:
    """One pass: int32 `[B, N]`, and the state after it."""
    batch, count = tf.unstack(tf.shape(rows, out_type=_i64))
    coded_mask = tf.gather(tables.row_coded, rows)
    if partial:
        coded_mask &= state["alive"][:, None]
    coded = _find_coded(coded_mask)
    total = state["coded"] + coded.counts
    plausible = state["log2_lanes"] >= _least_lanes(total)
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
        value, state = _decode_signs(state, entry, coded, partial)
    else:
        value = entry + tf.gather(tables.row_offsets, coded_rows)
    symbols = tf.scatter_nd(coded.position[:, None], value, tf.stack([batch * count]))

    image, position, exception = tf.unstack(state["exceptions"], num=3, axis=1)
    position -= state["position"]
    here = (position >= 0) & (position < count)
    index = tf.boolean_mask(image * count + position, here)
    exception = tf.cast(tf.boolean_mask(exception, here), _i32)
    symbols = tf.reshape(tf.tensor_scatter_nd_update(symbols, index[:, None], exception), tf.stack([batch, count]))
    if partial:
        symbols = tf.where(state["alive"][:, None], symbols, 0)
    return symbols, state | {
        "position": state["position"] + count,
        "exceptions_used": state["exceptions_used"] + _size(index),
    }


def _decode_entries(
    tables: _DecoderTables, state: State, coded: _Coded, coded_rows: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Runs the lanes: entry in its row of each coded symbol, int32 `[K]`; states; next word to read."""
    where, height = _place(coded, state["log2_lanes"])
    shape = tf.shape(state["lanes"], out_type=_i64)
    cells = height * shape[0] * shape[1]
    dense = cells <= SPARSE_CELLS + SPARSE_FACTOR * tf.reduce_sum(coded.counts)
    (cells,) = require(dense, "the streams of a batch differ too much in length: they can be decoded alone", cells)
    grid = tf.fill(cells[None], tf.constant(tables.null_row << tables.precision, _i64))
    keys = _shl(tf.cast(coded_rows, _i64), tables.precision)
    grid = tf.tensor_scatter_nd_update(grid, where[:, None], keys)
    # A symbol takes one word at most: with that many behind them, no damaged stream can make the loop read
    # outside.
    words = tf.concat([state["words"], tf.zeros(tf.stack([height * shape[1]]), _i64)], 0)
    lanes, last, keys = _decode_rows(
        state["lanes"],
        state["next"][:, None] - 1,
        words,
        tf.reshape(grid, tf.stack([height // UNROLL, UNROLL, shape[0], shape[1]])),
        tables.slots,
        tf.constant(tables.precision, _i64),
    )
    entry = tf.gather(tables.slot_entries, tf.gather(keys, where))
    return tf.cast(entry, _i32), lanes, last[:, 0] + 1


def _decode_signs(state: State, entry: tf.Tensor, coded: _Coded, partial: bool) -> tuple[tf.Tensor, State]:
    """Gives signs to the non-zero ones of `entry` `[K]`.

    Words that do not follow in the stream are in the lanes. That can only be so in the last pass that codes
    anything, and there the encoder put as many of them into the lanes as these hold.
    """
    batch, lanes = tf.unstack(tf.shape(state["lanes"], out_type=_i64))
    nonzero = tf.where(entry > 0)[:, 0]
    image = tf.gather(coded.image, nonzero)
    counts = _count(image, batch)
    words_before, bits_after = _words_for(state["sign_bits"]), state["sign_bits"] + counts
    needed = _words_for(bits_after) - words_before
    in_lanes = tf.maximum(needed - (state["end"] - state["next"]), 0)
    most = tf.minimum(needed, _shl(tf.ones_like(needed), state["log2_lanes"]))
    plausible = (in_lanes == 0) | (tf.equal(in_lanes, most) & tf.equal(state["signs_in_lanes"], 0))
    alive = state["alive"]
    if partial:
        alive &= plausible & ((in_lanes == 0) | state["whole"])
        in_lanes, needed = tf.where(alive, in_lanes, 0), tf.where(alive, needed, 0)
    else:
        in_lanes, needed = require(plausible, "truncated or damaged stream (signs)", in_lanes, needed)
    in_words = needed - in_lanes

    # One place to look up a word: the streams, then the word left over from the pass before, then the lanes.
    stream_words = _size(state["words"])
    pool = tf.concat([state["words"], state["sign_word"], tf.reshape(state["lanes"] & 0xFFFF, [-1])], 0)

    def address(image: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
        """Index in `pool` of the `word`-th new word of this pass, -1 for the one left over."""
        beyond = word - tf.gather(in_words, image)
        in_stream = tf.where(
            beyond < 0, tf.gather(state["next"], image) + word, stream_words + batch + image * lanes + beyond
        )
        return tf.where(word < 0, stream_words + image, in_stream)

    bit = tf.gather(state["sign_bits"], image) + _rank(image, counts)
    at = address(image, _shr(bit, 4) - tf.gather(words_before, image))
    if partial:
        at = tf.where(tf.gather(alive, image), at, 0)
    sign = tf.cast(_shr(tf.gather(pool, at), bit & 15) & 1, _i32)
    signed = tf.tensor_scatter_nd_sub(entry, nonzero[:, None], 2 * sign * tf.gather(entry, nonzero))
    return signed, state | {
        "next": state["next"] + in_words,
        "sign_bits": bits_after,
        "sign_word": tf.gather(pool, address(tf.range(batch), needed - 1)),
        "signs_in_lanes": state["signs_in_lanes"] + in_lanes,
        "alive": alive,
    }
