"""SAE-SPN on the contract: files of the three variants, what is coded, the two players, the two stages, the flags."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from eval.replay import Recorder
from models import sae_spn
from models.app import cli
from models.app.flags import sae_spn as flags
from models.codec import load, load_for_training, loss_weights, precision, storage
from models.codec.coding import to_uint8
from models.entropy import rans
from models.entropy.coders import LatentCoder, TableRate
from models.entropy.tables import CdfBank
from models.io import images
from models.io.errors import UserError
from models.sae_spn import LOSS_WEIGHTS, PRESETS, SAESPN, Config
from train.pjrt import export as pjrt
from transforms import quantizers, switches

TINY = Config(
    widths=(4, 8, 8, 8, 16),
    latent_groups=(2, 2),
    blocks=2,
    norm="channel",
    context_width=4,
    discriminator_widths=(4, 8, 8, 8),
)


def made(variant, stage=1, config=TINY):
    tf.keras.utils.set_random_seed(3)
    codec = SAESPN(config, variant, stage)
    codec.build_variables(training=True)
    return codec


@pytest.fixture(scope="module")
def files(crop, tmp_path_factory):
    """Weights file by variant, not trained; that of sae with instance normalisation."""
    paths = {}
    for variant, norm in (("sae", "instance"), ("swwae", "channel"), ("sae_spn", "channel")):
        codec = made(variant, config=dataclasses.replace(TINY, norm=norm))
        codec.calibrate(np.stack([crop(64, 64), crop(64, 64, 200)]))
        paths[variant] = tmp_path_factory.mktemp(variant) / "tiny.safetensors"
        codec.save(paths[variant])
    return paths


@pytest.fixture(scope="module")
def codecs(files):
    return {variant: load(path) for variant, path in files.items()}


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, height, width", [("sae_spn", 1, 1), ("sae_spn", 33, 70), ("sae", 70, 33), ("swwae", 1, 37)]
)
def test_round_trip_is_what_was_estimated(codecs, crop, variant, height, width):
    codec = codecs[variant]
    assert codec.variant == variant
    image = crop(height, width)
    data = codec.compress(image)
    reconstruction, bits = codec(tf.constant(image[None]))
    np.testing.assert_array_equal(codec.decompress(data), to_uint8(reconstruction[0]))
    size = sum(float(b[0]) for b in bits.values()) / 8
    assert abs(len(data) - size) <= 0.03 * size + 40
    assert set(bits) == ({"latents", "switches"} if variant == "swwae" else {"latents"})


def test_round_trip_without_normalisation(crop):
    codec = made("sae_spn", config=dataclasses.replace(TINY, norm="none"))
    codec.calibrate(np.stack([crop(64, 64), crop(64, 64, 200)]))
    picture = crop(33, 70)
    decoded = codec.decompress(codec.compress(picture))
    assert np.abs(decoded.astype(int) - to_uint8(codec(picture[None])[0][0])).max() <= 1
    assert codec.reach is not None
    assert not [name for name in codec.named_variables() if "norm" in name]


@pytest.mark.parametrize("variant", ["sae_spn", "swwae"])
def test_decoder_gets_the_latents_and_switches_of_the_encoder(codecs, crop, variant):
    codec = codecs[variant]
    pictures = tf.constant(np.stack([crop(32, 64), crop(32, 64, 200)]), tf.float32)
    encoder = rans.RansEncoder(codec.coder)
    levels, found = codec.transmit(LatentCoder(encoder), pictures)

    @tf.function(autograph=False)
    def decode(streams, size):
        decoder = LatentCoder(rans.RansDecoder(codec.coder, streams))
        return codec.transmit(decoder, shape=(tf.shape(streams)[0], size[0], size[1]))

    for sent, got in zip((levels, *found), tf.nest.flatten(decode(encoder.finish(), tf.constant([32, 64])))):
        np.testing.assert_array_equal(got, sent)
    latents, maps = codec.analyse(pictures)
    np.testing.assert_array_equal(levels, np.clip(np.round(latents), -2, 2))
    assert len(np.unique(levels)) == 5
    expected = [switches.find(m) for m in reversed(maps)] if variant == "swwae" else []
    assert len(found) == len(expected)
    for switch, true in zip(found, expected):
        np.testing.assert_array_equal(switch, true)
        assert len(np.unique(switch)) == 4


def test_file_size_is_the_estimate(tiny_sae_spn, photograph):
    data = tiny_sae_spn.compress(photograph)
    _, bits = tiny_sae_spn(tf.constant(photograph[None]))
    size = float(bits["latents"][0]) / 8
    assert size > 500 and abs(len(data) - size) <= 0.03 * size
    # Better than the paper's count of log2(5) bits for each.
    assert size < 0.95 * np.log2(5) / 8 * tiny_sae_spn.config.latents * photograph.shape[0] * photograph.shape[1] / 256


def test_float_and_table_rates_agree(files, codecs, crop):
    """Under the tables that the float densities are; those fitted to what the untrained networks give cost less."""
    image = tf.constant(crop(64, 64)[None])
    codec = load(files["swwae"])
    codec.set_bank(CdfBank.from_pmfs(codec.table_rows()))
    _, exact = codec(image)
    _, estimate = load_for_training(files["swwae"])(image)
    _, fitted = codecs["swwae"](image)
    for name in ("latents", "switches"):
        assert float(estimate[name][0]) == pytest.approx(float(exact[name][0]), rel=0.05, abs=3)
        assert 0 < float(fitted[name][0]) <= float(exact[name][0])


def test_sign_and_size_of_a_zero_are_not_coded(codecs):
    """The bits of all-zero levels are those of the first flag alone."""
    codec = codecs["sae_spn"]

    class Names(TableRate):
        kept = ()

        def bernoulli(self, name, bits, logits, kept):
            self.kept += (float(tf.reduce_sum(kept)),)
            return super().bernoulli(name, bits, logits, kept)

    ones = tf.ones([1, 2, 4, 1])
    for levels, coded in ((np.zeros([1, 2, 4, 4]), 32), (np.full([1, 2, 4, 4], -2), 3 * 32)):
        coder = Names(codec.bank)
        levels = tf.constant(levels, tf.float32)
        np.testing.assert_array_equal(codec._transmit_levels(coder, levels, ones), levels)
        assert sum(coder.kept) == coded


def test_passes_are_few(codecs, crop):
    """Two for each group's zeros and two for signs and sizes, whatever the size of the image."""
    recorder = Recorder()
    codecs["sae_spn"].transmit(recorder, tf.constant(crop(32, 64)[None], tf.float32))
    assert len(recorder.symbols) == 2 * len(TINY.latent_groups) + 2


def test_switches_change_the_picture(codecs, crop):
    """Those that were sent; and those that are predicted are not all the same."""
    codec = codecs["swwae"]
    levels, found = codec.transmit(TableRate(codec.bank), tf.constant(crop(32, 64)[None], tf.float32))
    before = codec.reconstruct((levels, found))
    assert np.abs(before - codec.reconstruct((levels, [3 - s for s in found]))).max() > 1
    spn = codecs["sae_spn"]
    levels, found = spn.transmit(TableRate(spn.bank), tf.constant(crop(32, 64)[None], tf.float32))
    logits = spn.synthesis(levels)[2][-1]
    assert len(np.unique(tf.argmax(logits, -1))) > 1


def test_large_pictures_are_warned_of_where_it_matters(codecs, crop, monkeypatch, recwarn):
    monkeypatch.setattr(sae_spn, "LARGE", 32 * 32)
    for variant, size, warned in (("sae_spn", 48, 0), ("sae", 32, 0), ("sae", 48, 1)):
        codecs[variant].compress(crop(size, 32))
        assert len([w for w in recwarn.list if w.category is images.ImageWarning]) == warned


# --- training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def players(crop):
    """A codec of stage 2, compiled, and a batch."""
    codec = made("sae_spn", stage=2)
    codec.compile(tf.keras.optimizers.Adam(1e-2))
    return codec, tf.constant(np.stack([crop(32, 32), crop(32, 32, 200)]))


def test_each_loss_reaches_its_own_player_only(players):
    codec, batch = players
    names = {id(v): name for name, v in codec.named_variables().items() if v.trainable}
    generator = {id(v) for v in codec.trainable_variables}
    discriminator = {id(v) for v in codec.discriminator.trainable_variables}
    assert generator.isdisjoint(discriminator) and generator | discriminator == set(names)
    with tf.GradientTape(persistent=True) as tape:
        losses = codec.losses(batch, training=True)
    # What compress and decompress are made of gets no gradient of the discriminator's loss.
    assert tape.gradient(losses["discriminator"], codec.trainable_variables) == [None] * len(generator)
    for loss, variables in (
        ("loss", codec.trainable_variables),
        ("discriminator", codec.discriminator.trainable_variables),
    ):
        gradients = tape.gradient(losses[loss], variables)
        assert not [names[id(v)] for v, g in zip(variables, gradients) if g is None]
    # The bits do not pull at the transforms.
    gradients = zip(codec.trainable_variables, tape.gradient(losses["bpp"], codec.trainable_variables))
    assert {names[id(v)].split("/")[0] for v, g in gradients if g is not None} == {"zero_context", "value_context"}


def test_intermediate_loss_leaves_the_encoders_maps_alone(players, monkeypatch):
    """Without the way through the latents nothing of it reaches the encoder."""
    codec, batch = players
    monkeypatch.setattr(quantizers, "quantise", lambda x, sigma: tf.stop_gradient(tf.round(x)))
    with tf.GradientTape() as tape:
        loss = codec.losses(batch, training=True)["intermediate"]
    gradients = tape.gradient(
        loss, {"encoder": codec.encoder.trainable_variables, "decoder": codec.synthesis.layers[0].conv.kernel}
    )
    assert gradients["encoder"] == [None] * len(gradients["encoder"]) and gradients["decoder"] is not None


def test_a_step_moves_both_players_by_their_own_losses(players):
    codec, batch = players
    mine, theirs = codec.trainable_variables, codec.discriminator.trainable_variables

    def values(variables):
        return [v.numpy() for v in variables]

    def moved(before, variables):
        return sum(float(np.abs(a - b).max()) > 0 for a, b in zip(before, values(variables)))

    rate = codec.optimizer.learning_rate
    before = values(mine), values(theirs)
    rate.assign(0.0)  # the discriminator's follows
    codec.train_step(batch)
    assert moved(before[0], mine) == moved(before[1], theirs) == 0
    rate.assign(1e-2)
    codec.train_step(batch)
    assert moved(before[0], mine) > 0.8 * len(mine) and moved(before[1], theirs) > 0.8 * len(theirs)
    steps = [np.abs(a - b).max() for a, b in zip(before[1], values(theirs))]
    assert 0 < max(steps) < 5 * 1e-2


def test_weights_files_have_no_discriminator(players):
    codec, _ = players
    assert any(name.startswith("discriminator/") for name in codec.named_variables())
    assert not any("discriminator" in name or "optimizer" in name for name in storage.tensors(codec))


def test_both_players_train_outside_tensorflow(players):
    """Of what a step reads and writes, an export knows every weight's and every optimizer's part."""
    codec, _ = players
    names = {name for name, _, _ in pjrt._named_state(codec).values()}
    for optimizer, variables in (
        ("optimizer", "encoder/layers/0"),
        ("discriminator_optimizer", "discriminator/layers/0"),
    ):
        assert f"{optimizer}/learning_rate" in names
        assert f"{optimizer}/velocities/{variables}/{'conv/' * (optimizer == 'optimizer')}kernel" in names


@pytest.mark.parametrize("part", ["mse", "intermediate", "switches", "adversarial"])
def test_weights_of_the_losses(players, part):
    codec, batch = players
    other = dict(LOSS_WEIGHTS, **{part: LOSS_WEIGHTS[part] + 2})
    before = codec.losses(batch, training=False)
    codec.loss_weights, kept = other, codec.loss_weights
    after = codec.losses(batch, training=False)
    codec.loss_weights = kept
    difference = float(after["loss"] - before["loss"]) / 2
    if part == "switches":
        assert 1 < difference < 5  # a cross-entropy of four classes
    else:
        expected = float(before[part]) / (127.5**2 if part == "mse" else 1)
        assert difference == pytest.approx(expected, rel=1e-2)


def test_the_network_that_ships_gives_features_of_five_scales(crop):
    """In float32, whatever the codec computes in."""
    with precision.scope("mixed_bfloat16"):
        features = flags.load_features("efficientnet_lite0")
    found = features(crop(64, 64)[None])
    assert [x.shape[1] for x in found] == [32, 16, 8, 4, 2] and {x.dtype for x in found} == {tf.float32}


def test_perceptual_loss_counts_where_there_are_features(crop):
    batch = tf.constant(crop(32, 32)[None])
    codec = made("sae")
    assert "perceptual" not in codec.losses(batch, training=False)
    plain = codec.losses(batch, training=False)["loss"]
    codec._features = lambda x: [x]
    figures = codec.losses(batch, training=False)
    assert float(figures["loss"] - plain) == pytest.approx(5 * float(figures["perceptual"]), rel=1e-2)


def test_parsing_of_loss_weights():
    assert loss_weights.parse("", LOSS_WEIGHTS) == LOSS_WEIGHTS == flags.LOSS_WEIGHTS
    changed = {**LOSS_WEIGHTS, "mse": 3.0, "adversarial": 0.0}
    assert loss_weights.parse("mse=3,adversarial=0", LOSS_WEIGHTS) == changed
    assert loss_weights.parse(loss_weights.to_text(changed), LOSS_WEIGHTS) == changed
    for text in ("mse", "mse=", "style=1", "mse=-1", "mse=nan", "mse=inf"):
        with pytest.raises(UserError, match="takes NAME=NUMBER"):
            loss_weights.parse(text, LOSS_WEIGHTS)


@pytest.mark.parametrize(
    "config, arguments, message",
    [
        (TINY, {"variant": "spn"}, "variant 'spn'"),
        (TINY, {"stage": 3}, "stage 3"),
        (dataclasses.replace(TINY, norm="batch"), {}, "norm 'batch'"),
        (dataclasses.replace(TINY, widths=(4, 8, 6, 8, 8)), {}, "divisible by 4"),
    ],
)
def test_what_cannot_be_built_is_refused(config, arguments, message):
    with pytest.raises(UserError, match=message):
        SAESPN(config, **arguments)


def test_base_is_the_papers():
    base = PRESETS["base"]
    assert (base.widths, base.latents, base.blocks, base.norm) == ((60, 120, 240, 480, 960), 8, 9, "instance")
    assert (base.sigma, 2 * quantizers.LIMIT + 1, base.discriminator_widths) == (1.0, 5, (64, 128, 256, 512))


# --- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Calls the command line in a folder of its own: run(*arguments) -> exit code; `run.err` is what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main("sae_spn", [str(a) for a in arguments])
        run.err = capsys.readouterr().err
        assert "Traceback" not in run.err
        return end.value.code

    return run


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--stage", "2"), "--init_weights"),
        (("--loss_weights", "style=1"), "--loss_weights style=1"),
        (("--perceptual_model", "none.h5"), "neither efficientnet_lite0, nor vgg16, nor a file"),
    ],
)
def test_flags_that_make_no_sense_are_refused(run, arguments, message):
    assert run("train", "--train_glob", "*.png", *arguments) == 1
    assert message in run.err and len(run.err.strip().splitlines()) == 1


def test_training_in_two_stages(run, crop, files, caplog):
    for n in range(4):
        Image.fromarray(crop(64, 64, 60 * n)).save(f"{n}.png")
    common = ["--train_glob", "*.png", "--patchsize", 32, "--batchsize", 2, "--epochs", 1, "--steps_per_epoch", 2]
    common += ["--validation_steps", 1, "--calibration", 16, "--init_weights", files["sae_spn"]]
    assert run("train", *common, "--variant", "sae", "--train_path", "other") == 1
    assert "weights of the variant sae_spn, not sae" in run.err
    with open("bad.h5", "wb") as file:
        file.write(b"no weights")
    assert run("train", *common, "--perceptual_model", "bad.h5", "--train_path", "bad") == 1
    assert "not a file of VGG-16's weights" in run.err
    two = ["--stage", 2, "--ema", 0.9, "--loss_weights", "adversarial=0.5", "--train_path", "two"]
    assert run("train", *common, *two) == 0
    assert "without the perceptual loss" in caplog.text
    codec = load("two/final.safetensors")
    assert (codec.stage, codec.variant, codec.config) == (2, "sae_spn", TINY)
    assert codec.loss_weights == {**LOSS_WEIGHTS, "adversarial": 0.5}
    assert run("evaluate", "0.png", "--weights", "two/final.safetensors", "--json", "e.json") == 0
    with open("e.json") as file:
        assert json.load(file)["variant"] == "sae_spn"


def test_weights_that_cannot_be_fetched_turn_the_term_off(monkeypatch, caplog):
    def refuse(**_):
        raise OSError("no network")

    monkeypatch.setattr(tf.keras.applications, "VGG16", refuse)
    assert flags.load_features("vgg16") is None
    assert "without the perceptual loss" in caplog.text and "no network" in caplog.text
