"""What contexts see, and that seeing more costs fewer bits."""

import numpy as np
import tensorflow as tf

from eval.studies import elc_context
from models.entropy.coders import EntropyModels


def seen(predictor, position) -> set[tuple[int, int]]:
    """The positions whose y_hat moves the prediction at `position`."""
    y_hat, z_hat = tf.random.normal([1, 8, 8, 8]), tf.zeros([1, 2, 2, 8])
    predictor((y_hat, z_hat))
    with tf.GradientTape() as tape:
        tape.watch(y_hat)
        means, _ = predictor((y_hat, z_hat))
        value = tf.reduce_sum(means[0, position[0], position[1]])
    gradient = tape.gradient(value, y_hat)
    if gradient is None:
        return set()
    return {tuple(map(int, where)) for where in np.argwhere(np.any(gradient[0].numpy() != 0, -1))}


def test_what_is_seen_is_what_is_decoded(tiny_elc):
    tf.keras.utils.set_random_seed(0)
    config = tiny_elc.config
    near = {(r, c) for r in range(2, 7) for c in range(2, 7)}
    predictors = {kind: elc_context.Predictor(config, kind) for kind in elc_context.KINDS}
    for kind, anchor, other in (
        ("none", set(), set()),
        ("checkerboard", set(), {(r, c + 1) for r, c in near if (r + c) % 2 == 1}),
        ("serial", {(r, c) for r, c in near if (r, c) < (4, 4)}, {(r, c + 1) for r, c in near if (r, c) < (4, 4)}),
    ):
        assert seen(predictors[kind], (4, 4)) == anchor
        assert seen(predictors[kind], (4, 5)) == {(r, c) for r, c in other if c < 8}


def test_contexts_save_bits_where_neighbours_are_alike(tiny_elc):
    """Latents that are the same in all of a 4x4 neighbourhood, and hyper-latents that say nothing."""
    n = tiny_elc.config.width
    field = tf.repeat(tf.repeat(tf.random.stateless_normal([64, 4, 4, n], [1, 2]), 4, 1), 4, 2) * 6
    z_hat = tf.zeros([64, 4, 4, n])
    density = EntropyModels(n).latent
    bits = {}
    for kind in elc_context.KINDS:
        tf.keras.utils.set_random_seed(0)
        predictor = elc_context.Predictor(tiny_elc.config, kind)
        elc_context.train(predictor, density, field[:48], z_hat[:48], steps=100, batch=8, rate=4e-3)
        means, rows = predictor((tf.round(field[48:]), z_hat[48:]))
        bits[kind] = float(tf.reduce_sum(density(field[48:], rows, loc=means, training=False)[1]))
    assert bits["serial"] < bits["checkerboard"] < 0.95 * bits["none"]
