"""Binary codes and the importance map: values, and the proxies that stand for their gradients."""

import numpy as np
import pytest
import tensorflow as tf

from transforms import importance


def gradient(function, x, weight=1.0):
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(function(x) * weight)
    return tape.gradient(y, x).numpy()


def test_binarise():
    codes = tf.constant([0.0, 0.2, 0.5, 0.5001, 1.0])
    assert importance.binarise(codes).numpy().tolist() == [0, 0, 0, 1, 1]
    assert gradient(importance.binarise, [-0.1, 0.0, 0.3, 0.7, 1.0, 1.1], 3.0).tolist() == [0, 3, 3, 3, 3, 0]


@pytest.mark.parametrize("levels", [2, 5, 16, 32])
def test_levels(levels):
    p = np.linspace(0, 1, 201, dtype=np.float32)
    expected = np.minimum(np.floor(np.float32(levels) * p), levels - 1)
    np.testing.assert_array_equal(importance.quantise(tf.constant(p), levels), expected)
    assert expected.max() == levels - 1 and expected.min() == 0


def by_the_paper(p, n, levels):
    """Mask and its derivative at one position, channel by channel, k counted from 1."""
    steps = [-(-k * levels // n) for k in range(1, n + 1)]
    q = min(int(np.floor(levels * p)), levels - 1)
    mask = [float(k <= n / levels * q) for k in range(1, n + 1)]
    slope = [levels if levels * p - 1 <= s < levels * p + 2 else 0 for s in steps]
    return np.array(mask), np.array(slope)


@pytest.mark.parametrize("n, levels", [(64, 16), (128, 32), (12, 4), (8, 8)])
def test_mask_and_its_gradient_are_the_papers_formula(n, levels):
    random = np.random.default_rng(n)
    # Values between and on the edges of the levels, the ends of the range among them.
    values = np.concatenate([random.uniform(0, 1, 20), [0, 1, 1 / levels, 2 / levels]]).astype(np.float32)
    p = values.reshape(2, 3, 4, 1)
    weight = random.normal(size=[2, 3, 4, n]).astype(np.float32)

    def mask(p):
        return importance.mask(importance.quantise(p, levels), n, levels, p)

    expected = [by_the_paper(v, n, levels) for v in values]
    np.testing.assert_array_equal(mask(tf.constant(p)), np.reshape([m for m, _ in expected], [2, 3, 4, n]))
    slopes = np.reshape([s for _, s in expected], [2, 3, 4, n])
    np.testing.assert_allclose(gradient(mask, p, weight), (slopes * weight).sum(-1, keepdims=True), rtol=1e-4)
    assert 0 < np.mean(slopes > 0) < 1  # neither zero nor the earlier ports' "all ones"


def test_a_mask_of_levels_alone():
    level = tf.constant([0.0, 1.0, 3.0, 4.0])[None, None, :, None]
    kept = importance.mask(level, 8, 4).numpy()[0, 0]
    assert kept.sum(-1).tolist() == [0, 2, 6, 8]
    assert np.all(np.diff(kept, axis=-1) <= 0)  # always the first ones


@pytest.mark.parametrize("planes", [1, 4, 5])
def test_bit_planes(planes):
    level = tf.reshape(tf.range(2.0**planes), [1, 2, -1, 1])
    bits = importance.bit_planes(level, planes)
    assert bits.shape == [1, 2, 2 ** (planes - 1), planes]
    assert set(np.unique(bits)) == {0, 1}
    np.testing.assert_array_equal(bits[..., 0] == 1, level[..., 0] >= 2.0 ** (planes - 1))  # the highest comes first
    np.testing.assert_array_equal(importance.from_bit_planes(bits), level)
