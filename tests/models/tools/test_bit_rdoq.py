"""RDOQ for bits: what flips, and what files are worth then."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.codec import load
from models.codec.options import EncoderOptions
from models.entropy.coders import TableRate
from models.tools import bit_rdoq


@pytest.fixture
def codec(tiny_cwic_weights):
    codec = load(tiny_cwic_weights)
    codec.config = dataclasses.replace(codec.config, rdoq=0.01)
    return codec


@pytest.fixture
def padded(codec, crop):
    return codec.pad(tf.constant(np.stack([crop(72, 96), crop(72, 96, 200)]), tf.float32))


def loss(codec, padded, analysed) -> np.ndarray:
    coder = TableRate(codec.bank)
    decoded = codec.code(coder, analysed, tf.shape(padded)[:3])
    error = tf.reduce_mean((tf.clip_by_value(codec.reconstruct(decoded), 0, 255) - padded) ** 2, [1, 2, 3])
    bpp = tf.add_n(list(coder.bits.values())) / (padded.shape[1] * padded.shape[2])
    return (bpp + codec.rdoq * error).numpy()


def test_flips_lower_the_loss_of_each_image(codec, padded):
    analysed = codec.analyse(padded)
    bits, importance = bit_rdoq.optimise_bits(codec, padded, analysed, {}, 6)
    assert importance is analysed[1] and set(np.unique(bits)) == {0, 1}
    assert np.mean(bits != analysed[0]) > 0.005
    assert np.all(loss(codec, padded, (bits, importance)) < loss(codec, padded, analysed))


def test_a_graph_flips_the_same(codec, padded):
    analysed = codec.analyse(padded)
    graph = tf.function(lambda *inputs: bit_rdoq.optimise_bits(codec, *inputs, {}, 2)[0], autograph=False)
    eager = bit_rdoq.optimise_bits(codec, padded, analysed, {}, 2)[0]
    assert np.mean(graph(padded, analysed) != eager) < 0.002


def test_nothing_flips_where_nothing_is_asked_for(codec, padded):
    analysed = codec.analyse(padded)
    assert bit_rdoq.optimise_bits(codec, padded, analysed, {}, 0) is analysed
    codec.config = dataclasses.replace(codec.config, rdoq=0.0)
    assert bit_rdoq.optimise_bits(codec, padded, analysed, {}, 3) is analysed


def test_one_bit_of_a_position_flips_in_a_turn_and_those_far_apart(codec, padded):
    bits, importance = codec.analyse(padded)
    _, flipped, tried = bit_rdoq.turn(codec, padded, bits, [importance], {}, tf.constant(4), tf.zeros_like(bits))
    changed = np.argwhere((flipped != bits).numpy())
    assert len(changed) and len({tuple(place[:3]) for place in changed}) == len(changed)
    assert np.all(changed[:, 1:3] % bit_rdoq.SPACING == 1)
    assert not np.any((tried > 0) & (flipped != bits))


def test_bits_that_are_not_kept_stay(codec, padded):
    bits, importance = codec.analyse(padded)
    none = tf.zeros_like(importance)
    flipped, _ = bit_rdoq.optimise_bits(codec, padded, (bits, none), {}, 3)
    np.testing.assert_array_equal(flipped, bits)


def test_files_of_a_search_decode(codec, crop):
    image = crop(50, 70)
    plain, searched = (codec.compress(image, EncoderOptions(effort=effort)) for effort in (0, 3))
    assert plain != searched and codec.decompress(searched).shape == image.shape
