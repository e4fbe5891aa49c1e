"""CompressNet's transforms: shapes, widths, sharing, how they begin, what depends on the whole image."""

import numpy as np
import pytest
import tensorflow as tf

from transforms.networks import sae


def noise(*shape):
    return tf.constant(np.random.default_rng(3).normal(size=shape).astype(np.float32))


SWITCHING = {"sae": ["none"] * 4, "swwae": ["true"] * 4, "sae_spn": ["none"] * 3 + ["predicted"]}
WIDTHS = (4, 8, 8, 8, 16)


@pytest.mark.parametrize("variant", SWITCHING)
@pytest.mark.parametrize("norm", sae.NORMS)
def test_shapes_and_gradients(variant, norm):
    encoder, decoder = sae.Encoder(WIDTHS, 4, norm), sae.Decoder(WIDTHS, 4, 2, norm, SWITCHING[variant])
    latents, maps = encoder(noise(1, 32, 64, 3))
    assert latents.shape == (1, 2, 4, 4)
    shapes = [(1, 32 >> k, 64 >> k, w) for k, w in enumerate(WIDTHS[:-1])]
    assert [m.shape for m in maps] == shapes
    switch = [tf.zeros([1, s[1] // 2, s[2] // 2, s[3]], tf.int32) for s in reversed(shapes)]
    with tf.GradientTape() as tape:
        image, made, logits = decoder(noise(1, 2, 4, 4), switch if variant == "swwae" else ())
        predicted = [tf.reduce_sum(x * noise(*x.shape)) for x in logits if x is not None]
        loss = tf.add_n([tf.reduce_sum(image * noise(*image.shape)), *predicted])
    assert image.shape == (1, 32, 64, 3) and float(tf.reduce_max(tf.abs(image))) <= 1
    assert [m.shape for m in reversed(made)] == shapes
    assert [x is not None for x in logits] == [kind == "predicted" for kind in SWITCHING[variant]]
    gradients = tape.gradient(loss, decoder.trainable_variables)
    assert not [v.name for g, v in zip(gradients, decoder.trainable_variables) if g is None]


def test_pixel_shuffles_begin_by_repeating_pixels():
    tf.keras.utils.set_random_seed(2)
    kernel = sae.ICNR()([3, 3, 5, 8])
    assert kernel.shape == (3, 3, 5, 8) and np.unique(kernel).size == 90
    y = tf.nn.depth_to_space(tf.nn.conv2d(noise(1, 4, 6, 5), kernel, 1, "SAME"), 2).numpy()
    np.testing.assert_array_equal(y, np.repeat(np.repeat(y[:, ::2, ::2], 2, 1), 2, 2))


@pytest.mark.parametrize("norm", sae.NORMS)
def test_every_shuffle_of_the_decoder_begins_so(norm):
    """Also behind the residual blocks and the normalisation."""
    decoder = sae.Decoder(WIDTHS, 4, 3, norm, SWITCHING["sae"])
    decoder.build()
    x = decoder.layers[1](decoder.layers[0](noise(1, 2, 4, 4)))
    for layer in decoder.layers[2:-1]:
        y = layer.shuffle(x).numpy()
        np.testing.assert_allclose(y, np.repeat(np.repeat(y[:, ::2, ::2], 2, 1), 2, 2), atol=1e-5)
        assert y.std() > 0.01
        x = layer(x)[0]


def test_residual_blocks_share_their_weights():
    sizes = []
    for count in (1, 9):
        blocks = sae.SharedBlocks(8, count, "channel", icnr=False)
        blocks.build(tf.TensorShape([None, None, None, 8]))
        sizes.append(blocks.count_params())
    assert sizes[0] == sizes[1] == 2 * (9 * 8 * 8 + 8 + 2 * 8)


def test_widths_of_the_paper():
    encoder = sae.Encoder((60, 120, 240, 480, 960), 8, "instance")
    encoder.build()
    convs = [(49, 3, 60), (9, 60, 120), (9, 120, 240), (9, 240, 480), (9, 480, 960), (9, 960, 8)]
    assert encoder.count_params() == sum(taps * i * o + 3 * o for taps, i, o in convs)


def test_only_channel_normalisation_knows_no_size():
    """The latents of a corner, given the whole image and given a crop that holds all they see."""
    picture = np.random.default_rng(5).uniform(-1, 1, [1, 128, 128, 3]).astype(np.float32)
    picture[:, 64:] *= 0.2
    differences = {}
    for norm in sae.NORMS:
        encoder = sae.Encoder(WIDTHS, 4, norm)
        whole, part = (encoder(tf.constant(x))[0][0, 0, 0] for x in (picture, picture[:, :96, :96]))
        differences[norm] = float(tf.reduce_max(tf.abs(whole - part)))
    assert differences["channel"] < 1e-4 < 0.01 < differences["instance"]
