"""GDN in its simplified form, without squares and roots: what TFC calls `GDN(alpha_parameter=1, epsilon_parameter=1)`.

Ballé, Laparra, Simoncelli: "Density Modeling of Images Using a Generalized Normalization Transformation", ICLR 2016;
Johnston, Eban, Gordon, Ballé: "Computationally Efficient Neural Image Compression", arXiv 1912.08771.

The same numbers from the same variables as TFC's, which is not used because it is in the coding path: TFC takes seconds
to import, and its GDN cannot be traced without AutoGraph, which would rewrite the whole codec.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

#: Variables hold sqrt(parameter + PEDESTAL): it keeps parameters from below, and their gradients from vanishing at 0.
PEDESTAL = 2.0**-36
BETA_MIN = 1e-6


@tf.custom_gradient
def _at_least(x: tf.Tensor, bound: tf.Tensor):
    """max(x, bound), with a gradient for x below the bound too if that lifts it."""
    return tf.maximum(x, bound), lambda gradient: (tf.where((x >= bound) | (gradient < 0), gradient, 0.0), None)


class GDN(tf.keras.layers.Layer):
    """x_i / (beta_i + sum_j gamma_ij |x_j|), or with `inverse` their product: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, inverse: bool = False, name: str | None = None):
        super().__init__(name=name)
        self.inverse = inverse

    def build(self, input_shape):
        channels = input_shape[-1]

        def parameter(name: str, initial: np.ndarray) -> tf.Variable:
            start = tf.constant_initializer(np.sqrt(initial + PEDESTAL))
            return self.add_weight(name, initial.shape, initializer=start, experimental_autocast=False)

        self.beta = parameter("beta", np.ones(channels))
        self.gamma = parameter("gamma", 0.1 * np.eye(channels))
        super().build(input_shape)

    def call(self, x):
        beta = tf.square(_at_least(self.beta, (BETA_MIN + PEDESTAL) ** 0.5)) - PEDESTAL
        gamma = tf.square(_at_least(self.gamma, PEDESTAL**0.5)) - PEDESTAL
        pool = tf.nn.conv2d(tf.abs(x), tf.cast(gamma[None, None], x.dtype), 1, "SAME") + tf.cast(beta, x.dtype)
        return x * pool if self.inverse else x / pool

    def init_identity(self) -> None:
        """See `transforms/starts/linear.py`: nearly so, that a gradient of gamma is left."""
        self.gamma.assign(0.01 * np.eye(self.gamma.shape[0], dtype=np.float32))

    def compute_output_shape(self, input_shape):
        return input_shape
