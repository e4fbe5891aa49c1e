"""SFT on the contract: maps as controls, what they do to files, and what is said of bad ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from eval import sweep
from eval.studies import region as region_program
from models.app import cli, serving
from models.app.flags.sft import region
from models.app.serving import signatures
from models.codec import load, load_for_training
from models.codec.coding import to_uint8
from models.codec.options import EncoderOptions
from models.codec.quality_map import Region, paint
from models.codec.registry import get
from models.codec.weights import shipped
from models.entropy import container
from models.io.errors import UserError
from models.sft import LATENT_SCALE, PRESETS, SFT, Config
from models.tasks import task_map


@pytest.fixture(scope="session")
def sft_weights(golden_weights):
    """Weights file of the tiny SFT of the golden files."""
    return golden_weights("sft")


@pytest.fixture(scope="session")
def sft(sft_weights):
    """The tiny SFT, ready to code. All tests share it."""
    return load(sft_weights)


@pytest.fixture(scope="module")
def picture(crop):
    return crop(90, 140)


def mse(a, b):
    return np.mean((a.astype(float) - b) ** 2)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [0, 0.37, 1])
@pytest.mark.parametrize("size", [(1, 1), (17, 70), (90, 140)])
def test_round_trip_is_what_call_gives(sft, crop, size, quality):
    image = crop(*size)
    data = sft.compress(image, quality=quality)
    map_ = tf.fill([1, *size, 1], np.float32(quality))
    reconstruction, bits = sft(tf.constant(image[None]), quality_map=map_)
    np.testing.assert_array_equal(sft.decompress(data), to_uint8(reconstruction[0]))
    assert abs(8 * len(data) - float(sum(b.numpy()[0] for b in bits.values()))) <= 8 * 70


def test_quality_rises_with_quality(sft, picture):
    errors = [mse(sft.decompress(sft.compress(picture, quality=q)), picture) for q in (0, 0.5, 1)]
    assert errors[0] > 1.1 * errors[1] > 1.1 * errors[2]


def test_half_is_the_default(sft, picture):
    assert sft.compress(picture) == sft.compress(picture, quality=0.5) != sft.compress(picture, quality=0.6)


def test_the_map_is_not_sent(sft, picture):
    header, _, _ = container.unpack(sft.compress(picture, quality=0.9))
    assert header.controls == b"" and header.model_id == 2
    with pytest.raises(container.StreamError, match="control bytes"):
        sft.rate_control.from_header(b"\1")


def test_traced_files_are_the_same(sft_weights, picture):
    codec = load(sft_weights)
    map_ = np.linspace(0, 1, 90, dtype=np.float32)[:, None] * np.ones([1, 140], np.float32)
    before = codec.compress(picture, quality_map=map_)
    codec.trace()
    assert codec.compress(picture, quality_map=map_) == before


def test_the_warmup_request_is_one_that_the_server_takes(sft, tmp_path):
    from tensorflow_serving.apis import prediction_log_pb2

    serving.write_warmup(tmp_path, sft)
    records = tf.data.TFRecordDataset(str(tmp_path / "assets.extra" / serving.WARMUP)).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request for r in records]
    for request in requests:
        if request.model_spec.signature_name in ("compress", "compress_file"):
            maps = tf.make_ndarray(request.inputs["quality_map"])
            assert sft.rate_control.request_specs["quality_map"].is_compatible_with(tf.constant(maps))
            assert maps.tolist() == [[[[0.5]]]]
    assert len(requests) == 5


def test_served_files_are_the_same_and_take_the_map_as_an_input(sft, picture):
    served = signatures(sft)
    map_ = np.tile(np.linspace(0, 1, 14, dtype=np.float32), (9, 1))
    data = served["compress"](picture[None], map_[None, ..., None])["bitstream_bytes"].numpy()[0]
    assert data == sft.compress(picture, quality_map=map_)
    with pytest.raises(tf.errors.InvalidArgumentError, match="within 0 to 1"):
        served["compress"](picture[None], 2 + map_[None, ..., None])


# --- maps --------------------------------------------------------------------------------------------------------


def test_a_uniform_map_is_a_quality(sft, picture):
    uniform = sft.compress(picture, quality=0.8)
    assert sft.compress(picture, quality_map=np.full([90, 140], 0.8, np.float32)) == uniform
    assert sft.compress(picture, quality_map=np.full([5, 3, 1], 204, np.uint8)) == uniform  # of any size


def test_a_map_steers_where_it_says(sft, picture):
    low = sft.decompress(sft.compress(picture, quality=0))
    map_ = paint(picture.shape[:2], 0.0, [Region(0, 0, 70, 90)])
    mixed = sft.decompress(sft.compress(picture, quality_map=map_))
    gains = [mse(low[:, part], picture[:, part]) / mse(mixed[:, part], picture[:, part]) for part in HALVES]
    assert gains[0] > 1.1 and gains[0] > 1.1 * gains[1]


HALVES = slice(0, 70), slice(70, 140)


def test_quality_moves_a_map(sft, picture):
    map_ = np.tile(np.linspace(0, 0.5, 140, dtype=np.float32), (90, 1))
    assert sft.compress(picture, quality_map=map_, quality=0.5) == sft.compress(picture, quality_map=map_)
    assert sft.compress(picture, quality_map=map_, quality=0.75) == sft.compress(picture, quality_map=map_ + 0.5)
    assert sft.compress(picture, quality_map=map_, quality=1) == sft.compress(picture, quality=1)


def test_latents_grow_with_the_quality(sft):
    """And by what both sides know: the rounded mean quality of 64x64 pixels."""
    levels = tf.reshape(tf.constant([-8.0, 0.0, 8.0]), [1, 1, 3, 1])
    z_hat = tf.concat([tf.random.normal([1, 1, 3, sft.config.hyper_channels]), levels], -1)
    scale = sft.latent_scale(z_hat, 3, 11).numpy()
    assert scale.shape == (1, 3, 11, 1)
    np.testing.assert_allclose(scale[0, 0, ::4, 0], LATENT_SCALE * np.exp([-1.1, 0, 1.1]), rtol=1e-5)
    assert (scale[0, :, :4] == scale[0, 0, 0]).all() and (scale[0, :, 8:] == scale[0, 0, 8]).all()


def rounded_quality(sft, quality, rows=8, columns=8):
    """The last channel of z_hat for one quality everywhere."""
    y = tf.zeros([1, 4 * rows, 4 * columns, sft.config.latents])
    z = sft.hyper_latent(y, tf.fill([1, 64 * rows, 64 * columns, 1], np.float32(quality)))
    np.testing.assert_array_equal(sft.with_dithered_quality(z)[..., :-1], z[..., :-1])
    return np.round(sft.with_dithered_quality(z)[0, ..., -1])


def test_the_quality_that_is_sent_is_right_in_the_mean(sft):
    for quality in np.linspace(0, 1, 257):
        sent = rounded_quality(sft, quality)
        assert np.ptp(sent) <= 1
        assert np.mean(sent) == pytest.approx(16 * quality - 8, abs=1.01 / 64)


@pytest.mark.parametrize("step", range(17))
def test_a_quality_that_can_be_sent_is_the_same_everywhere(sft, step):
    assert (rounded_quality(sft, step / 16, 5, 11) == step - 8).all()


def test_the_quality_that_is_sent_is_right_in_every_part(sft):
    """Not so much lower in one half of the image and higher in the other."""
    for quality in (0.2, 0.53, 0.9):
        sent = rounded_quality(sft, quality)
        halves = sent[:4], sent[4:], sent[:, :4], sent[:, 4:]
        np.testing.assert_allclose([np.mean(half) for half in halves], 16 * quality - 8, atol=0.05)


def test_later_regions_win():
    map_ = paint((10, 20), 0.2, [Region(0, 0, 10, 10), Region(*region("5,2,15,8:0.5"))])
    assert map_.dtype == np.float32
    assert (map_[:, :5] == 1).all() and (map_[2:, 5:] == 0.5).all() and (map_[:2, 10:] == np.float32(0.2)).all()


@pytest.mark.parametrize("place", ["-1,0,5,5", "0,-1,5,5", "16,0,5,5", "0,6,5,5"])
def test_regions_outside_of_the_picture(place):
    with pytest.raises(UserError, match="not inside the image, which is 20x10"):
        paint((10, 20), 0, [Region(*region(place))])


@pytest.mark.parametrize(
    ("map_", "message"),
    [
        (np.full([4, 4], 1.1), "within 0 to 1"),
        (np.full([4, 4], np.nan), "within 0 to 1"),
        (np.zeros([4, 4, 3], np.uint8), "must be"),
        (np.zeros([2, 4, 4, 1]), "must be"),
        (np.zeros([0, 4]), "must be"),
    ],
)
def test_bad_maps(sft, picture, map_, message):
    with pytest.raises(UserError, match=message):
        sft.compress(picture, quality_map=map_)


# --- training ----------------------------------------------------------------------------------------------------


def test_loss_weighs_every_pixel_by_its_quality(sft, monkeypatch, crop):
    """The loss of one map is the sum over the pixels, each with the λ of equation 5; low qualities count more."""
    images = tf.constant(np.stack([crop(32, 48), crop(32, 48, top=90)]), tf.float32)
    map_ = tf.random.uniform([2, 32, 48, 1]) * np.reshape([0.3, 1.0], [2, 1, 1, 1]).astype(np.float32)
    monkeypatch.setattr("transforms.quality_maps.training_maps", lambda shape, masks: map_)
    monkeypatch.setattr("models.codec.training.rate_coder", lambda codec, training: fixed_coder(sft))
    losses = sft.losses(images, training=True)
    reconstruction, bits = sft(images, training=True, quality_map=map_)

    def lambdas(q):
        return 0.002 * (0.1 / 0.002) ** np.asarray(q)

    error = lambdas(map_) * np.square(reconstruction - images)
    expected = sum(bits.values()) / (32 * 48) + np.mean(error, (1, 2, 3))
    weights = lambdas(np.mean(map_, (1, 2, 3))) ** -0.5 / np.mean(lambdas(np.linspace(0, 1, 10001)) ** -0.5)
    assert weights[0] > 1.5 * weights[1]
    assert float(losses["loss"]) == pytest.approx(np.mean(weights * expected), rel=1e-4)


def fixed_coder(codec):
    from models.entropy.coders import TableRate

    return TableRate(codec.bank)


def test_lambda_is_that_of_the_paper():
    codec = SFT(Config())
    q = np.linspace(0, 1, 5, dtype=np.float32)
    np.testing.assert_allclose(codec.lambda_map(tf.constant(q)), 0.001 * np.exp(4.382 * q), rtol=1e-3)


def test_gradients_reach_every_variable_and_steps_change_them(sft_weights, crop):
    codec = load_for_training(sft_weights)
    images = np.stack([crop(64, 64), crop(64, 64, top=150)])
    masks = np.zeros([2, 64, 64, 1], np.uint8)
    with tf.GradientTape() as tape:
        loss = codec.losses(tf.constant(np.concatenate([images, masks], -1)), training=True)["loss"]
    names = [name for name, v in codec.named_variables().items() if v.trainable]
    variables = [codec.named_variables()[name] for name in names]
    silent = [n for n, g in zip(names, tape.gradient(loss, variables)) if g is None or not np.any(g.numpy())]
    assert len(variables) > 100 and not silent


def test_a_batch_that_blows_up_teaches_nothing(sft_weights, crop, monkeypatch):
    codec = load_for_training(sft_weights)
    images = tf.constant(crop(64, 64)[None])
    monkeypatch.setattr("models.sft.SKIPPED_LOSS", 1e-3)
    with tf.GradientTape() as tape:
        loss = codec.losses(images, training=True)["loss"]
    assert float(loss) > 0.01
    gradients = tape.gradient(loss, codec.synthesis.trainable_variables)
    assert not any(np.any(g.numpy()) for g in gradients if g is not None)


def test_presets():
    assert get("sft").codec is SFT and get("sft").model_id == 2
    paper = dict(widths=(48, 96, 192, 192), latents=192, hyper_channels=192, condition_features=64, sft_kernel=3)
    assert paper.items() <= dataclasses.asdict(PRESETS["base"]).items()
    with pytest.raises(UserError, match="two λ"):
        SFT(PRESETS["small"], 0.01)


# --- maps for a task ----------------------------------------------------------------------------------------------


def left_or_right(size=None, loudness=200):
    """A classifier that looks at the contrast of the left half only: its map should follow."""
    inputs = tf.keras.Input([*(size or (None, None)), 3])
    left = inputs[:, :, :64] / 255 - 0.5
    contrast = tf.reduce_mean(tf.abs(left[:, 1:] - left[:, :-1]), [1, 2, 3])[:, None]
    return tf.keras.Model(inputs, loudness * tf.concat([contrast, 0.001 - contrast], -1))


def contrast_codec(images, training, quality_map):
    """Stands for a codec: contrast is the quality, and costs half a bit per pixel."""
    assert training
    return 128 + (images - 128) * quality_map, {"y": 0.5 * tf.reduce_sum(quality_map, [1, 2, 3])}


def test_a_task_map_is_high_where_the_classifier_looks_and_low_elsewhere():
    images = np.random.default_rng(1).integers(0, 256, [2, 64, 160, 3], np.uint8)
    classifier = task_map.Classifier(left_or_right(loudness=10))
    maps = task_map.find_maps(contrast_codec, classifier, images, weight=10.0, steps=6)
    start = 1 / (1 + np.exp(-task_map.START))
    assert maps.shape == (2, 64, 160, 1)
    assert maps[:, :, :48].min() > start > maps[:, :, 80:].max()
    free = task_map.find_maps(contrast_codec, classifier, images, weight=0.0, steps=6)
    assert free.max() < start


def test_logits_and_probabilities_are_the_same():
    logits = left_or_right(loudness=3)
    softmax = tf.keras.Sequential([logits, tf.keras.layers.Softmax()])
    images = tf.random.uniform([3, 16, 80, 3], 0, 255)
    one, other = (task_map.Classifier(m).log_probabilities(images) for m in (logits, softmax))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_bad_classifiers(tmp_path):
    with pytest.raises(UserError, match="takes images of 80x32, and this one is 80x48"):
        task_map.Classifier(left_or_right((32, 80))).check(48, 80)
    with pytest.raises(UserError, match="not images"):
        task_map.Classifier(tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=[7])]))
    with pytest.raises(UserError, match="neither"):
        task_map.load_classifier("NoSuchNet")
    (tmp_path / "model.keras").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot|can be loaded"):
        task_map.load_classifier(str(tmp_path / "model.keras"))


def test_a_classifier_that_ships_has_a_gradient_and_takes_any_size():
    judge = task_map.load_classifier("efficientnet_lite0")
    judge.check(48, 80)
    images = tf.random.stateless_uniform([1, 48, 80, 3], [1, 2], 0, 255)
    with tf.GradientTape() as tape:
        tape.watch(images)
        log_probabilities = judge.log_probabilities(images)
    assert log_probabilities.shape == (1, 1000)
    assert float(tf.reduce_sum(tf.exp(log_probabilities))) == pytest.approx(1, abs=1e-4)
    assert float(tf.reduce_max(tf.abs(tape.gradient(log_probabilities, images)))) > 0


# --- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, sft_weights, picture):
    """run(*arguments) -> exit code, in a folder with `image.png` and `map.png`."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("picture.png")
    Image.fromarray(np.tile(np.linspace(0, 255, 50).astype(np.uint8), (20, 1))).save("map.png")

    def run(command, *arguments):
        with pytest.raises(SystemExit) as end:
            cli.main("sft", [command, *map(str, arguments), "--weights", str(sft_weights), "--force"])
        run.out, run.err = capsys.readouterr()
        assert "Traceback" not in run.err
        return end.value.code

    return run


def compressed(run, *flags):
    assert run("compress", "picture.png", "-o", "out.tfci", *flags) == 0, run.err
    with open("out.tfci", "rb") as file:
        return file.read()


def test_compress_with_every_kind_of_map(run, sft, picture):
    assert compressed(run, "--quality", 0.6) == sft.compress(picture, quality=0.6)
    map_ = np.tile(np.linspace(0, 255, 50).astype(np.uint8), (20, 1))
    assert compressed(run, "--quality_map", "map.png") == sft.compress(picture, quality_map=map_)
    regions = [Region(10, 20, 50, 40), Region(70, 5, 64, 64, 0.3)]
    flags = ("--roi", "10,20,50,40", "--roi", "70,5,64,64:0.3")
    assert compressed(run, *flags) == sft.compress(picture, quality_map=paint((90, 140), 0.0, regions))
    with_quality = sft.compress(picture, quality_map=paint((90, 140), 0.25, regions))
    assert compressed(run, *flags, "--quality", 0.25) == with_quality
    assert run("decompress", "out.tfci", "-o", "back.png") == 0
    np.testing.assert_array_equal(np.asarray(Image.open("back.png")), sft.decompress(with_quality))


def test_compress_for_a_task(run, sft, picture):
    left_or_right((90, 140)).save("left.keras")
    data = compressed(run, "--task_model", "left.keras", "--task_weight", 0.01)
    assert sft.decompress(data).shape == picture.shape
    left_or_right((32, 80)).save("other.keras")
    assert run("compress", "picture.png", "--task_model", "other.keras") == 1
    assert "takes images of 80x32" in run.err and run.err.count("\n") == 1


def test_target_sizes(run, sft, picture):
    sizes = sorted(len(sft.compress(picture, quality=q)) for q in (0, 1))
    target = max(sizes[0], len(sft.compress(picture, quality=0)) + 1)
    assert len(compressed(run, "--target_kb", target / 1000)) <= target
    assert len(compressed(run, "--target_kb", target / 1000, "--quality_map", "map.png")) <= target


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--quality", "1.2"), "quality 1.2 is not within 0 to 1"),
        (("--quality", "nan"), "not within 0 to 1"),
        (("--quality_map", "missing.png"), "missing.png"),
        (("--quality_map", "text.png"), "text.png"),
        (("--quality_map", "map.png", "--quality", "0.3"), "leave it out"),
        (("--roi", "100,0,80,10"), "not inside the image, which is 140x90"),
        (("--roi", "0,0,8,8", "--quality", "-1"), "not within 0 to 1"),
        (("--task_model", "nothing"), "nothing"),
        (("--task_model", "text.png"), "text.png"),
    ],
)
def test_user_errors_are_one_line(run, flags, message):
    with open("text.png", "w") as file:
        file.write("no picture")
    assert run("compress", "picture.png", "-o", "out.tfci", *flags) == 1
    assert message in run.err and run.err.startswith("error:") and run.err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--roi", "1,2,3"], ["--roi", "1,2,0,4"], ["--roi", "1,2,3,4:2"], ["--roi", "a"]])
def test_usage_errors(run, flags):
    assert run("compress", "picture.png", *flags) == 2
    assert "--roi" in run.err


def test_evaluate_gives_a_curve(run):
    assert run("evaluate", "picture.png", "--quality", "0,1", "--json", "curve.json") == 0
    assert "quality 0" in run.out and "quality 1" in run.out
    assert [point["quality"] for point in json.loads(Path("curve.json").read_text())["curve"]] == [0, 1]


def test_evaluate_that_is_stopped_keeps_what_it_has(run, monkeypatch):
    def measure(codec, image, name, *options, judge, quality):
        if quality:
            raise KeyboardInterrupt
        return once(codec, image, name, *options, quality=quality)

    once = sweep.measure
    monkeypatch.setattr(sweep, "measure", measure)
    assert run("evaluate", "picture.png", "--quality", "0,1", "--json", "curve.json") == 130
    figures = json.loads(Path("curve.json").read_text())
    assert [point["quality"] for point in figures["curve"]] == [0]
    assert figures["pictures"][0]["bpp"] == figures["curve"][0]["bpp"] > 0


# --- trained weights ----------------------------------------------------------------------------------------------


def test_a_region_gains_and_the_rest_pays(photograph):
    """Inside it is better than with a uniform map of more bytes; outside it is worse than with one of fewer."""
    codec = load(shipped("sft")[0])
    region = Region(180, 60, 190, 200)
    results = region_program.compare(codec, photograph, region, EncoderOptions(effort=0))
    size = {kind: len(data) for kind, (data, _) in results.items()}
    assert 0.8 * size["region"] < size["uniform below"] <= size["region"] < size["uniform above"] < 1.2 * size["region"]
    psnr = {
        kind: region_program.inside_and_outside(photograph, decoded, region) for kind, (_, decoded) in results.items()
    }
    assert psnr["region"][0] > psnr["uniform above"][0] + 1.5
    assert psnr["region"][1] < psnr["uniform below"][1] - 1.5
