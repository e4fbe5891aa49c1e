"""Latents that are fitted to a picture before they are written."""

import numpy as np
import pytest
import tensorflow as tf
from variants import with_config

from models.codec import EncoderOptions, load, load_for_training, weights
from models.elic import ELIC, Config
from models.io.errors import UserError
from models.tools import refine

TINY = Config((16, 16, 16), (4, 4, 8), 16, (16, 16), 32, (16, 16), 16)


@pytest.fixture(scope="module")
def tiny_sft(golden_weights):
    return load(golden_weights("sft"))


def loss_of_file(codec, picture, lmbda, refine=0, **controls) -> float:
    """bpp + λ · MSE of a real file and what it decodes to."""
    data = codec.compress(picture, EncoderOptions(refine=refine), **controls)
    mse = np.mean((codec.decompress(data).astype(float) - picture) ** 2)
    return 8 * len(data) / picture[..., 0].size + lmbda * mse


def test_files_are_better_by_the_loss_the_codec_was_trained_for(tiny, crop):
    picture = crop(70, 90)
    before, after = (loss_of_file(tiny, picture, tiny.lmbda, refine=steps) for steps in (0, 8))
    assert after < 0.98 * before


def test_files_of_a_quality_are_better_by_its_loss(tiny_sft, crop):
    picture = crop(70, 90)
    lmbda = float(tiny_sft.lambda_map(tf.constant(0.7)))
    before, after = (loss_of_file(tiny_sft, picture, lmbda, quality=0.7, refine=steps) for steps in (0, 8))
    assert after < 0.98 * before


def test_traced_refines_as_well(tiny_weights, crop):
    codec, picture = load(tiny_weights), crop(48, 64)
    eager = loss_of_file(codec, picture, codec.lmbda, refine=6)
    codec.trace()
    traced = loss_of_file(codec, picture, codec.lmbda, refine=6)
    assert traced == pytest.approx(eager, rel=0.01)
    assert traced < loss_of_file(codec, picture, codec.lmbda)


def test_traced_chooses_symbols_of_pictures_of_any_size(tiny_weights, tmp_path, crop):
    codec = with_config(tiny_weights, tmp_path, rdoq=1.0)
    codec.trace()
    for height, width in ((48, 64), (64, 48), (32, 96)):
        picture = crop(height, width)
        assert codec.decompress(codec.compress(picture, EncoderOptions(refine=1))).shape == picture.shape


def test_what_is_found_worse_is_not_taken(tiny_weights, crop, monkeypatch):
    monkeypatch.setattr(refine, "RATE", 30.0)
    codec, picture = load(tiny_weights), crop(48, 64)
    assert codec.compress(picture, EncoderOptions(refine=2)) == codec.compress(picture)


def test_symbols_are_chosen_once_more_behind_it(tmp_path, crop):
    path, picture = weights.SHIPPED / "elic/medium.safetensors", crop(128, 160)
    losses = {}
    for bits in (0.0, 14.0):
        codec = with_config(path, tmp_path, rdoq=bits)
        losses[bits] = loss_of_file(codec, picture, codec.lambdas[0], quality=1, refine=2)
    assert losses[14.0] < 0.995 * losses[0.0]


def test_a_codec_that_comes_from_no_file(tiny_weights, crop):
    codec, picture = load_for_training(tiny_weights), crop(48, 64)
    codec.calibrate(picture[None])
    before, after = (loss_of_file(codec, picture, codec.lmbda, refine=steps) for steps in (0, 6))
    assert after < 0.99 * before


def test_lambda_between_levels():
    codec = ELIC(TINY, (0.001, 0.01, 0.1))
    white, black = tf.fill([3, 4, 4, 3], 10.0), tf.zeros([3, 4, 4, 3])
    losses = codec.rate_distortion(white, black, tf.constant([0.0, 0.5, 2.0]), quality=tf.constant([0, 48, 64]))
    np.testing.assert_allclose(losses, [0.1, 0.5 + 100 * 0.01 * 10**0.5, 2 + 10], rtol=1e-5)


def test_symbols_are_latents_times_their_gain():
    codec = ELIC(TINY, (0.001, 0.01, 0.1))
    latents, quality = tf.random.normal([2, 3, 5, 16]), tf.constant([7, 40])
    expected = codec.latent_gain(latents, quality)
    np.testing.assert_allclose(latents * codec.symbol_scale(quality=quality), expected, rtol=1e-6)


def test_what_cannot_be_refined(tiny, tiny_cwic, crop, monkeypatch):
    with pytest.raises(UserError, match="cwic cannot refine"):
        tiny_cwic.compress(crop(32, 32), EncoderOptions(refine=1))
    with pytest.raises(UserError, match="not be negative"):
        tiny.compress(crop(32, 32), EncoderOptions(refine=-1))
    monkeypatch.setattr(refine, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="0.001 megapixels at most"):
        tiny.compress(crop(32, 33), EncoderOptions(refine=1))
