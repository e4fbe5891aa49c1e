"""The checkerboard's halves and its masked convolution, against the dense image they stand for."""

import numpy as np
import pytest
import tensorflow as tf

from transforms import checkerboard

SIZES = [(1, 2), (2, 2), (3, 2), (1, 8), (5, 4), (4, 6), (7, 10), (6, 12)]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def is_anchor(height, width):
    return (np.arange(height)[:, None] + np.arange(width)) % 2 == 0


@pytest.mark.parametrize("size", SIZES)
def test_split_and_merge_are_inverse(size):
    x = random(2, *size, 3)
    halves = checkerboard.split(x)
    assert [half.shape.as_list() for half in halves] == [[2, size[0], size[1] // 2, 3]] * 2
    np.testing.assert_array_equal(checkerboard.merge(*halves), x)


@pytest.mark.parametrize("size", SIZES)
def test_anchors_are_where_row_plus_column_is_even(size):
    """The parity is part of the bit stream format."""
    x = np.broadcast_to(is_anchor(*size)[None, :, :, None], [1, *size, 2]).astype(np.float32)
    anchors, non_anchors = checkerboard.split(x)
    assert np.all(anchors == 1)
    assert np.all(non_anchors == 0)


def test_positions_keep_their_order():
    rows, columns = np.indices([4, 6])
    anchors, non_anchors = checkerboard.split((10 * rows + columns)[None, :, :, None])
    assert anchors.numpy()[0, :2, :, 0].tolist() == [[0, 2, 4], [11, 13, 15]]
    assert non_anchors.numpy()[0, :2, :, 0].tolist() == [[1, 3, 5], [10, 12, 14]]


def test_taps_are_the_twelve_of_the_other_parity():
    assert len(checkerboard.TAPS) == len(set(checkerboard.TAPS)) == 12
    assert all((abs(r - 2) + abs(c - 2)) % 2 == 1 for r, c in checkerboard.TAPS)


def dense(anchors, taps, width):
    """A plain 5x5 convolution of the full-width image, zero at the non-anchors, at its non-anchors."""
    kernel = np.zeros([5, 5, *taps.shape[1:]], np.float32)
    for tap, (r, c) in zip(taps, checkerboard.TAPS):
        kernel[r, c] = tap
    picture = checkerboard.merge(anchors, tf.zeros_like(anchors))
    assert picture.shape[2] == width
    return checkerboard.split(tf.nn.conv2d(picture, kernel, 1, "SAME"))[1]


@pytest.mark.parametrize("size", SIZES)
def test_from_anchors_is_the_masked_convolution(size):
    height, width = size
    anchors, taps = random(2, height, width // 2, 3), random(12, 3, 4, seed=1)
    result = checkerboard.from_anchors(anchors, taps)
    assert result.shape == [2, height, width // 2, 4]
    np.testing.assert_allclose(result, dense(anchors, taps, width), atol=1e-5)


def test_from_anchors_of_unknown_size():
    """Traced once, for images of any size."""
    taps = random(12, 3, 4)
    traced = tf.function(
        lambda x: checkerboard.from_anchors(x, taps), input_signature=[tf.TensorSpec([None, None, None, 3])]
    )
    for height, width in SIZES:
        anchors = random(1, height, width // 2, 3)
        np.testing.assert_allclose(traced(anchors), dense(anchors, taps, width), atol=1e-5)


def test_dense_kernel_is_zero_where_masked():
    kernel = checkerboard.dense_kernel(random(12, 3, 4)).numpy()
    assert np.all(kernel[is_anchor(5, 5)] == 0)  # anchors of a 5x5 kernel: the centre's own parity
    np.testing.assert_array_equal([kernel[r, c] for r, c in checkerboard.TAPS], random(12, 3, 4))


def test_every_tap_learns():
    taps = tf.Variable(random(12, 3, 4))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(checkerboard.from_anchors(random(1, 6, 3, 3), taps) ** 2)
    gradient = tape.gradient(loss, taps)
    assert np.all(np.abs(gradient) > 0)


def test_the_gradient_is_that_of_the_dense_convolution():
    anchors, taps = random(2, 5, 3, 3), random(12, 3, 4, seed=1)
    weight = random(2, 5, 3, 4, seed=2)
    gradients = []
    for kernel_of in (checkerboard.from_anchors, None):
        x, t = tf.constant(anchors), tf.constant(taps)
        with tf.GradientTape() as tape:
            tape.watch([x, t])
            if kernel_of:
                y = kernel_of(x, t)
            else:
                picture = checkerboard.merge(x, tf.zeros_like(x))
                y = tf.nn.conv2d(picture, checkerboard.dense_kernel(t), 1, "SAME")
                y = checkerboard.split(y)[1]
            loss = tf.reduce_sum(y * weight)
        gradients.append(tape.gradient(loss, [x, t]))
    for mine, reference in zip(*gradients):
        np.testing.assert_allclose(mine, reference, atol=1e-4)
