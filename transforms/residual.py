"""A residual block of two layers."""

from __future__ import annotations

import tensorflow as tf

Layer = tf.keras.layers.Layer


class Residual(Layer):
    """x + second(first(x)), [B, H, W, C] -> the same shape. What they are, activations among them, is a subclass's."""

    def __init__(self, first: Layer, second: Layer, name: str | None = None):
        super().__init__(name=name)
        self.first, self.second = first, second

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(self.first.compute_output_shape(input_shape))
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        return x + self.second(self.first(x))
