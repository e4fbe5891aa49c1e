"""Transforms of patches: all of the work at 1/8 and 1/16 of the resolution."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.elic import ELIC, Config
from transforms import patches

TINY = Config((8, 8, 8), (4, 12), 4, (8, 8), 8, (8, 8), 8, patch_widths=(16, 8), patch_blocks=(1, 1))


def begun(width: int, latents: int, step: float = 1.0):
    pair = [make((width, 8), (1, 1), latents) for make in (patches.analysis, patches.synthesis)]
    patches.begin(*pair, step)
    return pair


@pytest.mark.parametrize("width", [192, 200])
@pytest.mark.parametrize("step", [1.0, 0.25])
def test_a_linear_start_with_all_components_is_the_picture(photograph, width, step):
    analysis, synthesis = begun(width, 768, step)
    images = tf.constant(photograph[None, :48, :80] / 255, tf.float32)
    y = analysis(images)
    assert y.shape == [1, 3, 5, 768]
    np.testing.assert_allclose(synthesis(y), images, atol=1e-4)
    assert float(tf.reduce_sum(y**2)) == pytest.approx(float(tf.reduce_sum(images**2)) / step**2, rel=1e-3)


def test_fewer_components_are_the_most_of_it(photograph):
    images = tf.constant(photograph[None] / 255 - 0.5, tf.float32)

    def error(latents):
        analysis, synthesis = begun(192, latents)
        return float(tf.reduce_mean((synthesis(analysis(images)) - images) ** 2))

    few, many = error(16), error(320)
    assert many < 0.05 * few < few < 0.2 * float(tf.reduce_mean(images**2))


@pytest.mark.parametrize("size", [[None, None], [None, 64], [48, 64]])
def test_shapes_for_graphs_of_any_size(size):
    coarse = [n and n // 16 for n in size]
    analysis, synthesis = (make((16, 8), (2, 1), 12) for make in (patches.analysis, patches.synthesis))
    for chain, before, after in ((analysis, [*size, 3], [*coarse, 12]), (synthesis, [*coarse, 12], [*size, 3])):
        chain.build()
        shape = tf.TensorShape([2, *before])
        for layer in chain.layers:
            shape = layer.compute_output_shape(shape)
        assert shape.as_list() == [2, *after]
    assert len([layer for layer in analysis.layers if isinstance(layer, patches.ResidualBlock)]) == 3


def test_a_block_begins_as_the_identity_and_learns():
    block = patches.ResidualBlock(6, 4)
    x = tf.random.normal([1, 4, 4, 6])
    np.testing.assert_array_equal(block(x), x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(x) ** 2)
    gradients = tape.gradient(loss, [block.second.kernel, block.second.bias])
    assert all(np.any(gradient) for gradient in gradients)


def test_elic_begins_with_them(photograph):
    """...linear, as it does with the paper's transforms: rounded latents are a picture already."""
    codec = ELIC(dataclasses.replace(TINY, groups=(16, 304), patch_widths=(192, 16)), (0.003, 0.01))
    codec.start_linear()
    images = tf.cast(photograph[None, :128, :128], tf.float32)
    decoded = codec.reconstruct(tf.round(codec.analyse(images)))
    assert 10 * np.log10(255**2 / np.mean((decoded - images) ** 2)) > 29
    assert not [layer for layer in codec.submodules if "bottleneck" in layer.name]


def test_elic_codes_with_them(crop):
    codec = ELIC(TINY, 0.01)
    codec.build_variables(training=True)
    codec.start_linear()
    codec.prepare(crop(64, 96)[None])
    picture = crop(40, 56)
    decoded = codec.decompress(codec.compress(picture))
    assert decoded.shape == picture.shape
    images = tf.cast(picture[None], tf.float32)
    expected, _ = codec(images)
    np.testing.assert_allclose(decoded[None], expected, atol=1)


def test_a_fit_is_least_squares():
    random = np.random.default_rng(0)
    x, matrix, constant = random.normal(size=[40, 5, 6]), random.normal(size=[6, 3]), random.normal(size=3)
    fit = patches.Fit()
    for some in np.split(x, 4):
        fit.see(some, some @ matrix + constant)
    np.testing.assert_allclose(fit.best().matrix, matrix, atol=1e-4)
    np.testing.assert_allclose(fit.best().constant, constant, atol=1e-4)


@pytest.mark.parametrize("width", [192, 200, 20])
def test_maps_are_what_they_begin_as(photograph, width):
    """...of those channels of each patch that there is room for."""
    random = np.random.default_rng(0)
    forward = patches.Affine(random.normal(size=[768, 5]), random.normal(size=5))
    inverse = patches.Affine(random.normal(size=[5, 768]), random.normal(size=768))
    analysis, synthesis = (make((width, 8), (1, 1), 5) for make in (patches.analysis, patches.synthesis))
    patches.begin_as(analysis, synthesis, forward, inverse)
    images = tf.constant(photograph[None, :48, :80] / 255, tf.float32)
    blocks, kept = patches.blocks_of(images).numpy(), np.tile(np.arange(192) < width, 4)
    y = analysis(images)
    np.testing.assert_allclose(y, (blocks * kept) @ forward.matrix + forward.constant, rtol=1e-3, atol=1e-3)
    shown = patches.blocks_of(synthesis(y)).numpy()
    expected = (y.numpy() @ inverse.matrix + inverse.constant) * kept
    np.testing.assert_allclose(shown, expected, rtol=1e-3, atol=1e-2)


def test_layers_of_many_inputs_learn_more_slowly():
    """...and begin, and compute, as any: only what a step of an optimizer changes is less."""
    tf.keras.utils.set_random_seed(0)
    wide, narrow = patches.Conv(4), patches.Conv(4)
    for layer, inputs in ((wide, 100), (narrow, 10)):
        layer.build([None, None, None, inputs])
        share = patches.unit(layer.kernel.shape)
        assert share == (200 / 900 if inputs == 100 else 1)
        assert np.std(layer.kernel) * share == pytest.approx(np.sqrt(2 / (9 * (inputs + 4))), rel=0.1)
        x = tf.random.normal([1, 5, 6, inputs])
        expected = tf.nn.conv2d(x, layer.kernel * share, 1, "SAME")
        np.testing.assert_allclose(layer(x), expected, atol=1e-5)
        before = layer.kernel * share
        optimizer = tf.keras.optimizers.Adam(1e-3)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        optimizer.minimize(loss, [layer.kernel], tape=tape)
        np.testing.assert_allclose(np.abs(layer.kernel * share - before), 1e-3 * share, rtol=0.02)
