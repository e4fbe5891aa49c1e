"""Training with the encoder fixed, on latents rounded as in files: `train --hard`."""

import numpy as np
import pytest
import tensorflow as tf

from models.codec import load_for_training
from models.latents import FloatRate, HardRate, TrainingRate

ENCODER = ("analysis/", "hyper_analysis/", "latent_gain/", "hyper_gain/", "detail_analysis/", "analysis_exchange/")


@pytest.fixture
def codec(tiny_weights):
    codec = load_for_training(tiny_weights)
    codec.fix_encoder()
    return codec


@pytest.fixture(scope="module")
def latents():
    """Latents, rows and means of one pass, [2, 500]."""
    random = np.random.default_rng(0)
    return [tf.constant(random.normal(m, s, [2, 500]), tf.float32) for m, s in ((0, 2), (20, 8), (0, 1))]


def test_the_encoder_stays_and_the_rest_learns(codec, crop):
    codec.compile(optimizer=tf.keras.optimizers.Adam(1e-3))
    before = {name: variable.numpy() for name, variable in codec.named_variables().items()}
    codec.train_on_batch(crop(64, 64)[None])
    changed = {name for name, value in codec.named_variables().items() if np.any(value.numpy() != before[name])}
    trainable = {name for name, variable in codec.named_variables().items() if variable.trainable}
    fixed = {name for name in trainable if name.startswith(ENCODER)}
    assert fixed and not changed & fixed
    # Context networks can be silent for what a crop shows; those that have a say learn.
    assert {name.split("/")[0] for name in changed} >= {"synthesis", "hyper_synthesis", "parameters", "entropy_models"}


def test_bits_are_those_of_validation(codec, crop):
    images = tf.cast(crop(64, 96)[None], tf.float32)
    hard, real = HardRate(codec.entropy_models), FloatRate(codec.entropy_models)
    for coder in (hard, real):
        codec.transmit(coder, images)
    assert hard.bits.keys() == real.bits.keys()
    for name in real.bits:
        np.testing.assert_allclose(hard.bits[name], real.bits[name], rtol=1e-4)


def gradients(coder, values):
    with tf.GradientTape() as tape:
        tape.watch(values)
        latent, rows, mean = (x[:, None, None] for x in values)
        coder.gaussian("y", latent, tf.concat([mean, (rows - 14) / 9], -1))
        bits = tf.reduce_sum(coder.bits["y"])
    return tape.gradient(bits, values)


def test_rows_learn_from_rounded_latents_and_means_from_noisy_ones(codec, latents):
    _, rows, _ = gradients(HardRate(codec.entropy_models), latents)
    _, of_rounded, _ = gradients(FloatRate(codec.entropy_models), latents)
    np.testing.assert_allclose(rows, of_rounded, rtol=1e-3, atol=1e-4)

    def mean_gradient(kind, draws=64):
        return np.mean([gradients(kind(codec.entropy_models), latents)[2] for _ in range(draws)], 0)

    hard, noisy = mean_gradient(HardRate), mean_gradient(TrainingRate)
    assert np.corrcoef(hard.ravel(), noisy.ravel())[0, 1] > 0.9
