"""Multi-scale structural similarity (MS-SSIM), with a gradient that compiles for every runtime.

Wang, Simoncelli, Bovik: "Multiscale structural similarity for image quality assessment", Asilomar 2003.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

#: Five scales, halved four times, with an 11-pixel window on the smallest: (11 - 1) * 2**4 + 1 pixels.
MIN_SIDE = 161
#: Exponents of the five scales, and the constants of SSIM for 0..255.
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ms_ssim(images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """Compares images by MS-SSIM, mean of the colours.

    Args:
      images: float32 [B, H, W, 3] in 0..255, at least `MIN_SIDE` pixels high and wide.
      reconstruction: the same, and it need not be clipped.

    Returns:
      float32 [B], 1 for equal images.

    Equal to `tf.image.ssim_multiscale`. The gradient of that cannot be compiled for other runtimes (XLA takes the
    images for constants), is not finite where an image is the inverse of the other, and takes three times as long
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
    scales = tf.maximum(tf.stack(scales, -1), 1e-6)  # images that contradict each other
    return tf.reduce_mean(tf.exp(tf.reduce_sum(_WEIGHTS * tf.math.log(scales), -1)), -1)


def _blur(x: tf.Tensor) -> tf.Tensor:
    """Gaussian means of 11x11 pixels, sigma 1.5: [B, H, W, C] -> [B, H - 10, W - 10, C]. Rows, then columns."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps = np.tile((taps / taps.sum())[:, None, None, None], [1, 1, x.shape[-1], 1]).astype(np.float32)
    for kernel in (taps, taps.transpose(1, 0, 2, 3)):
        x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID")
    return x
