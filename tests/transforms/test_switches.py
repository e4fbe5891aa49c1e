"""Switches: the same pooling and unpooling as TensorFlow's and TensorFlow Addons'."""

import numpy as np
import tensorflow as tf

from transforms import switches


def noise(*shape):
    return tf.constant(np.random.default_rng(4).normal(size=shape).astype(np.float32))


def test_pooling_is_max_pool_with_argmax():
    x = noise(2, 6, 10, 3)
    pooled, index = tf.nn.max_pool_with_argmax(x, 2, 2, "VALID")
    np.testing.assert_array_equal(switches.pool(x), pooled)
    channel = tf.range(3)[None, None, None]
    row, column = np.divmod((index.numpy() - channel.numpy()) // 3, 10)
    np.testing.assert_array_equal(switches.find(x), 2 * (row % 2) + column % 2)


def test_unpooling_is_max_unpooling_2d():
    import tensorflow_addons as tfa

    x = noise(2, 6, 10, 3)
    pooled, index = tf.nn.max_pool_with_argmax(x, 2, 2, "VALID")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pooled)
        ours = switches.unpool(pooled, switches.find(x))
        theirs = tfa.layers.MaxUnpooling2D()(pooled, index)
        weight = noise(*x.shape)
        losses = [tf.reduce_sum(weight * y) for y in (ours, theirs)]
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(tape.gradient(losses[0], pooled), tape.gradient(losses[1], pooled))


def test_unpooling_puts_maxima_back_where_they_were():
    x = noise(1, 4, 4, 2)
    back = switches.unpool(switches.pool(x), switches.find(x)).numpy()
    np.testing.assert_array_equal(back[back != 0], x.numpy()[back != 0])
    assert np.count_nonzero(back) == x.numpy().size // 4


def test_prediction_counts_decided_cells_only():
    x = np.zeros([1, 4, 4, 1], np.float32)
    x[0, 1, 0], x[0, 0, 3], x[0, 3, 3] = 1, 1, 1  # cells: 2, 1, undecided, 3
    np.testing.assert_array_equal(switches.decided(tf.constant(x))[0, :, :, 0], [[True, True], [False, True]])
    np.testing.assert_array_equal(switches.find(tf.constant(x))[0, :, :, 0], [[2, 1], [0, 3]])
    entropy, right = switches.prediction(tf.zeros([1, 2, 2, 1, 4]), tf.constant(x))
    np.testing.assert_allclose(entropy, np.log(4), rtol=1e-6)
    assert float(right) == 0  # of four equal logits the first is taken: never right where a cell is decided
    logits = 20 * tf.one_hot(tf.constant([[[[2], [1]], [[3], [0]]]]), 4)  # two of three
    entropy, right = switches.prediction(logits, tf.constant(x))
    np.testing.assert_allclose([entropy, right], [20 / 3, 2 / 3], rtol=1e-4)
    assert float(switches.prediction(logits, tf.zeros([1, 4, 4, 1]))[1]) == 0  # nothing to predict


def test_a_random_guess_is_right_in_a_quarter_of_the_cases():
    _, right = switches.prediction(noise(1, 16, 16, 20, 4), tf.reverse(noise(1, 32, 32, 20), [1]))
    assert abs(float(right) - 0.25) < 0.03
