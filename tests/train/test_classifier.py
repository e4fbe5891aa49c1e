"""Training the classifier that ELC builds on."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from models.io.errors import UserError
from models.tasks import classifier as classifiers
from train import classifier


def folder_of_colours(folder):
    """Green and red images, 9 of each to train on and one to validate on."""
    for name, colour in (("green", (20, 200, 20)), ("red", (200, 20, 20))):
        for part, count in (("train", 9), ("val", 1)):
            (folder / part / name).mkdir(parents=True)
            for n in range(count):
                picture = Image.new("RGB", (32, 32), tuple(c + n for c in colour))
                picture.save(folder / part / name / f"{n}.png")


def test_trains_and_writes(tmp_path, monkeypatch, eagerly, capsys):
    """Red images and green ones are told apart after a few passes."""
    monkeypatch.setattr(classifier, "PRESETS", {"small": (8, 8, 8, 8, 16)})
    folder_of_colours(tmp_path / "data")
    path = tmp_path / "c.safetensors"
    arguments = [
        "--preset",
        "small",
        "--patchsize",
        "32",
        "--batchsize",
        "9",
        "--epochs",
        "8",
        "--learning_rate",
        "0.01",
    ]
    assert classifier.main([str(tmp_path / "data"), "-o", str(path), *arguments]) == 0
    loaded = classifiers.load(path)
    assert loaded.labels == ("green", "red")
    pictures = np.zeros([2, 32, 32, 3], np.float32) + np.array([[[[20, 200, 20]]], [[[200, 20, 20]]]])
    assert np.argmax(loaded(pictures), -1).tolist() == [0, 1]
    with pytest.raises(SystemExit, match="exists already"):
        classifier.main([str(tmp_path / "data"), "-o", str(path)])
    monkeypatch.setattr(classifier, "fit", lambda begun, *_: seen.append(begun(pictures)) or {"val_accuracy": [1.0]})
    seen = []
    again = ["--init", str(path), "-o", str(tmp_path / "again.safetensors"), *arguments]
    assert classifier.main([str(tmp_path / "data"), *again]) == 0
    np.testing.assert_array_equal(seen[0], loaded(pictures))


@pytest.mark.parametrize("batchsize", ["4", "18"])  # its loss is not finite from the second step on, or never seen
def test_a_classifier_that_diverges_is_not_written(tmp_path, monkeypatch, eagerly, batchsize):
    monkeypatch.setattr(classifier, "PRESETS", {"small": (8, 8, 8, 8, 16)})
    folder_of_colours(tmp_path / "data")
    arguments = [str(tmp_path / "data"), "-o", str(tmp_path / "c.safetensors"), "--preset", "small"]
    arguments += ["--patchsize", "32", "--batchsize", batchsize, "--epochs", "2", "--learning_rate", "1e30"]
    with pytest.raises(SystemExit, match="^error: training diverged: .* a lower --learning_rate$") as end:
        classifier.main(arguments)
    assert "\n" not in str(end.value) and "--resume" not in str(end.value)
    assert not (tmp_path / "c.safetensors").exists()


def test_goes_on_from_another(tmp_path):
    """--init FILE.safetensors: all its weights; for other classes all but the last layer's."""
    widths = (8, 8, 8, 8, 16)
    first = classifiers.Classifier(widths, ["green", "red"])
    first.save_file(tmp_path / "first.safetensors")
    first = classifiers.load(tmp_path / "first.safetensors")
    pictures = np.random.default_rng(0).uniform(0, 255, [2, 32, 32, 3]).astype(np.float32)

    same = classifiers.Classifier(widths, ["green", "red"])
    same.begin_as(first)
    np.testing.assert_array_equal(same(pictures), first(pictures))

    other = classifiers.Classifier(widths, ["cat", "dog", "mouse"])
    fresh = other.tail.predictions.kernel.numpy()
    other.begin_as(first)
    np.testing.assert_array_equal(other.front(pictures), first.front(pictures))
    np.testing.assert_array_equal(other.tail.predictions.kernel, fresh)
    assert other(pictures).shape == (2, 3)

    with pytest.raises(UserError, match="a small network of widths"):
        classifiers.Classifier((8, 8, 16, 16, 16), ["green", "red"]).begin_as(first)


def test_a_network_that_ships_learns_other_classes(tmp_path, monkeypatch):
    """Its features stay; its last layer is for the classes of the images."""
    folder_of_colours(tmp_path / "data")
    monkeypatch.setattr(classifier, "fit", lambda *_: {"val_accuracy": [1.0]})
    path, name = tmp_path / "lite.safetensors", "efficientnet_lite0"
    arguments = ["--preset", name, "--init", name, "--patchsize", "32"]
    assert classifier.main([str(tmp_path / "data"), "-o", str(path), *arguments]) == 0
    own, whole = classifiers.load(path), classifiers.load(name)
    assert (own.labels, own.architecture) == (("green", "red"), name)
    images = np.zeros([1, 64, 64, 3], np.float32)
    np.testing.assert_allclose(own.features_at_cut(images), whole.features_at_cut(images))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing/", "-o", "x"], "missing"),
        (["-o", "x"], "give a folder of classes"),
        (["x", "-o", "x", "--epochs", "0"], "--epochs 0: must be above 0"),
        (["x", "-o", "x", "--seed", "-1"], "--seed -1: must be at least 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as end:
        classifier.main(arguments)
    assert str(end.value).startswith("error: ") and "\n" not in str(end.value)


def test_augmentation_keeps_pictures_in_range():
    pictures = tf.cast(tf.random.stateless_uniform([3, 16, 16, 3], [1, 2], 0, 256, tf.int32), tf.uint8)
    changed = classifier.augmented(pictures).numpy()
    assert changed.shape == (3, 16, 16, 3) and changed.dtype == np.float32
    assert changed.min() >= 0 and changed.max() <= 255
    assert np.mean(np.abs(changed - pictures)) > 1
