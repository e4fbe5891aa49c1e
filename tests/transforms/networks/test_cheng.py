"""Shapes of ELC's transforms, and what their parts are to do."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.networks import cheng

PARTS = {
    "sub-pixel": (lambda: cheng.SubPixelConv(5), (2, 3, 4, 8), (2, 6, 8, 5)),
    "block": (lambda: cheng.ResidualBlock(8), (2, 5, 7, 8), (2, 5, 7, 8)),
    "down": (lambda: cheng.ResidualDown(6), (2, 4, 6, 8), (2, 2, 3, 6)),
    "up": (lambda: cheng.ResidualUp(6), (2, 4, 6, 8), (2, 8, 12, 6)),
    "analysis": (lambda: cheng.analysis(8), (1, 32, 48, 3), (1, 2, 3, 8)),
    "synthesis": (lambda: cheng.synthesis(8), (1, 2, 3, 8), (1, 32, 48, 3)),
    "hyper_analysis": (lambda: cheng.hyper_analysis(8), (1, 8, 4, 8), (1, 2, 1, 8)),
}


@pytest.mark.parametrize("name", PARTS)
def test_shapes(name):
    make, shape, expected = PARTS[name]
    layer = make()
    y = layer(tf.random.stateless_normal(shape, [1, 2]))
    assert y.shape == expected and np.all(np.isfinite(y)) and np.std(y) > 0
    if name in ("sub-pixel", "block", "down", "up"):
        assert layer.compute_output_shape(tf.TensorShape(shape)) == expected


def test_sub_pixel_is_a_convolution_and_a_shuffle():
    layer = cheng.SubPixelConv(2)
    x = tf.random.stateless_normal([1, 3, 4, 5], [3, 4])
    y = layer(x).numpy()
    plain = tf.nn.conv2d(x, layer.kernel, 1, "SAME").numpy() + layer.bias.numpy()
    for phase in range(4):
        np.testing.assert_allclose(
            y[:, phase // 2 :: 2, phase % 2 :: 2], plain[..., 2 * phase : 2 * phase + 2], rtol=1e-4, atol=1e-5
        )


def test_stages_are_those_of_the_synthesis():
    """With its weights, and its last layer behind them, they give its image."""
    synthesis, stages = cheng.synthesis(8), cheng.SynthesisStages(8)
    x = tf.random.stateless_normal([1, 2, 3, 8], [5, 6])
    picture, _ = synthesis(x), stages(x)
    assert len(stages.layers) == len(synthesis.layers) - 1 == cheng.STAGE_ENDS[-1]
    for mine, theirs in zip(stages.layers, synthesis.layers):
        mine.set_weights(theirs.get_weights())
    features = stages(x)
    assert [tuple(y.shape) for y in features] == [(1, 2 * 2**k, 3 * 2**k, 8) for k in range(4)]
    np.testing.assert_allclose(synthesis.layers[-1](features[-1]), picture, rtol=1e-4, atol=1e-5)


def test_every_part_of_a_block_is_trained():
    """Both convolutions, the GDN and the skip: what Keras does not find is neither trained nor saved."""
    for make, count in ((cheng.ResidualBlock, 4), (cheng.ResidualDown, 8), (cheng.ResidualUp, 8)):
        layer = make(6)
        layer.build(tf.TensorShape([None, None, None, 6]))
        assert len(layer.trainable_variables) == count


def test_widths_of_the_paper():
    analysis = cheng.analysis(192)
    analysis.build()
    kernels = [v.shape for v in analysis.trainable_variables if len(v.shape) == 4]
    assert kernels[0] == (3, 3, 3, 192)
    assert all(192 in (s[2], s[3]) or 96 in (s[2], s[3]) for s in kernels)
