"""RDOQ, rate–distortion optimised quantisation: symbols move to adjacent bins where that costs less.

Rounding takes the nearest bin, whatever it costs. Encoders of video look at the neighbours, too, and take the one whose
rate and distortion together are least (H.264's, HEVC's and VVC's reference encoders; Karczewicz, Ye, Chong, "Rate
distortion optimized quantization", VCEG-AH21, 2008). The rate comes from the tables. The change of the distortion comes
from the gradient of the squared error with respect to the decoded latents: one pass of the synthesis, forward and back.
Files have the same format. Not in the papers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from models.entropy.coders import TableRate
from models.tools import restoration
from transforms import tiling

#: Side of the tiles, in pixels, in which gradients of large images are found: a step back keeps all activations,
#: some 2 GB a megapixel. Their halo is the reach of the synthesis; for an exact gradient it would be twice that. With
#: much less the error beside the seams is that of padding, and files of high quality are 2 % worse.
TILE = 1024
#: Iterations from which a graph pays, where the program makes none of its own: one of the gradients, which take most
#: of the time, and one of the whole iteration. For large images both always pay. On two cores the first takes 2 s to
#: make and the second 6 s; an iteration then takes 0.9 and 0.45 s instead of 1.7 s (768x512).
GRADIENT_GRAPH_FROM, GRAPH_FROM = 3, 9
#: The share of the move penalty in the first of many iterations, and by how much it grows per iteration at most.
PENALTY_START, PENALTY_STEP = 0.6, 0.06
#: Momentum of the slopes: latents that moved together see their common error from both sides. `MOMENTUM_MIN` at first
#: and, with many iterations, more and more, up to `MOMENTUM_SLOPE` times their number or `MOMENTUM_MAX`.
MOMENTUM_MIN, MOMENTUM_SLOPE, MOMENTUM_MAX = 0.3, 0.04, 0.7


def optimise_symbols(
    codec,
    images: tf.Tensor,
    analysed: tf.Tensor,
    controls: dict[str, tf.Tensor],
    iterations: int,
    progress: Callable[[range], Iterable[int]] = iter,
) -> tf.Tensor:
    """Moves latents to adjacent bins where the rate–distortion cost falls.

    What a move of one step does to λ times the squared error is estimated as its slope there and a move penalty in
    bits. For one latent alone the penalty is 6 / ln 2 = 8.7 bits where the step size is right for λ (6 dB a bit).
    Latents that move together interact, so it takes more (`Codec.rdoq`), and only every other latent may move in an
    iteration. Early iterations have a smaller penalty, as in annealing: they leave what rounding gave, and if they
    move too much, later iterations have the time to take that back.

    Args:
      codec: with tables; `analyse` gives one tensor of latents, and losses are of squared errors.
      images: padded images, [B, H, W, 3] in 0..255.
      analysed: what `Codec.analyse` makes of them.
      controls: of `Codec.transmit`, padded.
      iterations: how many; 0 keeps the nearest bins.
      progress: wraps the range of iterations where they run eagerly.

    Returns:
      As `analysed`; that itself where `Codec.rdoq` or `iterations` is 0.
    """
    if not codec.rdoq or not iterations:
        return analysed
    penalties = tf.constant(_penalties(codec.rdoq, iterations), tf.float32)
    momenta = tf.constant(_momenta(iterations), tf.float32)
    eager = tf.executing_eagerly()
    whole = eager and (iterations >= GRAPH_FROM or tf.size(images) > 3 * tiling.LARGE)
    if whole:
        one = codec.rdoq_graphs.iteration
    elif eager and iterations >= GRADIENT_GRAPH_FROM:
        one = functools.partial(_iteration, codec, codec.rdoq_graphs.gradients)
    else:
        one = functools.partial(_iteration, codec, functools.partial(gradients_of_error, codec))

    def step(turn, latents, slopes, best, least):
        loss, moved, slopes = one(images, latents, controls, turn, penalties[turn], momenta[turn], slopes)
        return turn + 1, moved, slopes, *better(latents, loss, best, least)

    slopes = tf.nest.map_structure(tf.zeros_like, codec.unquantised(analysed, **controls))
    state = (tf.constant(0), analysed, slopes, analysed, tf.fill(tf.shape(images)[:1], np.inf))
    if eager:
        for _ in progress(range(iterations)):
            state = step(*state)
    else:
        state = tf.while_loop(lambda turn, *_: turn < iterations, step, state, parallel_iterations=1)
    turn, latents, slopes, best, least = state
    if whole:  # the loss, too, is sooner told by it than without a graph
        loss, *_ = one(images, latents, controls, turn, penalties[-1], momenta[-1], slopes)
    else:
        loss = _loss(codec, images, latents, controls)
    return better(latents, loss, best, least)[0]


class Graphs:
    """Graphs of an iteration, for images of any size; each is made on first use."""

    def __init__(self, codec):
        self._codec = codec

    @functools.cached_property
    def gradients(self):
        """See `gradients_of_error`."""
        return tf.function(functools.partial(gradients_of_error, self._codec), autograph=False, reduce_retracing=True)

    @functools.cached_property
    def iteration(self):
        """See `_iteration`."""
        whole = functools.partial(_iteration, self._codec, functools.partial(gradients_of_error, self._codec))
        return tf.function(whole, autograph=False, reduce_retracing=True)


def _penalties(bits: float, iterations: int) -> np.ndarray:
    """The move penalty of each iteration: up to `bits` in equal steps; the more there are, the lower it starts."""
    return bits * np.linspace(max(1 - PENALTY_STEP * (iterations - 1), PENALTY_START), 1, iterations)


def _momenta(iterations: int) -> np.ndarray:
    """The momentum of the slopes in each iteration: none in the first."""
    kept = np.linspace(MOMENTUM_MIN, np.clip(MOMENTUM_SLOPE * iterations, MOMENTUM_MIN, MOMENTUM_MAX), iterations)
    kept[0] = 0
    return kept


def better(latents: tf.Tensor, loss: tf.Tensor, best: tf.Tensor, least: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Keeps for each image the latents of less loss, and that loss, [B]: estimates of a move's gain can be wrong."""
    best = tf.ensure_shape(tf.where((loss < least)[:, None, None, None], latents, best), best.shape)
    return best, tf.ensure_shape(tf.minimum(loss, least), least.shape)


def _iteration(codec, gradients_of, images: tf.Tensor, analysed: tf.Tensor, controls, turn, penalty, momentum, slopes):
    """Does one iteration.

    Args:
      gradients_of: `gradients_of_error` of the codec, or a graph of it.
      turn: its number, int32 [].
      penalty: of a move, bits, float32 [].
      momentum: the share that slopes keep of those of the iteration before, float32 [].
      slopes: those that the iteration before returned, gradients with respect to what `Codec.code` returns.

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
        lambda old, new: tf.ensure_shape(momentum * old + (1 - momentum) * new, old.shape), slopes, now
    )
    given = [latent for latent, *_ in coder.passes]
    gradients = tape.gradient(decoded, [value for _, value, *_ in coder.passes], slopes)
    if len(gradients) != len(coder.passes):
        raise ValueError(f"{len(gradients)} gradients for {len(coder.passes)} passes")
    moves = [coder.moves(*one, gradient, penalty) for one, gradient in zip(coder.passes, gradients)]
    moves = [tf.where(checkerboard_mask(move, turn), move, 0.0) for move in moves]
    # `given` is `analysed` cut into passes, times the gains: its gradient puts moves where they belong.
    gains = tape.gradient(given, analysed, [tf.ones_like(latent) for latent in given])
    return loss, tf.ensure_shape(analysed + tape.gradient(given, analysed, moves) / gains**2, analysed.shape), slopes


def _loss(codec, images: tf.Tensor, analysed: tf.Tensor, controls: dict[str, tf.Tensor]) -> tf.Tensor:
    """The loss of the files of latents, [B]."""
    coder = TableRate(codec.bank)
    decoded = codec.code(coder, analysed, tf.shape(images)[:3], **controls)

    def restored(original, weights, *latents):
        return restored_images(codec, original, tf.nest.pack_sequence_as(decoded, latents), weights)

    return _loss_of(codec, images, in_tiles(codec, restored, images, decoded, controls, [1]), coder, controls)


def _loss_of(codec, images: tf.Tensor, restored: tf.Tensor, coder, controls) -> tf.Tensor:
    """`_loss` of images that are restored, and of what has counted their bits."""
    bpp = tf.add_n(list(coder.bits.values())) / tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
    return codec.rate_distortion(tf.cast(images, tf.float32), tf.clip_by_value(restored, 0.0, 255.0), bpp, **controls)


def checkerboard_mask(latents: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """The latents [B, H, W, C] that may move in an iteration, bool [H, W, C]: neighbours take turns."""
    rows, columns, channels = (tf.range(size) for size in tf.unstack(tf.shape(latents)[1:]))
    return (rows[:, None, None] + columns[:, None] + channels + turn) % 2 == 0


def restored_images(codec, images: tf.Tensor, decoded, weights: tf.Tensor) -> tf.Tensor:
    """Images behind the filters that their files will hold: what counts is their error there."""
    reconstruction = codec.reconstruct(decoded)
    if not codec.has_filter:
        return reconstruction
    return restoration.apply(reconstruction, restoration.fit(images, tf.stop_gradient(reconstruction), weights)[0])


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
        # The gradient leaves out what later passes predict from it.
        decoded = tf.stop_gradient(super().gaussian(name, latent, parameters))
        self._tape.watch(decoded)
        self.passes.append((latent, decoded, tf.cast(tf.round(decoded - mean), tf.int32), tf.cast(rows, tf.int32)))
        return decoded

    def moves(self, latent: tf.Tensor, decoded: tf.Tensor, symbols: tf.Tensor, rows: tf.Tensor, gradient, penalty):
        """Computes how far each latent of a pass moves: to the middle of an adjacent symbol, or not at all."""
        cost = self.cost(symbols, rows, folded=True)
        best, move = tf.zeros_like(cost), tf.zeros_like(latent)
        for step in (-1, 1):
            saved = cost - self.cost(symbols + step, rows, folded=True) - (step * gradient + penalty)
            move = tf.where(saved > best, decoded + step - latent, move)
            best = tf.maximum(saved, best)
        return move


def gradients_of_error(codec, images: tf.Tensor, decoded, controls: dict[str, tf.Tensor]):
    """Restored images, and the gradients with respect to latents of their weighted squared error, in bits."""

    def gradients(original, weights, *latents):
        original = tf.cast(original, tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(latents)
            restored = restored_images(codec, original, tf.nest.pack_sequence_as(decoded, latents), weights)
            loss = tf.reduce_sum(weights * tf.math.squared_difference(restored, original)) / 3
        return restored, tf.nest.pack_sequence_as(decoded, tape.gradient(loss, latents))

    return in_tiles(codec, gradients, images, decoded, controls, [1, *codec.reach.decoded])


def in_tiles(codec, function, images: tf.Tensor, decoded, controls: dict[str, tf.Tensor], output_cells):
    """`function` of images, what their errors count, and latents; tiles of large images have a filter each."""
    r, parts = codec.reach, tf.nest.flatten(decoded)
    weights = codec.error_weights(tf.shape(images), **controls)
    inputs, cells = [images, weights, *parts], [1, 1, *r.decoded]
    return tiling.in_tiles(function, inputs, cells, output_cells, r.unit, r.synthesis, TILE)
