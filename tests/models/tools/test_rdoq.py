"""Symbols that are chosen by rate and distortion, `models/tools/rdoq.py`."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from variants import gain, with_config

from models import sft
from models.codec import coding, load, weights
from models.codec.distortion import MS_SSIM
from models.elic import ELIC, PRESETS
from models.entropy.coders import TableRate
from models.tools import rdoq, restoration

MEDIUM, SFT = (weights.SHIPPED / name for name in ("elic/medium.safetensors", "sft/small.safetensors"))


@pytest.fixture(scope="module")
def medium():
    return load(MEDIUM)


def prepared(codec, crop, quality, height=128, width=160):
    """A batch of one image, controls, and latents as two analyses give them."""
    images = tf.cast(crop(height, width)[None], tf.float32)
    _, controls = codec.rate_control.from_args([1, height, width], quality=quality)
    controls = codec.pad_controls(controls)
    return images, controls, coding.refine_analysis(codec, images, controls)


@pytest.mark.parametrize("path, quality", [(MEDIUM, 1), (SFT, 0)])
def test_files_are_what_was_estimated(path, quality, tmp_path, crop):
    choosing, image = load(path), crop(130, 190)
    data = choosing.compress(image, quality=quality)
    _, controls = choosing.rate_control.from_args([1, 130, 190], quality=quality)
    estimate, bits = choosing(tf.constant(image[None]), **controls)
    assert np.abs(choosing.decompress(data).astype(float) - estimate[0]).max() <= 0.51
    assert 8 * len(data) == pytest.approx(float(tf.add_n(list(bits.values()))[0]), rel=0.05, abs=250)
    # What reads it need not know of it: the format and the weights are the same.
    plain = with_config(path, tmp_path, rdoq=0.0)
    assert data != plain.compress(image, quality=quality)
    np.testing.assert_array_equal(plain.decompress(data), choosing.decompress(data))


@pytest.mark.parametrize(
    "path, quality, restoration, least",
    [
        (MEDIUM, 1, False, 0.005),
        (MEDIUM, 3, False, 0.0),
        (MEDIUM, 6, False, 0.0),
        (SFT, 0, False, 0.005),
        (SFT, 1, False, 0.0),
        (MEDIUM, 1, True, 0.005),
        (MEDIUM, 5, True, 0.005),
    ],
)
def test_it_pays(crop, tmp_path, path, quality, restoration, least):
    """By the loss, with the filter behind it and without."""
    plain, choosing = ({"restoration": restoration, "rdoq": bits} for bits in (0.0, load(path).rdoq))
    assert gain(path, tmp_path, crop(128, 192), quality, plain, choosing) >= least


def one_iteration(codec, *arguments):
    return rdoq._iteration(codec, functools.partial(rdoq.gradients_of_error, codec), *arguments)


def after_iteration(codec, images, latents, controls, turn=0):
    """Latents after one round that knows of none before."""
    slopes = tf.nest.map_structure(tf.zeros_like, codec.unquantised(latents, **controls))
    return one_iteration(codec, images, latents, controls, turn, codec.rdoq, 0.0, slopes)[1]


def passes_of(codec, analysed, images, controls):
    with tf.GradientTape() as tape:
        coder = rdoq._Passes(codec.bank, tape)
        codec.code(coder, analysed, tf.shape(images)[:3], **controls)
    return coder.passes


@pytest.mark.parametrize("path, quality", [(MEDIUM, 1), (SFT, 0)])
def test_what_moves_goes_to_the_middle_of_a_neighbour(path, quality, crop):
    codec = load(path)
    images, controls, before = prepared(codec, crop, quality, 192, 256)
    after = after_iteration(codec, images, before, controls)
    moved = 0
    for (latent, decoded, *_), (now, *_) in zip(*(passes_of(codec, x, images, controls) for x in (before, after))):
        changed = np.abs(now - latent) > 1e-3
        moved += np.count_nonzero(changed)
        np.testing.assert_allclose(np.abs(now - decoded)[changed], 1, atol=1e-3)
    assert moved == np.count_nonzero(np.abs(after - before) > 1e-6) > 0


def test_moves_are_those_that_pay(medium):
    random = np.random.default_rng(0)
    symbols, rows = random.integers(-3, 4, [1, 4, 4, 20]), random.integers(0, 40, [1, 4, 4, 20])
    gradient = random.normal(0, 12, symbols.shape).astype(np.float32)
    latent = (symbols + random.uniform(-0.5, 0.5, symbols.shape)).astype(np.float32)
    with tf.GradientTape() as tape:
        coder = rdoq._Passes(medium.bank, tape)
    arguments = (tf.constant(symbols, tf.float32), tf.constant(symbols, tf.int32), tf.constant(rows, tf.int32))
    moves = coder.moves(latent, *arguments, gradient, 6.0).numpy()

    def bits(symbol, row):
        return float(coder.cost(tf.constant([symbol]), tf.constant([row]), folded=True)[0])

    taken = set()
    for place in np.ndindex(symbols.shape):
        k, row = int(symbols[place]), int(rows[place])
        change = {s: bits(k + s, row) - bits(k, row) + s * gradient[place] + 6.0 for s in (-1, 1)}
        best = min(change, key=change.get)
        taken.add(best if change[best] < 0 else 0)
        expected = k + best - latent[place] if change[best] < 0 else 0.0
        assert moves[place] == pytest.approx(expected, abs=1e-5)
    assert taken == {-1, 0, 1}


def test_it_is_never_worse_than_rounding(medium, crop):
    """Whatever is asked of it: too eager moves are not taken."""
    images, controls, before = prepared(medium, crop, 5)
    eager = load(MEDIUM)
    eager.config = dataclasses.replace(medium.config, rdoq=0.1)
    moved = after_iteration(eager, images, before, controls)
    loss_before, loss_moved = (rdoq._loss(eager, images, x, controls) for x in (before, moved))
    assert loss_moved > loss_before
    np.testing.assert_array_equal(rdoq.optimise_symbols(eager, images, before, controls, 6), before)


def test_rounds_are_shown_as_they_go_and_the_same_in_a_graph(crop, monkeypatch, tiny_weights, tmp_path):
    codec, seen, count = with_config(tiny_weights, tmp_path, rdoq=4.0), [], 3
    monkeypatch.setattr(rdoq, "GRAPH_FROM", count)

    def show(turns):
        for turn in turns:
            yield turn
            seen.append(turn)

    images, controls, before = prepared(codec, crop, None)
    shown = rdoq.optimise_symbols(codec, images, before, controls, count, show)
    assert seen == list(range(count))
    traced = tf.function(rdoq.optimise_symbols, autograph=False)(codec, images, before, controls, count)
    assert len(seen) == count
    moved = [np.abs(after - before) > 1e-3 for after in (shown, traced)]
    assert np.mean(moved[0]) > 0.001 and np.mean(moved[0] != moved[1]) < 0.05 * np.mean(moved[0])


def test_graphs_are_made_where_they_are_worth_it(crop, monkeypatch, tiny_weights, tmp_path):
    """...and by any way the symbols are the same, but for what rounding decides."""
    monkeypatch.setattr(rdoq, "GRADIENT_GRAPH_FROM", 2)
    monkeypatch.setattr(rdoq, "GRAPH_FROM", 3)
    codec, chosen = with_config(tiny_weights, tmp_path, rdoq=4.0), []
    images, controls, before = prepared(codec, crop, None)
    for rounds, graphs in (
        (rdoq.GRADIENT_GRAPH_FROM - 1, set()),
        (rdoq.GRADIENT_GRAPH_FROM, {"gradients"}),
        (rdoq.GRAPH_FROM, {"gradients", "iteration"}),
    ):
        rdoq.optimise_symbols(codec, images, before, controls, rounds)
        assert graphs == {name for name in ("gradients", "iteration") if name in vars(codec.rdoq_graphs)}
    slopes = tf.zeros_like(codec.unquantised(before, **controls))
    arguments = images, before, controls, tf.constant(0), tf.constant(9.0), tf.constant(0.0), slopes
    graphs = codec.rdoq_graphs
    ways = (
        functools.partial(one_iteration, codec),
        functools.partial(rdoq._iteration, codec, graphs.gradients),
        graphs.iteration,
    )
    for one in ways:
        chosen.append(np.abs(one(*arguments)[1] - before) > 1e-3)
    assert chosen[0].mean() > 0.001
    assert all(np.mean(other != chosen[0]) < 0.02 * chosen[0].mean() for other in chosen[1:])


def test_what_does_not_pay_at_all_stays(medium, crop):
    images, controls, before = prepared(medium, crop, 4)
    reluctant = load(MEDIUM)
    reluctant.config = dataclasses.replace(medium.config, rdoq=1e6)
    np.testing.assert_allclose(rdoq.optimise_symbols(reluctant, images, before, controls, 6), before, atol=1e-5)


def test_the_gradient_is_that_of_the_error(medium, crop):
    """By finite differences, of the latents in which the image is decoded. It is the error behind the filter."""
    images, controls, analysed = prepared(medium, crop, 3, 64, 64)
    decoded = medium.code(TableRate(medium.bank), analysed, tf.shape(images)[:3], **controls)
    weights_ = medium.error_weights(tf.shape(images), **controls)
    filters, _ = restoration.fit(images, medium.reconstruct(decoded), weights_)
    assert np.any(filters)
    restored, gradient = rdoq.gradients_of_error(medium, images, decoded, controls)
    np.testing.assert_allclose(restored, restoration.apply(medium.reconstruct(decoded), filters), atol=1e-3)

    def error(latents):
        picture = tf.cast(restoration.apply(medium.reconstruct(latents), filters), tf.float64)
        return float(tf.reduce_sum(tf.cast(weights_, tf.float64) * (picture - tf.cast(images, tf.float64)) ** 2) / 3)

    direction = gradient / tf.norm(gradient)
    slope = (error(decoded + 0.01 * direction) - error(decoded - 0.01 * direction)) / 0.02
    assert slope == pytest.approx(float(tf.norm(gradient)), rel=0.02)


def test_tiles_give_nearly_the_same(medium, crop, monkeypatch, tmp_path):
    """Gradients near the seams see less than all of the image that a latent shows in, and filters are of a tile."""
    images, controls, analysed = prepared(medium, crop, 3, 192, 256)
    unfiltered = with_config(MEDIUM, tmp_path, restoration=False)
    whole = after_iteration(unfiltered, images, analysed, controls)
    monkeypatch.setattr(rdoq, "TILE", 128)
    tiles = after_iteration(unfiltered, images, analysed, controls)
    moved = np.abs(whole - analysed) > 1e-6
    assert np.mean((np.abs(tiles - analysed) > 1e-6) != moved) < 0.1 * np.mean(moved)
    tiles = after_iteration(medium, images, analysed, controls)
    assert rdoq._loss(medium, images, tiles, controls) < rdoq._loss(medium, images, analysed, controls)


def test_neighbours_take_turns(medium, crop):
    images, controls, before = prepared(medium, crop, 2)
    for turn in (0, 1):
        mine = np.indices(before.shape[1:]).sum(0) % 2 == turn
        np.testing.assert_array_equal(rdoq.checkerboard_mask(before, turn), mine)
    even, odd = (np.abs(after_iteration(medium, images, before, controls, turn) - before) > 1e-6 for turn in (0, 1))
    assert np.any(even) and np.any(odd) and not np.any(even & odd)


def test_reluctance_grows_from_round_to_round():
    np.testing.assert_allclose(rdoq._penalties(10.0, 1), [10.0])
    np.testing.assert_allclose(rdoq._penalties(10.0, 3), 10 - 10 * rdoq.PENALTY_STEP * np.array([2, 1, 0]))
    many = rdoq._penalties(10.0, 50)
    assert many[0] == pytest.approx(10 * rdoq.PENALTY_START) and many[-1] == 10 and np.all(np.diff(many) > 0)


def test_memory_grows_in_many_rounds():
    np.testing.assert_allclose(rdoq._momenta(1), [0.0])
    np.testing.assert_allclose(rdoq._momenta(4), [0.0, *[rdoq.MOMENTUM_MIN] * 3])
    many = rdoq._momenta(50)
    assert many[0] == 0 and many[1] > rdoq.MOMENTUM_MIN and many[-1] == rdoq.MOMENTUM_MAX and np.all(np.diff(many) > 0)


def test_rounds_remember_the_slopes_of_those_before(medium, crop):
    images, controls, latents = prepared(medium, crop, 3)
    old = tf.random.stateless_normal(latents.shape, [0, 1], 0, 50.0)
    loss, _, first = one_iteration(medium, images, latents, controls, 0, medium.rdoq, 0.0, old)
    _, _, later = one_iteration(medium, images, latents, controls, 1, medium.rdoq, 0.4, old)
    decoded = medium.code(TableRate(medium.bank), latents, tf.shape(images)[:3], **controls)
    now = rdoq.gradients_of_error(medium, images, decoded, controls)[1]
    np.testing.assert_allclose(first, now, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(later, 0.4 * old + 0.6 * now, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(loss, rdoq._loss(medium, images, latents, controls), rtol=1e-5)


def test_memory_and_eagerness_pay(medium, crop, monkeypatch):
    """...in the mean of the qualities: on one image at one of them chance can be larger than what they bring."""
    cases = [prepared(medium, crop, quality, 128, 160) for quality in (1, 3, 5)]

    def log_loss():
        chosen = [rdoq.optimise_symbols(medium, images, latents, controls, 6) for images, controls, latents in cases]
        losses = [rdoq._loss(medium, case[0], latents, case[1]) for case, latents in zip(cases, chosen)]
        return np.mean(np.log(losses))

    annealed = log_loss()
    monkeypatch.setattr(rdoq, "PENALTY_START", 1.0)
    remembering = log_loss()
    monkeypatch.setattr(rdoq, "_momenta", np.zeros)
    assert annealed < remembering < log_loss()


def test_a_batch_is_worked_through_picture_by_picture(medium, crop):
    images, controls, analysed = prepared(medium, crop, 3)
    other = tf.reverse(images, [2])
    pair = tf.concat([images, other], 0)
    both = {name: tf.concat([value, value], 0) for name, value in controls.items()}
    together = after_iteration(medium, pair, coding.refine_analysis(medium, pair, both), both)[0]
    alone = after_iteration(medium, images, analysed, controls)[0]
    assert np.mean(np.abs(together - alone) > 1e-3) < 1e-3


def test_which_weights_have_it():
    assert PRESETS["base"].rdoq == 0  # the paper's
    assert load(MEDIUM).rdoq == PRESETS["medium"].rdoq > 0
    assert load(SFT).rdoq == sft.PRESETS["small"].rdoq > 0
    codec = ELIC(dataclasses.replace(PRESETS["small"], widths=(8, 8, 8)))
    codec.set_distortion(MS_SSIM)  # it counts squared errors
    assert codec.rdoq == 0


def test_who_compresses_needs_the_synthesis(golden_weights, tmp_path):
    choosing = with_config(golden_weights("elic"), tmp_path, rdoq=8.0)
    assert load(choosing.path, synthesis=False).decodes


def test_traced_works_for_images_of_any_size(tiny_weights, tmp_path, crop):
    codec = with_config(tiny_weights, tmp_path, rdoq=1.0)
    codec.trace()
    for height, width in ((48, 64), (64, 48), (32, 96)):
        image = crop(height, width)
        assert codec.decompress(codec.compress(image)).shape == image.shape
