"""Training with one part frozen: `train --freeze`."""

import numpy as np
import pytest
import tensorflow as tf

from models.codec import load, load_for_training
from models.codec.training import distil, forward, freeze
from models.codec.weights import SHIPPED
from models.entropy.coders import FloatRate, HardRate, SoftRate, TrainingRate
from models.io.errors import UserError
from train.optimizer import FusedAdam

ENCODER = ("analysis/", "hyper_analysis/", "latent_gain/", "hyper_gain/", "detail_analysis/", "analysis_exchange/")


@pytest.fixture
def codec(tiny_weights):
    return load_for_training(tiny_weights)


@pytest.fixture(scope="module")
def latents():
    """Latents, rows and means of one pass, [2, 500]."""
    random = np.random.default_rng(0)
    return [tf.constant(random.normal(m, s, [2, 500]), tf.float32) for m, s in ((0, 2), (20, 8), (0, 1))]


def trained(codec, fixed: str, image, teacher=None) -> tuple[set[str], set[str]]:
    """The names of trainable variables that a step changes, and that it does not."""
    freeze(codec, fixed, teacher)
    codec.compile(optimizer=FusedAdam(1e-3), run_eagerly=True)  # one step: tracing it takes longer
    before = {name: variable.numpy() for name, variable in codec.named_variables().items() if variable.trainable}
    codec.train_on_batch(image[None])
    changed = {name for name, variable in codec.named_variables().items() if np.any(variable != before.get(name))}
    return changed & before.keys(), before.keys() - changed


def test_the_encoder_stays_and_the_rest_learns(codec, crop):
    changed, same = trained(codec, "encoder", crop(64, 64))
    assert {name for name in same if name.startswith(ENCODER)}
    assert not {name for name in changed if name.startswith(ENCODER)}
    # Context networks can be silent for what a crop shows; those that have a say learn.
    assert {name.split("/")[0] for name in changed} >= {"synthesis", "hyper_synthesis", "parameters", "entropy_models"}


def test_the_encoder_learns_and_the_rest_stays(codec, crop):
    changed, same = trained(codec, "decoder", crop(64, 64))
    assert {name.split("/")[0] for name in changed} >= {"analysis", "hyper_analysis"}
    assert all(name.startswith(ENCODER) for name in changed)
    assert {name.split("/")[0] for name in same} >= {"synthesis", "hyper_synthesis", "parameters", "entropy_models"}


@pytest.mark.parametrize("fixed", ["encoder", "decoder"])
def test_halves_of_sft(golden_weights, fixed, crop):
    codec = load_for_training(golden_weights("sft"))
    changed, same = trained(codec, fixed, crop(64, 64))
    encoder, rest = (same, changed) if fixed == "encoder" else (changed, same)
    encoder, rest = ({name.split("/")[0] for name in names} for names in (encoder, rest))
    assert {"analysis", "hyper_analysis"} == encoder
    assert {"synthesis", "hyper_synthesis", "entropy_models"} <= rest
    assert not encoder & rest


def test_the_synthesis_learns_from_files(crop):
    """...of weights that choose symbols: what is sent, and what its bits are, is what is measured of files."""
    path = SHIPPED / "elic" / "medium.safetensors"
    codec, teacher = load_for_training(path), load(path)
    images = tf.cast(crop(64, 96)[None], tf.float32)
    names = set(codec.named_variables())
    freeze(codec, "latents", teacher)
    controls = {"quality": tf.constant([64])}
    _, expected = teacher(images, **controls)
    _, reconstruction, bits = forward(codec, images, controls, training=True)
    _, validated, _ = forward(codec, images, controls, training=False)
    assert bits["y"] == expected["y"] and bits["z"] == expected["z"]
    np.testing.assert_allclose(np.clip(reconstruction, 0, 255), validated, atol=1e-3)
    latents = teacher.quantise(images, controls, training=False).latents
    np.testing.assert_allclose(reconstruction, teacher.reconstruct(latents), atol=0.05)
    changed, same = trained(codec, "latents", crop(64, 96), teacher)
    assert {name.split("/")[0] for name in changed} == set(codec.decoder_parts)
    assert same and not {name for name in same if name.startswith("synthesis/") and "kernel" in name}
    assert set(codec.named_variables()) == names | {n for n in codec.named_variables() if n.startswith("optimizer")}


def test_whose_files_it_can_learn_from(tiny_weights):
    several = load_for_training(tiny_weights, lmbda=[0.003, 0.01])
    with pytest.raises(UserError, match="are of 1 λ, and --lambda has"):
        distil(several, tiny_weights)
    with pytest.raises(ValueError, match="need a teacher"):
        freeze(several, "latents")


def test_all_learn_where_nothing_is_fixed(codec):
    trainable = {v.ref() for v in codec.named_variables().values() if v.trainable}
    assert {v.ref() for v in codec.trainable_variables} == trainable


def test_bits_are_those_of_validation(codec, crop):
    images = tf.cast(crop(64, 96)[None], tf.float32)
    models = codec.entropy_models
    real = FloatRate(models)
    codec.transmit(real, images)
    for coder in (HardRate(models), SoftRate(models, 1e4)):
        codec.transmit(coder, images)
        assert coder.bits.keys() == real.bits.keys()
        for name in real.bits:
            np.testing.assert_allclose(coder.bits[name], real.bits[name], rtol=1e-3)


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


def test_bits_of_soft_latents_rise_as_noisy_ones_do_in_the_mean(codec, latents):
    of_latents, of_rows, of_means = gradients(SoftRate(codec.entropy_models), latents)
    draws = [gradients(TrainingRate(codec.entropy_models), latents) for _ in range(256)]
    noisy, _, noisy_means = (np.mean([draw[n] for draw in draws], 0) for n in range(3))
    np.testing.assert_allclose(of_latents, -of_means, rtol=1e-5)
    for mine, mean in ((of_latents, noisy), (of_means, noisy_means)):
        assert np.corrcoef(np.ravel(mine), np.ravel(mean))[0, 1] > 0.99
        assert np.polyfit(np.ravel(mine), np.ravel(mean), 1)[0] == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(of_rows, gradients(FloatRate(codec.entropy_models), latents)[1], rtol=1e-3, atol=1e-4)


def test_soft_latents_get_harder(codec, latents):
    latent, rows, mean = (x[:, None, None] for x in latents)

    def decoded(sharpness):
        return SoftRate(codec.entropy_models, sharpness).gaussian("y", latent, tf.concat([mean, rows], -1))

    rounded = FloatRate(codec.entropy_models).gaussian("y", latent, tf.concat([mean, rows], -1))
    np.testing.assert_allclose(decoded(1e-4), latent, atol=1e-4)
    distance = [np.mean(np.abs(decoded(sharpness) - rounded)) for sharpness in (1.0, 3.0, 6.0, 1e4)]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 1e-3
