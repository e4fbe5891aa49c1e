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


def quantise(values, bits) -> np.ndarray:
    """What bits tell of components [..., K], by their definition."""
    sums = np.zeros_like(values)
    for bit in bits:
        sign = -1 if bit.opposite else 1
        sums[..., bit.component] += sign * bit.worth * (sign * values[..., bit.component] > bit.threshold)
    return sums


def test_thresholds_rise_in_steps_and_steps_are_worth_what_lies_between():
    bits = binary_start.best_bits(64, 64)
    assert len(bits) == 64 and bits[0].component == 0
    for component in {bit.component for bit in bits}:
        for opposite in (False, True):
            own = [bit for bit in bits if (bit.component, bit.opposite) == (component, opposite)]
            own.sort(key=lambda bit: bit.threshold)
            np.testing.assert_allclose(np.diff([bit.threshold for bit in own]), own[0].step)
            levels = np.cumsum([bit.worth for bit in own])
            assert all(bit.threshold < level for bit, level in zip(own, levels))
            assert all(level < bit.threshold for level, bit in zip(levels, own[1:]))


def test_more_bits_make_smaller_errors(pictures):
    """Of the quantisers themselves, on blocks of a photograph."""
    values = components(pictures)
    errors = [np.mean((values - quantise(values, binary_start.best_bits(n, 96))) ** 2) for n in (16, 64, 128, 256)]
    assert np.all(np.diff(errors) < 0) and errors[2] < 0.1 * np.mean(values**2)


@pytest.mark.parametrize("preset", ["small", "small-high"])
def test_a_bit_follows_those_of_groups_before(preset):
    """Of each component a group of the preset has thresholds between which none of an earlier group lies."""
    config = PRESETS[preset]
    bits, seen = binary_start.best_bits(config.codes, 64), {}
    groups = np.split(np.arange(config.codes), np.cumsum(config.code_groups)[:-1])
    alone = 0
    for group in groups:
        new = {}
        for k in group:
            half = bits[k].component, bits[k].opposite
            new.setdefault(half, []).append(np.searchsorted(sorted(seen.get(half, [])), bits[k].threshold))
        alone += sum(len(set(gaps)) for gaps in new.values())
        for k in group:
            seen.setdefault((bits[k].component, bits[k].opposite), []).append(bits[k].threshold)
    assert alone > 0.65 * config.codes


def test_shares_of_bits_are_those_of_photographs(pictures):
    """Roughly: a context model begins with them."""
    bits = binary_start.best_bits(128, 64)
    values = components(pictures)
    seen = [np.mean((-1 if b.opposite else 1) * values[..., b.component] > b.threshold) for b in bits]
    assert np.corrcoef(seen, [bit.share for bit in bits])[0, 1] > 0.7


def test_the_context_model_begins_with_the_shares(started):
    logits = np.concatenate([net.biases[-1].numpy() for net in started.code_context.logits])
    shares = [bit.share for bit in binary_start.best_bits(128, 64)]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), np.maximum(shares, 1e-3), rtol=1e-4)


def test_codes_say_what_is_above_thresholds(started, pictures):
    codes, _ = started.analyse(tf.constant(pictures))
    values = components(pictures)
    for k, bit in enumerate(binary_start.best_bits(128, 64)):
        expected = (-1 if bit.opposite else 1) * values[..., bit.component] > bit.threshold
        # The first convolution passes on 32 of the 48 components of 4x4 pixels.
        assert np.mean(codes[..., k] == expected) > 0.98


def test_an_untrained_codec_shows_the_picture(started, pictures):
    assert psnr(started, pictures) > 24
    assert psnr(CWIC(PRESETS["small"]), pictures) < 18


def test_bits_that_are_trimmed_mean_small(started, pictures):
    """Without any an image is grey, and each step of the mask shows more of it."""
    codes, _ = started.analyse(tf.constant(pictures))
    np.testing.assert_allclose(started.reconstruct(tf.zeros_like(codes)), 127.5, atol=0.01)
    errors = [np.mean((started.reconstruct(codes * (np.arange(128) < n)) - pictures) ** 2) for n in (0, 30, 70, 128)]
    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize("preset, gain", [("low", -3), ("high", -0.1), ("small-high", 1)])
def test_other_presets_start_as_their_bits_allow(started, pictures, preset, gain):
    """Of `low` there are half as many as of `small`, of `high` as many, of `small-high` twice as many."""
    codec = CWIC(PRESETS[preset])
    codec.init_pca()
    assert psnr(codec, pictures) > psnr(started, pictures) + gain


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
