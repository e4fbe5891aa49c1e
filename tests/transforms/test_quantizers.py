"""The five levels: nearest forward, soft backward, three bits."""

import numpy as np
import pytest
import tensorflow as tf

from transforms import quantizers


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_nearest_level_forward_soft_levels_backward(sigma):
    x = np.linspace(-4, 4, 101).astype(np.float32)  # no point halfway between two levels
    levels = np.arange(-2, 3)
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        y = quantizers.quantise(variable, sigma)
    np.testing.assert_array_equal(y, levels[np.argmin(np.abs(x[:, None] - levels), -1)])

    def soft(x):
        weights = np.exp(-sigma * (x[:, None].astype(np.float64) - levels) ** 2)
        return (weights * levels).sum(-1) / weights.sum(-1)

    np.testing.assert_allclose(quantizers.soft(tf.constant(x), sigma), soft(x), atol=1e-5)
    slope = (soft(x.astype(np.float64) + 1e-4) - soft(x.astype(np.float64) - 1e-4)) / 2e-4
    np.testing.assert_allclose(tape.gradient(y, variable), slope, atol=1e-4)


def test_levels_are_three_bits():
    levels = tf.constant([-2.0, -1, 0, 1, 2])
    nonzero, negative, large = quantizers.to_bits(levels)
    assert [b.numpy().tolist() for b in (nonzero, negative, large)] == [
        [1, 1, 0, 1, 1],
        [1, 1, 0, 0, 0],
        [1, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(quantizers.from_bits(nonzero, negative, large), levels)
    np.testing.assert_array_equal(quantizers.from_bits(tf.zeros(4), tf.constant([0.0, 0, 1, 1]), tf.ones(4)), 0)
