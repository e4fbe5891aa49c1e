"""Gain units: interpolation between levels, and the stored multipliers of the integer form."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.exact import calibrating
from transforms.gain import STEPS, GainedInput, GainUnit


@pytest.fixture
def unit():
    unit = GainUnit(3, np.zeros(3))
    unit.build()
    unit.log_gain.assign(np.log([[1, 2, 3], [4, 2, 0.3], [16, 2, 9]]))
    return unit


def test_levels_have_their_own_gains(unit):
    gains = unit.gains(tf.constant([0, STEPS, 2 * STEPS])).numpy()
    np.testing.assert_allclose(gains, [[1, 2, 3], [4, 2, 0.3], [16, 2, 9]], rtol=1e-5)


def test_between_levels_gains_are_geometric_means(unit):
    gains = unit.gains(tf.constant([STEPS // 2, STEPS + STEPS // 4])).numpy()
    np.testing.assert_allclose(gains[0], [2, 2, np.sqrt(0.9)], rtol=1e-5)
    np.testing.assert_allclose(gains[1, 0], 4**0.75 * 16**0.25, rtol=1e-5)


def test_each_picture_of_a_batch_has_its_gain(unit):
    x = tf.ones([2, 1, 1, 3])
    np.testing.assert_allclose(unit(x, tf.constant([0, 2 * STEPS]))[:, 0, 0], [[1, 2, 3], [16, 2, 9]], rtol=1e-5)


def test_both_neighbouring_levels_get_a_gradient(unit):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(unit(tf.ones([1, 2, 2, 3]), tf.constant([STEPS // 2])))
    gradient = tf.convert_to_tensor(tape.gradient(loss, unit.log_gain)).numpy()
    assert np.all(gradient[:2] > 0) and np.all(gradient[2] == 0)


def test_integer_form_is_the_float_form_in_steps(unit):
    layer = GainedInput(unit)
    z = tf.constant(np.random.default_rng(0).integers(-9, 10, [3, 8, 8, 3]), tf.float32)
    quality = tf.constant([0, 40, 2 * STEPS])
    with calibrating([layer]):
        scale = layer.run(z, exact=True, quality=quality).scale
    fixed = layer.run(z, exact=True, quality=quality)
    assert fixed.scale is None  # part of the weights that follow, from now on
    np.testing.assert_array_equal(fixed.value, np.round(fixed.value))
    assert np.abs(fixed.value).max() <= 127
    real = layer.run(z, exact=False, quality=quality).numpy()
    assert np.abs(fixed.value * scale - real).max() <= 0.5 * scale.max() + 1e-4
