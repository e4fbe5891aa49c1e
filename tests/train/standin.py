"""A codec of two layers, without noise, with the interface that training relies on."""

import dataclasses

import safetensors.numpy
import tensorflow as tf

from models.codec.registry import Card, Entry, Preset


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """Latent channels."""

    channels: int = 4


class TinyCodec(tf.keras.Model):
    """Autoencoder with `loss = bpp + λ · MSE`, where the "rate" is the mean magnitude of the latents.

    Args:
      nan_at: step whose loss is not a number; -1 for none.
      nan_gradient_at: step whose gradient is not a number while its loss is.
      channels: of the latents.
    """

    entry = Entry(
        Card("tiny", 254, "Tiny", {"base": Preset("for tests", kmac=1.0)}), None, TinyConfig, {"base": TinyConfig()}
    )

    def __init__(self, lmbda: float = 0.01, nan_at: int = -1, nan_gradient_at: int = -1, channels: int = 4):
        super().__init__()
        self.config = TinyConfig(channels)
        self.lmbda = lmbda
        self.frozen = None
        self.nan_at = nan_at
        self.nan_gradient_at = nan_gradient_at
        self.analysis = tf.keras.layers.Conv2D(channels, 4, strides=4, name="analysis")
        self.synthesis = tf.keras.layers.Conv2DTranspose(3, 4, strides=4, name="synthesis", dtype="float32")
        self.trackers = {name: tf.keras.metrics.Mean(name) for name in ("loss", "bpp", "mse", "psnr")}
        self.calibrated_with = None
        self.saved = []

    @property
    def metrics(self):
        return list(self.trackers.values())

    def settings(self):
        return {"lambda": str(self.lmbda)}

    def named_variables(self):
        return {variable.name: variable for variable in self.variables}

    def freeze(self, part):
        self.frozen = part

    def call(self, images, training=False):
        latents = self.analysis(tf.cast(images, tf.float32) / 255)
        return self.synthesis(latents) * 255, tf.reduce_sum(tf.abs(tf.cast(latents, tf.float32)), (1, 2, 3))

    def losses_of(self, images, training):
        images = tf.cast(images, tf.float32)
        reconstruction, bits = self(images, training=training)
        bpp = tf.reduce_mean(bits) / tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
        mse = tf.reduce_mean(tf.math.squared_difference(images, reconstruction))
        psnr = 10 * tf.math.log(255**2 / mse) / tf.math.log(10.0)
        return {"loss": bpp + self.lmbda * mse, "bpp": bpp, "mse": mse, "psnr": psnr}

    def train_step(self, images):
        step = self.optimizer.iterations
        with tf.GradientTape() as tape:
            losses = self.losses_of(images, training=True)
            losses["loss"] += tf.where(step == self.nan_at, float("nan"), 0.0)
            loss = losses["loss"] / tf.distribute.get_strategy().num_replicas_in_sync
            loss = poisoned(loss, tf.where(step == self.nan_gradient_at, float("nan"), 1.0))
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self.update(losses)

    def test_step(self, images):
        return self.update(self.losses_of(images, training=False))

    def update(self, losses):
        for name, value in losses.items():
            self.trackers[name].update_state(value)
        return {name: metric.result() for name, metric in self.trackers.items()}

    def calibrate(self, images):
        self.calibrated_with = images

    def save(self, path, metadata=None):
        self.saved.append(str(path))
        tensors = {f"{i}/{v.name}": v.numpy() for i, v in enumerate(self.trainable_variables)}
        safetensors.numpy.save_file(tensors, path, metadata)


@tf.custom_gradient
def poisoned(x, factor):
    """Passes `x`, and multiplies its gradient."""
    return tf.identity(x), lambda gradient: (gradient * factor, None)
