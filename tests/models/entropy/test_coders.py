"""What training counts bits with."""

import numpy as np
import tensorflow as tf

from models.entropy.coders import EntropyModels


def test_bits_of_noisy_latents_are_the_same_compiled():
    """...and as many as without noise, where a step is small beside the scale; with their gradients."""
    models = EntropyModels(2)
    random = np.random.default_rng(0)
    latent, mean = (tf.constant(random.normal(0, 60, [2, 400]), tf.float32) for _ in range(2))
    rows = tf.constant(random.uniform(40, 60, [2, 400]), tf.float32)

    def with_gradients(latent, rows, mean):
        given = latent, rows, mean
        with tf.GradientTape() as tape:
            tape.watch(given)
            bits = models.noisy_bits(*given)
        return bits, *tape.gradient(bits, given)

    plain, compiled = with_gradients(latent, rows, mean), tf.function(with_gradients)(latent, rows, mean)
    expected = -tf.reduce_sum(models.noisy_normal(rows, mean).log_prob(latent), 1) / np.log(2)
    np.testing.assert_allclose(plain[0], expected, rtol=1e-2)
    np.testing.assert_allclose(compiled[0], expected, rtol=1e-2)
    for one, other in zip(plain[1:], compiled[1:]):
        assert np.corrcoef(np.ravel(one), np.ravel(other))[0, 1] > 0.99


def test_each_graph_has_noise_of_its_own():
    """A compiled function that was kept would hold on to what the first graph gave it."""
    models = EntropyModels(2)
    latent = tf.zeros([1, 50])
    for _ in range(2):
        bits = tf.function(lambda x: models.noisy_bits(x, 20 + 0 * x, 0 * x))
        first, second = float(bits(latent)[0]), float(bits(latent)[0])
        assert first != second
