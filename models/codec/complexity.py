"""Counts a codec's parameters and its multiply-adds per pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from models.codec.base import Codec

#: Side of the image that is counted, a multiple of all strides: what padding adds is not the codec's.
SIDE = 256


def parameters(codec: Codec) -> int:
    """Counts the trainable parameters of a codec whose training variables are built, a discriminator's apart."""
    named = codec.named_variables().items()
    return sum(int(np.prod(v.shape)) for name, v in named if v.trainable and not name.startswith("discriminator"))


def kmac_per_pixel(codec: Codec) -> float:
    """Counts thousands of multiply-adds a pixel of one pass: analysis, entropy networks in floating point, synthesis.

    codec: whose training variables are built.
    """
    from models.codec.training import rate_coder

    def one_pass(images):
        controls = codec.rate_control.from_args(tf.shape(images)[:3])[1]
        latents = codec.transmit(rate_coder(codec, training=True), images, **controls)
        return codec.reconstruct(latents)

    return multiply_adds(one_pass, tf.zeros([1, SIDE, SIDE, 3])) / SIDE**2 / 1e3


def multiply_adds(function, inputs) -> float:
    """Counts the multiply-adds of a function of a tensor, or a structure of such, by TensorFlow's profiler."""
    from tensorflow.python.profiler.model_analyzer import profile
    from tensorflow.python.profiler.option_builder import ProfileOptionBuilder

    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, inputs)
    concrete = tf.function(function, autograph=False).get_concrete_function(specs)
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation()).with_empty_output().build()
    return profile(concrete.graph, options=options).total_float_ops / 2
