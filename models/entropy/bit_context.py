"""A context model for latents that are bits: which table row predicts each, from the bits decoded before.

CWIC codes its binary codes with it, SAE-SPN the bits of its five levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from models.entropy.passes import bernoulli_net, checkerboard_pair
from transforms import checkerboard
from transforms.exact import Conv, EntropyNet, Fixed, concat, spatially


class ContextModel(tf.Module):
    """Predicts bits in groups of channels; of each group the anchors of the checkerboard, then the others.

    Args:
      given: channels of what is known beforehand.
      groups: channels of the groups.
      width: channels of the networks.
    """

    def __init__(self, given: int, groups: Sequence[int], width: int, name: str):
        super().__init__(name=name)
        self.groups = tuple(groups)
        self.contexts = [
            EntropyNet(given + sum(groups[:k]), [Conv(width, 5), Conv(width)], name=f"context{k}")
            for k in range(len(groups))
        ]
        self.spatial_contexts = [
            EntropyNet(g, [Conv(width, masked=True)], name=f"spatial_context{k}") for k, g in enumerate(groups)
        ]
        self.logits = [bernoulli_net(2 * width, [Conv(width), Conv(g)], f"logits{k}") for k, g in enumerate(groups)]

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

        known, decoded = [_as_input(coder, given)], []
        sent = [None] * len(self.groups) if bits is None else tf.split(bits, self.groups, -1)
        for k, kept_here in enumerate(tf.split(kept, self.groups, -1)):
            features = spatially(checkerboard.split, self.contexts[k].run(concat(known)))
            decoded.append(self._code_group(coder, name, k, features, sent[k], checkerboard.split(kept_here)))
            known.append(_as_input(coder, (2 * decoded[-1] - 1) * kept_here))
        return tf.concat(decoded, -1)

    def _code_group(self, coder, name: str, k: int, features, sent: tf.Tensor | None, kept) -> tf.Tensor:
        """Codes the two passes of group k; features and kept are those of its two halves."""
        halves = (None, None) if sent is None else checkerboard.split(sent)

        def code(half, logits):
            return coder.bernoulli(name, halves[half], logits, kept[half])

        def of_anchors(anchors):
            return _as_input(coder, (2 * anchors - 1) * kept[0])

        features = [[half] for half in features]
        return checkerboard_pair(code, features, self.logits[k], self.spatial_contexts[k], of_anchors)


def _as_input(coder, values: tf.Tensor) -> Fixed | tf.Tensor:
    """-1, 0 and 1 as a network takes them: integers are fixed-point numbers of step 1."""
    return Fixed(values, np.ones(values.shape[-1])) if coder.exact else values
