"""A sequence of layers as one layer."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

Layer = tf.keras.layers.Layer


class Chain(Layer):
    """Layers one after the other, for inputs [B, H, W, channels]. Knows its variables without seeing an input."""

    def __init__(self, channels: int, layers: Sequence[Layer], name: str | None = None):
        super().__init__(name=name)
        self.channels = channels
        self.layers = list(layers)

    def build(self, input_shape=None):
        shape = tf.TensorShape([None, None, None, self.channels])
        for layer in self.layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        super().build(input_shape)

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
