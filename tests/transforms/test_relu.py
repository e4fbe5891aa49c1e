"""Units that die, leak and begin anew."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from toy import Toy

from models.codec import load_for_training
from transforms import relu
from transforms.elic import ResidualBottleneck
from transforms.exact import Conv, EntropyNet

X = tf.constant([[-2.0, -0.5, 0.0, 0.5, 3.0]])
DEAD = [0, 3]


def slopes(leaking):
    with tf.GradientTape() as tape:
        tape.watch(X)
        if leaking:
            with relu.leaking():
                y = relu.relu(X)
        else:
            y = relu.relu(X)
    return y, tape.gradient(y, X).numpy()


@pytest.mark.parametrize("leaking", [False, True])
def test_it_is_a_relu_whether_it_leaks_or_not(leaking):
    y, slope = slopes(leaking)
    np.testing.assert_array_equal(y, np.maximum(X, 0))
    leak = relu.LEAK if leaking else 0
    np.testing.assert_allclose(slope, [[leak, leak, leak, 1, 1]], rtol=1e-6)


def test_leaks_end_with_the_context_and_where_they_are_not_wanted():
    with pytest.raises(RuntimeError), relu.leaking():
        raise RuntimeError
    assert slopes(False)[1].min() == 0
    with tf.GradientTape() as tape, relu.leaking():
        tape.watch(X)
        y = relu.relu(X, leaks=False)
    assert tape.gradient(y, X).numpy().min() == 0


def kill(kernel, bias, axis):
    value = np.moveaxis(kernel.numpy(), axis, -1)
    value[..., DEAD] = -np.abs(value[..., DEAD])
    kernel.assign(np.moveaxis(value, -1, axis))
    low = bias.numpy()
    low[DEAD] = -1e3
    bias.assign(low)


def bottleneck():
    layer = ResidualBottleneck(16)
    layer.build([None, None, None, 16])
    return layer, layer.spatial.kernel, layer.spatial.bias, -1


def net(*convs, layer=0):
    made = EntropyNet(16, [*convs, Conv(6, 3)])
    made.build()
    return made, made.kernels[layer], made.biases[layer], convs[layer].output_axis()


MAKERS = {
    "bottleneck": bottleneck,
    "convolution": lambda: net(Conv(8, 5)),
    "up": lambda: net(Conv(8, 5, up=2)),
    "before up": lambda: net(Conv(8, 3), Conv(5, 5, up=2)),
    "masked": lambda: net(Conv(8, masked=True)),
    "second": lambda: net(Conv(8, 3), Conv(12), layer=1),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_dead_units_are_found_and_begin_anew(make):
    """...without a change of what is computed, and from then on with something to say."""
    tf.keras.utils.set_random_seed(1)
    layer, kernel, bias, axis = make()
    x = tf.random.normal([2, 8, 8, 16])

    def census():
        with relu.watching() as seen:
            y = layer(x)
        return relu.Census(seen), y.numpy()

    alive, _ = census()
    assert alive.dead == 0 and alive.units >= 8
    kill(kernel, bias, axis)
    dead, before = census()
    assert (dead.dead, dead.units) == (len(DEAD), alive.units)
    others = [v.numpy() for v in layer.variables]
    dead.revive()
    again, after = census()
    assert again.dead == 0
    np.testing.assert_allclose(after, before, atol=1e-5)
    rest = [n for n in range(bias.shape[0]) if n not in DEAD]
    for old, variable in zip(others, layer.variables):
        if variable is kernel or variable is bias:
            where = axis if variable is kernel else -1
            same = np.take(old, rest, where), np.take(variable.numpy(), rest, where)
            np.testing.assert_array_equal(*same)


def test_nothing_is_watched_afterwards():
    layer, *_ = bottleneck()
    with relu.watching() as seen:
        layer(tf.zeros([1, 2, 2, 16]))
    assert len(seen) == 2
    layer(tf.ones([1, 2, 2, 16]))
    assert all(len(loudest) == 1 for _, loudest in seen.values())


@pytest.mark.parametrize("leaking", [False, True])
def test_dead_units_come_back_in_training_if_gradients_leak(leaking):
    """All of a layer, as it was in context networks of weights that shipped."""
    tf.keras.utils.set_random_seed(1)
    layer = EntropyNet(4, [Conv(8, 3), Conv(8), Conv(2, 3)])
    x, wanted = tf.random.normal([4, 8, 8, 4]), tf.random.normal([4, 8, 8, 2])
    layer.build()
    layer.kernels[1].assign(0 * layer.kernels[1])
    layer.biases[1].assign(0 * layer.biases[1] - 0.01)
    optimizer = tf.keras.optimizers.Adam(1e-2)
    for _ in range(10):
        with tf.GradientTape() as tape, relu.leaking() if leaking else contextlib.nullcontext():
            loss = tf.reduce_mean((layer(x) - wanted) ** 2)
        optimizer.minimize(loss, layer.trainable_variables, tape=tape)
    with relu.watching() as seen:
        layer(x)
    alive = relu.Census(seen).units - relu.Census(seen).dead
    assert (alive > 8) == leaking


def test_codecs_learn_with_leaks_and_compute_without():
    noted = []

    class Spy(Toy):
        def losses(self, images, training):
            noted.append((training, relu._leaks))
            return super().losses(images, training)

    codec = Spy()
    codec.compile(optimizer=tf.keras.optimizers.Adam(1e-3), run_eagerly=True)
    images = np.zeros([1, 8, 8, 3], np.float32)
    codec.train_on_batch(images)
    codec.test_on_batch(images)
    assert noted == [(True, True), (False, False)]


def test_a_codec_counts_its_dead_units(tiny_weights, crop):
    codec = load_for_training(tiny_weights)
    census = codec.census(crop(64, 96)[None])
    layer = codec.channel_contexts[-1]
    alive = census.units - census.dead
    layer.biases[0].assign(layer.biases[0] - 1e4)
    fewer = codec.census(crop(64, 96)[None])
    assert fewer.units == census.units > 100
    assert alive - (fewer.units - fewer.dead) >= layer.biases[0].shape[0] / 2
