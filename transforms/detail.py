"""Detail channels: latents that are a linear transform of 16x16 blocks, beside those of a deep analysis.

A narrow latent bounds the quality of a codec: what its channels cannot hold no rate can buy. To widen a deep transform
costs most of a training, and time in each pass. A block transform costs next to nothing (its latents have to be coded
all the same), can be added to what is trained already, and at high rates much of what is left to say is fine detail, of
which a linear transform tells a good part.

    images ─┬─► analysis ────────┬─► y ─► exchange ─►  entropy coding  ─► exchange ─┬─► synthesis ─────────┬─► images
            └─► detail analysis ─┘                                                  └─► detail synthesis ──┘

The exchanges let each part know of the other: what the deep synthesis shows already need not be sent once more.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transforms.chain import Chain
from transforms.elic import ResidualBottleneck
from transforms.linear_start import covariance

BLOCK = 16


class BlockAnalysis(tf.keras.layers.Layer):
    """A linear transform of blocks: [B, 16 h, 16 w, 3] -> [B, h, w, channels]."""

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(name=name)
        self.project = tf.keras.layers.Conv2D(channels, 1, use_bias=False, name="project")

    def build(self, input_shape):
        self.project.build([None, None, None, BLOCK * BLOCK * input_shape[-1]])
        super().build(input_shape)

    def call(self, x):
        return self.project(tf.nn.space_to_depth(x, BLOCK))

    def compute_output_shape(self, input_shape):
        rows, columns = (None if size is None else size // BLOCK for size in input_shape[1:3])
        return tf.TensorShape([input_shape[0], rows, columns, self.project.filters])


class BlockSynthesis(tf.keras.layers.Layer):
    """A linear transform to blocks: [B, h, w, channels] -> [B, 16 h, 16 w, 3]."""

    def __init__(self, name: str | None = None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.project = tf.keras.layers.Conv2D(BLOCK * BLOCK * 3, 1, use_bias=False, name="project", dtype=dtype)

    def build(self, input_shape):
        self.project.build(input_shape)
        super().build(input_shape)

    def call(self, x):
        return tf.nn.depth_to_space(self.project(x), BLOCK)

    def compute_output_shape(self, input_shape):
        rows, columns = (None if size is None else size * BLOCK for size in input_shape[1:3])
        return tf.TensorShape([input_shape[0], rows, columns, 3])


def analysis(channels: int) -> Chain:
    """Images [B, H, W, 3] -> detail [B, H / 16, W / 16, channels]."""
    return Chain(3, lambda: [BlockAnalysis(channels, name="blocks")], name="detail_analysis")


def synthesis(channels: int) -> Chain:
    """Detail [B, H / 16, W / 16, channels] -> what it adds to the images, [B, H, W, 3]."""
    return Chain(channels, lambda: [BlockSynthesis(name="blocks", dtype="float32")], name="detail_synthesis")


def exchange(latents: int, name: str) -> Chain:
    """Between all latents [B, h, w, latents], deep and detail."""
    return Chain(latents, lambda: [ResidualBottleneck(latents, name="bottleneck")], name=name)


def components(first: int, count: int) -> np.ndarray:
    """Principal components of blocks of photographs, [16, 16, 3, count] from number `first`, orthonormal."""
    _, vectors = np.linalg.eigh(covariance(BLOCK))
    chosen = vectors[:, ::-1][:, first : first + count]
    return chosen.reshape(BLOCK, BLOCK, 3, count).astype(np.float32)


def begin(analysis: Chain, synthesis: Chain, first: int, unit: float, shown: bool) -> None:
    """Lets detail channels, built but not trained, begin as principal components, those from number `first` on.

    unit: of the latents, in that of the images.
    shown: the synthesis begins as the inverse; else it adds nothing at first.
    """
    forward, inverse = analysis.layers[0].project.kernel, synthesis.layers[0].project.kernel
    flat = components(first, forward.shape[-1]).reshape(-1, forward.shape[-1])
    forward.assign(flat[None, None] / unit)
    inverse.assign(flat.T[None, None] * unit * float(shown))
