"""MS-SSIM as a loss: TensorFlow's values, and gradients wherever that has none."""

import numpy as np
import tensorflow as tf

from eval import metrics
from transforms.losses.ms_ssim import ms_ssim

SIDE = 176


def noisy(image, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


def test_it_is_the_metric(crop):
    images = np.stack([crop(SIDE, 200), crop(SIDE, 200, 20)])
    shown = np.stack([noisy(images[0], 5), noisy(images[1], 20)])
    expected = [metrics.ms_ssim(a, b) for a, b in zip(images, shown)]
    np.testing.assert_allclose(ms_ssim(*(tf.constant(x, tf.float32) for x in (images, shown))), expected, atol=1e-5)


def test_it_is_tensorflows_with_its_gradient(crop):
    image = tf.cast(crop(181, 203)[None], tf.float32)  # odd at several scales
    for shown in (noisy(image, 10), noisy(255 - image, 40)[:, :, ::-1], np.full_like(image, 90)):
        shown = tf.constant(shown, tf.float32)
        results = []
        for function in (ms_ssim, lambda a, b: tf.image.ssim_multiscale(a, b, 255.0)):
            with tf.GradientTape() as tape:
                tape.watch(shown)
                value = function(image, shown)
            results.append((value, tape.gradient(value, shown)))
        (value, gradient), (expected, of_expected) = results
        np.testing.assert_allclose(value, expected, atol=1e-4)
        if np.all(np.isfinite(of_expected)):
            np.testing.assert_allclose(gradient, of_expected, atol=1e-3 * np.abs(of_expected).max())


def test_gradients_are_finite_where_images_are_equal_or_contradict_each_other(crop):
    image = tf.cast(crop(SIDE, SIDE)[None], tf.float32)
    for shown in (image, 255 - image):
        with tf.GradientTape() as tape:
            tape.watch(shown)
            value = ms_ssim(image, shown)
        assert np.all(np.isfinite(tape.gradient(value, shown)))
    assert value < 0.01
