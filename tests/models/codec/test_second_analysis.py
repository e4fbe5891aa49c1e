"""The second analysis of an image, before its file is written."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from variants import gain, with_config

from models import sft
from models.codec import EncoderOptions, coding, load, storage, weights
from models.codec.distortion import MS_SSIM
from models.elic import ELIC, PRESETS
from transforms.gain import STEPS

MEDIUM, SFT = (weights.SHIPPED / name for name in ("elic/medium.safetensors", "sft/small.safetensors"))


@pytest.fixture(scope="module")
def compensating(tiny_weights, tmp_path_factory):
    """The tiny golden codec with a second analysis."""
    return with_config(tiny_weights, tmp_path_factory.mktemp("compensating"), compensation=0.7)


@pytest.fixture(scope="module")
def medium():
    return load(MEDIUM)


@pytest.mark.parametrize("model", ["elic", "sft"])
def test_files_are_what_was_estimated(model, golden_weights, tmp_path, crop):
    tiny, image = load(golden_weights(model)), crop(70, 90)
    compensating = with_config(tiny.path, tmp_path, compensation=0.7)
    data = compensating.compress(image)
    estimate, bits = compensating(tf.constant(image[None]))
    assert np.abs(compensating.decompress(data).astype(float) - estimate[0]).max() <= 0.51
    assert 8 * len(data) == pytest.approx(float(tf.add_n(list(bits.values()))[0]), rel=0.05, abs=250)
    assert data != tiny.compress(image)
    # What reads it need not know of it: the format and the weights are the same.
    np.testing.assert_array_equal(tiny.decompress(data), compensating.decompress(data))


def test_what_is_not_sent_stays_so(medium, crop):
    images = tf.cast(crop(128, 160)[None], tf.float32)
    controls = {"quality": tf.constant([3 * STEPS])}
    first, second = medium.analyse(images, **controls), coding.refine_analysis(medium, images, controls)
    size = np.abs(first * medium.symbol_scale(**controls))
    np.testing.assert_array_equal(second[size <= 0.5], first[size <= 0.5])
    assert np.mean(np.abs(second - first)[size > 0.5] > 1e-4) > 0.9


def test_nothing_is_lost_without_rounding(medium, crop):
    """What it is for: the synthesis of latents that are not rounded comes closer to the image."""
    images = tf.cast(crop(128, 160)[None], tf.float32)
    controls = {"quality": tf.constant([5 * STEPS])}

    def error(latents):
        return float(tf.reduce_mean((medium.reconstruct(medium.unquantised(latents, **controls)) - images) ** 2))

    assert error(coding.refine_analysis(medium, images, controls)) < 0.8 * error(medium.analyse(images, **controls))


@pytest.mark.parametrize(
    "path, quality, least", [(MEDIUM, 4, 0.0), (MEDIUM, 5, 0.01), (MEDIUM, 6, 0.02), (SFT, 0.8, 0.0), (SFT, 1, 0.02)]
)
def test_it_pays(crop, tmp_path, path, quality, least):
    """Of rounded latents: where symbols are chosen, too, that brings most of the same (res/doc/methods.md)."""
    once, twice = ({"rdoq": 0.0, "compensation": share} for share in (0.0, load(path).compensation))
    assert gain(path, tmp_path, crop(192, 256), quality, once, twice) > least


def test_who_compresses_needs_the_synthesis(compensating):
    assert load(compensating.path, synthesis=False).decodes


def test_which_weights_have_it():
    assert PRESETS["base"].compensation == 0  # the paper's
    assert load(MEDIUM).compensation == PRESETS["medium"].compensation == 0.7
    assert sft.PRESETS["base"].compensation == 0
    assert load(SFT).compensation == sft.PRESETS["small"].compensation == 0.7
    codec = ELIC(dataclasses.replace(PRESETS["small"], widths=(8, 8, 8)))
    codec.set_distortion(MS_SSIM)  # it makes up for squared errors
    assert codec.compensation == 0


def test_training_analyses_once_and_its_validation_twice(compensating, crop, monkeypatch):
    images = tf.cast(crop(32, 32)[None], tf.float32)
    trained, calls, analyse = storage.training_form(compensating), [], ELIC.analyse
    monkeypatch.setattr(ELIC, "analyse", lambda *args, **kwargs: calls.append(1) or analyse(*args, **kwargs))
    for codec, training, expected in ((trained, True, 1), (trained, False, 2), (compensating, False, 2)):
        calls.clear()
        codec(images, training=training)
        assert len(calls) == expected


def test_tables_are_fitted_to_what_files_hold(compensating, crop, monkeypatch):
    codec, seen, code = storage.training_form(compensating), [], ELIC.code
    images = crop(64, 64)[None]
    monkeypatch.setattr(ELIC, "code", lambda self, coder, given, *args, **kwargs: (
        seen.append(given) or code(self, coder, given, *args, **kwargs)
    ))  # fmt: skip
    codec.calibrate(images)
    expected = coding.analyse_for_encoding(codec, tf.cast(images, tf.float32), {}, EncoderOptions())
    assert len(seen) == 2
    for given in seen:
        np.testing.assert_allclose(given, expected, atol=1e-5)
