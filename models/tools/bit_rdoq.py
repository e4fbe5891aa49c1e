"""RDOQ for latents that are bits: at each position the bit flips that saves most, if rate and distortion then are less.

A bit is no small step: it takes other ways through the ReLUs of the synthesis, so that the slope of the squared error
tells which bits are worth a try, but not what a flip does to the error. That is seen: the synthesis runs once more with
a flip at every third position of every third row, far enough apart that each has its own part of the image, and those
stay that cost less there. Files have the same format. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from models.entropy import tables
from models.entropy.coders import TableRate
from models.tools import rdoq
from transforms import checkerboard

#: Positions flip at once that are so far apart: what a flip does farther away is little, and is not seen.
SPACING = 3
#: So many turns make an iteration: after three iterations each position has had one.
TURNS = 3
#: What of its energy (`energies`) a flip is expected to add to the error, besides what the slope tells. A guess of less
#: tries more flips in vain, one of more overlooks some.
CURVATURE = 0.5
#: A flip is tried if it seems to cost at most so many bits.
HOPE = 3.0
NEVER = 1e6


def optimise_bits(
    codec,
    images: tf.Tensor,
    analysed: tuple,
    controls: dict[str, tf.Tensor],
    iterations: int,
    progress: Callable[[range], Iterable[int]] = iter,
) -> tuple:
    """Flips bits where `Codec.rdoq` times the squared error, and the rate, are less then.

    Args:
      codec: with tables; `analyse` gives bits [B, H / 8, W / 8, n], 0 or 1, and what stays as it is.
      images: padded images, [B, H, W, 3] in 0..255.
      analysed: what `Codec.analyse` makes of them.
      controls: of `Codec.transmit`, padded.
      iterations: how many; 0 leaves the bits alone.
      progress: wraps the range of iterations where they run eagerly.

    Returns:
      As `analysed`; that itself where `Codec.rdoq` or `iterations` is 0.
    """
    if not codec.rdoq or not iterations:
        return analysed
    bits, *others = analysed
    eager = tf.executing_eagerly()
    one = codec.bit_turn if eager else (lambda *inputs: turn(codec, *inputs))

    def step(number, bits, tried, best, least):
        loss, flipped, tried = one(images, bits, others, controls, number, tried)
        return number + 1, flipped, tried, *rdoq.better(bits, loss, best, least)

    state = tf.constant(0), bits, tf.zeros_like(bits), bits, tf.fill(tf.shape(images)[:1], np.inf)
    if eager:
        for _ in progress(range(iterations)):
            for _ in range(TURNS):
                state = step(*state)
    else:
        last = TURNS * iterations
        state = tf.while_loop(lambda number, *_: number < last, step, state, parallel_iterations=1)
    # What the last turn gave is judged by the loss that one more begins with.
    *_, best, _ = step(*state)
    return best, *others


def turn(codec, images, bits, others, controls, number, tried):
    """Flips bits at every ninth position.

    Args:
      number: of the turn, int32 [].
      tried: 1 where a bit was flipped before to no avail, of the shape of bits.

    Returns:
      The loss of the bits given, [B]; bits after flips; `tried` with the flips that were taken back.
    """
    coder = _Flips(codec.bank)
    decoded = codec.code(coder, (bits, *others), tf.shape(images)[:3], **controls)
    restored, slopes = rdoq.gradients_of_error(codec, images, decoded, controls)
    slopes *= codec.rdoq / codec.lmbda
    flips = 1 - 2 * bits
    saved = coder.saved()
    gain = saved - flips * slopes - CURVATURE * codec.rdoq / 3 * codec.bit_energies - NEVER * tried
    best = tf.reduce_max(gain, -1, keepdims=True)
    rows, columns = tf.range(tf.shape(bits)[1])[:, None, None], tf.range(tf.shape(bits)[2])[:, None]
    mine = (rows % SPACING * SPACING + columns % SPACING) == number % SPACING**2
    chosen = tf.cast((gain >= best) & (best > -HOPE) & mine, bits.dtype)

    def look(original, weights, *latents):
        return rdoq.restored_images(codec, original, latents[0], weights)

    flipped = rdoq.in_tiles(codec, look, images, decoded + chosen * flips, controls, [1])
    images = tf.cast(images, tf.float32)
    worse = codec.rdoq / 3 * (_errors(images, flipped) - _errors(images, restored))
    kept = chosen * tf.cast(tf.reduce_sum(saved * chosen, -1, keepdims=True) > worse, bits.dtype)
    pixels = tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
    clipped = tf.clip_by_value(restored, 0.0, 255.0)
    error = tf.reduce_mean(tf.math.squared_difference(clipped, images), [1, 2, 3])
    loss = codec.rdoq * error + tf.add_n(list(coder.bits.values())) / pixels
    return loss, tf.ensure_shape(bits + kept * flips, bits.shape), tf.maximum(tried, chosen - kept)


def energies(codec, count: int) -> np.ndarray:
    """What each of `count` bits changes in an image where no other bit is 1: the sum of squares, float32 [count]."""
    side = 2 * SPACING + 1
    alone = np.zeros([count, side, side + 1, count], np.float32)
    alone[np.arange(count), SPACING, SPACING, np.arange(count)] = 1
    grey = codec.reconstruct(tf.zeros_like(alone[:1]))
    return tf.reduce_sum(tf.math.squared_difference(codec.reconstruct(alone), grey), [1, 2, 3]).numpy()


def _errors(images: tf.Tensor, restored: tf.Tensor) -> tf.Tensor:
    """Squared errors of the part of the image that belongs to each position, [B, H / 8, W / 8, 1]."""
    errors = tf.reduce_sum(tf.math.squared_difference(restored, images), -1, keepdims=True)
    blocks = 64 * tf.nn.avg_pool2d(errors, 8, 8, "VALID")
    return tf.nn.conv2d(blocks, tf.ones([SPACING, SPACING, 1, 1]), 1, "SAME")


class _Flips(TableRate):
    """Counts bits, and what each flip would save of them in its own pass."""

    def __init__(self, bank):
        super().__init__(bank)
        self._saved: list[tf.Tensor] = []

    def bernoulli(self, name, bits, logits, kept):
        if name == "codes":
            rows = tf.cast(tf.where(kept > 0, logits.value, float(tables.NUM_LOGITS)), tf.int32)
            now = tf.cast(tf.round(bits * kept), tf.int32)
            saved = self.cost(now, rows, folded=False) - self.cost(1 - now, rows, folded=False)
            self._saved.append(tf.where(kept > 0, saved, -NEVER))
        return super().bernoulli(name, bits, logits, kept)

    def saved(self) -> tf.Tensor:
        """What a flip of each bit saves, in bits, of the shape of the bits."""
        halves = zip(self._saved[::2], self._saved[1::2])
        return tf.concat([checkerboard.merge(*pair) for pair in halves], -1)
