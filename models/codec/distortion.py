"""Distortions: the error of an image that training weighs against its bits.

Squared errors are what all five papers minimise. MS-SSIM compares local means, contrasts and structures at five scales,
which agrees better with what people see; the field trains a second set of weights for it. Its λ are other numbers by
custom (2.4 for 0.0018, 60.5 for 0.0483). Here it comes on the scale of squared errors, so that λ, qualities and what is
derived from them stay the same.
"""

from __future__ import annotations

import tensorflow as tf

from models.io.errors import UserError
from transforms.losses.ms_ssim import MIN_SIDE, ms_ssim

MSE, MS_SSIM = "mse", "ms-ssim"
KINDS = (MSE, MS_SSIM)
#: Brings 1 - MS-SSIM to the scale of squared errors of 0..255: the mean of those pairs of λ.
MS_SSIM_SCALE = 1290.0


def distortion(kind: str, images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """The error of each image.

    Args:
      kind: of `KINDS`.
      images: float32 [B, H, W, 3] in 0..255; for MS-SSIM neither side below `transforms.losses.ms_ssim.MIN_SIDE`.
      reconstruction: the same, and it need not be clipped.

    Returns:
      float32 [B], on the scale of squared errors.
    """
    if kind == MSE:
        return tf.reduce_mean(tf.math.squared_difference(reconstruction, images), [1, 2, 3])
    return MS_SSIM_SCALE * (1 - ms_ssim(images, reconstruction))


def check_side(kind: str, side: int, what: str) -> None:
    """UserError if images with that shorter side are too small for a distortion.

    what: what has that side, as the message has it.
    """
    if kind == MS_SSIM and side < MIN_SIDE:
        raise UserError(f"{what}: MS-SSIM takes {MIN_SIDE} pixels at least, and not {side}")
