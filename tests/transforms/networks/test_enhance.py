"""ELC's enhanced decoder, feature transform and discriminator."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.networks import enhance, hific


def noise(*shape, seed=0):
    return tf.random.stateless_normal(shape, [seed, 7])


PARTS = {
    "dense": (lambda: enhance.DenseBlock(8, 4), (2, 5, 6, 8), (2, 5, 6, 8)),
    "rrdb": (lambda: enhance.RRDB(8, 4), (2, 5, 6, 8), (2, 5, 6, 8)),
    "enhancement": (lambda: enhance.EnhancementBlock(8, 4, 2), (2, 5, 6, 8), (2, 10, 12, 8)),
    "fusion": (lambda: enhance.FusionAttention(12), (2, 5, 6, 12), (2, 5, 6, 12)),
    "wide": (lambda: enhance.WideBottleneck(8), (2, 5, 6, 8), (2, 5, 6, 8)),
    "feature_transform": (lambda: enhance.feature_transform(8, 6, 10), (2, 3, 4, 8), (2, 6, 8, 10)),
}


@pytest.mark.parametrize("name", PARTS)
def test_shapes(name):
    make, shape, expected = PARTS[name]
    y = make()(noise(*shape))
    assert y.shape == expected and np.std(y) > 0


def test_wide_bottleneck_is_wider_inside():
    layer = enhance.WideBottleneck(8)
    layer.build(tf.TensorShape([None, None, None, 8]))
    assert [tuple(v.shape) for v in layer.trainable_variables[::2]] == [(1, 1, 8, 16), (3, 3, 16, 16), (1, 1, 16, 8)]


def test_a_dense_block_scales_what_it_adds():
    block, x = enhance.DenseBlock(8, 4), noise(1, 4, 4, 8)
    before = block(x) - x
    assert [tuple(conv.kernel.shape[2:]) for conv in block.convs] == [(8, 4), (12, 4), (16, 4), (20, 4), (24, 8)]
    block.convs[-1].kernel.assign(0 * block.convs[-1].kernel)
    block.convs[-1].bias.assign(tf.ones([8]))
    np.testing.assert_allclose(block(x) - x, np.full([1, 4, 4, 8], 0.2), rtol=1e-5, atol=1e-6)
    assert np.std(before) > 0


def test_enhancement_uses_y2_y3_and_y4():
    """At the start y4 alone makes the image; once the fusion speaks, all three do, and y1 never."""
    layer = enhance.Enhancement(6, 8, 4, 1)
    features = [noise(1, 2 * 2**k, 4 * 2**k, 6, seed=k) for k in range(4)]
    picture = layer(features).numpy()
    assert picture.shape == (1, 32, 64, 3)

    def moved():
        start = layer(features).numpy()
        others = ([2 * y if k == n else y for k, y in enumerate(features)] for n in range(4))
        return [bool(np.any(np.abs(layer(other).numpy() - start) > 1e-6)) for other in others]

    np.testing.assert_allclose(picture, layer.output_conv(features[3]), atol=1e-5)
    assert moved() == [False, False, False, True]
    layer.fuse.kernel.assign(noise(*layer.fuse.kernel.shape))
    assert moved() == [False, True, True, True]


@pytest.fixture(scope="module")
def discriminator():
    discriminator = hific.ConditionalDiscriminator(6, width=4)
    discriminator.build()
    return discriminator


def test_discriminator_sees_picture_and_latents(discriminator):
    images, latents = noise(2, 32, 64, 3), noise(2, 2, 4, 6)
    scores = discriminator(images, latents)
    assert scores.shape == (2, 2, 4, 1) and np.min(scores) > 0 and np.max(scores) < 1
    for other in (discriminator(-images, latents), discriminator(images, -latents)):
        assert np.any(np.abs(other - scores) > 1e-6)


def test_kernels_have_spectral_norm_1_after_training_calls(discriminator):
    images, latents = noise(1, 32, 32, 3), noise(1, 2, 2, 6)
    kernels = [down.layer.kernel for down in discriminator.downs]
    before = [kernel.numpy() for kernel in kernels]
    discriminator(images, latents)
    assert all(np.array_equal(a, b) for a, b in zip(before, kernels))  # only training changes them
    for _ in range(100):  # a step of the power method each, from a random vector: some take dozens
        discriminator(images, latents, training=True)
    for kernel in kernels:
        matrix = kernel.numpy().reshape(-1, kernel.shape[-1])
        assert np.linalg.norm(matrix, 2) == pytest.approx(1, abs=0.05)


def test_lsgan_losses_by_hand():
    real, decoded = tf.constant([[[[0.75]]], [[[0.25]]]]), tf.constant([[[[0.5]]], [[[1.0]]]])
    assert float(hific.lsgan_discriminator_loss(real, decoded)) == pytest.approx(
        0.5 * ((0.0625 + 0.5625) / 2 + (0.25 + 1) / 2)
    )
    assert hific.lsgan_generator_loss(decoded).numpy().tolist() == [0.125, 0.0]
