"""Images with labels: folders of classes, and what is wrong with them."""

import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from models.io.errors import UserError
from train import data, labelled
from train.options import FitOptions


def classes(folder, counts: dict[str, int], size=(20, 16)):
    """A folder for each class; the red of an image is ten times its class, its green its number."""
    for k, (name, count) in enumerate(sorted(counts.items())):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (10 * k, i, 0)).save(folder / name / f"{i:02}.png")
    return folder


def test_batches_have_the_classes_of_their_pictures(tmp_path):
    classes(tmp_path, {"b": 10, "a": 10, "c": 10})
    options = FitOptions("", labelled=str(tmp_path), patchsize=8, batchsize=4, validation_steps=2)
    source, (held_out, labels) = data.open_data(options)
    assert source.classes == ("a", "b", "c") and len(source) == 28
    assert held_out.shape == (2, 8, 8, 3) and held_out.dtype == np.uint8
    np.testing.assert_array_equal(held_out[:, 0, 0, 0], 10 * labels)
    seen = set()
    for crops_per_image in (1, 2):
        batches = data.training_dataset(source, 4, 8, seed=1, crops_per_image=crops_per_image)
        for pictures, numbers in batches.take(14).as_numpy_iterator():
            assert pictures.shape == (4, 8, 8, 3) and numbers.shape == (4,) and numbers.dtype == np.int32
            np.testing.assert_array_equal(pictures[:, 0, 0, 0], 10 * numbers)
            seen |= {(int(p[0, 0, 0]), int(p[0, 0, 1])) for p in pictures}
    assert len(seen) == 28  # two passes: all, and none that is held out
    assert not seen & {(int(p[0, 0, 0]), int(p[0, 0, 1])) for p in held_out}
    batches = list(data.validation_dataset((held_out, labels), 3).as_numpy_iterator())
    assert len(batches) == 1 and batches[0][1].tolist() == [*labels, labels[0]]


def test_the_shorter_side_is_scaled_to_the_patch():
    ramp = np.repeat(np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 20, 0), 3, 2)
    small = labelled.scaled(ramp, 10)
    assert small.shape == (10, 15, 3) and np.all(np.diff(small[0, :, 0].astype(int)) > 0)
    assert labelled.scaled(ramp, 20) is ramp


def test_train_and_validation_folders(tmp_path):
    classes(tmp_path / "train", {"a": 3, "b": 2})
    classes(tmp_path / "val", {"a": 1, "b": 2})
    train, validation = labelled.open_labelled(str(tmp_path), 8)
    assert (len(train), len(validation)) == (5, 3)
    assert validation.centre_crops(99)[1].tolist() == [0, 1, 1]
    assert [len(validation), "validation"] == [len(labelled.open_test(str(tmp_path), 8)[0]), "validation"]


def test_test_pictures_are_measured_on_and_nothing_else(tmp_path):
    classes(tmp_path / "train", {"a": 30, "b": 10})
    classes(tmp_path / "test", {"a": 4, "b": 5})
    train, validation = labelled.open_labelled(str(tmp_path), 8)
    assert (len(train), len(validation)) == (38, 2)
    assert all("train" in path.parts for path in train.images + validation.images)
    test, name = labelled.open_test(str(tmp_path), 8)
    assert (len(test), name) == (9, "test") and all("test" in path.parts for path in test.images)


def test_damaged_pictures_are_skipped(tmp_path, caplog):
    classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "00.png").write_bytes(b"no picture")
    source = labelled.open_classes(tmp_path, 8)
    pictures, labels = next(data.training_dataset(source, 6, 8, seed=1).as_numpy_iterator())
    np.testing.assert_array_equal(pictures[:, 0, 0, 0], 10 * labels)
    assert len(source.centre_crops(99)[1]) == 5
    assert caplog.text.count("damaged images skipped so far: 1") == 1


def test_folders_that_are_none_to_train_with(tmp_path):
    with pytest.raises(UserError, match="no folders of classes"):
        labelled.open_labelled(str(tmp_path), 8)
    classes(tmp_path / "train", {"a": 1, "b": 1})
    classes(tmp_path / "val", {"a": 1, "x": 1})
    with pytest.raises(UserError, match="val: other classes than .*train: b, x$"):
        labelled.open_labelled(str(tmp_path), 8)
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match="empty: a class folder without images$"):
        labelled.open_labelled(str(tmp_path), 8)
    with pytest.raises(UserError, match="no such folder"):
        labelled.open_labelled(str(tmp_path / "missing"), 8)


def test_tfds(monkeypatch):
    class Builder:
        info = types.SimpleNamespace(
            features={"label": types.SimpleNamespace(names=["a", "b"])}, splits={"train": None, "validation": None}
        )

        def download_and_prepare(self):
            pass

        def as_dataset(self, split):
            images = np.full([4, 12, 16, 1], 7 if split == "train" else 9, np.uint8)
            return tf.data.Dataset.from_tensor_slices({"image": images, "label": np.array([0, 1, 1, 0])})

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(builder=lambda name: Builder()))
    train, validation = labelled.open_labelled("imagenette/320px-v2", 8)
    assert train.classes == ("a", "b") and train.labels.tolist() == [0, 1, 1, 0]
    pictures, labels = validation.centre_crops(4)
    assert pictures.shape == (4, 8, 8, 3) and np.all(pictures == 9) and labels.tolist() == [0, 1, 1, 0]
    del Builder.info.features["label"]
    with pytest.raises(UserError, match="^--labelled imagenette: .*label"):
        labelled.open_labelled("imagenette", 8)
