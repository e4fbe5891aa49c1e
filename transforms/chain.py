"""A sequence of layers as one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

Layer = tf.keras.layers.Layer


class Chain(Layer):
    """Layers one after the other, for inputs [B, H, W, channels].

    Knows its variables without seeing an input, and makes its layers when it is built: a program that only compresses
    does not wait for the hundred layers of a synthesis.

    Args:
      channels: of the input.
      make_layers: returns the layers.
      dtype: its policy; what it is given is cast to that. The layers have their own.
    """

    def __init__(self, channels: int, make_layers: Callable[[], Sequence[Layer]], name: str | None = None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.channels = channels
        self._make_layers = make_layers
        self._policy_when_made = tf.keras.mixed_precision.global_policy()

    def build(self, input_shape=None):
        if self.built:
            return
        before = tf.keras.mixed_precision.global_policy()
        tf.keras.mixed_precision.set_global_policy(self._policy_when_made)
        try:
            self.layers = list(self._make_layers())
        finally:
            tf.keras.mixed_precision.set_global_policy(before)
        shape = tf.TensorShape([None, None, None, self.channels])
        for layer in self.layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        super().build(input_shape)

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
