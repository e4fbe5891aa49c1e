"""Maps to train with: of every kind, in range, as often as the paper draws them."""

import numpy as np
import pytest
import tensorflow as tf

from transforms import quality_maps

SHAPE = (64, 32, 48)


@pytest.fixture(autouse=True)
def seed():
    tf.keras.utils.set_random_seed(1)


def is_uniform(maps):
    return np.ptp(maps, (1, 2, 3)) < 1e-6


def is_gradient(maps):
    """Not uniform, and straight along one axis and constant along the other."""
    straight = [np.abs(np.diff(maps, 2, axis=axis)).max((1, 2, 3)) < 1e-5 for axis in (1, 2)]
    constant = [np.ptp(maps, axis).max((1, 2)) < 1e-5 for axis in (2, 1)]
    return ~is_uniform(maps) & (straight[0] & constant[0] | straight[1] & constant[1])


@pytest.mark.parametrize("kind", quality_maps.KINDS)
def test_maps_of_each_kind_are_in_range(kind):
    maps = quality_maps.KINDS[kind](SHAPE).numpy()
    assert maps.shape == (*SHAPE, 1) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1 + 1e-6
    assert len(np.unique(maps[:, 0, 0])) > 30  # each image has its own


def test_kinds_are_what_they_are_called():
    assert is_uniform(quality_maps.uniform(SHAPE).numpy()).all()
    gradients = quality_maps.gradient(SHAPE).numpy()
    assert is_gradient(gradients).all()
    vertical = np.ptp(gradients, 2).max((1, 2)) < 1e-6
    assert 10 < vertical.sum() < 54
    gaussians = quality_maps.gaussians((32, 256, 256)).numpy()
    top = gaussians.max((1, 2, 3))
    assert top.min() >= 0.5 and top.max() <= 1 and np.ptp(top) > 0.3
    assert not (is_uniform(gaussians) | is_gradient(gaussians)).any()


def test_both_ends_are_drawn():
    levels = quality_maps.uniform((20000, 1, 1)).numpy().ravel()
    for end in (0, 1):
        assert 0.005 < np.mean(levels == end) < 0.02


def test_a_single_gaussian_has_the_variance_of_the_paper(monkeypatch):
    monkeypatch.setattr(quality_maps, "MAX_GAUSSIANS", 1)
    maps = quality_maps.gaussians((16, 600, 600)).numpy()[..., 0].astype(float)
    place = np.arange(600)
    variances = []
    for m in maps:
        row, column = np.unravel_index(m.argmax(), m.shape)
        for profile, centre in ((m[:, column], row), (m[row], column)):
            if 250 < centre < 350:  # not cut off
                variances.append(np.sum(profile * (place - centre) ** 2) / profile.sum())
    assert len(variances) > 4 and min(variances) > 980 and max(variances) < 3020


def test_shares_without_masks():
    maps = quality_maps.training_maps((4000, 8, 8)).numpy()
    uniform, gradients = is_uniform(maps).mean(), is_gradient(maps).mean()
    assert uniform == pytest.approx(0.25, abs=0.03)
    assert gradients == pytest.approx(0.25, abs=0.03)


def test_shares_with_masks():
    masks = np.zeros((4000, 8, 8), np.int32)
    masks[:, :3, :2] = 255
    maps = quality_maps.training_maps(masks.shape, tf.constant(masks)).numpy()[..., 0]
    inside = np.ptp(maps[:, :3, :2], (1, 2)) == 0
    outside = np.ptp(np.where(masks, maps[:, 7:, 7:], maps), (1, 2)) == 0
    classes = inside & outside & (maps[:, 0, 0] != maps[:, 7, 7])
    assert classes.mean() == pytest.approx(0.2, abs=0.03)
    assert is_uniform(maps[..., None]).mean() == pytest.approx(0.2, abs=0.03)


def test_compiled_maps_are_maps_too():
    compiled = tf.function(lambda: quality_maps.training_maps((16, 32, 32)), jit_compile=True)
    first, second = compiled().numpy(), compiled().numpy()
    assert first.shape == (16, 32, 32, 1) and first.min() >= 0 and first.max() <= 1 + 1e-6
    assert np.any(first != second)
