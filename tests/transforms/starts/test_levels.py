"""The start of SAE-SPN: latents that are digits of principal components."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.io.errors import UserError
from models.sae_spn import PRESETS, SAESPN, Config
from transforms import quantizers
from transforms.starts import levels


def test_components_have_the_deviations_of_photographs(photograph):
    """Of blocks of 16x16 pixels, within a factor of two of what the model of photographs says."""
    values = photograph[:384, :512] / 127.5 - 1
    blocks = values.reshape(24, 16, 32, 16, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 768)
    components, deviations = levels.principal_components()
    np.testing.assert_allclose(components @ components.T, np.eye(768), atol=1e-9)
    measured = ((blocks - blocks.mean(0)) @ components.T).std(0)
    assert 0.5 < measured[0] / deviations[0] < 2
    assert all(0.3 < m / d < 3 for m, d in zip(measured[1:8], deviations[1:8]))


@pytest.mark.parametrize("groups", [(2, 2, 4), (2, 2, 4, 8)])
def test_brightness_has_the_most_digits_and_none_twice_in_a_group(groups):
    digits = levels.allocate(levels.principal_components()[1], groups)
    assert len(digits) == sum(groups)
    counts = np.bincount([digit.component for digit in digits])
    assert counts[0] == counts.max() > 1 and counts.min() > 0
    ends = np.cumsum(groups)
    for first, end in zip(ends - groups, ends):
        components = [digit.component for digit in digits[first:end]]
        assert len(set(components)) == len(components)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_digits_tell_values_apart_in_their_common_step(count):
    """The mean of what the levels say is within half a step of the value, up to where the levels end."""
    digits = levels.allocate(np.array([1.0] + [1e-6] * 8), (1,) * count)[:count]
    assert {digit.component for digit in digits} == {0}
    step = digits[0].share
    values = np.linspace(-(2 * count + 0.5) * step, (2 * count + 0.5) * step, 1001)
    decoded = sum(
        d.share * quantizers.quantise(tf.constant(values / d.step + d.offset, tf.float32)).numpy() for d in digits
    )
    assert np.max(np.abs(decoded - values)) <= 0.51 * step


def test_a_codec_shows_the_image_before_any_training(photograph):
    """The networks add nothing at first; a random start is far from an image."""
    errors = {}
    for start in (True, False):
        tf.keras.utils.set_random_seed(1)
        codec = SAESPN(PRESETS["small"], "sae")
        codec.build_variables(training=True)
        if start:
            codec.init_pca()
        images = tf.cast(photograph[None, :256, :256], tf.float32)
        decoded, _ = codec(images, training=False)
        errors[start] = float(tf.reduce_mean(tf.math.squared_difference(decoded, images)))
    assert 10 * np.log10(255**2 / errors[True]) > 20 > 10 * np.log10(255**2 / errors[False])


def test_a_preset_without_the_by_pass_has_no_such_start():
    with pytest.raises(UserError, match="no linear by-pass"):
        SAESPN(dataclasses.replace(Config(), widths=(8, 8, 8, 8, 8))).init_pca()
