"""A context model for latents that are bits: which table row predicts each, from the bits decoded before.

CWIC codes its binary codes with it, SAE-SPN the bits of its five levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from models.entropy import tables
from models.entropy.coders import LOGIT_BIAS, LOGIT_GAIN
from transforms import checkerboard
from transforms.exact import Conv, EntropyNet, Fixed, Output, concat, spatially, zeros


class ContextModel(tf.Module):
    """Predicts bits in groups of channels; of each group the anchors of the checkerboard, then the others.

    Args:
      given: channels of what is known beforehand.
      groups: channels of the groups.
      width: channels of the networks.
    """

    def __init__(self, given: int, groups: Sequence[int], width: int, name: str):
        super().__init__(name=name)
        self.groups, self.width = tuple(groups), width
        self.contexts = [
            EntropyNet(given + sum(groups[:k]), [Conv(width, 5), Conv(width)], name=f"context{k}")
            for k in range(len(groups))
        ]
        self.spatial_contexts = [
            EntropyNet(g, [Conv(width, masked=True)], name=f"spatial_context{k}") for k, g in enumerate(groups)
        ]
        self.logits = [
            EntropyNet(
                2 * width,
                [Conv(width), Conv(g)],
                output=Output.ROWS,
                output_gain=LOGIT_GAIN,
                output_bias=LOGIT_BIAS,
                rows=tables.NUM_LOGITS,
                name=f"logits{k}",
            )
            for k, g in enumerate(groups)
        ]

    def transmit(self, coder, name: str, given: tf.Tensor, bits: tf.Tensor | None, kept: tf.Tensor) -> tf.Tensor:
        """Codes the bits that are kept; see `Codec.transmit`.

        Args:
          coder: a latent coder.
          name: of the latent, for the rate.
          given: float32 [B, H, W, C] of -1, 0 and 1, W even: what is known beforehand.
          bits: float32 [B, H, W, sum(groups)] of 0 and 1; None when decoding.
          kept: the same, 1 where a bit is coded; the others are 0.

        Returns:
          The decoded bits, float32 [B, H, W, sum(groups)].
        """

        def as_input(values):
            """-1, 0 and 1 as a network takes them: integers are fixed-point numbers of step 1."""
            return Fixed(values, np.ones(values.shape[-1])) if coder.exact else values

        known, decoded = [as_input(given)], []
        kept_groups = tf.split(kept, self.groups, -1)
        sent = [None] * len(self.groups) if bits is None else tf.split(bits, self.groups, -1)
        for k, kept_here in enumerate(kept_groups):
            features = spatially(checkerboard.split, self.contexts[k].run(concat(known)))
            masks = checkerboard.split(kept_here)
            halves = (None, None) if sent[k] is None else checkerboard.split(sent[k])
            silent = zeros(features[0], self.width)
            anchors = coder.bernoulli(name, halves[0], self.logits[k].run(concat([features[0], silent])), masks[0])
            spatial = self.spatial_contexts[k].run(as_input((2 * anchors - 1) * masks[0]))
            others = coder.bernoulli(name, halves[1], self.logits[k].run(concat([features[1], spatial])), masks[1])
            decoded.append(checkerboard.merge(anchors, others))
            known.append(as_input((2 * decoded[-1] - 1) * kept_here))
        return tf.concat(decoded, -1)
