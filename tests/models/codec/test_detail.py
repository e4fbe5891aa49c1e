"""ELIC with detail channels: added to trained weights, and from the start."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.app import serving, tflite
from models.codec import load
from models.codec.coding import to_uint8
from models.codec.training import warm_start
from models.elic import ELIC, Config
from models.io.errors import UserError
from train.optimizer import FusedAdam

TINY = Config((16, 16, 16), (4, 4, 8), 16, (16, 16), 32, (16, 16), 16)
LAMBDAS = (0.001, 0.01, 0.1)


def train(codec, batch, steps: int) -> None:
    codec.compile(optimizer=FusedAdam(2e-3, global_clipnorm=1.0))
    for _ in range(steps):  # eagerly: tracing takes as long as a hundred such steps
        codec.train_step(tf.constant(batch))


@pytest.fixture(scope="module")
def batch(photograph):
    return np.stack([photograph[y : y + 64, x : x + 64] for y in (0, 96, 192) for x in (0, 128, 256, 384)])


@pytest.fixture(scope="module")
def narrow(batch):
    tf.keras.utils.set_random_seed(3)
    codec = ELIC(TINY, LAMBDAS)
    codec.init_pca()
    train(codec, batch, 15)
    return codec


@pytest.fixture(scope="module")
def trained(narrow, batch):
    """The same with 24 detail channels, trained on."""
    tf.keras.utils.set_random_seed(3)
    codec = narrow.with_detail(24)
    train(codec, batch, 20)
    codec.calibrate(batch)
    return codec


@pytest.fixture(scope="module")
def wide(trained, tmp_path_factory):
    """The same, saved and loaded."""
    path = tmp_path_factory.mktemp("detail") / "weights.safetensors"
    trained.save(path)
    return load(path)


def test_what_gets_detail_channels_does_at_first_what_it_did(narrow, batch):
    wide = narrow.with_detail(24)
    assert wide.config == dataclasses.replace(TINY, groups=(4, 4, 8, 24), detail=24)
    quality = tf.constant([0, 40, 64] * 4)
    expected, bits = narrow(batch, training=False, quality=quality)
    found, more = wide(batch, training=False, quality=quality)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(more["z"], bits["z"], rtol=1e-5)
    assert np.all(more["y"] > bits["y"])


def test_they_learn_what_the_others_cannot_hold(narrow, trained, batch):
    tf.keras.utils.set_random_seed(3)

    def error(codec) -> float:
        quality = tf.fill([12], 64)
        return float(tf.reduce_mean(tf.math.squared_difference(codec(batch, quality=quality)[0], batch)))

    twin = warm_start(ELIC(TINY, LAMBDAS), narrow)
    train(twin, batch, 20)
    twin.calibrate(batch)
    assert error(trained) < 0.9 * error(twin)


@pytest.mark.parametrize("quality", [1, 2.3, 3])
def test_round_trip_is_what_call_gives(wide, photograph, quality):
    picture = photograph[20:115, 30:107]
    decoded = wide.decompress(wide.compress(picture, quality=quality))
    reconstruction, _ = wide(picture[None], quality=quality)
    np.testing.assert_array_equal(decoded, to_uint8(reconstruction[0]))


def test_the_last_group_is_the_detail(wide, batch):
    data = wide.compress(batch[5], quality=3)
    errors = [np.mean((wide.decompress(data, groups=n) - batch[5].astype(float)) ** 2) for n in (3, 4)]
    assert errors[1] < errors[0]


def test_exported_it_says_the_same(wide, batch, tmp_path):
    expected = wide.compress_batch(batch[:2], quality=2.5)
    served = tf.saved_model.load(str(serving.export(wide, tmp_path / "served"))).signatures
    streams = served["compress"](image=tf.constant(batch[:2]), quality=tf.constant([2.5, 2.5]))["bitstream_bytes"]
    assert streams.numpy().tolist() == expected
    folder = tflite.export(wide, tmp_path / "lite", 64, 64, version=1)
    lite = tf.lite.Interpreter(str(folder / "decompress.tflite"))
    lite.allocate_tensors()
    for picture, shown in zip(served["decompress"](bitstream_bytes=streams)["image"].numpy(), expected):
        lite.set_tensor(lite.get_input_details()[0]["index"], np.array([shown]))
        lite.invoke()
        light = lite.get_tensor(lite.get_output_details()[0]["index"])[0]
        decoded = wide.decompress(shown).astype(int)
        assert np.abs(picture - decoded).max() <= 1 and np.abs(light - decoded).max() <= 1


def test_what_compresses_loads_nothing_of_the_synthesis(wide):
    half = load(wide.path, synthesis=False)
    assert not any(name.startswith(half.decoder_parts) for name in half.named_variables())
    assert any(name.startswith(half.decoder_parts) for name in wide.named_variables())


@pytest.mark.parametrize("lambdas", [LAMBDAS, (0.01,)])
def test_linear_start_shows_more_with_them(batch, lambdas):
    def error(config) -> float:
        codec = ELIC(config, lambdas)
        codec.init_pca()
        quality = {"quality": tf.fill([12], 32)} if len(lambdas) > 1 else {}
        latents = codec.analyse(tf.cast(batch, tf.float32))
        if quality:
            latents = codec.latent_inverse_gain(codec.latent_gain(latents, **quality), **quality)
        return float(tf.reduce_mean(tf.math.squared_difference(codec.reconstruct(latents), batch)))

    assert error(dataclasses.replace(TINY, groups=(4, 4, 8, 24), detail=24)) < 0.8 * error(TINY)


def test_what_takes_no_detail_channels(narrow):
    with pytest.raises(UserError, match="24 detail channels already"):
        narrow.with_detail(24).with_detail(8)
    with pytest.raises(UserError, match="one λ"):
        ELIC(TINY, 0.01).with_detail(8)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--detail", "8"), "--init_weights"),
        (("--init_weights", "x", "--detail", "0"), "--detail 0"),
        (("--fix", "encoder"), "--freeze encoder: name"),
        (("--fix", "decoder", "--init_weights", "x", "--detail", "8"), "leave out --detail"),
        (("--fix", "latents", "--init_weights", "x", "--runtime", "pjrt", "--pjrt_python", "y"), "leave out --runtime"),
    ],
)
def test_bad_flags_are_one_line(flags, says, capsys):
    from models.app.cli import main

    with pytest.raises(SystemExit) as stopped:
        main("elic", ["train", "--train_glob", "x", *flags])
    assert stopped.value.code == 1
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error
