"""Latent coders for comparisons: one keeps the symbols of a codec, the other gives them back to the networks."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from models.entropy.coders import ExactCoder, flat, nearest_logit_rows, nearest_rows


class Recorder(ExactCoder):
    """Rounds latents and keeps the symbols of all passes, int32 [B, N], in coding order. Writes nothing."""

    def __init__(self):
        self.symbols: list[tf.Tensor] = []

    def _code(self, name, symbols, rows, folded):
        self.symbols.append(symbols)
        return symbols


class Replay:
    """Gives a model the symbols of an earlier run and keeps what it predicts for them.

    predictions: float32 [B, N] means and rows of each Gaussian pass, one after the other; of a pass of bits zeros and
    rows. With `exact` False those of the float form, for comparison: nothing is coded with them.
    """

    def __init__(self, symbols: Sequence[tf.Tensor], exact: bool = True):
        self._symbols = iter(symbols)
        self.exact = exact
        self.predictions: list[tf.Tensor] = []

    def factorized(self, name: str, latent, first_row: int, shape) -> tf.Tensor:
        return tf.cast(tf.reshape(next(self._symbols), shape), tf.float32)

    def gaussian(self, name: str, latent, parameters) -> tf.Tensor:
        mean, rows = tf.split(parameters.value if self.exact else parameters, 2, -1)
        if not self.exact:
            rows = nearest_rows(rows)
        self.predictions += [flat(mean), flat(rows)]
        return tf.cast(tf.reshape(next(self._symbols), tf.shape(mean)), tf.float32) + mean

    def bernoulli(self, name: str, bits, logits, kept: tf.Tensor) -> tf.Tensor:
        rows = logits.value if self.exact else nearest_logit_rows(logits)
        self.predictions += [flat(tf.zeros_like(rows)), flat(rows * kept)]
        return tf.cast(tf.reshape(next(self._symbols), tf.shape(rows)), tf.float32)
