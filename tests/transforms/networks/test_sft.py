"""GDN against TFC's, and the layers that a condition modulates."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.gdn import GDN
from transforms.networks import sft

SIZES = sft.Modulation(features=4, hidden=6, kernel_size=3)


@pytest.fixture(autouse=True)
def seed():
    tf.keras.utils.set_random_seed(1)


def normal(*shape):
    return tf.random.normal(shape)


# --- GDN -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_is_that_of_tfc(inverse):
    import tensorflow_compression as tfc

    ours, theirs = GDN(inverse), tfc.GDN(inverse=inverse, alpha_parameter=1, epsilon_parameter=1)
    x = normal(2, 5, 6, 3)
    np.testing.assert_array_equal(ours(x), theirs(x))
    # Some of these are below what the parameters are bounded by.
    for mine, other in zip(ours.trainable_variables, theirs.trainable_variables):
        assert mine.shape == other.shape
        mine.assign(normal(*mine.shape))
        other.assign(mine)
    gradients = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * tf.sin(100 * x))
        gradients.append([y, *tape.gradient(loss, [x, *layer.trainable_variables])])
    for mine, other in zip(*gradients):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_gdn_traces_without_autograph():
    x, layer = normal(1, 4, 4, 3), GDN()
    np.testing.assert_allclose(tf.function(layer, autograph=False)(x), layer(x), rtol=1e-6)


# --- SFT -----------------------------------------------------------------------------------------------------------


def test_sft_is_a_scale_and_an_offset_from_the_condition():
    layer = sft.SFT(5, SIZES, 0)
    x, condition = normal(2, 8, 8, 5), normal(2, 8, 8, 4)
    zero, one = layer(0 * x, condition), layer(0 * x + 1, condition)
    np.testing.assert_allclose(layer(x, condition), zero + (one - zero) * x, rtol=1e-4, atol=1e-5)
    assert np.std(zero) > 0 and np.std(one - zero) > 0
    assert np.any(layer(x, 2 * condition) != layer(x, condition))


def test_sft_sees_the_condition_where_it_is():
    layer = sft.SFT(5, SIZES, 0)
    x, condition = normal(1, 16, 16, 5), normal(1, 16, 16, 4).numpy()
    before = layer(x, tf.constant(condition)).numpy()
    condition[0, 8, 8] += 3
    changed = np.any(layer(x, tf.constant(condition)).numpy() != before, -1)[0]
    rows, columns = np.nonzero(changed)
    assert changed[8, 8] and abs(rows - 8).max() <= 2 and abs(columns - 8).max() <= 2


@pytest.mark.parametrize("up", [False, True])
def test_conditions_of_every_resolution(up):
    net = sft.ConditionNet(3, (7, 6), 4, 2, up=up)
    conditions = net(normal(2, 8, 12, 3))
    factors = (1, 2, 4) if up else (1, 1 / 2, 1 / 4)
    assert [c.shape.as_list() for c in conditions] == [[2, 8 * f, 12 * f, 4] for f in factors]
    # None of them vanishes: what steers the last layers is as loud as what steers the first.
    assert all(0.1 < np.std(c) < 10 for c in conditions)


def test_transforms_see_the_guide_and_change_the_resolution_by_16():
    widths, latents, channels = (4, 6, 8, 8), 5, 7
    analysis = sft.analysis(widths, latents, SIZES, (4,))
    hyper = sft.hyper_analysis(latents, channels, SIZES, (4,))
    synthesis = sft.Synthesis(widths, latents, channels, 3, SIZES, (4,))
    images, map_ = normal(1, 64, 128, 3), tf.random.uniform([1, 64, 128, 1])
    y = analysis(images, map_)
    z = hyper(y, tf.nn.avg_pool2d(map_, 16, 16, "VALID"))
    assert y.shape == (1, 4, 8, latents) and z.shape == (1, 1, 2, channels)
    assert synthesis(y, z).shape == (1, 64, 128, 3)
    assert synthesis(y[:, :3, :5], z).shape == (1, 48, 80, 3)  # z may stand for more than there is
    assert np.any(analysis(images, 0 * map_) != y)
    assert np.any(synthesis(y, 0 * z) != synthesis(y, z))


def test_half_precision_is_that_of_the_policy():
    """Layers that are made when a chain is built compute as the chain does."""
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        analysis = sft.analysis((4, 4, 4, 4), 5, SIZES, (4,))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    y = analysis(normal(1, 32, 32, 3), tf.random.uniform([1, 32, 32, 1]))
    assert y.dtype == tf.bfloat16
    assert {v.dtype for v in analysis.trainable_variables} == {tf.float32}
