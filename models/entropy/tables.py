"""CDF bank: the integer probability tables that symbols are coded with.

Every entropy model of the zoo ends as an integer symbol and the number of the table row that predicts it. A
bank holds all rows of one set of weights. It is computed once, when weights are saved, and stored with them:
floating-point code that rebuilds it on another machine may round differently, and one count of difference
makes a stream unreadable.

A row is a run of consecutive symbol values with a frequency each:

    symbol value   offset   offset + 1   ...   offset + length - 1
    frequency        12        480       ...            3              (all >= 1, sum = 2**precision)

There is no escape symbol. A value outside its row travels in the stream's list of exceptions, so that every
int32 can be coded whatever its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

PRECISION = 12
"""log2 of a row's total frequency: 11 costs 0.3 % more bytes, 13 doubles the decoder's memory for 0.1 %."""

MAX_PRECISION = 14

EXCEPTION_BITS = 32
"""What one exception costs in a stream: about 2 bytes of distance and 1 or 2 of value, rounded up."""

SKIP_PROBABILITY = 2.0**-14
"""Rows whose symbols differ from 0 less often than this are not coded.

Listing the few exceptions is quicker, and cheaper too, as a table cannot say P(0) > 1 - 2**-precision. It is
what a Gaussian has at sigma = 0.125.
"""

SKIP_SCALE = 0.125
TRIM_PROBABILITY = 2.0**-20

SCALES_MIN, SCALES_MAX, NUM_SCALES = 0.11, 256.0, 64

PRIOR_SYMBOLS = 200
"""How many symbols seen in a row outweigh what was assumed of it, when tables are fitted."""

LOGIT_STEP = 1 / 8
"""Of the rows for bits: a bit costs at most 0.0007 more with logits this coarse, and a third of it on average."""

NUM_LOGITS = 127
"""From -7.875 to 7.875, 0 in the middle: probabilities down to 1.6 / 2**12."""


class Row(NamedTuple):
    """One table before its probabilities are made integers.

    Attributes:
      pmf: float `[n]`, probability of each value; need not sum to 1 exactly.
      offset: symbol value of `pmf[0]`; 0 for a folded row.
      folded: the row codes |s|, and the sign of a non-zero symbol is one raw bit.
      coded: False if symbols of this row are taken to be 0 and not coded.
    """

    pmf: np.ndarray
    offset: int = 0
    folded: bool = False
    coded: bool = True


@dataclass(frozen=True, eq=False)
class CdfBank:
    """Integer frequency tables; row `r` is `frequencies[sum(lengths[:r]):][:lengths[r]]`.

    Attributes:
      frequencies: int32 `[sum(lengths)]`, >= 1, each row sums to `2**precision`.
      lengths: int32 `[rows]`, number of entries of each row.
      offsets: int32 `[rows]`, symbol value of each row's first entry.
      folded: bool `[rows]`, the row codes |s| and a raw sign bit.
      coded: bool `[rows]`, False: symbols of this row are taken to be 0, and a non-zero one becomes an
        exception.
      precision: log2 of the rows' sums.
    """

    frequencies: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    folded: np.ndarray
    coded: np.ndarray
    precision: int = PRECISION

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        object.__setattr__(self, "precision", int(self.precision))
        problem = self._problem()
        if problem:
            raise ValueError(f"CDF bank: {problem}")

    def _problem(self) -> str | None:
        per_row = (self.lengths, self.offsets, self.folded, self.coded)
        if not 1 <= self.precision <= MAX_PRECISION:
            return f"precision {self.precision} is not in 1..{MAX_PRECISION}"
        if not self.lengths.size or any(a.shape != self.lengths.shape or a.ndim != 1 for a in per_row):
            return "lengths, offsets, folded and coded must be non-empty vectors of one length"
        if self.lengths.min() < 1 or self.frequencies.shape != (int(self.lengths.sum()),):
            return "the rows' lengths do not add up to the frequencies"
        if self.frequencies.min() < 1 or np.any(self.row_sums() != 1 << self.precision):
            return f"the frequencies of a row must be >= 1 and sum to {1 << self.precision}"
        if np.any(self.offsets[self.folded] != 0):
            return "a folded row must start at 0"
        return None

    @classmethod
    def from_pmfs(cls, rows: Iterable[Row], precision: int = PRECISION) -> CdfBank:
        """Quantises probabilities to integer frequencies.

        Needs TensorFlow Compression. Do it once and store the result: see the module's docstring.
        """
        rows = list(rows)
        frequencies = [quantise_pmf(row.pmf, precision) for row in rows]
        return cls(
            frequencies=np.concatenate(frequencies),
            lengths=[len(f) for f in frequencies],
            offsets=[row.offset for row in rows],
            folded=[row.folded for row in rows],
            coded=[row.coded for row in rows],
            precision=precision,
        )

    @classmethod
    def concatenate(cls, banks: Sequence[CdfBank]) -> CdfBank:
        """Stacks the rows of several banks: row `r` of the second becomes `len(banks[0]) + r`, and so on."""
        if len({bank.precision for bank in banks}) != 1:
            raise ValueError("CDF bank: only banks of one precision can be stacked")
        stacked = {name: np.concatenate([getattr(bank, name) for bank in banks]) for name in _DTYPES}
        return cls(**stacked, precision=banks[0].precision)

    def fitted(self, counts: np.ndarray) -> CdfBank:
        """Tables for symbols as they were seen, where many were seen; rows that are not coded stay as they are.

        Needs TensorFlow Compression, as `from_pmfs` does.

        Args:
          counts: number of symbols seen, in the order of `frequencies`.
        """
        rows = zip(np.split(self.frequencies, self.starts[1:]), np.split(counts, self.starts[1:]), self.coded)
        total = 1 << self.precision
        frequencies = [
            quantise_pmf(seen + PRIOR_SYMBOLS / total * assumed, self.precision) if coded else assumed
            for assumed, seen, coded in rows
        ]
        return replace(self, frequencies=np.concatenate(frequencies))

    def __add__(self, other: CdfBank) -> CdfBank:
        return CdfBank.concatenate([self, other])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """int64 `[rows]`: where each row begins in `frequencies`."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def row_sums(self) -> np.ndarray:
        """int64 `[rows]`: the total frequency of each row."""
        return np.add.reduceat(self.frequencies.astype(np.int64), self.starts)

    def row(self, index: int) -> np.ndarray:
        """int32 `[lengths[index]]`: the frequencies of one row."""
        return self.frequencies[self.starts[index] :][: self.lengths[index]]

    def tensors(self) -> dict[str, np.ndarray]:
        """The bank as named arrays, for a weights file."""
        return {name: getattr(self, name) for name in _DTYPES} | {"precision": np.array([self.precision], np.int32)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> CdfBank:
        """Inverse of `tensors`. Raises ValueError if an array is missing or the bank is not valid."""
        missing = [name for name in (*_DTYPES, "precision") if name not in tensors]
        if missing:
            raise ValueError(f"CDF bank: {', '.join(missing)} missing")
        return cls(**{name: tensors[name] for name in _DTYPES}, precision=np.ravel(tensors["precision"])[0])

    def bits(self, rows: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Ideal code length of each symbol under the integer tables, in bits.

        Args:
          rows: int, any shape.
          symbols: int32, of the same shape.

        Returns:
          float64 of that shape: -log2(frequency / 2**precision), plus 1 for the sign of a non-zero symbol of
          a folded row, 0 for a zero that is not coded, `EXCEPTION_BITS` for a symbol that the tables do not
          hold.
        """
        rows, symbols = np.asarray(rows), np.asarray(symbols, np.int64)
        folded, coded = self.folded[rows], self.coded[rows]
        entry = np.where(folded, np.abs(symbols), symbols) - self.offsets[rows]
        inside = (entry >= 0) & (entry < self.lengths[rows])
        frequency = self.frequencies[self.starts[rows] + np.where(inside, entry, 0)]
        bits = self.precision - np.log2(frequency) + (folded & (symbols != 0))
        return np.where(coded, np.where(inside, bits, EXCEPTION_BITS), np.where(symbols == 0, 0, EXCEPTION_BITS))


_DTYPES = {
    "frequencies": np.int32,
    "lengths": np.int32,
    "offsets": np.int32,
    "folded": np.bool_,
    "coded": np.bool_,
}


def quantise_pmf(pmf: np.ndarray, precision: int = PRECISION) -> np.ndarray:
    """Probabilities `[n]` to int32 frequencies `[n]` >= 1 that sum to `2**precision`, at the least loss."""
    pmf = np.asarray(pmf, np.float64)
    if pmf.ndim != 1 or not 1 <= pmf.size <= 1 << precision or not np.all(pmf >= 0) or not 0 < pmf.sum() < np.inf:
        raise ValueError(f"CDF bank: a row needs 1 to {1 << precision} probabilities, none negative, some positive")
    if pmf.size == 1:  # TFC's op wants at least two
        return np.array([1 << precision], np.int32)
    import tensorflow_compression as tfc  # not above: it takes seconds, and decoding never needs it

    # TFC reserves an overflow entry by convention of its callers only; the op itself quantises just what it
    # is given.
    cdf = tfc.pmf_to_quantized_cdf((pmf / pmf.sum()).astype(np.float32), precision=precision)
    return np.diff(cdf.numpy()).astype(np.int32)


def scale_table(num: int = NUM_SCALES, lo: float = SCALES_MIN, hi: float = SCALES_MAX) -> np.ndarray:
    """float64 `[num]`: log-spaced standard deviations from `lo` to `hi`, in symbol steps."""
    return np.exp(np.linspace(np.log(lo), np.log(hi), num))


SCALES = scale_table()


def gaussian_rows(scales: Iterable[float] = SCALES) -> list[Row]:
    """Folded rows for zero-mean Gaussians, integrated over unit bins.

    Tables reach 6 sigma + 3, beyond which an exception is cheaper than a table entry even for heavier tails.

    Args:
      scales: standard deviations in symbol steps; at or below `SKIP_SCALE` a row is not coded.
    """
    return [Row(_gaussian_magnitude_pmf(s), folded=True, coded=bool(s > SKIP_SCALE)) for s in np.asarray(scales)]


def bernoulli_rows() -> list[Row]:
    """Rows for bits: logits of P(1) from -7.875 to 7.875 in steps of `LOGIT_STEP`, then one row that is not coded."""
    logits = LOGIT_STEP * (np.arange(NUM_LOGITS) - NUM_LOGITS // 2)
    ones = 1 / (1 + np.exp(-logits))
    return [*(Row(np.array([1 - p, p])) for p in ones), Row(np.ones(1), coded=False)]


def _gaussian_magnitude_pmf(scale: float) -> np.ndarray:
    """P(|s| = m) for m = 0, 1, ... of a Gaussian rounded to integers."""
    entries = math.ceil(6 * scale + 3) + 1
    # Upper tails, so that what is subtracted is never nearly 1: P(S > m - 1/2) for m = 0, 1, ...
    tails = [math.erfc((m - 0.5) / (scale * math.sqrt(2))) / 2 for m in range(entries + 1)]
    pmf = -np.diff(tails)
    pmf[1:] *= 2
    return pmf


def factorized_rows(pmf_matrix: np.ndarray, offsets: np.ndarray | int) -> list[Row]:
    """Rows for per-channel priors, trimmed of the tails that are not worth a table entry.

    A channel that is 0 with probability > 1 - `SKIP_PROBABILITY` is not coded.

    Args:
      pmf_matrix: float `[channels, values]`.
      offsets: int, `[channels]` or one for all: the symbol value of column 0.
    """
    pmf_matrix = np.asarray(pmf_matrix, np.float64)
    offsets = np.broadcast_to(np.asarray(offsets, np.int64), pmf_matrix.shape[:1])
    return [_factorized_row(pmf, int(offset)) for pmf, offset in zip(pmf_matrix, offsets)]


def _factorized_row(pmf: np.ndarray, offset: int) -> Row:
    worth = np.flatnonzero(pmf >= TRIM_PROBABILITY * pmf.sum())
    if not worth.size:
        raise ValueError("CDF bank: a prior without any probability")
    first, last = worth[0], worth[-1]
    p_zero = pmf[-offset] / pmf.sum() if 0 <= -offset < pmf.size else 0.0
    return Row(pmf[first : last + 1], offset + int(first), coded=bool(p_zero <= 1 - SKIP_PROBABILITY))
