"""How good an image is, and what it costs."""

from __future__ import annotations

import math

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, over all pixels and the three channels.

    Args:
      a, b: uint8 `[H, W, 3]`, of one shape.

    Returns:
      dB; infinite for equal images.

    Raises:
      ValueError: the arrays are not of that kind.
    """
    _check(a, b)
    error = np.mean(np.square(a.astype(np.float64) - b))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Multi-scale structural similarity of RGB images, mean of the three channels.

    As in Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment"
    (Asilomar 2003): Gaussian window of 11 pixels with sigma 1.5, five scales weighted .0448, .2856, .3001,
    .2363, .1333, range 255. Agrees with pytorch-msssim where no side is odd at any scale; where one is, the
    two pad differently at the border.

    Args:
      a, b: uint8 `[H, W, 3]`, of one shape.

    Returns:
      0..1, or NaN where the shorter side is below 161 pixels (`transforms.losses.ms_ssim.MIN_SIDE`): the
      smallest of the five scales would not hold one window, and fewer scales would give a number that
      compares with no other.

    Raises:
      ValueError: the arrays are not of that kind.
    """
    _check(a, b)
    # Here, because nothing else in this module needs the seconds of TensorFlow.
    import tensorflow as tf

    from transforms.losses.ms_ssim import MIN_SIDE

    if min(a.shape[:2]) < MIN_SIDE:
        return math.nan
    with tf.device("/CPU:0"):  # convolutions on an accelerator round to 10 bits, which shows in the fourth digit
        value = tf.image.ssim_multiscale(tf.cast(a, tf.float32), tf.cast(b, tf.float32), max_val=255.0)
    return float(value)


def bpp(num_bytes: int, height: int, width: int) -> float:
    """Bits per pixel of a file of `num_bytes` that holds an image of `height` x `width` pixels."""
    return 8 * num_bytes / (height * width)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    for array in (a, b):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
            raise ValueError(f"expected uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"images of two sizes: {list(a.shape)} and {list(b.shape)}")
