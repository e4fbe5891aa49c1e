"""The start of ELC's feature transform."""

import numpy as np
import tensorflow as tf

from transforms.networks import enhance
from transforms.resample import Upsample
from transforms.starts import least_squares


def test_finds_the_convolution_that_made_the_features():
    tf.keras.utils.set_random_seed(0)
    latents = np.random.default_rng(0).normal(size=[6, 7, 8, 3]).astype(np.float32)
    made_by = Upsample(2, bias_initializer="random_normal")
    features = made_by(latents).numpy()
    kernel, bias = least_squares.regression(latents, features)
    np.testing.assert_allclose(kernel, made_by.kernel, atol=1e-3)
    np.testing.assert_allclose(bias, made_by.bias, atol=1e-3)


def test_the_transform_begins_as_that_convolution():
    tf.keras.utils.set_random_seed(0)
    latents = np.random.default_rng(1).normal(size=[1, 5, 6, 8]).astype(np.float32)
    made_by = Upsample(4)
    expected = made_by(latents).numpy()
    transform = enhance.feature_transform(8, 16, 4)
    transform.build(None)
    least_squares.begin(transform, made_by.kernel.numpy(), made_by.bias.numpy())
    error = np.mean((transform(latents) - expected) ** 2) / np.var(expected)
    assert error < 0.1
