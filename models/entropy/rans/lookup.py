"""The tables of a CDF bank in the form that encoder and decoder look them up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from models.entropy.rans.ops import CPU
from models.entropy.tables import CdfBank

COST_ONE_BIT = 1 << 16  # code lengths are in fixed point: the choice of lanes must not depend on rounding


class EncoderTables(NamedTuple):
    """Lookup tables of the encoder, see `_encoder_arrays` and `_decoder_arrays`."""

    entries: tf.Tensor
    row_info: tf.Tensor
    row_coded: tf.Tensor
    row_folded: tf.Tensor


class DecoderTables(NamedTuple):
    """Lookup tables of the decoder, see `_decoder_arrays`."""

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

    def encoder_tables(self) -> EncoderTables:
        tables = self.entries, self.row_info, self.row_coded, self.row_folded
        return EncoderTables(*map(tf.convert_to_tensor, tables))

    def decoder_tables(self) -> DecoderTables:
        tables = self.slots, self.slot_entries, self.row_offsets, self.row_coded
        return DecoderTables(*map(tf.convert_to_tensor, tables), self.precision, self.null_row)


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
    """Makes the lookup tables of the encoder.

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
