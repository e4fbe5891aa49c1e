"""The two perceptual losses, and the network that they look through."""

import numpy as np
import tensorflow as tf

from transforms.losses import deep_features


def noise(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_loss_is_relative():
    x, y = noise(1, 8, 8, 3), noise(1, 8, 8, 3) + 1
    first = deep_features.loss(lambda images: [images], x, y)
    np.testing.assert_allclose(first, 1 / np.mean(x.numpy() ** 2), rtol=1e-4)
    np.testing.assert_allclose(deep_features.loss(lambda images: [7 * images, images], x, y), first, rtol=1e-4)


def test_distance():
    a, b = noise(2, 8, 8, 3, seed=1), noise(2, 8, 8, 3, seed=2)
    features = lambda images: [images, images[:, ::2]]  # noqa: E731
    distance = deep_features.distance(features, a, b)
    assert distance.shape == (2,) and np.all(distance > 0)
    np.testing.assert_allclose(deep_features.distance(features, a, 3 * a), 0, atol=1e-5)  # lengths do not matter
    # Opposite directions are 2 apart at every position: 4 squared, for each of the two layers.
    np.testing.assert_allclose(deep_features.distance(features, a, -a), 8, rtol=1e-4)


def test_vgg16_features_are_those_of_keras(monkeypatch):
    tf.keras.utils.set_random_seed(1)
    network = tf.keras.applications.VGG16(include_top=False, weights=None)
    monkeypatch.setattr(tf.keras.applications, "VGG16", lambda include_top, weights: network)
    images = tf.constant(np.random.default_rng(1).uniform(0, 255, [1, 32, 32, 3]).astype(np.float32))
    outputs = [network.get_layer(name).output for name in deep_features.LPIPS]
    expected = tf.keras.Model(network.input, outputs)(tf.keras.applications.vgg16.preprocess_input(images))
    actual = deep_features.vgg16()(images)
    assert [a.shape[1:] for a in actual] == [(32 >> n, 32 >> n, min(64 << n, 512)) for n in range(5)]
    for a, e in zip(actual, expected):
        assert float(tf.math.reduce_std(a)) > 0
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-3 * np.abs(e).max())
    one = deep_features.vgg16(layers=deep_features.JOHNSON)(images)
    np.testing.assert_array_equal(one, actual[2:3])
