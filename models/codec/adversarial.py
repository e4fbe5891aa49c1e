"""The training step with a discriminator: two players, two optimizers.

A codec that trains so has a `discriminator`, made by `make_players`, and gives

    generator(data) -> figures, shown    the figures of `losses` ("loss" is the generator's), and what the
                                         discriminator compares
    verdict(shown) -> figures            those of the discriminator; "discriminator" is its loss

Neither player's step moves the other's variables, nor takes the gradient of the other's loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from models.codec.base import Codec


def make_players(codec: Codec, discriminator: tf.keras.layers.Layer, rate: float = 1.0) -> None:
    """Gives a compiled codec a discriminator, and an optimizer of the same kind as its own for it.

    rate: the discriminator's learning rate, as a share of the generator's, whatever schedules set that to.
    """
    codec.discriminator = discriminator
    discriminator.build()
    scaled = isinstance(codec.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    own = codec.optimizer.inner_optimizer if scaled else codec.optimizer
    config = {**own.get_config(), "learning_rate": _ShareOf(own, rate), "use_ema": False}
    twin = type(own).from_config(config)
    codec.discriminator_optimizer = tf.keras.mixed_precision.LossScaleOptimizer(twin) if scaled else twin
    codec.discriminator_optimizer.build(discriminator.trainable_variables)


def train_step(codec: Codec, data) -> dict[str, tf.Tensor]:
    """One step of both players on a batch; the figures, "discriminator" among them."""
    share = 1 / tf.distribute.get_strategy().num_replicas_in_sync
    with tf.GradientTape() as tape:
        figures, shown = codec.generator(data)
        loss = share * figures["loss"]
    codec.optimizer.minimize(loss, codec.trainable_variables, tape=tape)
    shown = tf.nest.map_structure(tf.stop_gradient, shown)
    with tf.GradientTape() as tape:
        verdict = codec.verdict(shown)
        loss = share * verdict["discriminator"]
    codec.discriminator_optimizer.minimize(loss, codec.discriminator.trainable_variables, tape=tape)
    return {**figures, **verdict}


class _ShareOf(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A share of another optimizer's learning rate, whatever sets that."""

    def __init__(self, optimizer: tf.keras.optimizers.Optimizer, share: float):
        self._optimizer, self._share = optimizer, share

    def __call__(self, step):
        return self._share * self._optimizer.learning_rate

    def get_config(self):
        return {"learning_rate": float(self(0))}  # for the record: it is made anew with its optimizer
