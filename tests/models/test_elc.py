"""ELC on the contract: files and their two readers, the four stages and what each may change, the command line."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from eval.replay import Recorder, Replay
from models import elc
from models.app import cli
from models.app.flags import elc as flags
from models.codec import load, load_for_training, storage
from models.codec.coding import to_uint8
from models.elc import ELC, PRESETS, STAGES, TRAINED, Config
from models.entropy.coders import TableRate
from models.entropy.container import StreamError
from models.io import images
from models.io.errors import UserError
from models.tasks import classifier as classifiers
from models.tasks.classifier import Classifier
from train import labelled
from train.elc_stages import following

RES = Path(__file__).parents[2] / "res"

LABELS = ("parrot", "leaf", "other")


@pytest.fixture(scope="module")
def classifier(tiny_elc):
    tf.keras.utils.set_random_seed(2)
    return Classifier(tiny_elc.config.classifier, LABELS)


@pytest.fixture(scope="module")
def stages(tiny_elc_weights, classifier):
    """A codec of each stage, to be trained, with the tiny weights: the first one's are those of the last."""
    decoder = load_for_training(tiny_elc_weights)
    base = ELC(decoder.config)
    base.build_variables(training=True)
    values = decoder.named_variables()
    for name, variable in base.named_variables().items():
        variable.assign(values[name])
    classification = following(base, "classification", classifier)
    adversarial = following(decoder, "adversarial")
    adversarial.perceptual_features = classifier.features
    return dict(zip(STAGES, (base, classification, decoder, adversarial)))


@pytest.fixture
def batch(crop):
    """Two images and their classes."""
    return np.stack([crop(64, 64), crop(64, 64, 200)]), np.array([0, 2], np.int32)


def compiled(codec, rate=1e-3):
    """The codec with an optimizer whose learning rate is a schedule's, as in `train.fit`."""
    schedule = tf.keras.optimizers.schedules.CosineDecay(rate, 100)
    codec.compile(tf.keras.optimizers.Adam(schedule, global_clipnorm=1.0))
    codec.optimizer.build(codec.trainable_variables)
    return codec


def values_of(variables) -> list[np.ndarray]:
    return [np.array(variable) for variable in variables]


def same(before, after) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after))


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(1, 1), (33, 17), (90, 70)])
def test_round_trip_is_what_was_estimated(tiny_elc, crop, height, width):
    image = crop(height, width)
    data = tiny_elc.compress(image)
    reconstruction, bits = tiny_elc(tf.constant(image[None]))
    np.testing.assert_array_equal(tiny_elc.decompress(data), to_uint8(reconstruction[0]))
    size = sum(float(b[0]) for b in bits.values()) / 8
    assert set(bits) == {"z", "y"} and abs(len(data) - size) <= 0.03 * size + 40


def test_latents_are_whole_numbers_from_their_means(tiny_elc, crop):
    """What is decoded is the symbol that was coded plus the mean that its probability was computed with."""
    image = tiny_elc.pad(tf.constant(crop(90, 120)[None], tf.float32))
    recorder = Recorder()
    sent = tiny_elc.transmit(recorder, image)
    replay = Replay(recorder.symbols)
    received = tiny_elc.transmit(replay, shape=(1, *image.shape[1:3]))
    np.testing.assert_array_equal(sent, received)
    means = np.concatenate([m.numpy().ravel() for m in replay.predictions[::2]])
    symbols = np.concatenate([s.numpy().ravel() for s in recorder.symbols[1:]])  # the first are those of z
    np.testing.assert_array_equal(np.sort(means + symbols), np.sort(np.ravel(sent)))
    assert np.any(means != np.rint(means)) and np.any(symbols != 0)


def test_the_second_half_is_predicted_from_the_first(tiny_elc, crop):
    """Changed anchors change what is predicted for the others; changed others change nothing."""
    image = tiny_elc.pad(tf.constant(crop(64, 64)[None], tf.float32))
    recorder = Recorder()
    tiny_elc.transmit(recorder, image)

    def predictions(changed):
        replay = Replay([s + 40 * (n == changed) for n, s in enumerate(recorder.symbols)])
        tiny_elc.transmit(replay, shape=(1, *image.shape[1:3]))
        return np.concatenate(replay.predictions[:2], -1), np.concatenate(replay.predictions[2:], -1)

    first, second = predictions(None)
    hyper, anchors, others = (predictions(n) for n in range(3))
    assert not np.array_equal(hyper[0], first) and not np.array_equal(hyper[1], second)
    assert np.array_equal(anchors[0], first) and not np.array_equal(anchors[1], second)
    assert np.array_equal(others[0], first) and np.array_equal(others[1], second)


def test_classifying_makes_no_picture(tiny_elc, crop, monkeypatch):
    image = crop(75, 93)
    data = tiny_elc.compress(image)
    padded = tiny_elc.pad(tf.constant(image[None], tf.float32))
    expected = tf.nn.softmax(tiny_elc.logits(tiny_elc.transmit(TableRate(tiny_elc.bank), padded)))[0]
    for name in ("reconstruct", "reconstruct_plainly"):
        monkeypatch.setattr(tiny_elc, name, None)
    probabilities = tiny_elc.classify(data)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3)
    assert probabilities.shape == (3,) and probabilities.sum() == pytest.approx(1, abs=1e-5)
    served = tiny_elc.latent_outputs()["classify"](tiny_elc.latents(data))["probabilities"]
    np.testing.assert_allclose(served[0], probabilities, rtol=1e-3)
    with pytest.raises(StreamError):
        tiny_elc.classify(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])


def test_decompress_enhances(tiny_elc, crop):
    latents = tiny_elc.latents(tiny_elc.compress(crop(64, 64)))
    enhanced, plain = tiny_elc.reconstruct(latents), tiny_elc.reconstruct_plainly(latents)
    assert enhanced.shape == plain.shape == (1, 64, 64, 3)
    assert 0 < np.mean(np.abs(enhanced - plain)) < 20


def test_compressing_loads_no_decoder(tiny_elc, tiny_elc_weights, crop):
    codec, image = load(tiny_elc_weights, synthesis=False), crop(40, 50)
    assert codec.compress(image) == tiny_elc.compress(image)
    assert not any(name.startswith(ELC.decoder_parts) for name in codec.named_variables())


# --- the stages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_changes_what_the_stage_trains_and_nothing_else(stages, batch, stage):
    codec = compiled(stages[stage])
    before = {name: np.array(v) for name, v in codec.named_variables().items()}
    logs = codec.train_step(batch)
    assert set(logs) == set(elc.METRICS[stage]) and all(np.isfinite(float(v)) for v in logs.values())
    changed = {name for name, v in codec.named_variables().items() if not np.array_equal(v, before[name])}
    theirs = {name for name in changed if name.startswith("discriminator/")}
    assert bool(theirs) == (stage == "adversarial")
    changed -= theirs
    assert {name.split("/")[0] for name in changed} == set(TRAINED[stage])
    trained = [name for name in before if name.split("/")[0] in TRAINED[stage]]
    assert len(trained) == len(codec.trainable_variables)
    assert len(changed) >= 0.9 * len(trained)  # some ReLU of tiny networks are silent
    assert set(codec.test_step(batch)) == set(logs)


def test_the_adversarial_steps_are_apart(stages, batch, monkeypatch):
    """The generator's step moves no variable of the discriminator, and its loss has no part in the other's step."""
    codec = compiled(stages["adversarial"])
    theirs = list(codec.discriminator.weights)
    mine = list(codec.trainable_variables)
    assert not {id(v) for v in mine} & {id(v) for v in theirs}
    start = values_of(theirs), values_of(mine)
    seen = []

    def spy(optimizer):
        minimize = optimizer.minimize

        def watched(loss, variables, tape):
            before = values_of(mine), values_of(theirs)
            minimize(loss, variables, tape=tape)
            seen.append((same(before[0], values_of(mine)), same(before[1], values_of(theirs))))

        monkeypatch.setattr(optimizer, "minimize", watched)

    spy(codec.optimizer)
    spy(codec.discriminator_optimizer)

    def discriminator_after(weight):
        monkeypatch.setitem(codec.loss_weights, "adversarial", weight)
        for variables, values in zip((theirs, mine), start):
            for variable, value in zip(variables, values):
                variable.assign(value)
        for variable in codec.discriminator_optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        codec.train_step(batch)
        return values_of(theirs)

    first, second = discriminator_after(20.0), discriminator_after(2e4)
    assert seen == [(False, True), (True, False)] * 2
    assert not same(first, start[0])
    for a, b in zip(first, second):
        np.testing.assert_allclose(a, b, atol=1e-5)  # a step is 1e-3
    rate = float(codec.optimizer.learning_rate)
    assert float(codec.discriminator_optimizer.learning_rate) == pytest.approx(10 * rate, rel=0.01) and rate < 1e-3


def test_losses_of_the_stages(stages, batch):
    figures = {
        stage: {name: float(v) for name, v in compiled(codec).losses(batch, training=False).items()}
        for stage, codec in stages.items()
    }
    for stage, parts in figures.items():
        loss = parts["bpp"] + stages[stage].lmbda * parts["mse"]
        if stage == "classification":
            loss += 0.64 * parts["cross_entropy"]
        if stage == "adversarial":
            loss += 20 * parts["perceptual"]
            assert parts["perceptual"] > 0
        assert parts["loss"] == pytest.approx(loss, rel=1e-4)
    adversarial = stages["adversarial"].losses(batch, training=True)
    parts = {name: float(v) for name, v in adversarial.items()}
    loss = parts["bpp"] + 250 / 255**2 * parts["mse"] + 20 * parts["perceptual"] + 20 * parts["generator"]
    assert parts["loss"] == pytest.approx(loss, rel=1e-4)


def test_what_a_stage_begins_with(stages, classifier):
    classification = stages["classification"]
    assert classification.labels == LABELS and stages["adversarial"].labels == LABELS
    fresh = following(classification, "decoder")
    latents = tf.random.stateless_normal([1, 2, 4, fresh.config.width], [1, 2])
    np.testing.assert_allclose(fresh.reconstruct(latents), fresh.reconstruct_plainly(latents), atol=1e-3)
    np.testing.assert_array_equal(fresh.reconstruct_plainly(latents), classification.reconstruct_plainly(latents))
    features = tf.random.stateless_normal([1, 4, 4, 8], [3, 4])
    np.testing.assert_allclose(fresh.classifier(features), classifier.tail(features), rtol=1e-5)
    other = Classifier((8, 8, 8, 16, 16), LABELS)
    assert following(stages["base"], "classification", other).config.classifier == (8, 8, 8, 16, 16)
    with pytest.raises(UserError, match="8,8,8,16,16, and the codec is made for a small network of widths 8,8,8,8,16"):
        following(classification, "classification", other)


def test_the_discriminator_is_not_in_the_weights(stages, crop):
    codec = compiled(stages["adversarial"])
    assert codec.discriminator.weights
    assert not any("discriminator" in name or "optimizer" in name for name in storage.tensors(codec))


def test_what_cannot_be_built_is_refused():
    assert flags.LOSS_WEIGHTS == elc.LOSS_WEIGHTS and flags.STAGES == STAGES
    for arguments, message in [
        ({"stage": "last"}, "stage last"),
        ({"stage": "decoder"}, "no labels"),
        ({"lmbda": -1.0}, "must be positive"),
        ({"lambda_class": 0.0}, "must be positive"),
        ({"lmbda": (0.1, 0.2)}, "one λ"),
    ]:
        with pytest.raises(UserError, match=message):
            ELC(PRESETS["small"], **arguments)


def test_base_is_the_paper():
    assert PRESETS["base"] == Config() and Config().width == 192 and Config().classifier == "resnet50"
    assert elc.LAMBDA["base"] == 0.0018 and elc.LAMBDA["adversarial"] * 255**2 == pytest.approx(250)


# --- the classifier ----------------------------------------------------------------------------------------------


def test_resnet50_is_cut_where_the_features_are():
    """Front and tail are the network, whose features at the cut are 512 channels at 1/8."""
    net = classifiers._resnet50()
    front, tail = classifiers.Front("resnet50"), classifiers.Tail("resnet50", 3)
    for part in (front.net, tail.net):
        for layer in part.layers:
            if layer.weights:
                layer.set_weights(net.get_layer(layer.name).get_weights())
    pictures = tf.random.stateless_uniform([1, 64, 32, 3], [1, 2], 0, 255)
    features = front(pictures)
    assert features.shape == (1, 8, 4, 512)
    expected = net(tf.keras.applications.resnet50.preprocess_input(pictures), training=False)
    expected = tail.predictions(tf.reduce_mean(expected, [1, 2]))
    np.testing.assert_allclose(tail(features), expected, rtol=1e-3, atol=1e-4)


def test_classifier_file(classifier, tmp_path, tiny_elc_weights, crop):
    path = tmp_path / "classifier.safetensors"
    classifier.save_file(path)
    loaded = classifiers.load(path)
    pictures = tf.constant(crop(64, 64)[None])
    np.testing.assert_allclose(loaded(pictures), classifier(pictures), atol=0.02)
    assert loaded.labels == LABELS
    with pytest.raises(UserError, match="weights of elc, not of a classifier"):
        classifiers.load(tiny_elc_weights)
    with pytest.raises(UserError, match="no model is called 'classifier'"):
        load(path)


def test_without_labels_the_answer_to_the_original_is_matched(stages, classifier, batch):
    """Features and logits of the image itself; a codec whose features are those loses nothing."""
    codec = following(stages["base"], "classification", classifier)
    codec.features_at_cut = classifier.features_at_cut
    images = batch[0]
    figures = codec.losses((images, None), training=False)
    rate, error = figures["bpp"] + codec.lmbda * figures["mse"], figures["cross_entropy"] + figures["features"]
    assert float(figures["loss"]) == pytest.approx(float(rate + codec.lambda_class * error), rel=1e-5)
    features = classifier.features_at_cut(images)
    codec.feature_transform = lambda latents: features
    figures = codec.losses((images, None), training=False)
    assert figures["features"] == 0 and figures["top1"] == 1
    assert float(figures["cross_entropy"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_networks_that_ship_know_what_they_see(name):
    classifier = classifiers.load(name)
    assert len(classifier.labels) == 1000
    for photograph, label in (
        ("photos/a83533daf0a3f230.jpg", "golden_retriever"),
        ("eval/kodim23_512x384.png", "macaw"),
    ):
        image = labelled.scaled(images.read_image(RES / photograph), 224)
        probabilities = tf.nn.softmax(classifier(image[None]))[0].numpy()
        assert classifier.labels[probabilities.argmax()] == label and probabilities.max() > 0.5


def test_a_network_of_imagenet_behind_the_latents(stages, run, eagerly, crop, batch):
    """From the base stage to a file that says what is in the image: without labels, with the name of a classifier."""
    for n in range(3):
        Image.fromarray(crop(64, 80, 60 * n)).save(f"{n}.png")
    stages["base"].calibrate(batch[0])
    stages["base"].save("base.safetensors")
    flags = ["--train_glob", "*.png", "--patchsize", 64, "--batchsize", 2, "--epochs", 1, "--steps_per_epoch", 2]
    flags += ["--validation_steps", 1, "--calibration", 16, "--init_weights", "base.safetensors"]
    stage = ["train", "--stage", "classification", "--classifier", "efficientnet_lite0"]
    assert run(*stage, *flags, "--train_path", "two") == 0
    codec = load("two/final.safetensors")
    assert codec.config.classifier == "efficientnet_lite0" and len(codec.labels) == 1000
    Path("a.tfci").write_bytes(codec.compress(crop(64, 64)))
    names = "--classes", "tench, French horn,GOLF_BALL"
    assert run("classify", "a.tfci", "--weights", "two/final.safetensors", *names) == 0
    assert {line.split("%")[1].strip() for line in run.out.splitlines()[1:]} == {"tench", "French_horn", "golf_ball"}
    assert run(*stage[:-1], "efficientnet_lite9", *flags, "--train_path", "no") == 1
    assert run.err.strip().splitlines()[-1] == "error: efficientnet_lite9: no such weights file"


# --- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Calls the command line in a folder of its own: run(*arguments) -> exit code; `run.out`, `run.err`: its words."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main("elc", [str(a) for a in arguments])
        run.out, run.err = capsys.readouterr()
        assert "Traceback" not in run.err
        return end.value.code

    return run


def test_one_file_two_readers(run, tiny_elc, tiny_elc_weights, crop):
    Image.fromarray(crop(50, 70)).save("a.png")
    assert run("compress", "a.png", "--weights", tiny_elc_weights) == 0
    data = Path("a.png.tfci").read_bytes()
    assert run("decompress", "a.png.tfci", "--weights", tiny_elc_weights) == 0
    np.testing.assert_array_equal(images.read_image("a.png.tfci.png"), tiny_elc.decompress(data))
    assert run("classify", "a.png.tfci", "--weights", tiny_elc_weights) == 0
    first, *lines = run.out.strip().splitlines()
    assert first == "a.png.tfci:"
    order = np.argsort(-tiny_elc.classify(data))
    assert [line.split("%")[1].strip() for line in lines] == [LABELS[k] for k in order]
    assert float(lines[0].split("%")[0]) == pytest.approx(100 * tiny_elc.classify(data).max(), abs=0.01)
    Path("names.txt").write_text("Papagei\nBlatt\nAnderes\n", encoding="utf-8")
    assert run("classify", "a.png.tfci", "--weights", tiny_elc_weights, "--labels", "names.txt") == 0
    assert ["Papagei", "Blatt", "Anderes"][order[0]] in run.out.splitlines()[1]
    assert run("classify", "a.png.tfci", "--weights", tiny_elc_weights, "--classes", "Leaf, other") == 0
    lines = [line.split("%") for line in run.out.strip().splitlines()[1:]]
    assert {name.strip() for _, name in lines} == {"leaf", "other"}
    assert sum(float(share) for share, _ in lines) == pytest.approx(100, abs=0.02)
    assert run("classify", "a.png.tfci", "--weights", tiny_elc_weights, "--classes", "leaf,tree") == 1
    assert run.err.strip() == "error: --classes tree: no class is called so"


def test_files_that_cannot_be_classified(run, tiny_elc, tiny_elc_weights, stages, crop):
    data = tiny_elc.compress(crop(50, 70))
    Path("a.tfci").write_bytes(data)
    Path("b.tfci").write_bytes(data[:-9])
    Path("names.txt").write_text("one\ntwo\n")
    assert run("classify", "a.tfci", "--weights", tiny_elc_weights, "--labels", "names.txt") == 1
    assert run.err.strip() == "error: names.txt: 2 labels, but the classifier has 3 classes"
    assert run("classify", "b.tfci", "a.tfci", "--weights", tiny_elc_weights) == 1
    assert run.err.startswith("error: b.tfci: ") and "a.tfci:" in run.out
    base = stages["base"]
    with pytest.raises(UserError, match="stage base: they do not classify"):
        base.classify(data)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--stage", "classification", "--labelled", "x"), "weights of stage base: name their file"),
        (("--stage", "adversarial", "--train_glob", "x"), "weights of stage decoder: name their file"),
        (("--stage", "classification", "--train_glob", "x", "--init_weights", "x"), "needs images with labels"),
        (
            ("--stage", "decoder", "--train_glob", "x", "--init_weights", "x", "--classifier", "y"),
            "--classifier is for",
        ),
        (("--train_glob", "x", "--perceptual", "imagenet"), "--perceptual is for"),
        (("--train_glob", "x", "--loss_weights", "perceptual=1"), "--loss_weights is for"),
        (
            ("--train_glob", "x", "--loss_weights", "mse=1"),
            "--loss_weights mse=1: takes NAME=NUMBER, 0 or above, of per",
        ),
        (("--train_glob", "x", "--lambda", "0"), "--lambda 0: must be positive"),
        (("--labelled", "x", "--train_glob", "x"), "give either"),
    ],
)
def test_stages_that_lack_something_are_refused(run, arguments, message):
    assert run("train", *arguments) == 1
    assert message in run.err and len(run.err.strip().splitlines()) == 1


def test_training_goes_on_from_the_stage_before(run, eagerly, stages, classifier, crop, batch):
    for name in LABELS:
        Path("photos", name).mkdir(parents=True)
        for n in range(2):
            Image.fromarray(crop(64, 80, 60 * n)).save(Path("photos", name, f"{n}.png"))
    stages["base"].calibrate(batch[0])
    stages["base"].save("base.safetensors")
    classifier.save_file("classifier.safetensors")
    Classifier(classifier.architecture, ("a", "b")).save_file("two.safetensors")
    common = ["--patchsize", 32, "--batchsize", 2, "--epochs", 1, "--steps_per_epoch", 2]
    common += ["--validation_steps", 1, "--calibration", 16]
    stage = ["--stage", "classification", "--labelled", "photos", "--init_weights", "base.safetensors", *common]
    assert run("train", *stage) == 1
    assert "needs a --classifier" in run.err
    assert run("train", *stage, "--classifier", "two.safetensors", "--train_path", "no") == 1
    assert "are not the 3 classes of the images (leaf, other, parrot); without" in run.err.strip().splitlines()[-1]
    ordered = Classifier(classifier.architecture, sorted(LABELS))
    ordered.save_file("classifier.safetensors")
    assert run("train", *stage, "--classifier", "classifier.safetensors", "--train_path", "two") == 0
    codec = load("two/final.safetensors")
    assert (codec.stage, codec.labels) == ("classification", tuple(sorted(LABELS)))
    arguments = ["train", "--stage", "adversarial", "--train_glob", "photos/*/*.png", "--train_path", "no", *common]
    assert run(*arguments, "--init_weights", "two/final.safetensors") == 1
    assert "weights of stage classification; --stage adversarial goes on from decoder or adversarial" in run.err
