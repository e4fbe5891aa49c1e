"""The discriminator and the losses of the two players."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.networks import adversarial


def noise(*shape):
    return tf.constant(np.random.default_rng(6).normal(size=shape).astype(np.float32))


@pytest.fixture(scope="module")
def judge():
    tf.keras.utils.set_random_seed(1)
    return adversarial.discriminator((4, 8, 8, 8))


def test_discriminator_judges_patches(judge):
    assert judge(noise(2, 32, 64, 3)).shape == (2, 2, 4, 1)
    kernels = [v.shape.as_list() for v in judge.trainable_variables if len(v.shape) == 4]
    assert kernels == [[4, 4, 3, 4], [4, 4, 4, 8], [4, 4, 8, 8], [4, 4, 8, 8], [4, 4, 8, 1]]


def test_cross_entropy_of_a_verdict():
    """A judge whose logit is the mean of an image."""

    def judge(x):
        return tf.reduce_mean(x, [1, 2, 3])

    real, fake = tf.fill([2, 2, 2, 3], 3.0), tf.fill([2, 2, 2, 3], -1.0)
    loss = adversarial.discriminator_loss(judge, real, fake, penalty=0.0)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-3)) + np.log1p(np.exp(-1)), rtol=1e-5)
    np.testing.assert_allclose(adversarial.generator_loss(judge, fake), np.log1p(np.exp(1)), rtol=1e-5)


def test_gradient_penalty_wants_a_slope_of_one():
    for slope, expected in ((1.0, 0), (3.0, 4), (0.0, 1)):

        def judge(x, slope=slope):
            return slope * tf.reduce_sum(x, [1, 2, 3], keepdims=True) / np.sqrt(12)

        penalty = adversarial.gradient_penalty(judge, noise(2, 2, 2, 3), noise(2, 2, 2, 3) + 1)
        np.testing.assert_allclose(penalty, expected, atol=1e-4)


def test_no_gradient_from_the_discriminators_loss_to_the_pictures(judge):
    fakes = tf.Variable(noise(1, 32, 32, 3))
    with tf.GradientTape(persistent=True) as tape:
        theirs = adversarial.discriminator_loss(judge, noise(1, 32, 32, 3) + 1, fakes)
        mine = adversarial.generator_loss(judge, fakes)
    assert tape.gradient(theirs, fakes) is None
    assert np.any(tape.gradient(mine, fakes).numpy() != 0)
    # The penalty is a gradient itself, and has one with respect to the weights.
    assert all(g is not None for g in tape.gradient(theirs, judge.trainable_variables))
