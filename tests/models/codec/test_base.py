"""The codec's contract, on a tiny ELIC: files decode to what was estimated, and nothing else passes for a file."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.codec import coding, load, load_for_training, weights
from models.codec.coding import to_uint8
from models.elic import ELIC, PRESETS
from models.entropy import container
from models.entropy.coders import TableRate
from models.entropy.container import StreamError
from models.entropy.tables import CdfBank
from models.io.errors import UserError
from train.optimizer import FusedAdam

SIZES = st.integers(1, 70)
ROOT = Path(__file__).resolve().parents[3]


def estimate(codec, image):
    """Reconstruction, uint8 [H, W, 3], and bytes of `call(training=False)`."""
    reconstruction, bits = codec(tf.constant(image[None]), training=False)
    return to_uint8(reconstruction[0]), float(sum(b.numpy()[0] for b in bits.values())) / 8


# --- pixels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48])
@pytest.mark.parametrize("width", [1, 2, 5, 31, 32, 33, 64, 65])
def test_padding_reflects(tiny, height, width):
    x = np.random.default_rng(1).normal(size=[2, height, width, 3]).astype(np.float32)
    rows, columns = tiny.padded_size(height, width)
    assert rows % tiny.stride[0] == columns % tiny.stride[1] == 0
    assert 0 <= rows - height < tiny.stride[0] and 0 <= columns - width < tiny.stride[1]
    expected = np.pad(x, [(0, 0), (0, rows - height), (0, 0), (0, 0)], "reflect" if height > 1 else "edge")
    expected = np.pad(expected, [(0, 0), (0, 0), (0, columns - width), (0, 0)], "reflect" if width > 1 else "edge")
    np.testing.assert_array_equal(tiny.pad(tf.constant(x)), expected)


def test_pixel_scales_are_inverse(tiny):
    x = tf.constant([0.0, 100.0, 255.0])
    assert tiny.normalise(x).numpy().tolist() == pytest.approx([-0.5, 100 / 255 - 0.5, 0.5])
    np.testing.assert_allclose(tiny.denormalise(tiny.normalise(x)), x, atol=1e-4)
    assert to_uint8(tf.constant([-3.0, 0.4, 0.6, 254.6, 300.0])).tolist() == [0, 0, 1, 255, 255]


# --- files -------------------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, derandomize=True)
@given(height=SIZES, width=SIZES, noisy=st.booleans())
@example(height=1, width=1, noisy=False)
@example(height=1, width=67, noisy=True)
@example(height=65, width=1, noisy=False)
@example(height=16, width=32, noisy=True)
@example(height=17, width=33, noisy=False)
def test_round_trip_is_what_was_estimated(tiny, crop, height, width, noisy):
    image = crop(height, width)
    if noisy:
        image = np.random.default_rng(height).integers(0, 256, image.shape, dtype=np.uint8)
    data = tiny.compress(image)
    decoded = tiny.decompress(data)
    expected, size = estimate(tiny, image)
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)
    assert abs(len(data) - size) <= 0.01 * size + 64


def test_file_size_is_the_estimate(tiny, photograph):
    data = tiny.compress(photograph)
    decoded, size = estimate(tiny, photograph)
    assert size > 2000  # or else the 64 bytes allow anything
    assert abs(len(data) - size) <= 0.01 * size + 64
    np.testing.assert_array_equal(tiny.decompress(data), decoded)
    # It has learned something: the tests of this file do not look at zeros.
    assert 10 * np.log10(255**2 / np.mean((decoded.astype(float) - photograph) ** 2)) > 20


def test_a_batch_is_compressed_as_its_pictures_alone(tiny, crop):
    images = np.stack([crop(50, 70), crop(50, 70, top=200), crop(50, 70, left=300)])
    together = tiny.compress_batch(images)
    assert len(set(together)) == 3
    assert together == [tiny.compress(image) for image in images]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros([1, 8, 8, 4], np.uint8),
        np.zeros([1, 8, 8, 3]),
        np.zeros([8, 8, 3], np.uint8),
        np.zeros([1, 0, 8, 3], np.uint8),
    ],
    ids=["channels", "type", "rank", "empty"],
)
def test_what_is_no_picture_is_refused(tiny, images):
    with pytest.raises(UserError, match="uint8"):
        tiny.compress_batch(images)


def test_header(tiny, crop):
    header, payload, _ = container.unpack(tiny.compress(crop(21, 34)))
    assert header == container.Header(ELIC.entry.model_id, tiny.weights_id, 21, 34)
    assert payload


# --- damage ------------------------------------------------------------------------------------------------------


def decoded_or_refused(codec, data, **controls):
    """The image, or None if the data are refused; any other exception is a failure."""
    try:
        return codec.decompress(data, **controls)
    except StreamError as error:
        assert str(error) and "\n" not in str(error)
        return None


@pytest.fixture(scope="module")
def small_stream(tiny, crop):
    data = tiny.compress(crop(32, 32))
    assert 40 < len(data) < 400
    return data, tiny.decompress(data)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_is_an_error_never_a_wrong_picture(tiny, small_stream, mask):
    data, expected = small_stream
    for n in range(len(data)):
        damaged = data[:n] + bytes([data[n] ^ mask]) + data[n + 1 :]
        picture = decoded_or_refused(tiny, damaged)
        assert picture is None or np.array_equal(picture, expected), f"byte {n}"


def test_a_damaged_stream_is_shown_or_refused_in_partial_mode(tiny, small_stream):
    data, expected = small_stream
    for n in [*range(12), *range(12, len(data), 5)]:
        damaged = data[:n] + bytes([data[n] ^ 0x5A]) + data[n + 1 :]
        picture = decoded_or_refused(tiny, damaged, partial=True)
        assert picture is None or picture.dtype == np.uint8
    random = np.random.default_rng(8)
    header = data[:11]
    for length in (0, 1, 3, 8, 60, 300):
        decoded_or_refused(tiny, header + random.bytes(length), partial=True)


def test_a_stream_with_more_behind_it_is_refused(tiny, small_stream):
    data, _ = small_stream
    for tail in (b"\0", b"\0\0", b"abcd"):
        with pytest.raises(StreamError):
            tiny.decompress(data + tail)


def test_symbols_that_decode_otherwise_are_noticed(tiny, small_stream):
    """The fingerprint is the last line of defence: a sound stream whose symbols are not those that were coded."""
    header, payload, mark = container.unpack(small_stream[0])
    other = container.pack(header, payload, mark ^ 1)
    with pytest.raises(StreamError, match="symbols"):
        tiny.decompress(other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: dataclasses.replace(h, model_id=2), "another model"),
        (lambda h: dataclasses.replace(h, weights_id=b"abcd"), "other weights .61626364."),
        (lambda h: dataclasses.replace(h, controls=b"x"), "control bytes"),
        (lambda h: dataclasses.replace(h, height=h.height - 1), "symbols"),
    ],
)
def test_other_headers_are_refused(tiny, small_stream, change, message):
    header, payload, mark = container.unpack(small_stream[0])
    with pytest.raises(StreamError, match=message):
        tiny.decompress(container.pack(change(header), payload, mark))


def test_newer_version_and_other_files_are_refused(tiny, small_stream):
    data, _ = small_stream
    for damaged, message in (
        (data[:2] + b"\2" + data[3:], "version 2, newer"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + data, "not a stream"),
    ):
        with pytest.raises(StreamError, match=message):
            tiny.decompress(damaged)


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tiny, crop):
    """A model that was just trained, so to say: other weights than the tiny one's, loud enough, and calibrated."""
    tf.keras.utils.set_random_seed(11)
    codec = ELIC(tiny.config, lmbda=0.03)
    codec.build_variables(training=True)
    for name, variable in codec.named_variables().items():
        if name.endswith("analysis/layers/13/kernel"):
            variable.assign(variable * 40)
        elif name.endswith("bias"):
            variable.assign_add(tf.random.normal(variable.shape, stddev=0.1))
    codec.calibrate(np.stack([crop(64, 64), crop(64, 64, 200, 300)]))
    return codec


def test_saved_and_loaded_weights_do_the_same(fresh, crop, tmp_path):
    path, image = tmp_path / "fresh.safetensors", crop(40, 50)
    fresh.save(path, metadata={"steps": "0"})
    loaded = load(path)
    assert (loaded.config, loaded.lambdas, loaded.weights_id) == (fresh.config, (0.03,), fresh.weights_id)
    data = fresh.compress(image)
    assert loaded.compress(image) == data
    decoded = loaded.decompress(data)
    np.testing.assert_array_equal(decoded, fresh.decompress(data))
    np.testing.assert_array_equal(decoded, estimate(fresh, image)[0])
    np.testing.assert_array_equal(decoded, estimate(loaded, image)[0])
    assert len(np.unique(decoded)) > 10
    half = load(path, synthesis=False)
    assert half.compress(image) == data
    with pytest.raises(ValueError, match="without the synthesis"):
        half.decompress(data)
    metadata = weights.read_metadata(path)
    assert metadata["steps"] == "0" and metadata["model"] == "elic" and float(metadata["lambda"]) == 0.03


def test_tables_fit_the_pictures_that_a_codec_was_calibrated_with(fresh, crop):
    pictures = tf.constant(np.stack([crop(64, 64), crop(64, 64, 200, 300)]), tf.float32)
    assumed, fitted = (TableRate(bank) for bank in (CdfBank.from_pmfs(fresh.table_rows()), fresh.bank))
    for coder in (assumed, fitted):
        fresh.transmit(coder, pictures)
    for name in ("y", "z"):
        assert 0 < np.sum(fitted.bits[name]) < np.sum(assumed.bits[name])


def test_other_weights_are_noticed(fresh, tiny, small_stream):
    assert fresh.weights_id != tiny.weights_id
    with pytest.raises(StreamError, match=f"other weights .{tiny.weights_id.hex()}"):
        fresh.decompress(small_stream[0])


def test_named_variables_are_all_and_unique(fresh):
    named = fresh.named_variables()
    assert len({id(v) for v in named.values()}) == len(named)
    assert {id(v) for v in fresh.trainable_variables} <= {id(v) for v in named.values()}
    for part in ("analysis/", "synthesis/", "hyper_analysis/", "hyper_synthesis/", "parameters/2/", "entropy_models/"):
        assert any(name.startswith(part) for name in named), part
    assert not any("optimizer" in name or "trackers" in name or name.startswith("coder") for name in named)


def test_names_do_not_depend_on_how_the_variables_were_made(fresh, tiny_weights):
    """Training, coding and compiling make variables in their own order: a file's names must fit all."""
    trained, coding = ELIC(fresh.config), ELIC(fresh.config)
    trained.build_variables(training=True)
    coding.build_variables()
    trained.compile(FusedAdam())
    trained.optimizer.build(trained.trainable_variables)
    assert trained.named_variables().keys() | coding.named_variables().keys() == fresh.named_variables().keys()
    stored = {name for name in weights.read(tiny_weights)[0] if not name.startswith("bank/")}
    assert stored == set(fresh.named_variables())


def test_training_goes_on_from_a_weights_file(tiny_weights, tiny):
    codec = load_for_training(tiny_weights, lmbda=0.5)
    assert codec.lambdas == (0.5,) and codec.bank is None
    assert load_for_training(tiny_weights).lambdas == tiny.lambdas
    values = weights.read(tiny_weights)[0]
    for name, variable in codec.named_variables().items():
        np.testing.assert_array_equal(variable, values[name].astype(np.float32))
    x = tf.random.stateless_uniform([1, 32, 32, 3], [1, 2], 0, 255)
    assert np.isfinite(codec(x, training=True)[0]).all()


def test_what_is_not_calibrated_cannot_be_saved_or_code(tmp_path):
    codec = ELIC(PRESETS["small"])
    with pytest.raises(ValueError, match="calibrate"):
        codec.save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="calibrate"):
        codec.compress(np.zeros([8, 8, 3], np.uint8))
    assert not list(tmp_path.iterdir())


def test_only_what_the_tables_were_made_for_is_saved(fresh, tiny_weights, tmp_path):
    """Else the header names other tensors, and `load` would call the file damaged."""
    with pytest.raises(ValueError, match="loaded to code"):
        load(tiny_weights).save(tmp_path / "x.safetensors")
    weight = fresh.synthesis.trainable_variables[0]
    before = weight.numpy()
    weight.assign_add(tf.ones_like(weight))
    with pytest.raises(ValueError, match="has learnt since"):
        fresh.save(tmp_path / "x.safetensors")
    weight.assign(before)
    assert not list(tmp_path.iterdir())
    fresh.save(tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").weights_id == fresh.weights_id


def test_lambda_must_be_positive():
    for lmbda in (0, -1, float("nan")):
        with pytest.raises(UserError, match="positive"):
            ELIC(PRESETS["small"], lmbda=lmbda)


def test_a_damaged_weights_file_is_refused(tiny_weights, tmp_path):
    data = tiny_weights.read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    path = tmp_path / "damaged.safetensors"
    cuts = [0, 1, 8, 100, header - 1, header, header + 1000, len(data) - 1]
    tensors = [header, header + 1, (header + len(data)) // 2, len(data) - 1]
    flipped = [data[:n] + bytes([data[n] ^ 0x11]) + data[n + 1 :] for n in (*range(8), 9, 30, *tensors)]
    for damaged in [data[:n] for n in cuts] + flipped + [data + b"x"]:
        path.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            load(path)
        assert "damaged.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_weights_header_is_refused(tiny_weights, tmp_path):
    """The metadata: every byte of it changed. Whatever still loads is the same model."""
    data = tiny_weights.read_bytes()
    start, end = data.index(b"__metadata__"), data.index(b"}", data.index(b"parameter_width")) + 60
    path = tmp_path / "damaged.safetensors"
    for n in range(start, end):
        path.write_bytes(data[:n] + bytes([data[n] ^ (0x01, 0x04, 0x10)[n % 3]]) + data[n + 1 :])
        try:
            codec = load(path, synthesis=False)
        except UserError as error:
            assert str(error) and "\n" not in str(error)  # noqa: PT017
        else:
            assert codec.weights_id == bytes.fromhex(weights.read_metadata(tiny_weights)["weights_id"])


def test_weights_of_another_configuration_are_refused(tiny, tiny_weights, tmp_path):
    values, metadata = weights.read(tiny_weights)
    path = tmp_path / "other.safetensors"
    for config in (
        dataclasses.replace(tiny.config, parameter_width=64),
        dataclasses.replace(tiny.config, groups=(2, 2, 2, 2)),
        dataclasses.replace(tiny.config, widths=(8, 8, 10)),
    ):
        weights.write(path, values, {**metadata, "config": weights.config_to_json(config)})
        with pytest.raises(UserError, match="other.safetensors: not of this model and configuration"):
            load(path)
    for config in ('{"width": 3}', "[]", "no JSON", '{"widths": 8}', '{"groups": [2, -2, 4]}', '{"groups": []}'):
        weights.write(path, values, {**metadata, "config": config})
        with pytest.raises(UserError, match="other.safetensors"):
            load(path)
    for changes in (
        {"groups": [2, 2.5, 3]},
        {"hyper_channels": 10**12},
        {"hyper_channels": None},
        {"widths": [0, 8, 8]},
    ):
        config = json.dumps({**dataclasses.asdict(tiny.config), **changes})
        weights.write(path, values, {**metadata, "config": config})
        with pytest.raises(UserError, match="^[^\n]*other.safetensors[^\n]*$"):
            load(path)
    for key, value in (("lambda", "much"), ("lambda", "-1"), ("model", "sft2"), ("weights_id", "00000000")):
        weights.write(path, values, {**metadata, key: value})
        with pytest.raises(UserError):
            load(path)
    for key in ("lambda", "model", "weights_id", "config"):
        weights.write(path, values, {k: v for k, v in metadata.items() if k != key})
        with pytest.raises(UserError):
            load(path)


# --- training ----------------------------------------------------------------------------------------------------


def test_gradients_reach_every_trainable_variable(tiny_weights, crop):
    codec = load_for_training(tiny_weights)
    images = tf.constant(np.stack([crop(64, 64), crop(64, 64, 200)]))
    names = {id(v): name for name, v in codec.named_variables().items()}
    with tf.GradientTape() as tape:
        loss = codec.losses(images, training=True)["loss"]
    gradients = tape.gradient(loss, codec.trainable_variables)
    assert any(names[id(v)].startswith("entropy_models/") for v in codec.trainable_variables)
    dead = [
        names[id(v)]
        for g, v in zip(gradients, codec.trainable_variables)
        if g is None or not np.any(tf.convert_to_tensor(g).numpy() != 0)
    ]
    assert not dead


def test_loss_is_rate_plus_lambda_times_distortion(tiny, crop):
    image = crop(40, 50)
    losses = {k: float(v) for k, v in tiny.losses(tf.constant(image[None]), training=False).items()}
    reconstruction, bits = tiny(tf.constant(image[None]))
    assert losses["bpp"] == pytest.approx(sum(float(b) for b in bits.values()) / 2000)
    mse = np.mean((np.clip(reconstruction[0], 0, 255) - image) ** 2)
    assert losses["mse"] == pytest.approx(mse, rel=1e-4)
    assert losses["loss"] == pytest.approx(losses["bpp"] + tiny.lambdas[0] * mse, rel=1e-4)
    assert losses["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), rel=1e-4)


def test_training_lowers_the_loss(tiny, crop):
    tf.keras.utils.set_random_seed(3)
    codec = ELIC(tiny.config, lmbda=0.01)
    codec.compile(FusedAdam(3e-3, global_clipnorm=1.0))
    codec.build_variables(training=True)
    codec.optimizer.build(codec.trainable_variables)
    step = tf.function(codec.train_step, autograph=False)
    images = tf.constant(np.stack([crop(32, 32), crop(32, 32, 200)]))
    losses = []
    for _ in range(30):
        codec.reset_metrics()
        losses.append({name: float(value) for name, value in step((images,)).items()})
    assert np.isfinite([list(logs.values()) for logs in losses]).all()
    assert np.mean([logs["loss"] for logs in losses[-3:]]) < 0.8 * np.mean([logs["loss"] for logs in losses[:3]])
    assert losses[0].keys() == {"loss", "bpp", "mse", "psnr"}


def test_mixed_precision_keeps_what_needs_it_in_float32(tiny, crop):
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        codec = ELIC(tiny.config, lmbda=0.01)
        codec.compile(FusedAdam(1e-3), run_eagerly=True)
        images = tf.constant(crop(32, 32)[None])
        assert codec.analysis(tf.zeros([1, 16, 32, 3])).dtype == tf.bfloat16
        reconstruction, bits = codec(images, training=True)
        assert reconstruction.dtype == tf.float32
        assert all(b.dtype == tf.float32 for b in bits.values())
        nets = [codec.hyper_synthesis, *codec.channel_contexts[1:], *codec.spatial_contexts, *codec.parameters]
        assert all(net.compute_dtype == net.variable_dtype == "float32" for net in nets)
        assert codec.hyper_synthesis(tf.zeros([1, 1, 1, tiny.config.hyper_channels])).dtype == tf.float32
        logs = codec.train_step(images)
        assert logs["loss"].dtype == tf.float32 and np.isfinite(logs["loss"])
        assert all(v.dtype == tf.float32 for v in codec.trainable_variables)
        codec.calibrate(crop(32, 32)[None])
        data = codec.compress(crop(20, 30))
        assert codec.decompress(data).shape == (20, 30, 3)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


# --- what coding does not need -----------------------------------------------------------------------------------


def test_coding_does_not_import_tfc(tiny_weights, tmp_path):
    """It takes seconds to import, and its ops are not to be had everywhere."""
    program = f"""
import sys
import numpy as np
from models.codec import load
codec = load({str(tiny_weights)!r})
image = np.zeros([20, 30, 3], np.uint8)
assert codec.decompress(codec.compress(image)).shape == image.shape
codec(image[None])
heavy = ("tensorflow_compression", "tensorflow_probability", "tensorflow_addons", "tensorflow_datasets", "matplotlib")
sys.exit(", ".join(name for name in heavy if name in sys.modules) or None)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr[-2000:]


def test_a_codec_is_traced_once_each_way(tiny_weights, crop, monkeypatch):
    """A function that makes variables, such as the coder's tables, is traced twice: eight seconds with `medium`."""
    codec, ways = load(tiny_weights), []
    for name in ("encode", "decode"):
        original = getattr(coding, name)
        monkeypatch.setattr(coding, name, lambda *a, name=name, original=original: (ways.append(name), original(*a))[1])
    codec.trace()
    codec.decompress(codec.compress(crop(40, 70)))
    codec.decompress(codec.compress(crop(33, 17)))
    assert ways == ["encode", "decode"]


def test_traced_writes_the_same_bytes_and_reads_the_same_pictures(tiny_weights, crop):
    codec = load(tiny_weights)
    pictures = [crop(40, 70), crop(33, 17)]  # sizes that one graph serves
    plain = [codec.compress(picture) for picture in pictures]
    decoded = [codec.decompress(data) for data in plain]
    codec.trace()
    assert [codec.compress(picture) for picture in pictures] == plain
    for data, picture in zip(plain, decoded):
        assert np.abs(codec.decompress(data).astype(int) - picture).max() <= 1
    with pytest.raises(container.StreamError, match="damaged stream"):
        codec.decompress(plain[0][:-1] + bytes([plain[0][-1] ^ 1]))
    with pytest.raises(container.StreamError):
        codec.decompress(plain[0][:-9] + plain[0][-4:])
