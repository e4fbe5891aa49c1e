"""Several λ in one set of weights: qualities, the control byte, target sizes."""

import numpy as np
import pytest
import tensorflow as tf

from models.app import serving
from models.codec import load, load_for_training, training
from models.codec.coding import to_uint8
from models.codec.lambdas import check_lambdas
from models.elic import ELIC, Config
from models.entropy import container
from models.io.errors import UserError
from models.io.images import encode_image
from train.optimizer import FusedAdam

TINY = Config((16, 16, 16), (4, 4, 8), 16, (16, 16), 32, (16, 16), 16)
LAMBDAS = (0.001, 0.01, 0.1)


@pytest.fixture(scope="module")
def variable(photograph, tmp_path_factory):
    """A tiny codec of three λ, trained for a moment, saved and loaded."""
    tf.keras.utils.set_random_seed(3)
    codec = ELIC(TINY, LAMBDAS)
    codec.compile(optimizer=FusedAdam(2e-3, global_clipnorm=1.0))
    batch = np.stack([photograph[y : y + 64, x : x + 64] for y in (0, 96, 192) for x in (0, 128, 256, 384)])
    codec.init_pca()
    for _ in range(15):  # eagerly: tracing takes longer than that
        codec.train_step(tf.constant(batch))
    codec.calibrate(batch)
    path = tmp_path_factory.mktemp("variable") / "weights.safetensors"
    codec.save(path)
    return load(path), path, batch[5]


@pytest.mark.parametrize("quality", [1, 1.4, 2, 3])
def test_round_trip_is_what_call_gives(variable, quality):
    codec, _, picture = variable
    decoded = codec.decompress(codec.compress(picture, quality=quality))
    reconstruction, _ = codec(picture[None], quality=quality)
    np.testing.assert_array_equal(decoded, to_uint8(reconstruction[0]))


def test_rate_and_quality_rise_with_quality(variable):
    codec, _, picture = variable
    streams = [codec.compress(picture, quality=q) for q in (1, 2, 3)]
    errors = [np.mean((codec.decompress(s) - picture.astype(float)) ** 2) for s in streams]
    assert len(streams[0]) < len(streams[1]) < len(streams[2])
    assert errors[0] > errors[2]


def test_quality_is_in_the_stream(variable):
    codec, _, picture = variable
    header, _, _ = container.unpack(codec.compress(picture, quality=2.5))
    assert header.controls == bytes([48])


def test_gradients_reach_every_level(variable):
    codec = ELIC(TINY, LAMBDAS)
    codec.build_variables(training=True)
    images = tf.random.uniform([12, 64, 64, 3], 0, 255)
    with tf.GradientTape() as tape:
        loss = codec.losses(images, training=True)["loss"]
    units = [codec.latent_gain, codec.latent_inverse_gain, codec.hyper_gain, codec.hyper_inverse_gain]
    for gradient in tape.gradient(loss, [unit.log_gain for unit in units]):
        assert np.any(tf.convert_to_tensor(gradient).numpy() != 0)


def test_in_training_levels_count_by_the_rate_that_they_are_of(monkeypatch):
    """λ of 0.001, 0.01 and 0.1: rates of 1 : 10^0.5 : 10, and so weights of 10 : 10^0.5 : 1, of the sum 3."""
    codec = ELIC(TINY, LAMBDAS)
    weights = 3 * np.array([10, 10**0.5, 1]) / (11 + 10**0.5)
    np.testing.assert_allclose(training.level_weights(LAMBDAS), weights, rtol=1e-6)

    def level_number(images, shown, bpp, quality):
        return tf.cast(quality // 32 + 1, bpp.dtype)

    monkeypatch.setattr(codec, "rate_distortion", level_number)
    images = np.zeros([3, 64, 64, 3])
    images[:, 0, 0, 0] = 0, 1, 2  # one of each level
    losses = {training: float(codec.losses(images, training)["loss"]) for training in (True, False)}
    assert losses[True] == pytest.approx(np.dot(weights, [1, 2, 3]) / 3, rel=1e-5)
    assert losses[False] == pytest.approx(2)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_levels_of_training_are_equally_likely_and_spread_over_a_batch(batch):
    tf.random.set_seed(1)
    draw = tf.function(training.training_levels)
    draws = np.array([draw(tf.constant(batch), 3) for _ in range(600)])
    assert draws.shape == (600, batch)
    np.testing.assert_allclose([np.mean(draws[:, 0] == level) for level in range(3)], 1 / 3, atol=0.08)
    for levels in draws:
        assert np.ptp(np.bincount(levels, minlength=3)) <= 1


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_held_out_picture_is_validated_at_one_level_in_any_batch(monkeypatch, batch):
    """And all levels are: with two images a batch, the first and the last level would be most of a loss."""
    pictures = np.random.default_rng(0).integers(0, 256, [60, 16, 16, 3], np.uint8)
    seen = []

    def forward(self, images, controls, training):
        seen.extend(controls["quality"].numpy())
        return None, images, {"y": tf.zeros(tf.shape(images)[:1])}

    monkeypatch.setattr(ELIC, "forward", forward)
    codec = ELIC(TINY, LAMBDAS)
    for first in range(0, 60, batch):
        codec.losses(pictures[first : first + batch], training=False)
    expected = np.sum(pictures, (1, 2, 3), np.int64) % 3
    np.testing.assert_array_equal(np.array(seen) / 32, expected)
    assert np.bincount(expected, minlength=3).min() > 10


def test_target_size_is_met_as_closely_as_qualities_allow(variable):
    codec, _, picture = variable
    whole = [len(codec.compress(picture, quality=q)) for q in (1, 3)]
    target = sum(whole) // 2
    data = codec.compress_to(picture, target)
    assert len(data) <= target
    step = container.unpack(data)[0].controls[0]
    assert len(codec.compress(picture, quality=1 + (step + 1) / 32)) > target


@pytest.mark.parametrize("quality", [0.9, 3.1, float("nan")])
def test_quality_out_of_range(variable, quality):
    codec, _, picture = variable
    with pytest.raises(UserError, match="not within 1 to 3"):
        codec.compress(picture, quality=quality)


def test_target_out_of_reach(variable):
    codec, _, picture = variable
    with pytest.raises(UserError, match="above the 30 asked for"):
        codec.compress_to(picture, 30)


def test_weights_of_one_rate_take_no_quality(tiny, crop):
    with pytest.raises(UserError, match="one rate"):
        tiny.compress(crop(32, 32), quality=1)
    with pytest.raises(UserError, match="one rate"):
        tiny.compress_to(crop(32, 32), 1000)


@pytest.mark.parametrize("controls", [b"", bytes([65]), b"\0\0"])
def test_control_bytes_of_other_weights(variable, controls):
    codec, _, _ = variable
    with pytest.raises(container.StreamError, match="control bytes"):
        codec.rate_control.from_header(controls)


@pytest.mark.parametrize(
    ("lambdas", "message"),
    [
        ((0.1, 0.01), "rising"),
        ((0.1, 0.1), "different"),
        ((0,), "positive"),
        (range(1, 10), "at most 8"),
        ((), "missing"),
    ],
)
def test_bad_lambdas(lambdas, message):
    with pytest.raises(UserError, match=message):
        check_lambdas(lambdas)


def test_going_on_with_another_number_of_lambdas(variable):
    _, path, _ = variable
    with pytest.raises(UserError, match="has 3 λ, and cannot go on with 1"):
        load_for_training(path, lmbda=0.01)
    assert load_for_training(path, lmbda=(0.002, 0.02, 0.2)).lambdas == (0.002, 0.02, 0.2)


def test_several_lambdas_from_weights_of_one(tiny_weights, crop):
    one, lambdas = load_for_training(tiny_weights), (0.002, 0.005, 0.02)
    lambdas = sorted([*lambdas, one.lmbda])
    several = load_for_training(tiny_weights, lmbda=lambdas)
    assert several.lambdas == tuple(lambdas)
    images = tf.constant(crop(64, 64)[None])
    expected, expected_bits = one(images)
    bits = []
    for level, lmbda in enumerate(lambdas):
        reconstruction, found = several(images, quality=tf.constant([32 * level]))
        bits.append(float(found["y"]))
        if lmbda == one.lmbda:  # what was trained is where it was
            np.testing.assert_allclose(reconstruction, expected, atol=1e-2)
            np.testing.assert_allclose(found["y"], expected_bits["y"], rtol=1e-4)
    assert bits == sorted(bits) and bits[-1] > 1.2 * bits[0]


def test_each_picture_of_a_served_batch_has_its_own_quality(variable):
    codec, _, picture = variable
    compress = serving.signatures(codec)["compress"]
    decompress = serving.signatures(codec)["decompress"]
    qualities = np.array([1, 2.4, 3], np.float32)
    streams = compress(np.stack([picture] * 3), qualities)["bitstream_bytes"]
    assert streams.numpy().tolist() == [codec.compress(picture, quality=q) for q in qualities]
    pictures = decompress(streams)["image"].numpy()
    for decoded, stream in zip(pictures, streams.numpy()):
        assert np.abs(decoded.astype(int) - codec.decompress(stream)).max() <= 1
    for bad in (0.9, 3.1, float("nan")):
        with pytest.raises(tf.errors.InvalidArgumentError, match="quality is not within 1 to 3"):
            compress(picture[None], np.array([bad], np.float32))
    middle = serving.signatures(codec)["serving_default"](tf.constant([encode_image(picture)]))["bitstream_bytes"]
    assert middle.numpy()[0] == codec.compress(picture, quality=2)
    damaged = bytearray(streams.numpy()[0])
    damaged[container.header_bytes(container.unpack(bytes(damaged))[0]).__len__() - 1] = 65
    with pytest.raises(tf.errors.InvalidArgumentError, match="control bytes"):
        decompress(tf.constant([bytes(damaged)]))


def test_lambda_between_levels():
    codec = ELIC(TINY, (0.001, 0.01, 0.1))
    white, black = tf.fill([3, 4, 4, 3], 10.0), tf.zeros([3, 4, 4, 3])
    losses = codec.rate_distortion(white, black, tf.constant([0.0, 0.5, 2.0]), quality=tf.constant([0, 48, 64]))
    np.testing.assert_allclose(losses, [0.1, 0.5 + 100 * 0.01 * 10**0.5, 2 + 10], rtol=1e-5)


def test_symbols_are_latents_times_their_gain():
    codec = ELIC(TINY, (0.001, 0.01, 0.1))
    latents, quality = tf.random.normal([2, 3, 5, 16]), tf.constant([7, 40])
    expected = codec.latent_gain(latents, quality)
    np.testing.assert_allclose(latents * codec.symbol_scale(quality=quality), expected, rtol=1e-6)
