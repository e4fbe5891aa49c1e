"""Training of a codec: the loss, its steps, one part frozen, warm starts.

The loss is `bpp + λ · distortion`. Where there are several λ each image of a batch draws one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from models.codec import storage
from models.codec.variables import pad_with
from models.entropy.coders import FloatRate, HardRate, SoftRate, TableRate, TrainingRate
from models.io.errors import UserError
from transforms.gain import STEPS
from transforms.losses.ms_ssim import ms_ssim

if TYPE_CHECKING:
    from models.codec.base import Codec


def rate_coder(codec: Codec, training: bool):
    """The latent coder that measures bits: of noisy latents in training, else of rounded ones."""
    if training:
        kind = {None: TrainingRate, "encoder": HardRate, "decoder": SoftRate}[codec.frozen]
        return kind(codec.entropy_models)
    return FloatRate(codec.entropy_models) if codec.bank is None else TableRate(codec.bank)


def losses(codec: Codec, images: tf.Tensor, training: bool) -> dict[str, tf.Tensor]:
    """The figures of `Codec.metric_names`, see `Codec.losses`."""
    images = tf.cast(images, tf.float32)
    batch = tf.shape(images)[0]
    levels = len(codec.lambdas)
    if training and levels > 1:
        level = training_levels(batch, levels)
    else:
        level = validation_draws(images, levels)
    controls = {"quality": level * STEPS} if codec.variable_rate else {}
    _, reconstruction, bits = forward(codec, images, controls, training)
    figures = rate_and_distortion(images, reconstruction, bits, training)
    figures["loss"] = codec.rate_distortion(images, reconstruction, figures["bpp"], **controls)
    if "ms_ssim" in codec.metric_names:
        figures["ms_ssim"] = ms_ssim(images, reconstruction)
    if training and levels > 1:
        figures["loss"] *= tf.gather(level_weights(codec.lambdas), level)
    return {name: tf.reduce_mean(figures[name]) for name in codec.metric_names}


def rate_and_distortion(images, reconstruction, bits: dict, training: bool) -> dict[str, tf.Tensor]:
    """Computes rate and distortion of images [B, H, W, 3]: "bpp", "mse" (0..255 scale), "psnr" (dB), each [B].

    bits: of each latent, {name: [B]}.
    """
    pixels = tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
    bpp = tf.add_n(list(bits.values())) / pixels
    if not training:
        reconstruction = tf.clip_by_value(reconstruction, 0.0, 255.0)
    mse = tf.reduce_mean(tf.math.squared_difference(reconstruction, images), [1, 2, 3])
    return {"bpp": bpp, "mse": mse, "psnr": 10 * tf.math.log(255.0**2 / tf.maximum(mse, 1e-9)) / np.log(10.0)}


def training_levels(batch: tf.Tensor, levels: int) -> tf.Tensor:
    """Draws a level per image, int32 [batch], each as likely as the others; those of a batch are spread.

    Levels differ in their gradients: a batch of few images is a steadier sample so.
    """
    place = tf.cast(tf.range(batch), tf.float32) / tf.cast(batch, tf.float32)
    return tf.cast(tf.floor((tf.random.uniform([]) + place) % 1.0 * levels), tf.int32)


def level_weights(lambdas) -> tf.Tensor:
    """Weights of the loss at each level in training: 1/√λ, scaled to a mean of 1; float32 [levels].

    A BD-rate weighs saved bits by the inverse of the rate, and rates grow about as √λ. With equal weights the levels of
    high rates, whose losses are the largest, would dominate.
    """
    weights = 1 / np.sqrt(lambdas)
    return tf.constant(weights / np.mean(weights), tf.float32)


def validation_draws(images: tf.Tensor, count: int) -> tf.Tensor:
    """Draws a number below `count` for each validation image, [B, H, W, 3] in 0..255: int32 [B].

    Derived from its pixels, so that an image has the same one each time, in batches of any size and on any device.
    """
    return tf.reduce_sum(tf.cast(images, tf.int32), [1, 2, 3]) % count


def train_step(codec: Codec, data) -> dict[str, tf.Tensor]:
    """Trains one step with `Codec.losses` on a batch [B, P, P, 3]."""
    with tf.GradientTape() as tape:
        figures = codec.losses(codec.batch(data), training=True)
        # Under tf.distribute gradients are summed over replicas: each contributes its share of the global mean.
        loss = figures["loss"] / tf.distribute.get_strategy().num_replicas_in_sync
    # `minimize` scales the loss where float16 needs it.
    codec.optimizer.minimize(loss, codec.trainable_variables, tape=tape)
    return figures


def forward(codec: Codec, images: tf.Tensor, controls: dict[str, tf.Tensor], training: bool):
    """`Codec.forward`; with latents that a teacher has quantised while the codec distils from one.

    A codec that has tables quantises its own: it is trained then.
    """
    if codec.distilled is None or codec.bank is not None:
        return codec.forward(images, controls, training)
    controls = codec.pad_controls(controls)
    latents, bits = codec.distilled(codec.pad(images), controls)
    reconstruction = codec.crop(codec.reconstruct(latents), images)
    return codec.result(latents, reconstruction, bits, training)


# ---- one part frozen ------------------------------------------------------------------------------------------------


def freeze(codec: Codec, part: str | None, teacher: Codec | None = None) -> None:
    """Freezes one part of a codec in training; the others train with the quantisation that suits them.

    Args:
      codec: to be trained.
      part: the frozen part. "encoder": all others learn from latents rounded as in files, see `HardRate`. "decoder",
        which is all but `encoder_parts`: these learn from latents that are rounded softly, see `SoftRate`. "latents",
        which is all but `decoder_parts`: these learn from latents as the teacher's files have them. None: nothing.
      teacher: for "latents", a codec of the same configuration that compresses: `load` of the same weights.

    Raises:
      ValueError: latents without a teacher, or the reverse.
    """
    if (part == "latents") != (teacher is not None):
        raise ValueError("latents need a teacher, and only these")
    codec.frozen = part
    # A function, which Keras does not take for a part of this model as it would the codec.
    codec.distilled = None if teacher is None else lambda *inputs: _quantise_as_encoded(teacher, *inputs)


def distil(codec: Codec, path) -> None:
    """Trains the decoder on latents as in files of a weights file: the one that the codec began with.

    UserError if it has another number of λ.
    """
    teacher = storage.load(path)
    if len(teacher.lambdas) != len(codec.lambdas):
        raise UserError(f"{path}: its files are of {len(teacher.lambdas)} λ, and --lambda has {len(codec.lambdas)}")
    teacher.lambdas = codec.lambdas
    freeze(codec, "latents", teacher)


def not_frozen(codec: Codec, variables: list[tf.Variable]) -> list[tf.Variable]:
    """Drops the variables that the codec's own optimizer must not change: the discriminator's, and a frozen part's."""
    if codec.discriminator is not None:
        others = {id(v) for v in codec.discriminator.trainable_weights}
        variables = [v for v in variables if id(v) not in others]
    if codec.frozen is None:
        return variables
    parts = codec.decoder_parts if codec.frozen == "latents" else codec.encoder_parts
    among = {v.ref() for name, v in codec.named_variables().items() if name.split("/")[0] in parts}
    return [v for v in variables if (v.ref() in among) == (codec.frozen != "encoder")]


def _quantise_as_encoded(teacher: Codec, padded: tf.Tensor, controls: dict[str, tf.Tensor]):
    """Decoded latents of padded images as the teacher's files have them, and their bits."""
    sent = teacher.quantise(padded, controls, training=False)
    return tf.nest.map_structure(tf.stop_gradient, sent.latents), sent.bits


# ---- warm starts ----------------------------------------------------------------------------------------------------


def warm_start(codec: Codec, before: Codec, widen: bool = False) -> Codec:
    """Makes the training variables of a codec and copies those that `before` has, too; returns the codec.

    widen: variables may have more channels than those of `before`, whose values go to the first.
    """
    codec.build_variables(training=True)
    if before.distortion != codec.distortion:
        codec.set_distortion(before.distortion)
    load_matching(codec, before.named_variables(), widen)
    return codec


def load_matching(codec: Codec, trained: Mapping[str, tf.Variable], widen: bool = False) -> None:
    """Copies values into the codec's variables of the same names.

    widen: variables may have more channels than those given, whose values go to the first.
    """
    for name, variable in codec.named_variables().items():
        if name in trained:
            value = trained[name]
            variable.assign(pad_with(value, variable) if widen else value)
