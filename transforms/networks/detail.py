"""Detail channels: latents that are a linear transform of 16x16 blocks, beside those of a deep analysis.

A narrow latent bounds the quality of a codec: what its channels cannot hold is lost at any rate. To widen a deep
transform costs most of a training, and time in each pass. A block transform costs next to nothing, except for coding
its latents. It can be added to trained weights. At high rates much of what is missing is fine detail, and a linear
transform describes a good part of that.

    images ─┬─► analysis ────────┬─► y ─► exchange ─►  entropy coding  ─► exchange ─┬─► synthesis ─────────┬─► images
            └─► detail analysis ─┘                                                  └─► detail synthesis ──┘

The exchanges let each part know of the other: what the deep synthesis shows already need not be sent once more.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transforms.chain import Chain
from transforms.networks.elic import ResidualBottleneck
from transforms.resample import DepthToSpace, SpaceToDepth
from transforms.starts.linear import covariance

Conv2D = tf.keras.layers.Conv2D

BLOCK = 16


def analysis(channels: int) -> Chain:
    """Images [B, H, W, 3] -> detail [B, H / 16, W / 16, channels]."""
    return Chain(3, lambda: [SpaceToDepth(BLOCK), Conv2D(channels, 1, use_bias=False)], name="detail_analysis")


def synthesis(channels: int) -> Chain:
    """Detail [B, H / 16, W / 16, channels] -> what it adds to the images, [B, H, W, 3]."""

    def make_layers():
        project = Conv2D(BLOCK * BLOCK * 3, 1, use_bias=False, dtype="float32")
        return [project, DepthToSpace(BLOCK, dtype="float32")]

    return Chain(channels, make_layers, name="detail_synthesis")


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
    forward, inverse = analysis.layers[1].kernel, synthesis.layers[0].kernel
    flat = components(first, forward.shape[-1]).reshape(-1, forward.shape[-1])
    forward.assign(flat[None, None] / unit)
    inverse.assign(flat.T[None, None] * unit * float(shown))
