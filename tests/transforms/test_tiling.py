"""Transforms in tiles: what comes out is what the whole image gives."""

import numpy as np
import pytest
import tensorflow as tf

from transforms import tiling


def blur(x, size=5):
    """Sums over size x size, whole numbers stay exact: [B, H, W, C] -> the same."""
    channels = x.shape[-1]
    kernel = tf.ones([size, size, channels, 1])
    return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")


def numbers(*shape):
    return tf.constant(np.random.default_rng(0).integers(0, 256, shape), tf.float32)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (24, 40), (37, 11), (64, 5)])
@pytest.mark.parametrize("tile", [1, 8, 16, 1000, None])
@pytest.mark.parametrize("traced", [False, True])
def test_whatever_the_size_and_the_tile(size, tile, traced):
    x = numbers(2, *size, 3)

    def run(x):
        return tiling.in_tiles(blur, [x], [1], [1], unit=4, reach=2, tile=tile)

    run = tf.function(run, input_signature=[tf.TensorSpec([None, None, None, 3])], autograph=False) if traced else run
    np.testing.assert_array_equal(run(x), blur(x))


def test_a_halo_too_narrow_shows():
    x = numbers(1, 32, 32, 1)
    wrong = tiling.in_tiles(lambda x: blur(x, 9), [x], [1], [1], unit=1, reach=3, tile=8)
    assert not np.array_equal(wrong, blur(x, 9))
    right = tiling.in_tiles(lambda x: blur(x, 9), [x], [1], [1], unit=1, reach=4, tile=8)
    np.testing.assert_array_equal(right, blur(x, 9))


def test_inputs_and_outputs_of_different_scales():
    fine, coarse = numbers(1, 44, 36, 2), numbers(1, 11, 9, 2)

    def function(fine, coarse):
        coarse = tf.repeat(tf.repeat(blur(coarse, 3), 4, 1), 4, 2)
        both = blur(fine) + coarse[:, : tf.shape(fine)[1], : tf.shape(fine)[2]]
        return {"same": both, "none": None, "down": tf.nn.max_pool2d(both, 2, 2, "VALID")}

    whole = function(fine, coarse)
    tiled = tiling.in_tiles(function, [fine, coarse], [1, 4], [2, 1], unit=4, reach=8, tile=12)
    assert tiled["none"] is None
    for name in ("same", "down"):
        np.testing.assert_array_equal(tiled[name], whole[name])


def test_pictures_that_are_not_large_are_not_cut():
    """Those that are have one graph for all tiles."""
    calls = []

    def size(x):
        """Shows at each place how large the tile is that it has been worked through in."""
        calls.append(tuple(x.shape))
        return tf.zeros_like(x[..., :1]) + tf.cast(tf.shape(x)[1:3], tf.float32)

    small, large = tf.zeros([1, 1024, 2048, 1]), tf.zeros([1, 1024, 3072, 1])
    whole = tiling.in_tiles(size, [small], [1], [1], unit=16, reach=16)
    assert calls == [(1, 1024, 2048, 1)] and np.all(whole == (1024, 2048))
    calls.clear()
    tiled = tiling.in_tiles(size, [large], [1], [1], unit=16, reach=16).numpy()
    assert calls == [(None, None, None, 1)]
    for n, width in enumerate((1040, 1056, 1040)):
        assert np.all(tiled[:, :, 1024 * n : 1024 * (n + 1)] == (1024, width))
