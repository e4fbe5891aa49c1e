"""ELIC's transforms: shapes, gradients, and the layers that compute a map in another way than their name says."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.networks import elic
from transforms.resample import Downsample, Upsample, subpixel_kernel


def noise(*shape):
    return tf.constant(np.random.default_rng(3).normal(size=shape).astype(np.float32))


CASES = {
    "bottleneck": (lambda: elic.ResidualBottleneck(8), (2, 5, 7, 8), (2, 5, 7, 8)),
    "attention": (lambda: elic.Attention(8), (2, 5, 7, 8), (2, 5, 7, 8)),
    "analysis": (lambda: elic.analysis((6, 8, 10), 12), (2, 48, 32, 3), (2, 3, 2, 12)),
    "synthesis": (lambda: elic.synthesis((6, 8, 10), 12), (2, 3, 2, 12), (2, 48, 32, 3)),
    "hyper_analysis": (lambda: elic.hyper_analysis(12, 8), (2, 4, 8, 12), (2, 1, 2, 8)),
    "downsample": (lambda: Downsample(4), (1, 6, 8, 3), (1, 3, 4, 4)),
    "upsample": (lambda: Upsample(4), (1, 3, 4, 3), (1, 6, 8, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_gradients(name):
    make, shape, expected = CASES[name]
    tf.keras.utils.set_random_seed(1)
    layer, x = make(), noise(*shape)
    layer(x)
    for variable in layer.trainable_variables:  # biases start at zero, which could hide a dead branch
        variable.assign_add(0.1 * tf.random.normal(variable.shape))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * noise(*expected))
    assert y.shape == expected
    gradients = tape.gradient(loss, [x, *layer.trainable_variables])
    dead = [v.name for g, v in zip(gradients[1:], layer.trainable_variables) if g is None or not np.any(g.numpy() != 0)]
    assert not dead
    assert np.all(np.isfinite(gradients[0]))
    assert np.any(gradients[0] != 0)


def test_numbers_of_the_paper():
    """36.9 M parameters in all are published; the transforms' share, layer by layer."""

    def rbb(c):
        return c * c // 2 + c // 2 + 9 * (c // 2) ** 2 + c // 2 + c // 2 * c + c

    def attention(c):
        return 6 * rbb(c) + c * c + c

    n, m = 192, 320
    analysis = elic.analysis((n, n, n), m)
    analysis(tf.zeros([1, 16, 16, 3]))
    down = 25 * 3 * n + n + 2 * (25 * n * n + n) + 25 * n * m + m
    assert analysis.count_params() == down + 9 * rbb(n) + attention(n) + attention(m)
    synthesis = elic.synthesis((n, n, n), m)
    synthesis(tf.zeros([1, 1, 1, m]))
    up = 25 * 3 * n + 3 + 3 * n + 25 * n * m + 2 * 25 * n * n
    assert synthesis.count_params() == up + 9 * rbb(n) + attention(n) + attention(m)


def test_bottleneck_is_its_formula():
    layer, x = elic.ResidualBottleneck(4), noise(1, 3, 3, 4)
    layer(x)

    def conv(part, x):
        return tf.nn.conv2d(x, part.kernel, 1, "SAME") + part.bias

    inner = tf.nn.relu(conv(layer.spatial, tf.nn.relu(conv(layer.reduce, x))))
    expected = x + conv(layer.expand, inner)
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    layer.final_relu = True
    np.testing.assert_allclose(layer(x), tf.nn.relu(expected), atol=1e-6)


def test_attention_gates_its_trunk():
    layer, x = elic.Attention(4), noise(1, 4, 4, 4)
    layer(x)
    layer.gate.bias.assign([-1e4] * 4)
    np.testing.assert_array_equal(layer(x), x)
    layer.gate.bias.assign([1e4] * 4)
    trunk = x
    for unit in layer.trunk:
        trunk = unit(trunk)
    np.testing.assert_allclose(layer(x), x + trunk, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (4, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_subpixel_form_is_the_transposed_convolution(size, use_bias):
    x = noise(2, *size, 6)
    plain, subpixel = Upsample(3, use_bias=use_bias), Upsample(3, subpixel=True, use_bias=use_bias)
    plain(x), subpixel(x)
    subpixel.set_weights(plain.get_weights())
    if use_bias:
        plain.bias.assign([1.0, 2.0, 3.0])
        subpixel.bias.assign([1.0, 2.0, 3.0])
    y = subpixel(x)
    assert y.shape == [2, 2 * size[0], 2 * size[1], 3]
    np.testing.assert_allclose(y, plain(x), atol=1e-5)
    reference = tf.nn.conv2d_transpose(x, plain.kernel, y.shape, 2, "SAME")
    np.testing.assert_allclose(y - (plain.bias if use_bias else 0), reference, atol=1e-5)


def test_subpixel_form_learns_the_same():
    x, weight = noise(1, 3, 3, 4), noise(1, 6, 6, 3)
    layers = [Upsample(3), Upsample(3, subpixel=True)]
    gradients = []
    for layer in layers:
        layer(x)
        layer.set_weights(layers[0].get_weights())
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) * weight)
        gradients.append(tape.gradient(loss, layer.trainable_variables))
    for one, other in zip(*gradients):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_subpixel_kernel_holds_each_tap_once():
    kernel = np.arange(1, 5 * 5 * 2 * 3 + 1, dtype=np.float32).reshape(5, 5, 2, 3)
    result = subpixel_kernel(tf.constant(kernel)).numpy()
    assert sorted(result[result > 0]) == sorted(kernel.ravel())


def test_subpixel_is_for_5x5_kernels():
    with pytest.raises(ValueError, match="5x5"):
        Upsample(3, 3, subpixel=True)


def test_transforms_compute_in_16_bits_where_asked_and_end_in_float32():
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        synthesis, hyper = elic.synthesis((4, 4, 4), 4), elic.hyper_analysis(4, 4)
        up, x = elic.Attention(4), noise(1, 4, 4, 4)
        assert up(x).dtype == tf.bfloat16
        assert synthesis(x).dtype == tf.float32
        assert hyper(x).dtype == tf.float32
        assert all(v.dtype == tf.float32 for v in synthesis.trainable_variables)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
