"""The passes that codecs share, and the networks that predict what a pass codes.

    z ──► z_hat ──► hyper-synthesis ──► features at every position                               `hyperprior`

    anchors     ◄── predictions(features, 0)                                                     `checkerboard_pair`
    non-anchors ◄── predictions(features, context(anchors))

Hyperprior: Ballé, Minnen, Singh, Hwang, Johnston: "Variational Image Compression with a Scale Hyperprior", ICLR 2018.
Checkerboard: He, Zheng, Sun, Wang, Qin: "Checkerboard Context Model for Efficient Learned Image Compression", CVPR
2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import tensorflow as tf

from models.entropy.coders import LOGIT_BIAS, LOGIT_GAIN, ROW_BIAS, ROW_GAIN
from models.entropy.tables import NUM_LOGITS, NUM_SCALES
from transforms import checkerboard
from transforms.exact import Conv, EntropyNet, Fixed, Output, concat, spatially, zeros

#: Input and output of an entropy network: integers when coding, floats when training.
Features = Union[Fixed, tf.Tensor]

#: Latents per hyper-latent, along rows and along columns.
HYPER_STRIDE = 4


def gaussian_net(channels: int, convs: Sequence[Conv], name: str) -> EntropyNet:
    """Makes a network that predicts Gaussian latents: their means, then the logarithms of their scales."""
    return EntropyNet(channels, convs, Output.PARAMETERS, ROW_GAIN, ROW_BIAS, NUM_SCALES, name=name)


def bernoulli_net(channels: int, convs: Sequence[Conv], name: str) -> EntropyNet:
    """Makes a network that predicts bits: the logits of their probabilities of being 1."""
    return EntropyNet(channels, convs, Output.ROWS, LOGIT_GAIN, LOGIT_BIAS, NUM_LOGITS, name=name)


def hyperprior(coder, z: tf.Tensor | None, size, latent_input, synthesis: EntropyNet, *controls):
    """Codes hyper-latents with a row of the tables per channel, and runs the hyper-synthesis on them.

    Args:
      coder: a latent coder, see `models/entropy/coders.py`.
      z: float32 [B, ceil(H / 4), ceil(W / 4), N]; None when decoding.
      size: (B, H, W) of the latents.
      latent_input: makes network inputs of decoded hyper-latents, as `transforms.exact.LatentInput`.
      synthesis: from these to features, four times as high and wide.
      controls: what `latent_input` takes besides.

    Returns:
      z_hat, float32 of the shape of z, and the features [B, H, W, F].
    """
    batch, rows, columns = size
    shape = [batch, *((side + HYPER_STRIDE - 1) // HYPER_STRIDE for side in (rows, columns)), synthesis.channels]
    # The rows of the factorised prior follow those of the Gaussians.
    z_hat = coder.factorized("z", z, NUM_SCALES, shape)
    features = synthesis.run(latent_input.run(z_hat, coder.exact, *controls))
    return z_hat, spatially(lambda x: x[:, :rows, :columns], features)


def checkerboard_pair(
    code: Callable[[int, Features], tf.Tensor],
    features: Sequence[Sequence[Features]],
    predictor: EntropyNet,
    context: EntropyNet,
    as_input: Callable[[tf.Tensor], Features],
) -> tf.Tensor:
    """Codes the anchors of a checkerboard, then the non-anchors with the anchors around them as context.

    Args:
      code: codes one half, 0 the anchors and 1 the non-anchors, given what is predicted of it; returns it decoded.
      features: of each half what is known before, a sequence of [B, H, W / 2, F].
      predictor: from the features and the context to what `code` takes.
      context: from decoded anchors to features of the non-anchors. Anchors have zeros in their place.
      as_input: makes inputs of `context` of decoded anchors.

    Returns:
      Both halves decoded, float32 [B, H, W, C].
    """
    silent = zeros(features[0][0], context.convs[-1].filters)
    anchors = code(0, predictor.run(concat([*features[0], silent])))
    spatial = context.run(as_input(anchors))
    non_anchors = code(1, predictor.run(concat([*features[1], spatial])))
    return checkerboard.merge(anchors, non_anchors)
