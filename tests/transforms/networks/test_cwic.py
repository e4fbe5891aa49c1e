"""CWIC's transforms: shapes, gradients, and how they begin."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.networks import cwic


def noise(*shape):
    return tf.constant(np.random.default_rng(3).normal(size=shape).astype(np.float32))


CASES = {
    "block": (lambda: cwic.ResidualBlock(8, 4), (2, 5, 7, 8), (2, 5, 7, 8)),
    "encoder": (lambda: cwic.encoder((6, 8), 4), (2, 16, 24, 3), (2, 2, 3, 8)),
    "code_head": (lambda: cwic.code_head(8, 12), (2, 4, 6, 8), (2, 4, 6, 12)),
    "importance_net": (lambda: cwic.importance_net(8, 4, 0.25), (2, 4, 6, 8), (2, 4, 6, 1)),
    "decoder": (lambda: cwic.decoder(12, (8, 32, 4), 4), (2, 2, 3, 12), (2, 16, 24, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_gradients(name):
    make, shape, expected = CASES[name]
    tf.keras.utils.set_random_seed(1)
    layer, x = make(), noise(*shape)
    layer(x)
    for variable in layer.trainable_variables:  # zeros at the start hide what lies before them
        variable.assign_add(0.1 * tf.random.normal(variable.shape))
    with tf.GradientTape() as tape:
        y = layer(x)
        loss = tf.reduce_sum(y * noise(*expected))
    assert y.shape == expected
    gradients = tape.gradient(loss, layer.trainable_variables)
    dead = [v.name for g, v in zip(gradients, layer.trainable_variables) if g is None or not np.any(g.numpy() != 0)]
    assert not dead


def test_a_block_begins_as_its_input_and_can_learn():
    block, x = cwic.ResidualBlock(8, 4), tf.abs(noise(1, 4, 4, 8))
    with tf.GradientTape() as tape:
        y = block(x)
        loss = tf.reduce_sum(y * noise(1, 4, 4, 8))
    np.testing.assert_array_equal(y, x)
    assert np.any(tape.gradient(loss, block.second.kernel).numpy() != 0)


@pytest.mark.parametrize("start", [0.1, 0.5, 0.99])
def test_importance_begins_where_it_is_told(start):
    net = cwic.importance_net(8, 4, start)
    np.testing.assert_allclose(net(noise(1, 4, 6, 8)), start, atol=0.02)


def test_widths_of_the_paper():
    """The encoder and decoder of the authors' release, layer by layer."""

    def block(c, hidden=128):
        return 9 * c * hidden + hidden + 9 * hidden * c + c

    encoder = cwic.encoder((128, 256), 128)
    encoder(tf.zeros([1, 8, 8, 3]))
    convs = 64 * 3 * 128 + 128 + 16 * 128 * 256 + 256 + 9 * 256 * 256 + 256
    assert encoder.count_params() == convs + block(128) + 2 * block(256)
    decoder = cwic.decoder(64, (512, 256, 32), 128)
    decoder(tf.zeros([1, 1, 1, 64]))
    convs = 9 * 64 * 512 + 512 + 9 * 512 * 512 + 512 + 9 * 128 * 256 + 256 + 9 * 16 * 32 + 32 + 32 * 3 + 3
    assert decoder.count_params() == convs + 2 * block(512) + block(256)
