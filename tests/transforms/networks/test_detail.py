"""Detail channels: a linear transform of blocks."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.networks import detail


def blocks(count: int):
    """Analysis and synthesis of so many components, the first ones."""
    forward, inverse = detail.analysis(count), detail.synthesis(count)
    forward.build()
    inverse.build()
    return forward, inverse


@pytest.mark.parametrize("unit", [1.0, 0.2])
def test_all_components_are_the_picture(photograph, unit):
    forward, inverse = blocks(768)
    detail.begin(forward, inverse, 0, unit, shown=True)
    images = tf.constant(photograph[None, :48, :80] / 255, tf.float32)
    latents = forward(images)
    assert latents.shape == [1, 3, 5, 768]
    np.testing.assert_allclose(inverse(latents), images, atol=1e-5)
    energy = float(tf.reduce_sum(images**2))
    assert float(tf.reduce_sum(latents**2)) == pytest.approx(energy / unit**2, rel=1e-4)


def test_a_block_is_told_by_its_own_pixels_alone():
    forward, inverse = blocks(8)
    images = np.zeros([1, 64, 48, 3], np.float32)
    images[0, 37, 15, 1] = 1
    assert np.argwhere(np.any(forward(images).numpy() != 0, -1)).tolist() == [[0, 2, 0]]
    latents = np.zeros([1, 4, 3, 8], np.float32)
    latents[0, 2, 0, 5] = 1
    shown = np.argwhere(np.any(inverse(latents).numpy() != 0, -1))
    assert shown.min(0).tolist() == [0, 32, 0] and shown.max(0).tolist() == [0, 47, 15]


def test_components_follow_each_other_in_energy(photograph):
    forward, inverse = blocks(200)
    detail.begin(forward, inverse, 100, 1.0, shown=False)
    latents = forward(tf.constant(photograph[None] / 255, tf.float32)).numpy()
    spread = latents.reshape(-1, 200).std(0)
    assert spread[:20].mean() > 1.5 * spread[-20:].mean()
    first = detail.components(0, 100).reshape(-1, 100)
    later = detail.components(100, 200).reshape(-1, 200)
    assert np.abs(first.T @ later).max() < 1e-5
    np.testing.assert_allclose(forward.layers[1].kernel[0, 0], later, atol=1e-6)
    assert not np.any(inverse(latents))  # not shown yet


@pytest.mark.parametrize("size", [[None, None], [None, 64], [48, 64]])
def test_shapes_for_graphs_of_any_size(size):
    forward, inverse = blocks(8)
    coarse = [n and n // 16 for n in size]
    for chain, before, after in ((forward, [*size, 3], [*coarse, 8]), (inverse, [*coarse, 8], [*size, 3])):
        shape = tf.TensorShape([2, *before])
        for layer in chain.layers:
            shape = layer.compute_output_shape(shape)
        assert shape.as_list() == [2, *after]
    assert tf.function(inverse)(tf.zeros([2, 3, 4, 8])).shape == [2, 48, 64, 3]
