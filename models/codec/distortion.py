"""What training counts as the error of a picture, besides its bits.

Squared errors are what all five papers minimise. MS-SSIM compares local means, contrasts and structures at five scales,
which agrees better with what people see; the field trains a second set of weights for it. Its λ are other numbers by
custom (2.4 for 0.0018, 60.5 for 0.0483). Here it comes on the scale of squared errors, so that λ, qualities and what is
derived from them stay the same.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from eval.metrics import MS_SSIM_MIN_SIDE
from models.io.errors import UserError

MSE, MS_SSIM = "mse", "ms-ssim"
KINDS = (MSE, MS_SSIM)
#: Brings 1 - MS-SSIM to the scale of squared errors of 0..255: the mean of those pairs of λ.
MS_SSIM_SCALE = 1290.0


def distortion(kind: str, images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """The error of each picture.

    Args:
      kind: of `KINDS`.
      images: float32 [B, H, W, 3] in 0..255; for MS-SSIM at least `MS_SSIM_MIN_SIDE` pixels high and wide.
      reconstruction: the same, and it need not be clipped.

    Returns:
      float32 [B], on the scale of squared errors.
    """
    if kind == MSE:
        return tf.reduce_mean(tf.math.squared_difference(reconstruction, images), [1, 2, 3])
    return MS_SSIM_SCALE * (1 - ms_ssim(images, reconstruction))


def ms_ssim(images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """MS-SSIM of each picture, mean of the colours: float32 [B], 1 for equal ones.

    Equal to `tf.image.ssim_multiscale`. The gradient of that cannot be compiled for other runtimes (XLA takes the
    pictures for constants), is not finite where a picture is the inverse of the other, and takes three times as long
    (0.09 s for two of 256x256).
    """
    scales = []
    for number in range(len(_WEIGHTS)):
        if number:  # at odd edges SAME takes the mean of what is there
            images, reconstruction = (tf.nn.avg_pool2d(x, 2, 2, "SAME") for x in (images, reconstruction))
        squares = tf.square(images) + tf.square(reconstruction)
        blurred = _blur(tf.concat([images, reconstruction, squares, images * reconstruction], -1))
        a, b, squares, products = tf.split(blurred, 4, -1)
        of_means = (2 * a * b + _C1) / (a * a + b * b + _C1)
        similarity = (2 * (products - a * b) + _C2) / (squares - a * a - b * b + _C2)
        if number + 1 == len(_WEIGHTS):
            similarity *= of_means
        scales.append(tf.reduce_mean(similarity, [1, 2]))
    scales = tf.maximum(tf.stack(scales, -1), 1e-6)  # pictures that contradict each other
    return tf.reduce_mean(tf.exp(tf.reduce_sum(_WEIGHTS * tf.math.log(scales), -1)), -1)


#: Of the five scales, and the constants of SSIM for 0..255 (Wang, Simoncelli, Bovik, Asilomar 2003).
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _blur(x: tf.Tensor) -> tf.Tensor:
    """Gaussian means of 11x11 pixels, sigma 1.5: [B, H, W, C] -> [B, H - 10, W - 10, C]. Rows, then columns."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps = np.tile((taps / taps.sum())[:, None, None, None], [1, 1, x.shape[-1], 1]).astype(np.float32)
    for kernel in (taps, taps.transpose(1, 0, 2, 3)):
        x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID")
    return x


def check_side(kind: str, side: int, what: str) -> None:
    """UserError if pictures with that shorter side are too small for a distortion.

    what: what has that side, as the message has it.
    """
    if kind == MS_SSIM and side < MS_SSIM_MIN_SIDE:
        raise UserError(f"{what}: MS-SSIM takes {MS_SSIM_MIN_SIDE} pixels at least, and not {side}")
