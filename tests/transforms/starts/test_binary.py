"""The linear start of CWIC: bits that compare components with thresholds."""

import argparse

import numpy as np
import pytest
import tensorflow as tf

from models.app import flags
from models.cwic import CWIC, PRESETS, Config
from models.io.errors import UserError
from transforms.starts import binary as binary_start


@pytest.fixture(scope="module")
def pictures(photograph):
    return np.stack([photograph[:128, :192], photograph[128:256, 100:292]]).astype(np.float32)


@pytest.fixture(scope="module")
def started():
    codec = CWIC(PRESETS["small"])
    codec.init_pca()
    return codec


def components(pictures) -> np.ndarray:
    """Of the 8x8 blocks of images, by their definition: [B, H / 8, W / 8, 192]."""
    batch, height, width, _ = pictures.shape
    blocks = (pictures / 255 - 0.5).reshape(batch, height // 8, 8, width // 8, 8, 3)
    return np.einsum("kyxc,bhywxc->bhwk", binary_start.principal_components(8)[0].reshape(192, 8, 8, 3), blocks)


def psnr(codec, pictures) -> float:
    codes, _ = codec.analyse(tf.constant(pictures))
    return float(-10 * np.log10(np.mean((codec.reconstruct(codes) - pictures) ** 2) / 255**2))


def test_components_are_orthonormal_with_the_most_energy_first(pictures):
    rows, deviations = binary_start.principal_components(8)
    np.testing.assert_allclose(rows @ rows.T, np.eye(192), atol=1e-9)
    assert np.all(np.diff(deviations) <= 0)
    energy = np.mean(components(pictures) ** 2, (0, 1, 2))
    assert energy[0] > energy[1:10].max() and energy[:10].sum() > 0.8 * energy.sum()


def test_thresholds_rise_in_steps_and_steps_are_worth_what_lies_between():
    pairs = binary_start.best_bits(32, 64)
    assert len(pairs) == 32 and pairs[0].component == 0
    for component in {pair.component for pair in pairs}:
        own = [pair for pair in pairs if pair.component == component]
        np.testing.assert_allclose(np.diff([pair.threshold for pair in own]), own[0].step)
        levels = np.cumsum([pair.worth for pair in own])
        assert all(a.threshold < level for a, level in zip(own, levels))
        assert all(level < b.threshold for b, level in zip(own[1:], levels))


def test_more_bits_make_smaller_errors(pictures):
    """Of the quantisers themselves, on blocks of a photograph."""
    values, errors = components(pictures), []
    for count in (0, 4, 16, 32, 64):
        sums = np.zeros_like(values)
        for pair in binary_start.best_bits(count, 96):
            value = values[..., pair.component]
            above = (value > pair.threshold).astype(float) - (value < -pair.threshold)
            sums[..., pair.component] += pair.worth * above
        errors.append(np.mean((values - sums) ** 2))
    assert np.all(np.diff(errors) < 0) and errors[3] < 0.1 * errors[0]


def test_a_quantiser_of_no_steps_is_zero_and_of_many_is_close():
    quantisers = binary_start._quantisers(False)
    assert quantisers[0][0] == pytest.approx(1, abs=0.02) and np.all(np.diff([q[0] for q in quantisers]) < 0)
    assert quantisers[binary_start.MOST_STEPS][0] < 0.02


def test_codes_say_what_is_above_thresholds(started, pictures):
    codes, _ = started.analyse(tf.constant(pictures))
    values = components(pictures)
    for k, pair in enumerate(binary_start.best_bits(32, 64)):
        value = values[..., pair.component]
        for sign in (0, 1):
            expected = (value if sign == 0 else -value) > pair.threshold
            # The first convolution passes on 32 of the 48 components of 4x4 pixels.
            assert np.mean(codes[..., 2 * k + sign] == expected) > 0.98


def test_an_untrained_codec_shows_the_picture(started, pictures):
    assert psnr(started, pictures) > 23
    assert psnr(CWIC(PRESETS["small"]), pictures) < 18


def test_bits_that_are_trimmed_mean_small(started, pictures):
    """Without any an image is grey, and each step of the mask shows more of it."""
    codes, _ = started.analyse(tf.constant(pictures))
    np.testing.assert_allclose(started.reconstruct(tf.zeros_like(codes)), 127.5, atol=0.01)
    errors = [np.mean((started.reconstruct(codes * (np.arange(64) < n)) - pictures) ** 2) for n in (0, 8, 24, 64)]
    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize("preset", ["low", "high"])
def test_larger_presets_start_better(started, pictures, preset):
    codec = CWIC(PRESETS[preset])
    codec.init_pca()
    # `high` has twice the bits; `low` those of `small`, and passes on all components of 4x4 pixels.
    assert psnr(codec, pictures) > psnr(started, pictures) + (1 if preset == "high" else -0.1)


def test_command_line_flag(pictures):
    parser = argparse.ArgumentParser()
    own = flags.of("cwic")
    own.add_train_flags(parser)
    for start, works in (((), True), (("--start", "linear"), True), (("--start", "random"), False)):
        arguments = parser.parse_args(start, argparse.Namespace(init_weights=None, preset="small"))
        assert (psnr(own.for_training(arguments), pictures) > 23) == works


def test_networks_too_narrow_for_it_are_refused():
    narrow = CWIC(Config(encoder_widths=(4, 8), decoder_widths=(8, 16, 4), hidden=4))
    with pytest.raises(UserError, match="--start random"):
        narrow.init_pca()
