"""Rate-distortion optimised quantisation: symbols that are not worth their bits give way to others.

Rounding takes the nearest symbol, whatever it costs and whatever it is good for. Encoders of video look at the
neighbours, too, and take the one whose rate and distortion together are least (H.264's, HEVC's and VVC's reference
encoders; Karczewicz, Ye, Chong, "Rate distortion optimized quantization", VCEG-AH21, 2008). What a symbol costs the
tables say. What the picture would lose by another one says the gradient of its error with respect to the decoded
latents: one pass of the synthesis, there and back, and no float form of the entropy networks as
`models/tools/refine.py` needs. Files have the same format. Not in the papers.
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from models.entropy.coders import TableRate
from models.tools import restoration
from transforms import tiling

#: Side of the tiles, in pixels, in which gradients of large pictures are found: a step back keeps all activations,
#: some 2 GB a megapixel. Their halo is the reach of the synthesis; for an exact gradient it would be twice that. With
#: much less the error beside the seams is that of padding, and files of high quality are 2 % worse.
TILE = 1024
#: Where a program makes no graphs of its own, so many rounds of a small picture are worth one of their gradients, which
#: are most of what a round takes, and so many one of all that they do; for a large picture always. On two cores the
#: first takes 2 s to make and the second 6 s; a round then takes 0.9 and 0.45 s instead of 1.7 s (768x512).
GRADIENT_GRAPH_FROM, GRAPH_FROM = 3, 9
#: The share of the reluctance that the first of many rounds has, and by how much it grows from round to round at most.
EAGER, STEP = 0.6, 0.06
#: What the slopes of a round keep of those of the round before: latents that moved together see their common error from
#: both sides. `MEMORY` at first and, with many rounds, more and more, up to `RISE` times their number or `MOST`: late
#: rounds go by the mean of several.
MEMORY, RISE, MOST = 0.3, 0.04, 0.7


def optimise_symbols(codec, images: tf.Tensor, analysed: tf.Tensor, controls: dict[str, tf.Tensor]) -> tf.Tensor:
    """Latents of which some have moved to the next symbol, where that is better by rate and distortion.

    What a move of one step does to λ times the squared error is estimated as its slope there and some bits of
    reluctance. For one latent alone these are 6 / ln 2 = 8.7 bits where the step size is right for λ (6 dB a bit).
    Latents that move together are in each other's way, so it takes more, `Codec.rdoq`, and only every other latent may
    move in a round, of which there are `Codec.effort`. Early rounds are less reluctant, as in annealing: they leave
    what rounding gave, and if they overdo it, later rounds have the time to take that back.

    Args:
      codec: with tables; `analyse` gives one tensor of latents, and losses are of squared errors.
      images: padded pictures, [B, H, W, 3] in 0..255.
      analysed: what `Codec.analyse` makes of them.
      controls: of `Codec.transmit`, padded.

    Returns:
      As `analysed`; that itself where `Codec.rdoq` or `Codec.effort` is 0.
    """
    if not codec.rdoq or not codec.effort:
        return analysed
    bits = tf.constant(_reluctance(codec.rdoq, codec.effort), tf.float32)
    memory = tf.constant(_memory(codec.effort), tf.float32)
    eager = tf.executing_eagerly()
    whole = eager and (codec.effort >= GRAPH_FROM or tf.size(images) > 3 * tiling.LARGE)
    if whole:
        one = codec.rdoq_graphs.round
    elif eager and codec.effort >= GRADIENT_GRAPH_FROM:
        one = functools.partial(_round, codec, codec.rdoq_graphs.gradients)
    else:
        one = functools.partial(_round, codec, functools.partial(_gradients, codec))

    def step(turn, latents, slopes, best, least):
        loss, moved, slopes = one(images, latents, controls, turn, bits[turn], memory[turn], slopes)
        return turn + 1, moved, slopes, *_better(latents, loss, best, least)

    slopes = tf.nest.map_structure(tf.zeros_like, codec.unquantised(analysed, **controls))
    state = (tf.constant(0), analysed, slopes, analysed, tf.fill(tf.shape(images)[:1], np.inf))
    if eager:
        for _ in codec.progress(range(codec.effort)):
            state = step(*state)
    else:
        state = tf.while_loop(lambda turn, *_: turn < codec.effort, step, state, parallel_iterations=1)
    turn, latents, slopes, best, least = state
    if whole:  # the loss, too, is sooner told by it than without a graph
        loss, *_ = one(images, latents, controls, turn, bits[-1], memory[-1], slopes)
    else:
        loss = _loss(codec, images, latents, controls)
    return _better(latents, loss, best, least)[0]


class Graphs:
    """What rounds do, as graphs for pictures of any size, each made when it is first asked for."""

    def __init__(self, codec):
        self._codec = codec

    @functools.cached_property
    def gradients(self):
        """See `_gradients`."""
        return tf.function(functools.partial(_gradients, self._codec), autograph=False, reduce_retracing=True)

    @functools.cached_property
    def round(self):
        """See `_round`."""
        whole = functools.partial(_round, self._codec, functools.partial(_gradients, self._codec))
        return tf.function(whole, autograph=False, reduce_retracing=True)


def _reluctance(bits: float, rounds: int) -> np.ndarray:
    """Bits for each of so many rounds: up to `bits` in equal steps, the more the rounds the further down they begin."""
    return bits * np.linspace(max(1 - STEP * (rounds - 1), EAGER), 1, rounds)


def _memory(rounds: int) -> np.ndarray:
    """What the slopes of each of so many rounds keep of the round before: nothing in the first."""
    kept = np.linspace(MEMORY, np.clip(RISE * rounds, MEMORY, MOST), rounds)
    kept[0] = 0
    return kept


def _better(latents: tf.Tensor, loss: tf.Tensor, best: tf.Tensor, least: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of each picture the latents of less loss, [B], and that: estimates of what moves bring can be wrong."""
    best = tf.ensure_shape(tf.where((loss < least)[:, None, None, None], latents, best), best.shape)
    return best, tf.ensure_shape(tf.minimum(loss, least), least.shape)


def _round(codec, gradients_of, images: tf.Tensor, analysed: tf.Tensor, controls, turn, bits, memory, slopes):
    """One round.

    Args:
      gradients_of: `_gradients` of the codec, or a graph of it.
      turn: its number, int32 [].
      bits: of reluctance, float32 [].
      memory: what slopes keep of those of the round before, float32 [].
      slopes: those that the round before returned, gradients with respect to what `Codec.code` returns.

    Returns:
      The loss of the latents given, [B]; latents after their moves; the gradients by which they moved.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(analysed)
        coder = _Passes(codec.bank, tape)
        decoded = codec.code(coder, analysed, tf.shape(images)[:3], **controls)
    restored, now = gradients_of(images, decoded, controls)
    loss = _loss_of(codec, images, restored, coder, controls)
    slopes = tf.nest.map_structure(
        lambda old, new: tf.ensure_shape(memory * old + (1 - memory) * new, old.shape), slopes, now
    )
    given = [latent for latent, *_ in coder.passes]
    gradients = tape.gradient(decoded, [value for _, value, *_ in coder.passes], slopes)
    moves = [coder.moves(*one, gradient, bits) for one, gradient in zip(coder.passes, gradients, strict=True)]
    moves = [tf.where(checkerboard_mask(move, turn), move, 0.0) for move in moves]
    # `given` is `analysed` cut into passes, times the gains: its gradient puts moves where they belong.
    gains = tape.gradient(given, analysed, [tf.ones_like(latent) for latent in given])
    return loss, tf.ensure_shape(analysed + tape.gradient(given, analysed, moves) / gains**2, analysed.shape), slopes


def _loss(codec, images: tf.Tensor, analysed: tf.Tensor, controls: dict[str, tf.Tensor]) -> tf.Tensor:
    """The loss of the files of latents, [B]."""
    coder = TableRate(codec.bank)
    decoded = codec.code(coder, analysed, tf.shape(images)[:3], **controls)

    def restored(original, weights, *latents):
        return _restored(codec, original, tf.nest.pack_sequence_as(decoded, latents), weights)

    return _loss_of(codec, images, _in_tiles(codec, restored, images, decoded, controls, [1]), coder, controls)


def _loss_of(codec, images: tf.Tensor, restored: tf.Tensor, coder, controls) -> tf.Tensor:
    """`_loss` of pictures that are restored, and of what has counted their bits."""
    bpp = tf.add_n(list(coder.bits.values())) / tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
    return codec.rate_distortion(tf.cast(images, tf.float32), tf.clip_by_value(restored, 0.0, 255.0), bpp, **controls)


def checkerboard_mask(latents: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Which latents [B, H, W, C] may move in a turn, bool [H, W, C]: neighbours take turns, as on a checkerboard."""
    rows, columns, channels = (tf.range(size) for size in tf.unstack(tf.shape(latents)[1:]))
    return (rows[:, None, None] + columns[:, None] + channels + turn) % 2 == 0


def _restored(codec, images: tf.Tensor, decoded, weights: tf.Tensor) -> tf.Tensor:
    """Pictures behind the filters that their files will hold: what counts is their error there."""
    pictures = codec.reconstruct(decoded)
    if not codec.has_filter:
        return pictures
    return restoration.apply(pictures, restoration.fit(images, tf.stop_gradient(pictures), weights)[0])


class _Passes(TableRate):
    """Rounds latents, and keeps of each Gaussian pass the latents given and decoded, the symbols, and the rows.

    tape: watches what is decoded.
    """

    def __init__(self, bank, tape: tf.GradientTape):
        super().__init__(bank)
        self._tape = tape
        self.passes: list[tuple[tf.Tensor, ...]] = []

    def gaussian(self, name, latent, parameters):
        mean, rows = tf.split(parameters.value, 2, -1)
        # What later passes predict from it is not its gradient's business.
        decoded = tf.stop_gradient(super().gaussian(name, latent, parameters))
        self._tape.watch(decoded)
        self.passes.append((latent, decoded, tf.cast(tf.round(decoded - mean), tf.int32), tf.cast(rows, tf.int32)))
        return decoded

    def moves(self, latent: tf.Tensor, decoded: tf.Tensor, symbols: tf.Tensor, rows: tf.Tensor, gradient, reluctance):
        """By how much each latent of a pass moves: to the middle of the next symbol on either side, or not at all."""
        cost = self.cost(symbols, rows, folded=True)
        best, move = tf.zeros_like(cost), tf.zeros_like(latent)
        for step in (-1, 1):
            saved = cost - self.cost(symbols + step, rows, folded=True) - (step * gradient + reluctance)
            move = tf.where(saved > best, decoded + step - latent, move)
            best = tf.maximum(saved, best)
        return move


def _gradients(codec, images: tf.Tensor, decoded, controls: dict[str, tf.Tensor]):
    """Restored pictures, and the gradients with respect to latents of their weighted squared error, in bits."""

    def gradients(original, weights, *latents):
        original = tf.cast(original, tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(latents)
            restored = _restored(codec, original, tf.nest.pack_sequence_as(decoded, latents), weights)
            loss = tf.reduce_sum(weights * tf.math.squared_difference(restored, original)) / 3
        return restored, tf.nest.pack_sequence_as(decoded, tape.gradient(loss, latents))

    return _in_tiles(codec, gradients, images, decoded, controls, [1, *codec.reach.decoded])


def _in_tiles(codec, function, images: tf.Tensor, decoded, controls: dict[str, tf.Tensor], output_cells):
    """`function` of pictures, what their errors count, and latents; tiles of large pictures have a filter each."""
    r, parts = codec.reach, tf.nest.flatten(decoded)
    weights = codec.error_weights(tf.shape(images), **controls)
    inputs, cells = [images, weights, *parts], [1, 1, *r.decoded]
    return tiling.in_tiles(function, inputs, cells, output_cells, r.unit, r.synthesis, TILE)
