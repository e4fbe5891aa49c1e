"""CWIC on the contract: files, what may depend on what, bits that are not kept, the two stages, the command line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from eval.replay import Recorder, Replay
from models.app import cli
from models.codec import load, load_for_training, storage
from models.codec.coding import to_uint8
from models.cwic import CWIC, PRESETS, Config
from models.entropy import rans, tables
from models.entropy.coders import LatentCoder, TableRate
from models.io import images
from models.io.errors import UserError
from transforms import importance
from transforms.exact import Fixed

TINY = Config(
    encoder_widths=(4, 8),
    decoder_widths=(8, 16, 4),
    hidden=4,
    levels=4,
    code_groups=(4, 4),
    context_width=4,
    map_context_width=4,
)


@pytest.fixture(scope="module")
def first_stage(crop, tmp_path_factory):
    """Weights file of stage 1: not trained, but with codes that differ."""
    tf.keras.utils.set_random_seed(3)
    codec = CWIC(TINY)
    codec.build_variables(training=True)
    codec.calibrate(np.stack([crop(64, 64), crop(64, 64, 200)]))
    path = tmp_path_factory.mktemp("stage1") / "first.safetensors"
    codec.save(path)
    return path


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(1, 1), (1, 37), (8, 16), (33, 17), (90, 70)])
def test_round_trip_is_what_was_estimated(tiny_cwic, crop, height, width):
    image = crop(height, width)
    data = tiny_cwic.compress(image)
    reconstruction, bits = tiny_cwic(tf.constant(image[None]))
    np.testing.assert_array_equal(tiny_cwic.decompress(data), to_uint8(reconstruction[0]))
    size = sum(float(b[0]) for b in bits.values()) / 8
    assert abs(len(data) - size) <= 0.03 * size + 40


def test_file_size_is_the_estimate(tiny_cwic, photograph):
    data = tiny_cwic.compress(photograph)
    _, bits = tiny_cwic(tf.constant(photograph[None]))
    size = sum(float(b[0]) for b in bits.values()) / 8
    assert set(bits) == {"map", "codes"} and size > 1000
    assert abs(len(data) - size) <= 0.03 * size


def test_decoder_gets_the_latents_of_the_encoder(tiny_cwic, crop):
    """In a batch, traced, and alone."""
    pictures = tf.constant(np.stack([crop(40, 64), crop(40, 64, 200)]), tf.float32)
    encoder = rans.RansEncoder(tiny_cwic.coder)
    sent = tiny_cwic.transmit(LatentCoder(encoder), pictures)
    streams = encoder.finish()

    def decode(streams):
        coder = LatentCoder(rans.RansDecoder(tiny_cwic.coder, streams))
        return tiny_cwic.transmit(coder, shape=(tf.shape(streams)[0], 40, 64))

    np.testing.assert_array_equal(decode(streams), sent)
    for n in range(2):
        np.testing.assert_array_equal(decode(streams[n : n + 1])[0], sent[n])
    np.testing.assert_array_equal(tf.function(decode, autograph=False)(streams), sent)
    assert 0.05 < np.mean(sent) < 0.95


def test_weights_of_stage_1_compress(first_stage, crop):
    codec, image = load(first_stage), crop(40, 50)
    assert codec.stage == 1
    padded = codec.pad(tf.constant(image[None], tf.float32))
    np.testing.assert_array_equal(codec.transmit(TableRate(codec.bank), padded), codec.analyse(padded)[0])
    reconstruction, bits = codec(tf.constant(image[None]))
    assert set(bits) == {"codes"}
    np.testing.assert_array_equal(codec.decompress(codec.compress(image)), to_uint8(reconstruction[0]))


def test_calibration_in_batches_of_different_sizes(crop, monkeypatch):
    monkeypatch.setattr(storage, "CALIBRATION_BATCH", 2)
    tf.keras.utils.set_random_seed(3)
    codec = CWIC(TINY)
    codec.build_variables(training=True)
    codec.calibrate(np.stack([crop(32, 32, 90 * n) for n in range(3)]))
    assert codec.bank is not None


def test_weights_for_coding_only(tiny_cwic, tiny_cwic_weights, crop, tmp_path):
    target = tmp_path / "small.safetensors"
    storage.save_for_coding(tiny_cwic_weights, target)
    assert target.stat().st_size < 0.9 * Path(tiny_cwic_weights).stat().st_size
    codec, image = load(target), crop(40, 50)
    assert codec.weights_id != tiny_cwic.weights_id
    np.testing.assert_array_equal(
        codec.decompress(codec.compress(image)), tiny_cwic.decompress(tiny_cwic.compress(image))
    )
    with pytest.raises(UserError, match="for coding only"):
        load_for_training(target)


# --- what is coded -----------------------------------------------------------------------------------------------


class Rows(TableRate):
    """Keeps the rows and the masks of all passes."""

    def __init__(self, bank):
        super().__init__(bank)
        self.passes = []

    def bernoulli(self, name, bits, logits, kept):
        self.passes.append((name, logits.value.numpy(), kept.numpy()))
        return super().bernoulli(name, bits, logits, kept)


def test_bits_that_are_not_kept_cost_nothing(tiny_cwic):
    random = np.random.default_rng(2)
    bits = random.integers(0, 2, [1, 3, 4, 6]).astype(np.float32)
    rows = Fixed(tf.constant(random.integers(0, tables.NUM_LOGITS, bits.shape), tf.float32))

    def cost(kept):
        coder = TableRate(tiny_cwic.bank)
        decoded = coder.bernoulli("codes", tf.constant(bits), rows, tf.constant(kept, tf.float32))
        np.testing.assert_array_equal(decoded, bits * kept)
        stream = rans.RansEncoder(tiny_cwic.coder)
        LatentCoder(stream).bernoulli("codes", tf.constant(bits), rows, tf.constant(kept, tf.float32))
        assert float(stream.cost_bits()[0]) == pytest.approx(float(coder.bits["codes"][0]), abs=0.01)
        return float(coder.bits["codes"][0])

    kept = random.integers(0, 2, bits.shape)
    assert cost(np.zeros_like(kept)) == 0
    assert cost(kept) + cost(1 - kept) == pytest.approx(cost(np.ones_like(kept)))
    assert cost(kept) > 1


def test_float_and_table_rates_of_bits_agree(tiny_cwic, tiny_cwic_weights, crop):
    """The float networks, for validation, and the integers: the same to a few percent."""
    image = tf.constant(crop(128, 128)[None])
    _, exact = tiny_cwic(image)
    _, estimate = load_for_training(tiny_cwic_weights)(image)
    for name in ("map", "codes"):
        assert float(estimate[name][0]) == pytest.approx(float(exact[name][0]), rel=0.05, abs=3)


def test_order_of_the_passes(tiny_cwic, crop):
    """The planes of the map, then the groups of the codes: each half of the positions, at those networks only."""
    image = tiny_cwic.pad(tf.constant(crop(40, 60)[None], tf.float32))
    coder = Rows(tiny_cwic.bank)
    tiny_cwic.transmit(coder, image)
    c = tiny_cwic.config
    shapes = [("map", (1, 5, 4, 1))] * (2 * c.planes)
    shapes += [("codes", (1, 5, 4, g)) for g in c.code_groups for _ in range(2)]
    assert [(name, rows.shape) for name, rows, _ in coder.passes] == shapes
    assert all(kept.all() for name, _, kept in coder.passes if name == "map")
    kept = np.concatenate([k.ravel() for name, _, k in coder.passes if name == "codes"])
    assert 0.05 < kept.mean() < 0.95


def test_nothing_depends_on_what_comes_later(tiny_cwic, crop):
    """Changed symbols change the rows of later passes only."""
    image = tiny_cwic.pad(tf.constant(crop(40, 60)[None], tf.float32))
    recorder = Recorder()
    tiny_cwic.transmit(recorder, image)
    symbols = [s.numpy() for s in recorder.symbols]

    def rows(symbols):
        replay = Replay([tf.constant(s) for s in symbols])
        tiny_cwic.transmit(replay, shape=(1, *image.shape[1:3]))
        return [r.numpy() for r in replay.predictions[1::2]]

    before = rows(symbols)
    assert len(before) == len(symbols) == 2 * (tiny_cwic.config.planes + len(tiny_cwic.config.code_groups))
    reached = 0
    for n in range(len(symbols)):
        after = rows([1 - s if k == n else s for k, s in enumerate(symbols)])
        for k in range(n + 1):
            np.testing.assert_array_equal(after[k], before[k])
        reached += any(np.any(a != b) for a, b in zip(after[n + 1 :], before[n + 1 :]))
    assert reached >= 0.7 * len(symbols)  # of tiny networks, some predict the same whatever they see


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint_rate", [False, True])
def test_gradients_reach_every_variable(crop, joint_rate):
    tf.keras.utils.set_random_seed(5)
    codec = CWIC(TINY, stage=2, ratio=0.9, joint_rate=joint_rate)  # at level 3 of 4 bits of all groups are kept
    codec.build_variables(training=True)
    for name, variable in codec.named_variables().items():
        if "layers" in name:  # blocks start at zero
            variable.assign_add(tf.random.normal(variable.shape, stddev=0.1))
    pictures = tf.constant(np.stack([crop(64, 64), crop(64, 64, 200)]))
    with tf.GradientTape(persistent=True) as tape:
        losses = codec.losses(pictures, training=True)
    names = {id(v): name for name, v in codec.named_variables().items()}
    # The bits pull at the transforms where they are told to, and never at the map or at what only the decoder has.
    parts = ("context", "encoder", "code_head") if joint_rate else ("context",)
    for figure, mine in (("loss", lambda name: True), ("bpp", lambda name: any(part in name for part in parts))):
        gradients = tape.gradient(losses[figure], codec.trainable_variables)
        reached = {
            names[id(v)]
            for v, g in zip(codec.trainable_variables, gradients)
            if g is not None and np.any(tf.convert_to_tensor(g).numpy() != 0)
        }
        assert reached == {name for name in names.values() if mine(name)}


@pytest.mark.parametrize("ratio, lmbda, pulled", [(0.2, 0.01, True), (0.2, 0.03, True), (0.9, 0.01, False)])
def test_rate_loss_pulls_above_the_ratio_only(crop, ratio, lmbda, pulled):
    tf.keras.utils.set_random_seed(5)
    codec = CWIC(TINY, stage=2, ratio=0.5)
    codec.build_variables(training=True)
    codec.ratio = ratio
    codec.lambdas = (lmbda,)
    losses = {k: float(v) for k, v in codec.losses(tf.constant(crop(64, 64)[None]), training=True).items()}
    assert losses["importance"] == pytest.approx(0.5, abs=0.05)
    rate = losses["loss"] - lmbda * losses["mse"] - losses["bpp"]
    assert rate == pytest.approx(2000 * lmbda * max(0, losses["importance"] - ratio), abs=1e-3)
    assert (rate > 1) == pulled


def test_a_joint_rate_leaves_value_and_gradient_of_the_distortion_alone(crop):
    gradients = []
    for joint_rate in (False, True):
        tf.keras.utils.set_random_seed(5)
        codec = CWIC(TINY, stage=2, ratio=0.9, joint_rate=joint_rate)
        codec.build_variables(training=True)
        with tf.GradientTape() as tape:
            mse = codec.losses(tf.constant(crop(64, 64)[None]), training=True)["mse"]
        gradients.append(tape.gradient(mse, codec.encoder.trainable_variables))
        assert codec.from_settings(TINY, codec.settings()).joint_rate == joint_rate
    for alone, jointly in zip(*gradients):
        np.testing.assert_allclose(jointly, alone, rtol=1e-4, atol=1e-6)


def test_files_of_earlier_versions_do_not_tell_their_lambda():
    settings = {"stage": "2", "ratio": "0.5"}
    assert CWIC.from_settings(TINY, settings).lmbda == 0.01
    assert CWIC.from_settings(TINY, CWIC(TINY, lmbda=0.03).settings()).lmbda == 0.03


def test_stage_2_begins_with_the_weights_of_stage_1(first_stage):
    first = load_for_training(first_stage)
    first.lambdas = (0.02,)
    second = CWIC.second_stage(first, 0.25)
    assert (second.stage, second.ratio, second.lmbda, second.config) == (2, 0.25, 0.02, TINY)
    trained = first.named_variables()
    new = {name.split("/")[0] for name in second.named_variables().keys() - trained.keys()}
    assert new == {"importance_net", "map_context"}
    for name, variable in trained.items():
        np.testing.assert_array_equal(variable, second.named_variables()[name])


@pytest.mark.parametrize(
    "config, arguments, message",
    [
        (dataclasses.replace(TINY, levels=3), {}, "8 codes cannot be kept in 3 levels"),
        (dataclasses.replace(TINY, levels=1), {}, "at least 2"),
        (TINY, {"stage": 3}, "stage 3"),
        (TINY, {"ratio": 0.0}, "ratio 0"),
        (TINY, {"ratio": 1.5}, "ratio 1.5"),
        (TINY, {"ratio": float("nan")}, "ratio nan"),
    ],
)
def test_what_cannot_be_built_is_refused(config, arguments, message):
    with pytest.raises(UserError, match=message):
        CWIC(config, **arguments)


def test_presets_are_the_papers():
    low, high = PRESETS["low"], PRESETS["high"]
    assert (low.codes, low.levels, high.codes, high.levels) == (64, 16, 128, 32)
    assert low.encoder_widths == (128, 256) and low.decoder_widths == (512, 256, 32) and low.hidden == 128
    assert dataclasses.replace(high, levels=16, code_groups=low.code_groups) == low


# --- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Calls the command line in a folder of its own: run(*arguments) -> exit code; `run.err` is what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main("cwic", [str(a) for a in arguments])
        run.err = capsys.readouterr().err
        assert "Traceback" not in run.err
        return end.value.code

    return run


def test_compress_shows_the_importance_map(run, tiny_cwic, tiny_cwic_weights, crop):
    image = crop(50, 70)
    Image.fromarray(image).save("a.png")
    assert run("compress", "a.png", "--weights", tiny_cwic_weights, "--show_importance", "map.png") == 0
    shown = images.read_image("map.png")
    _, p = tiny_cwic.analyse(tiny_cwic.pad(tf.constant(image[None], tf.float32)))
    level = importance.quantise(p, tiny_cwic.config.levels)[0, :, :, 0].numpy()
    assert shown.shape == image.shape and np.all(shown == shown[..., :1])
    for row, column in ((0, 0), (49, 69), (20, 31)):
        expected = 255 * level[row // 8, column // 8] / (tiny_cwic.config.levels - 1)
        assert abs(shown[row, column, 0] - expected) <= 0.5
    assert len(np.unique(shown)) > 1
    assert Path("a.png.tfci").read_bytes() == tiny_cwic.compress(image)
    assert run("decompress", "a.png.tfci", "--weights", tiny_cwic_weights) == 0
    np.testing.assert_array_equal(
        images.read_image("a.png.tfci.png"), tiny_cwic.decompress(Path("a.png.tfci").read_bytes())
    )


def test_importance_map_that_cannot_be_shown(run, tiny_cwic_weights, first_stage, crop):
    Image.fromarray(crop(20, 30)).save("a.png")
    Path("map.png").write_bytes(b"precious")
    assert run("compress", "a.png", "--weights", tiny_cwic_weights, "--show_importance", "map.png") == 1
    assert "exists already" in run.err and Path("map.png").read_bytes() == b"precious"
    assert run("compress", "a.png", "--weights", first_stage, "--show_importance", "b.png") == 1
    assert run.err.strip() == "error: these weights are of stage 1, without an importance map"
    Image.fromarray(crop(20, 30)).save("b.png")
    assert run("compress", "?.png", "--weights", tiny_cwic_weights, "--show_importance", "c.bmp") == 1
    assert "one input" in run.err
    assert not list(Path().glob("*.tfci")) and not Path("c.bmp").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--stage", "2", "--ratio", "0.3"), "--init_weights"),
        (("--stage", "2", "--init_weights", "x"), "needs a --ratio"),
        (("--stage", "2", "--init_weights", "x", "--ratio", "0"), "--ratio 0"),
        (("--stage", "2", "--init_weights", "x", "--ratio", "1.01"), "--ratio 1.01"),
        (("--ratio", "0.3"), "stage 1 keeps all bits"),
        (("--lambda", "0.01,0.02"), "one λ"),
        (("--lambda", "0"), "must be positive"),
    ],
)
def test_stages_that_lack_something_are_refused(run, arguments, message):
    assert run("train", "--train_glob", "*.png", *arguments) == 1
    assert message in run.err and len(run.err.strip().splitlines()) == 1


def test_training_in_two_stages(run, crop, first_stage):
    for n in range(4):
        Image.fromarray(crop(64, 64, 60 * n)).save(f"{n}.png")
    common = ["--train_glob", "*.png", "--patchsize", 32, "--batchsize", 2, "--epochs", 1, "--steps_per_epoch", 2]
    arguments = ["--stage", 2, "--init_weights", first_stage, "--ratio", 0.25, "--lambda", 0.02, "--train_path", "two"]
    assert run("train", *common, *arguments) == 0
    codec = load("two/final.safetensors")
    assert (codec.stage, codec.ratio, codec.lmbda, codec.config) == (2, 0.25, 0.02, TINY)
    # It goes on from its own kind, but not back to stage 1.
    assert run("train", *common, "--init_weights", "two/final.safetensors", "--train_path", "back") == 1
    assert "weights of stage 2" in run.err and len(run.err.strip().splitlines()) == 1
    assert run("evaluate", "0.png", "--weights", "two/final.safetensors", "--json", "e.json") == 0
    assert '"ratio": "0.25"' in Path("e.json").read_text()
