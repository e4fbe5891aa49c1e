"""SOAP, the optimizer."""

import numpy as np
import pytest
import tensorflow as tf

from train.soap import SOAP

SHAPE = (2, 2, 5, 6)


def orthogonal(random, n):
    return np.linalg.qr(random.normal(size=[n, n]))[0]


def trained(first, gradients, **settings):
    """A variable after steps with these gradients."""
    optimizer = SOAP(1e-2, **settings)
    variable = tf.Variable(first, dtype=tf.float32)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    return variable.numpy()


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    return random.normal(size=SHAPE), random.normal(size=[40, *SHAPE]) * np.geomspace(1, 30, 6)


@pytest.mark.parametrize(("shape", "max_side"), [((7,), 512), ((1, 1, 9, 1), 8), (SHAPE, 1)])
def test_what_is_not_turned_is_adam(shape, max_side):
    random = np.random.default_rng(1)
    first, gradients = random.normal(size=shape), random.normal(size=[12, *shape])
    adam, variable = tf.keras.optimizers.Adam(1e-2, beta_1=0.9, beta_2=0.99), tf.Variable(first, dtype=tf.float32)
    for gradient in gradients:
        adam.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    found = trained(first, gradients, beta_1=0.9, beta_2=0.99, max_side=max_side)
    np.testing.assert_allclose(found, variable.numpy(), rtol=1e-4, atol=1e-6)


def test_bases_do_not_matter(problem):
    # Of a problem in other coordinates along each side it makes the same steps, in those coordinates; Adam does not.
    first, gradients = problem
    random = np.random.default_rng(2)
    turns = [orthogonal(random, n) for n in (4, 5, 6)]

    def turn(x):
        return np.einsum("abc,ai,bj,ck->ijk", x.reshape(4, 5, 6), *turns).reshape(SHAPE)

    found = trained(turn(first), [turn(g) for g in gradients], refresh=3)
    expected = turn(trained(first, gradients, refresh=3))
    assert np.abs(expected - turn(first)).max() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-4)
    adam = [
        trained(turn(first), [turn(g) for g in gradients], max_side=1),
        turn(trained(first, gradients, max_side=1)),
    ]
    assert np.abs(adam[0] - adam[1]).max() > 0.01


def test_bases_are_the_covariances_eigenvectors(problem):
    random = np.random.default_rng(3)
    mix = orthogonal(random, 6) * np.geomspace(1, 9, 6)  # of the last side
    optimizer, variable = SOAP(1e-3, refresh=2, beta_covariance=0.99), tf.Variable(problem[0], dtype=tf.float32)
    for _ in range(300):
        gradient = random.normal(size=SHAPE) @ mix.T
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    basis = optimizer._bases2[0].numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-5)
    covariance = optimizer._covariances2[0].numpy()
    turned = basis.T @ covariance @ basis
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 0.02 * np.diag(turned).max()


def test_it_can_be_made_again_from_its_settings():
    made = SOAP(3e-3, beta_1=0.8, beta_2=0.9, beta_covariance=0.7, refresh=4, max_side=99, global_clipnorm=2.0)
    config = made.get_config()
    assert SOAP.from_config(config).get_config() == config
    assert (config["refresh"], config["global_clipnorm"]) == (4, 2.0)
    np.testing.assert_allclose(config["learning_rate"], 3e-3, rtol=1e-6)


def test_it_sees_directions_that_adam_does_not():
    # A valley with steep and flat directions across the coordinates, and noise.
    random = np.random.default_rng(5)
    left, right = orthogonal(random, 12), orthogonal(random, 12)
    curvature = np.outer(np.geomspace(1, 100, 12), np.geomspace(1, 100, 12))
    start, noise = 0.5 * random.normal(size=[12, 12]), 0.3 * random.normal(size=[300, 12, 12])

    def loss(max_side):
        rate = tf.keras.optimizers.schedules.CosineDecay(3e-2, len(noise))
        optimizer = SOAP(rate, refresh=5, max_side=max_side)
        variable = tf.Variable(left @ start @ right.T, dtype=tf.float32)
        for error in noise:
            place = left.T @ variable.numpy() @ right
            gradient = 1e-4 * left @ (curvature * (place + error)) @ right.T
            optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
        return np.sum(curvature * np.square(left.T @ variable.numpy() @ right))

    assert loss(max_side=12) < 0.5 * loss(max_side=1)
