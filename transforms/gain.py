"""Gain units: one set of weights for a range of rates.

Cui, Wang, Gao, Guo, Feng, Bai: "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation", CVPR 2021.
Latents are multiplied by a learned gain per channel before they are rounded, and by a learned inverse gain after. There
is one pair for each λ of the training; between neighbouring levels gains are interpolated exponentially.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transforms.exact import PERCENTILE, Fixed, LatentInput

#: Qualities are counted in steps of 1/32 of a level, from 0 at the first; a file holds that number in one byte.
STEPS = 32
MAX_LEVELS = 8


def interpolate(logarithms: tf.Tensor, quality: tf.Tensor) -> tf.Tensor:
    """Values [..., channels] of qualities, int32 [...], from the natural logarithms of those of the levels.

    logarithms: float32 [levels, channels]. quality: in steps from the first level.
    """
    level = tf.minimum(quality // STEPS, logarithms.shape[0] - 2)
    share = (tf.cast(quality, tf.float32) / STEPS - tf.cast(level, tf.float32))[..., None]
    low, high = tf.gather(logarithms, level), tf.gather(logarithms, level + 1)
    return tf.exp((1 - share) * low + share * high)


class GainUnit(tf.keras.layers.Layer):
    """Multiplies [B, H, W, channels] by the gains of a quality.

    Args:
      channels: of the latents.
      initial: natural logarithms of the initial gains, one per level.
    """

    def __init__(self, channels: int, initial: np.ndarray, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        self.channels = channels
        self.initial = np.asarray(initial, np.float32)

    def build(self, input_shape=None):
        start = tf.constant_initializer(np.repeat(self.initial[:, None], self.channels, 1))
        self.log_gain = self.add_weight("log_gain", [len(self.initial), self.channels], initializer=start)
        super().build(input_shape)

    def gains(self, quality: tf.Tensor) -> tf.Tensor:
        """Gains [..., channels] of qualities, int32 [...] in 1/32 levels."""
        return interpolate(self.log_gain, quality)

    def call(self, x, quality):
        """quality: int32 [B], in 1/32 levels."""
        return tf.cast(x, tf.float32) * self.gains(quality)[:, None, None]


class GainedInput(LatentInput):
    """`LatentInput` behind a gain unit: in its integer form gain and step are one stored multiplier per quality.

    Computed where a file is read, the exponential of a gain would differ from device to device.
    """

    def __init__(self, gain: GainUnit, name: str | None = None):
        super().__init__(gain.channels, name=name)
        self.gain = gain
        self.multiplier: tf.Variable | None = None
        self.qualities = (len(gain.initial) - 1) * STEPS + 1

    def build_integers(self) -> None:
        if self.multiplier is None:
            with tf.init_scope():
                shape = [self.qualities, self.channels]
                self.multiplier = tf.Variable(tf.zeros(shape), trainable=False, name="multiplier")

    def run(self, latents: tf.Tensor, exact: bool, quality: tf.Tensor) -> Fixed | tf.Tensor:
        """Integer latents [B, H, W, channels] of a quality, int32 [B], as a network takes them."""
        if not exact:
            return self.gain(latents, quality)
        self.build_integers()
        scale = self._calibrate(self.gain(latents, quality)) if self.calibrating else None
        factor = tf.gather(self.multiplier, quality)[:, None, None]
        return Fixed(tf.clip_by_value(tf.round(latents * factor), -127.0, 127.0), scale)

    def _calibrate(self, gained: tf.Tensor) -> np.ndarray:
        top = np.percentile(np.abs(gained.numpy().reshape(-1, self.channels)), PERCENTILE, axis=0)
        scale = np.maximum(top, max(0.01 * top.max(), 1e-6)) / 127
        scale = self._max_scale[0] = np.maximum(scale, self._max_scale.get(0, 0))
        self.multiplier.assign(self.gain.gains(tf.range(self.qualities)) / scale)
        return scale
