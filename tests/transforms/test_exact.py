"""The integer form of entropy networks: exact everywhere, and close to the float form that was trained."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import tensorflow as tf

from train.devices import precision
from transforms import checkerboard, exact
from transforms.exact import (
    EXACT,
    MEAN_LIMIT,
    MEAN_STEP,
    WEIGHT_LIMIT,
    Conv,
    EntropyNet,
    Fixed,
    LatentInput,
    Output,
    _IntegerConv,
    concat,
    spatially,
    zeros,
)

SCRIPT = Path(__file__).with_name("entropy_path.py")


def _module():
    spec = importlib.util.spec_from_file_location("entropy_path", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


entropy_path = _module()
LAYERS = {
    "1x1": Conv(5),
    "3x3": Conv(5, 3),
    "5x5": Conv(5, 5),
    "transposed 5x5": Conv(5, 5, up=2),
    "transposed 3x3": Conv(5, 3, up=2),
    "masked": Conv(5, masked=True),
}


@pytest.fixture(scope="module")
def path():
    return entropy_path.calibrated()


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- the float form --------------------------------------------------------------------------------------------


def reference(conv, x, kernel):
    """The convolution of a layer by Keras' or TensorFlow's plain ops, on dense kernels."""
    if conv.masked:
        picture = checkerboard.merge(x, tf.zeros_like(x))
        return checkerboard.split(tf.nn.conv2d(picture, checkerboard.dense_kernel(kernel), 1, "SAME"))[1]
    if conv.up == 1:
        return tf.keras.layers.Conv2D(conv.filters, conv.size, padding="same", use_bias=False, weights=[kernel])(x)
    return tf.keras.layers.Conv2DTranspose(
        conv.filters, conv.size, conv.up, padding="same", use_bias=False, weights=[kernel]
    )(x)


@pytest.mark.parametrize("name", LAYERS)
def test_float_layers(name):
    conv, x = LAYERS[name], random(2, 3, 4, 6)
    kernel = random(*conv.kernel_shape(6), seed=1)
    np.testing.assert_allclose(conv(x, kernel), reference(conv, x, kernel), atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_every_weight_learns(name):
    net, x = EntropyNet(6, [Conv(8, 3), LAYERS[name], Conv(4)]), random(2, 6, 6, 6)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(net(x) ** 2)
    assert [v.name.split("/")[-1] for v in net.trainable_variables] == [
        f"{kind}{n}:0" for n in range(3) for kind in ("kernel", "bias")
    ]
    for gradient in tape.gradient(loss, net.trainable_variables):
        assert np.any(gradient.numpy() != 0)


def test_a_masked_layer_has_no_variable_behind_masked_taps():
    net = EntropyNet(3, [Conv(4, masked=True)])
    net(random(1, 4, 4, 3))
    assert [tuple(v.shape) for v in net.trainable_variables] == [(12, 3, 4), (4,)]


def test_activations_keep_their_size_through_the_layers():
    """He's initialisation: neither vanish nor explode, also through transposed and masked layers."""
    tf.keras.utils.set_random_seed(0)
    for convs in ([Conv(64, 5)] * 4, [Conv(64, 5, up=2)] * 3, [Conv(64, masked=True)] * 4, [Conv(64)] * 4):
        y = EntropyNet(64, convs)(random(1, 24, 24, 64))
        assert 0.3 < np.std(y) < 3


# --- the bound -------------------------------------------------------------------------------------------------


def integer_layer(conv, channels, kernel, bias, in_scale, limit):
    layer = _IntegerConv(conv, channels, "layer")
    step = layer.quantise(kernel, bias, in_scale, limit)
    return layer, step


def output_last(conv, kernel):
    return np.swapaxes(kernel, -1, -2) if conv.up > 1 else kernel


ADVERSARIES = {
    "random": lambda shape: random(*shape),
    "all alike": lambda shape: np.ones(shape, np.float32),
    "alternating": lambda shape: np.sign(random(*shape)).astype(np.float32),
    "one loud weight": lambda shape: np.eye(1, int(np.prod(shape)), 7).reshape(shape).astype(np.float32),
    "all zero": lambda shape: np.zeros(shape, np.float32),
    "tiny": lambda shape: 1e-30 * random(*shape),
    "huge": lambda shape: 1e30 * random(*shape),
}


@pytest.mark.parametrize("bias", [0.0, 1.0, -1e7])
@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("name", LAYERS)
def test_no_input_leaves_the_exact_range(name, adversary, bias):
    """The worst input of each channel, in exact integers."""
    conv, channels, limit = LAYERS[name], 96, 255.0
    shape = conv.kernel_shape(channels)
    layer, step = integer_layer(
        conv, channels, ADVERSARIES[adversary](shape), np.full(conv.filters, bias), np.ones(channels), limit
    )
    kernel = output_last(conv, layer.kernel.numpy().astype(np.int64)).reshape(-1, conv.filters)
    worst = np.abs(kernel).sum(0) * int(limit) + np.abs(layer.bias.numpy().astype(np.int64))
    assert np.all(worst < EXACT)
    assert np.all(np.isfinite(step)) and np.all(step > 0)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_worst_input_is_summed_exactly(name, halves):
    conv, channels, limit = LAYERS[name], 200, 255
    kernel = np.ones(conv.kernel_shape(channels), np.float32) - 0.3 * np.abs(random(*conv.kernel_shape(channels)))
    layer, _ = integer_layer(conv, channels, kernel, np.full(conv.filters, 0.5), np.ones(channels), float(limit))
    x = np.random.default_rng(1).integers(limit - 3, limit + 1, [1, 6, 6, channels])
    exact_kernel = layer.kernel.numpy().astype(np.float64)
    expected = conv_float64(conv, x.astype(np.float64), exact_kernel) + layer.bias.numpy()
    assert expected.max() > EXACT / 4  # the range is made use of
    with exact.algorithm_independent(halves):
        np.testing.assert_array_equal(layer.accumulate(tf.constant(x, tf.float32)), expected)


def fft_convolution(conv, x, kernel):
    """`Conv.__call__` by way of a float32 FFT, as libraries of GPUs may do it."""
    size, (_, height, width, _) = conv.size, x.shape
    padded = np.pad(x.numpy()[0], [(size // 2, size // 2)] * 2 + [(0, 0)])
    spectrum = scipy.fft.rfft2(padded, axes=(0, 1))
    kernel = scipy.fft.rfft2(kernel.numpy()[::-1, ::-1], padded.shape[:2], axes=(0, 1))
    assert spectrum.dtype == np.complex64
    summed = scipy.fft.irfft2(np.einsum("hwc,hwco->hwo", spectrum, kernel), padded.shape[:2], axes=(0, 1))
    return tf.constant(summed[None, size - 1 :, size - 1 :][:, :height, :width])


def test_an_algorithm_that_errs_gives_the_same_integers(monkeypatch):
    """Inside `algorithm_independent`; outside of it such sums are others, so that this test can fail."""
    conv, channels = Conv(8, 3), 160
    kernel = np.abs(random(*conv.kernel_shape(channels)))
    layer, _ = integer_layer(conv, channels, kernel, np.zeros(8), np.ones(channels), 255.0)
    x = tf.constant(np.random.default_rng(1).integers(0, 256, [1, 60, 60, channels]), tf.float32)
    expected = layer.accumulate(x).numpy()
    assert np.abs(expected).max() < EXACT
    monkeypatch.setattr(Conv, "__call__", fft_convolution)
    assert np.any(np.round(layer.accumulate(x)) != expected)
    with exact.algorithm_independent():
        np.testing.assert_array_equal(layer.accumulate(x), expected)


def conv_float64(conv, x, kernel):
    """The layer in float64, where integers of this size are exact without any care."""
    with tf.device("/cpu:0"):
        return conv(tf.constant(x), tf.constant(kernel)).numpy()


def test_only_the_channels_that_break_the_bound_are_coarsened():
    channels = 100
    kernel = np.zeros([5, 5, channels, 2], np.float32)
    kernel[..., 0] = 1.0  # 2500 weights at full scale: far too loud
    kernel[0, 0, 0, 1] = 1.0
    layer, step = integer_layer(Conv(2, 5), channels, kernel, np.zeros(2), np.ones(channels), 255.0)
    largest = np.abs(layer.kernel.numpy()).max((0, 1, 2))
    assert largest[1] == WEIGHT_LIMIT
    assert 20 <= largest[0] < 27  # 2^24 / (2500 * 255) = 26
    np.testing.assert_allclose(largest * step, 1, rtol=0.03)  # it still stands for the same real weight


def test_a_loud_bias_coarsens_its_channel():
    kernel = np.ones([1, 1, 4, 2], np.float32)
    layer, step = integer_layer(Conv(2), 4, kernel, np.array([1e6, 1.0]), np.ones(4), 127.0)
    np.testing.assert_allclose(layer.bias.numpy() * step, [1e6, 1.0], rtol=0.01)
    assert step[0] > step[1]
    assert np.abs(layer.kernel.numpy()[..., 1]).max() == WEIGHT_LIMIT


# --- the integer form --------------------------------------------------------------------------------------------


def calibrate(net, x, scale=1 / 16):
    with exact.calibrating([net]):
        return net.integers(Fixed(tf.constant(x), np.full(x.shape[-1], scale)))


@pytest.mark.parametrize("name", LAYERS)
def test_integers_are_close_to_floats(name):
    tf.keras.utils.set_random_seed(3)
    net = EntropyNet(7, [LAYERS["3x3"], LAYERS[name], Conv(6)])
    x = np.rint(30 * random(2, 8, 8, 7)).clip(-127, 127)
    expected = net(x / 16)
    calibrate(net, x)
    y = calibrate(net, x)
    real = y.value * y.scale
    assert np.std(real - expected) < 0.02 * np.std(expected)
    np.testing.assert_array_equal(net.integers(Fixed(tf.constant(x))).value, y.value)


def test_the_whole_path_is_close_to_floats(path):
    z, anchors = entropy_path.inputs()
    mean, row = np.split(path(z, anchors, exact_form=True).numpy(), 2, -1)
    real_mean, log_scale = np.split(path(z, anchors, exact_form=False).numpy(), 2, -1)
    real_row = np.clip(8.13 * log_scale + 17.9, 0, 63)
    assert np.std(real_mean) > 5 * MEAN_STEP and np.std(real_row) > 2  # there is something to get wrong
    assert np.std(mean - real_mean) < 0.05 * np.std(real_mean)
    assert np.mean(np.abs(row - real_row)) < 0.75  # a quarter of it is rounding


def test_results_are_integers_within_their_range(path):
    z, anchors = entropy_path.inputs()
    for loudness in (1, 1000):  # also far beyond what calibration has seen
        mean, row = np.split(path(loudness * z, loudness * anchors, exact_form=True).numpy(), 2, -1)
        steps = mean / MEAN_STEP
        np.testing.assert_array_equal(steps, np.rint(steps))
        assert np.abs(steps).max() <= MEAN_LIMIT
        np.testing.assert_array_equal(row, np.rint(row))
        assert row.min() >= 0 and row.max() <= 63
        features = path.hyper.integers(path.z_input.integers(tf.constant(loudness * z))).value.numpy()
        np.testing.assert_array_equal(features, np.rint(features))
        assert np.abs(features).max() <= 127
    assert len(np.unique(row)) > 3


def test_a_network_of_rows_gives_rows_alone():
    """Every channel is `gain * x + bias` of the float form, rounded and kept within the table."""
    tf.keras.utils.set_random_seed(6)
    net = EntropyNet(7, [Conv(8, 3), Conv(6)], Output.ROWS, output_gain=8.0, output_bias=63.0, rows=127)
    x = np.rint(30 * random(2, 8, 8, 7)).clip(-127, 127)
    real = 8 * net(x / 16) + 63
    calibrate(net, x)
    rows = net.integers(Fixed(tf.constant(x))).value.numpy()
    assert rows.shape == (2, 8, 8, 6)
    np.testing.assert_array_equal(rows, np.rint(rows))
    assert np.mean(np.abs(rows - np.clip(real, 0, 126))) < 0.75  # a quarter of it is rounding
    assert np.std(rows) > 3
    loud = net.integers(Fixed(tf.constant(50 * x))).value.numpy()
    assert loud.min() == 0 and loud.max() == 126


def test_calibration_covers_all_calls_of_a_network():
    """A network that runs on anchors and then on non-anchors must not be clipped to the range of the latter."""
    quiet, loud = random(1, 8, 8, 4), 40 * random(1, 8, 8, 4, seed=1)
    scales = []
    for order in ([quiet, loud], [loud, quiet], [loud]):
        tf.keras.utils.set_random_seed(4)
        net = EntropyNet(4, [Conv(6, 3), Conv(6)])
        net(quiet)
        with exact.calibrating([net]):
            for x in order:
                last = net.integers(Fixed(tf.constant(np.rint(x).clip(-127, 127)), np.ones(4)))
        scales.append(last.scale)
    np.testing.assert_allclose(scales[1], scales[2], rtol=0.05)
    np.testing.assert_allclose(scales[0], scales[2], rtol=0.05)
    tf.keras.utils.set_random_seed(4)
    again = EntropyNet(4, [Conv(6, 3), Conv(6)])
    again(quiet)
    assert np.all(calibrate(again, np.rint(quiet), 1.0).scale < 0.5 * scales[0])


def test_a_second_calibration_forgets_the_first():
    tf.keras.utils.set_random_seed(4)
    net, x = EntropyNet(4, [Conv(6, 3), Conv(6)]), np.rint(30 * random(1, 8, 8, 4)).clip(-127, 127)
    net(x)
    first = calibrate(net, x)
    calibrate(net, np.rint(x / 10))
    np.testing.assert_array_equal(calibrate(net, x).scale, first.scale)


def test_silent_channels_do_not_disturb_calibration():
    net = EntropyNet(8, [Conv(6), Conv(6)])
    x = np.rint(30 * random(1, 8, 8, 4)).clip(-127, 127)
    net(np.concatenate([x, x], -1))
    with exact.calibrating([net]):
        part = Fixed(tf.constant(x), np.full(4, 1 / 16))
        y = net.integers(concat([part, zeros(part, 4)]))
    expected = net(np.concatenate([x / 16, 0 * x], -1))
    assert np.std(y.value * y.scale - expected) < 0.02 * np.std(expected)


def test_fixed_numbers_are_moved_with_their_scales():
    a, b = Fixed(tf.ones([1, 2, 4, 2]), np.array([1.0, 2.0])), Fixed(tf.ones([1, 2, 4, 1]), np.array([3.0]))
    both = concat([a, b])
    assert both.value.shape == [1, 2, 4, 3] and both.scale.tolist() == [1, 2, 3]
    assert concat([a, Fixed(b.value)]).scale is None
    halves = spatially(checkerboard.split, both)
    assert [h.value.shape.as_list() for h in halves] == [[1, 2, 2, 3]] * 2
    assert all(h.scale is both.scale for h in halves)
    np.testing.assert_array_equal(spatially(lambda x: x + 1, tf.zeros([2])), [1, 1])


@pytest.mark.parametrize("top", [0.0, 1.0, 7.9, 500.0, 1e9])
def test_latents_enter_in_steps_of_powers_of_two(top):
    layer, x = LatentInput(3), top * np.clip(random(1, 40, 40, 3), -1, 1)
    x = np.rint(16 * x) / 16
    with exact.calibrating([layer]):
        y = layer.integers(tf.constant(x, tf.float32))
    steps = 1 / layer.inverse_step.numpy()
    np.testing.assert_array_equal(np.log2(steps), np.rint(np.log2(steps)))
    assert np.all((steps >= MEAN_STEP) & (steps <= 2**10))
    assert np.abs(y.value).max() <= 127
    if top <= 8:  # no coarser than the latents themselves: nothing is lost
        np.testing.assert_array_equal(y.value * steps, x.clip(-127 * MEAN_STEP, 127 * MEAN_STEP))
    elif top == 500:
        assert np.abs(y.value * steps - x).max() <= steps.max() / 2
    np.testing.assert_array_equal(layer.integers(tf.constant(x, tf.float32)).value, y.value)


def test_nothing_calibrates_outside_of_the_block(path):
    before = [v.numpy() for v in path.variables]
    z, anchors = entropy_path.inputs()
    path(3 * z, 5 * anchors, exact_form=True)
    for variable, value in zip(path.variables, before):
        np.testing.assert_array_equal(variable, value)
    with pytest.raises(RuntimeError), exact.calibrating([path.hyper]):
        raise RuntimeError
    assert not path.hyper.calibrating


# --- the same everywhere -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere(path, tmp_path_factory):
    """What the path gives in four processes, each in several ways: {(onednn, threads, form/way/batch): array}."""
    folder = tmp_path_factory.mktemp("everywhere")
    np.savez(folder / "state.npz", **{str(n): v.numpy() for n, v in enumerate(path.variables)})
    results = {}
    for onednn, threads in itertools.product("01", (1, 2)):
        result = folder / f"{onednn}{threads}.npz"
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, str(SCRIPT), str(folder / "state.npz"), str(result), str(threads)]
        command += ["xla"] if threads == 2 else []
        subprocess.run(command, env=environment, check=True, timeout=300)
        results.update({(onednn, threads, key): value for key, value in np.load(result).items()})
    return results


def _of(everywhere, form):
    return {key: value for key, value in everywhere.items() if key[2].startswith(form + "/")}


def test_integers_are_the_same_everywhere(everywhere, path):
    """oneDNN on and off, one and two threads, eager, traced and XLA, batch 1 and 4: bit for bit."""
    results = _of(everywhere, "integer")
    assert len(results) == 4 * 2 * 2 + 2 * 2
    expected = path(*entropy_path.inputs(), exact_form=True).numpy()
    for key, value in results.items():
        np.testing.assert_array_equal(value, expected, err_msg=str(key))


def test_floats_are_not(everywhere):
    """Otherwise the test above proves nothing."""
    results = list(_of(everywhere, "float").values())
    assert any(not np.array_equal(value, results[0]) for value in results)
    for value in results:  # they mean the same
        np.testing.assert_allclose(value, results[0], atol=1e-4)


@pytest.mark.parametrize(
    "name, output, expected",
    [
        ("off", Output.PARAMETERS, ["float32", "float32"]),
        ("float16", Output.PARAMETERS, ["float32", "float32"]),
        ("bfloat16", Output.PARAMETERS, ["bfloat16", "float32"]),
        ("bfloat16", Output.ROWS, ["bfloat16", "float32"]),
        ("bfloat16", Output.FEATURES, ["bfloat16", "bfloat16"]),
    ],
)
def test_precision_of_the_float_form(name, output, expected):
    with precision(name):
        net = EntropyNet(3, [Conv(8), Conv(4)], output=output)
    graph = tf.function(net).get_concrete_function(tf.TensorSpec([1, 2, 2, 3])).graph
    convolutions = [op for op in graph.get_operations() if op.type == "Conv2D"]
    assert [op.get_attr("T").name for op in convolutions] == expected
    assert graph.outputs[0].dtype == tf.float32
    assert all(v.dtype == tf.float32 for v in net.trainable_variables)


def test_means_keep_their_digits_in_bfloat16():
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("bfloat16")
    try:
        net = EntropyNet(1, [Conv(1), Conv(2)], output=Output.PARAMETERS)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    net.build()
    for kernel in net.kernels:
        kernel.assign(tf.ones_like(kernel))
    net.biases[-1].assign([100.3, -0.3])
    np.testing.assert_allclose(net(tf.zeros([1, 1, 1, 1])).numpy().ravel(), [100.3, -0.3], rtol=1e-6)
