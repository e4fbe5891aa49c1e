"""Latent coders, which a codec's `transmit` talks to: one interface to estimate, write or read latents.

`transmit` hands each latent and its predicted distribution to a *latent coder* and gets back the decoded latent:

    TrainingRate   differentiable: bits under additive noise, latents rounded straight through   (needs TFC)
    SoftRate       bits of rounded latents, latents rounded softly: for what latents come from   (needs TFC)
    HardRate       bits of rounded latents, differentiable for what predicts them                (needs TFC)
    FloatRate      rounded latents, bits of the float entropy model: validation during training  (needs TFC)
    TableRate      rounded latents, bits of the tables that files are written with
    SymbolCount    counts symbols, for tables that fit them
    LatentCoder    writes rounded latents to a stream, or reads them from one

All but the first four run the entropy networks in integers (`exact` is True).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models.entropy import rans, tables
from transforms.exact import Fixed

#: Gaussian rows are log-spaced: row r has scale exp(LOG_SCALE_MIN + r * LOG_SCALE_STEP). So the row is an affine
#: function of the logarithm of the scale, ROW_GAIN * ln(scale) + ROW_BIAS, and a network needs no exponential to find
#: it.
LOG_SCALE_MIN = float(np.log(tables.SCALES_MIN))
LOG_SCALE_STEP = float(np.log(tables.SCALES_MAX / tables.SCALES_MIN) / (tables.NUM_SCALES - 1))
ROW_GAIN = 1 / LOG_SCALE_STEP
ROW_BIAS = -LOG_SCALE_MIN / LOG_SCALE_STEP
#: The same for the rows of bits, which are uniform in the logit.
LOGIT_GAIN = 1 / tables.LOGIT_STEP
LOGIT_BIAS = float(tables.NUM_LOGITS // 2)


@tf.custom_gradient
def round_through(x: tf.Tensor):
    """Rounds; the gradient passes straight through."""
    return tf.round(x), lambda gradient: gradient


def _symbols(x: tf.Tensor) -> tf.Tensor:
    """Rounds float latents to int32 symbols (clipped to +-2^30, whatever a network gives)."""
    return tf.cast(tf.clip_by_value(tf.round(x), -(2.0**30), 2.0**30), tf.int32)


def _scale_of_row(row: tf.Tensor) -> tf.Tensor:
    return tf.exp(LOG_SCALE_MIN + LOG_SCALE_STEP * row)


def rows_of(log_scale):
    """Finds the Gaussian row of each scale, given its natural logarithm: any real number."""
    return ROW_GAIN * log_scale + ROW_BIAS


def nearest_logit_rows(logits: tf.Tensor) -> tf.Tensor:
    """Finds the Bernoulli row nearest to each logit: float32 integers."""
    return tf.clip_by_value(tf.round(LOGIT_GAIN * logits + LOGIT_BIAS), 0.0, tables.NUM_LOGITS - 1.0)


def row_of_scale(scale: float) -> int:
    """Finds the Gaussian row nearest to a standard deviation."""
    return int(np.clip(np.round(rows_of(np.log(scale))), 0, tables.NUM_SCALES - 1))


def nearest_rows(log_scale: tf.Tensor) -> tf.Tensor:
    """Finds the Gaussian row nearest to each scale, given its natural logarithm: float32 integers."""
    return tf.clip_by_value(tf.round(rows_of(log_scale)), 0.0, tables.NUM_SCALES - 1.0)


class EntropyModels(tf.Module):
    """The trainable densities, from TFC: a factorised prior for hyper-latents, Gaussians for latents.

    Needed for training and for building tables only; TFC is imported here and nowhere else at coding time.

    Args:
      channels: hyper-latent channels.
    """

    def __init__(self, channels: int):
        super().__init__(name="entropy_models")
        import tensorflow_compression as tfc

        self.prior = tfc.NoisyDeepFactorized(batch_shape=(channels,))
        # No offset heuristic: hyper-latents are rounded to whole numbers, in files as in estimates.
        self.hyper = tfc.ContinuousBatchedEntropyModel(
            self.prior, coding_rank=3, compression=False, bottleneck_dtype=tf.float32, offset_heuristic=False
        )
        self.latent = tfc.LocationScaleIndexedEntropyModel(
            tfc.NoisyNormal,
            num_scales=tables.NUM_SCALES,
            scale_fn=_scale_of_row,
            coding_rank=1,
            compression=False,
            bottleneck_dtype=tf.float32,
        )

    def prior_pmf(self, limit: int = 96) -> tuple[np.ndarray, int]:
        """Probabilities of the integers -limit .. limit: float64 [2 limit + 1, channels]; and the offset -limit."""
        grid = tf.range(-limit, limit + 1, dtype=tf.float32)[:, None]
        return self.prior.prob(grid).numpy().astype(np.float64), -limit

    def noisy_bits(self, latent: tf.Tensor, rows: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        """Bits [B] of Gaussian latents [B, N] under additive uniform noise.

        A density is hundreds of small operations and as many of its gradient. In a graph they are compiled into few: on
        a CPU that takes a quarter of the time.
        """

        def bits(*given):
            return self.latent(*given[:2], loc=given[2], training=True)[1]

        if tf.inside_function():
            # One for each graph: where the noise comes from is that graph's business (`train/pjrt/export.py`).
            bits = tf.function(bits, jit_compile=True, autograph=False)
        return bits(latent, rows, mean)

    def noisy_normal(self, rows: tf.Tensor, mean: tf.Tensor):
        """The density of a Gaussian latent under additive uniform noise, by its row (any real number) and mean."""
        import tensorflow_compression as tfc

        rows = tf.clip_by_value(rows, 0.0, tables.NUM_SCALES - 1.0)
        return tfc.NoisyNormal(loc=mean, scale=_scale_of_row(rows))


class _FloatCoder:
    """Common to the coders that estimate with the float entropy models."""

    exact = False
    training: bool

    def __init__(self, models: EntropyModels):
        self._models = models
        self._counted: dict[str, tf.Tensor] = {}  # of factorised priors and of bits
        self._gaussian: dict[str, list[tuple[tf.Tensor, ...]]] = {}

    @property
    def bits(self) -> dict[str, tf.Tensor]:
        """Bits [B] by latent, of all passes so far. Read it once, at the end: reading computes those of Gaussians.

        One evaluation serves all passes: ELIC has two a group, and a density is hundreds of small operations.
        """
        result = dict(self._counted)
        for name, parts in self._joined():
            result[name] = self._gaussian_bits(*parts)
        return result

    def _gaussian_bits(self, latent: tf.Tensor, rows: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        """Bits [B] of latents [B, N]."""
        return self._models.latent(latent, rows, loc=mean, training=self.training)[1]

    def _joined(self):
        """Yields each Gaussian latent's name and all its values, rows and means, each [B, N]."""
        for name, passes in self._gaussian.items():
            yield name, [tf.concat(parts, 1) for parts in zip(*passes)]

    def factorized(self, name: str, latent: tf.Tensor, first_row: int, shape) -> tf.Tensor:
        _, bits = self._models.hyper(latent, training=self.training)
        self._counted[name] = bits
        return round_through(latent)

    def gaussian(self, name: str, latent: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        mean, log_scale = tf.split(parameters, 2, -1)
        rows = rows_of(log_scale)
        self._gaussian.setdefault(name, []).append(tuple(map(flat, (latent, rows, mean))))
        return round_through(latent - mean) + mean

    def bernoulli(self, name: str, bits: tf.Tensor, logits: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
        cost = tf.nn.sigmoid_cross_entropy_with_logits(labels=bits, logits=logits) * kept
        self._counted[name] = self._counted.get(name, 0.0) + tf.reduce_sum(cost, [1, 2, 3]) / np.log(2)
        return bits * kept


class TrainingRate(_FloatCoder):
    """Bits [B] by latent under additive uniform noise; latents rounded with straight-through gradients.

    The mixed quantisation of Minnen & Singh, ICIP 2020, that ELIC trains with.
    """

    training = True

    def _gaussian_bits(self, latent, rows, mean):
        return self._models.noisy_bits(latent, rows, mean)


class SoftRate(_FloatCoder):
    """Bits [B] by latent of rounded latents, and latents rounded softly; differentiable, for what latents come from.

    For refinement, and for an encoder that learns to serve a fixed decoder; a decoder must not learn from this: softly
    rounded latents tell more than their bits pay for.

    Straight-through gradients drive a latent to the threshold between two integers: on either side the error of the
    image pulls it to the other, and where it ends is chance. Rounded softly (Agustsson & Theis, "Universally
    Quantized Neural Compression", NeurIPS 2020) it settles where the loss is least, and sharper and sharper ones settle
    at integers. The gradient of the bits is their difference from half a step below to half a step above, which is the
    mean of their gradient under uniform noise.

    sharpness: float [] above 0, the α of soft rounding. 6 is for encoders that learn: with 3 they came to send
      fractions, which no file holds.
    """

    def __init__(self, models: EntropyModels, sharpness: tf.Tensor | float = 6.0):
        super().__init__(models)
        self._sharpness = sharpness

    def _round(self, latent: tf.Tensor) -> tf.Tensor:
        import tensorflow_compression as tfc

        return tfc.soft_round(latent, self._sharpness)

    @staticmethod
    def _sloped_bits(log_prob, latent: tf.Tensor) -> tf.Tensor:
        here = tf.stop_gradient(latent)
        slope = tf.stop_gradient(log_prob(here + 0.5) - log_prob(here - 0.5))
        return _bits(log_prob(tf.round(here)) + slope * (latent - here))

    def factorized(self, name: str, latent: tf.Tensor, first_row: int, shape) -> tf.Tensor:
        self._counted[name] = self._sloped_bits(self._models.prior.log_prob, latent)
        return self._round(latent)

    def gaussian(self, name: str, latent: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        super().gaussian(name, latent, parameters)
        mean, _ = tf.split(parameters, 2, -1)
        return self._round(latent - mean) + mean

    def _gaussian_bits(self, latent, rows, mean):
        return self._sloped_bits(self._models.noisy_normal(rows, tf.zeros_like(mean)).log_prob, latent - mean)


class HardRate(_FloatCoder):
    """Bits [B] by latent of rounded latents, differentiable with respect to what predicts them.

    For a decoder that is trained on the latents of a fixed encoder (Guo, Zhang, Feng, Chen: "Soft then Hard: Rethinking
    the Quantization in Neural Image Compression", ICML 2021): scales and priors learn from the symbols that files hold.
    Means learn from noisy latents: which symbol it is depends on the mean, and has no gradient.
    """

    training = False  # of the prior: it sees rounded hyper-latents

    def _gaussian_bits(self, latent, rows, mean):
        symbols = tf.round(tf.stop_gradient(latent - mean))
        bits = _bits(self._models.noisy_normal(rows, tf.zeros_like(mean)).log_prob(symbols))
        noisy = latent + tf.random.uniform(tf.shape(latent), -0.5, 0.5)
        of_means = _bits(self._models.noisy_normal(tf.stop_gradient(rows), mean).log_prob(noisy))
        return bits + of_means - tf.stop_gradient(of_means)


class FloatRate(_FloatCoder):
    """Bits [B] by latent and rounded latents of the float entropy model."""

    training = False


class ExactCoder:
    """Common to what works on symbols and table rows."""

    exact = True

    def _code(self, name: str, symbols, rows: tf.Tensor, folded: bool) -> tf.Tensor:
        """Symbols and rows int32 [B, N] in, symbols out; symbols are None when decoding."""
        raise NotImplementedError

    def factorized(self, name: str, latent: tf.Tensor | None, first_row: int, shape) -> tf.Tensor:
        """Codes latents [B, H, W, C] with a row per channel, `first_row` onwards.

        shape: (B, H, W, C), for when there is no latent. Returns float32 integers.
        """
        rows = tf.broadcast_to(first_row + tf.range(shape[-1]), shape)
        symbols = None if latent is None else flat(_symbols(latent))
        return tf.cast(tf.reshape(self._code(name, symbols, flat(rows), folded=False), shape), tf.float32)

    def gaussian(self, name: str, latent: tf.Tensor | None, parameters: Fixed) -> tf.Tensor:
        """Codes latents [B, H, W, C] rounded after subtracting their means; returns them decoded.

        parameters: what an `EntropyNet` with `Output.PARAMETERS` gives, [B, H, W, 2 C].
        """
        mean, rows = tf.split(parameters.value, 2, -1)
        symbols = None if latent is None else flat(_symbols(latent - mean))
        symbols = self._code(name, symbols, flat(tf.cast(rows, tf.int32)), folded=True)
        return tf.cast(tf.reshape(symbols, tf.shape(mean)), tf.float32) + mean

    def integers(self, name: str, values: tf.Tensor | None, rows: tf.Tensor) -> tf.Tensor:
        """Codes integers, int32 [B, N], by Gaussian rows, int32 [B, N]: what is sent besides latents. Decoded."""
        return self._code(name, values, rows, folded=True)

    def bernoulli(self, name: str, bits: tf.Tensor | None, logits: Fixed, kept: tf.Tensor) -> tf.Tensor:
        """Codes those bits, 0 or 1, [B, H, W, C], whose `kept` is 1; the others are 0 and cost nothing.

        logits: what an `EntropyNet` with `Output.ROWS` gives, rows of `tables.bernoulli_rows`, which the bank begins
          with. kept: float32 0 or 1, [B, H, W, C].
        """
        rows = tf.where(kept > 0, logits.value, float(tables.NUM_LOGITS))  # the row that is not coded
        symbols = None if bits is None else flat(_symbols(bits * kept))
        symbols = self._code(name, symbols, flat(tf.cast(rows, tf.int32)), folded=False)
        return tf.cast(tf.reshape(symbols, tf.shape(rows)), tf.float32)


def _bits(log_probabilities: tf.Tensor) -> tf.Tensor:
    """Bits [B] of natural logarithms of probabilities [B, ...]."""
    return -tf.reduce_sum(flat(log_probabilities), 1) / np.log(2)


def flat(x: tf.Tensor) -> tf.Tensor:
    """Makes [B, N] of [B, ...]."""
    return tf.reshape(x, [tf.shape(x)[0], -1])


class TableRate(ExactCoder):
    """Bits [B] by latent under the integer tables of `bank`: what a perfect coder would write."""

    def __init__(self, bank: tables.CdfBank):
        # One lookup a symbol. A row that is not coded has one entry, 0, that costs nothing.
        self._bits = np.where(np.repeat(bank.coded, bank.lengths), bank.precision - np.log2(bank.frequencies), 0.0)
        self._bits = self._bits.astype(np.float32)
        self._starts = bank.starts.astype(np.int32)
        self._lengths = np.where(bank.coded, bank.lengths, 1).astype(np.int32)
        self._offsets = np.where(bank.coded, bank.offsets, 0).astype(np.int32)
        self.bits: dict[str, tf.Tensor] = {}

    def cost(self, symbols: tf.Tensor, rows: tf.Tensor, folded: bool) -> tf.Tensor:
        """Bits of each symbol by its row: int32 and int32 in, float32 out, all of one shape."""
        entry, inside = self._entries(symbols, rows, folded)
        bits = tf.where(inside, tf.gather(self._bits, entry), float(tables.EXCEPTION_BITS))
        return bits + tf.cast(inside & (symbols != 0), tf.float32) if folded else bits

    def _code(self, name, symbols, rows, folded):
        self.bits[name] = self.bits.get(name, 0.0) + tf.reduce_sum(self.cost(symbols, rows, folded), 1)
        return symbols

    def _entries(self, symbols, rows, folded):
        """The entry of the tables that each symbol is, int32, and whether it is in its table at all."""
        value = tf.abs(symbols) if folded else symbols - tf.gather(self._offsets, rows)
        length = tf.gather(self._lengths, rows)
        entry = tf.gather(self._starts, rows) + tf.clip_by_value(value, 0, length - 1)
        return entry, (value >= 0) & (value < length)


class SymbolCount(TableRate):
    """Counts the symbols of all passes by entry of the tables of `bank`, for `CdfBank.fitted`.

    counts: int64, in the order of the tables' frequencies; symbols that a table does not hold are not in it.
    """

    def __init__(self, bank: tables.CdfBank):
        super().__init__(bank)
        self.counts = np.zeros(len(bank.frequencies), np.int64)

    def _code(self, name, symbols, rows, folded):
        entry, inside = self._entries(symbols, rows, folded)
        self.counts += np.bincount(entry[inside].numpy(), minlength=len(self.counts))
        return symbols


class LatentCoder(ExactCoder):
    """Writes the latents' symbols to a `RansEncoder`, or reads them from a `RansDecoder`."""

    def __init__(self, stream: rans.RansEncoder | rans.RansDecoder):
        self._stream = stream

    def _code(self, name, symbols, rows, folded):
        return self._stream.code(rows, symbols, folded=folded)
