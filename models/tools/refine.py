"""Refinement: the latents of one picture, fitted to it by gradient descent before they are written.

The analysis is trained to serve all pictures in one pass, and what it gives is not the best that the decoder could be
sent for this one. Some steps down the gradient of the picture's own rate-distortion loss, with respect to its latents,
close a part of that gap (Campos et al., "Content Adaptive Optimization for Neural Image Compression", CVPR Workshops
2019; Yang, Bamler, Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020). Only who compresses pays:
files have the same format and decode in the same time.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models.codec.distortion import check_side
from models.entropy.coders import SoftRate, TableRate
from models.io.errors import UserError

#: Adam's, for latents in units of the quantiser's step and a loss in bits. The learning rate begins with
#: RATE / sqrt(steps). Epsilon is as large as that so that a latent whose gradient is small, such as most of the zeros,
#: moves little: Adam's usual one would move all of them alike.
RATE, EPSILON = 1.0, 1.0
#: Of soft rounding, at the first step and at the last: see `SoftRate`.
SHARPNESS = 1.0, 6.0
#: A step keeps all activations of the synthesis: some 2 GB a megapixel for ELIC `small`.
MAX_PIXELS = 4_000_000


def check_refinable(codec, steps: int, batch: int, height: int, width: int) -> None:
    """UserError if a codec cannot refine, there cannot be so many steps, or not for pictures of that size."""
    if not codec.searchable:
        raise UserError(f"{codec.entry.name} cannot refine latents")
    if steps < 0:
        raise UserError(f"the steps of refining must not be negative, and are {steps}")
    check_side(codec.distortion, min(height, width), "refining with these weights")
    pixels = batch * height * width
    if pixels > MAX_PIXELS:
        raise UserError(
            f"refining takes pictures of {MAX_PIXELS / 1e6:g} megapixels at most, and this has {pixels / 1e6:.1f}"
        )


class Refiner:
    """Refines latents for a codec.

    Args:
      codec: that is to write them.
      trained: the same with the variables of training, as of `Codec.training_form`: gradients are of its float form.
    """

    def __init__(self, codec, trained):
        self._codec, self._trained = codec, trained
        # A graph takes half the time of a step, which makes up for making it within five steps of the first picture.
        self._step = tf.function(self._gradient, autograph=False, reduce_retracing=True)

    def __call__(self, images: tf.Tensor, analysed: tf.Tensor, steps: int, controls: dict[str, tf.Tensor]) -> tf.Tensor:
        """Better latents.

        Args:
          images: padded pictures, [B, H, W, 3] in 0..255.
          analysed: what `Codec.analyse` makes of them.
          steps: of Adam, with a learning rate that falls to 0 along a half cosine while rounding sharpens.
          controls: of `Codec.transmit`, padded.

        Returns:
          As `analysed`; of each picture the better of what was found and what was given, by the loss of the file.
        """
        images = tf.cast(images, tf.float32)
        scale = self._codec.symbol_scale(**controls)
        symbols = tf.Variable(analysed * scale)
        rate = tf.keras.optimizers.schedules.CosineDecay(RATE / np.sqrt(steps), steps)
        optimizer = tf.keras.optimizers.Adam(rate, epsilon=EPSILON)
        for sharpness in np.geomspace(*SHARPNESS, steps):
            gradient = self._step(images, symbols.value(), scale, tf.constant(sharpness, tf.float32), controls)
            optimizer.apply_gradients([(gradient, symbols)])
        found = symbols / scale
        before, after = (
            self._loss(self._codec, TableRate(self._codec.bank), images, x, controls) for x in (analysed, found)
        )
        return tf.where((after < before)[:, None, None, None], found, analysed)

    def _gradient(self, images, symbols, scale, sharpness, controls) -> tf.Tensor:
        """The gradient with respect to the symbols."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(symbols)
            coder = SoftRate(self._trained.entropy_models, sharpness)
            loss = self._loss(self._trained, coder, images, symbols / scale, controls)
        return tape.gradient(loss, symbols)

    def _loss(self, codec, coder, images, analysed, controls) -> tf.Tensor:
        """The loss of pictures in bits, [B]."""
        shape = tf.shape(images)
        latents = codec.code(coder, analysed, shape[:3], **controls)
        # A codec that only compresses has been loaded without its synthesis.
        reconstruction = self._trained.reconstruct(latents)
        pixels = tf.cast(shape[1] * shape[2], tf.float32)
        bpp = tf.add_n(list(coder.bits.values())) / pixels
        if coder.exact:
            reconstruction = tf.clip_by_value(reconstruction, 0.0, 255.0)
        return pixels * codec.rate_distortion(images, reconstruction, bpp, **controls)
