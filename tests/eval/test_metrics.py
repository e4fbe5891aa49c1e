"""The figures that results are reported in."""

import math

import numpy as np
import pytest

from eval import metrics

RNG = np.random.default_rng(5)


def picture(height, width, seed=0):
    """Something with structure at several scales: MS-SSIM of plain noise would be near zero."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + 9 * c) + seed) + np.cos(y / (4 + 7 * c)) + np.sin((x + y) / 23) for c in range(3)]
    return np.uint8(127.5 + 40 * np.stack(waves, axis=-1))


def noisy(image, sigma):
    return np.uint8(np.clip(image + RNG.normal(0, sigma, image.shape).round(), 0, 255))


def test_psnr():
    a = np.zeros((4, 5, 3), np.uint8)
    assert metrics.psnr(a, a) == math.inf
    assert metrics.psnr(a, a + np.uint8(255)) == pytest.approx(0)
    assert metrics.psnr(a, a + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)
    assert metrics.psnr(a + np.uint8(1), a) == metrics.psnr(a, a + np.uint8(1))  # no wrap-around of uint8
    one = a.copy()
    one[2, 3, 1] = 30  # one sample of 60: a mean square of 15
    assert metrics.psnr(a, one) == pytest.approx(10 * math.log10(255**2 / 15))


def test_bpp():
    assert metrics.bpp(1000, 100, 80) == 1.0
    assert metrics.bpp(1, 1, 1) == 8.0


def test_ms_ssim_of_equal_and_of_worse_pictures():
    image = picture(192, 176)
    assert metrics.ms_ssim(image, image) == pytest.approx(1, abs=1e-6)
    values = [metrics.ms_ssim(image, noisy(image, sigma)) for sigma in (4, 12, 40)]
    assert 1 > values[0] > values[1] > values[2] > 0


def ms_ssim_by_hand(a, b):
    """The definition, slowly, for sides that are even at every scale."""
    from scipy.ndimage import correlate1d

    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x):
        for axis in (0, 1):
            x = correlate1d(x, window, axis=axis)
        return x[5:-5, 5:-5]

    a, b = a.astype(float), b.astype(float)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result = 1
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        mu_a, mu_b = blur(a), blur(b)
        var_a, var_b, cov = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2, blur(a * b) - mu_a * mu_b
        term = (2 * cov + c2) / (var_a + var_b + c2)
        last = scale == 4
        if last:
            term = term * (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
        result = result * np.maximum(term.mean((0, 1)), 0) ** weight
        if not last:
            a, b = ((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4 for x in (a, b))
    return result.mean()


def test_ms_ssim_is_the_published_one():
    image = picture(192, 208)
    for other in (noisy(image, 20), np.uint8(image * 0.7), np.roll(image, 2, axis=1)):
        assert metrics.ms_ssim(image, other) == pytest.approx(ms_ssim_by_hand(image, other), abs=2e-5)


def test_ms_ssim_says_that_a_picture_is_too_small():
    small, large = picture(160, 300), picture(161, 300)
    assert math.isnan(metrics.ms_ssim(small, small))
    assert math.isnan(metrics.ms_ssim(small.transpose(1, 0, 2), small.transpose(1, 0, 2)))
    assert metrics.ms_ssim(large, large) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ms_ssim])
def test_other_arrays_are_refused(metric):
    good = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="two sizes"):
        metric(good, good[:3])
    for other in (good[..., :1], good[..., 0], good.astype(np.float32), good[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            metric(other, other)
