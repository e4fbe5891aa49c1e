"""Another classifier behind ELC's latents."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from models.codec import load, weights
from models.tasks.classifier import Classifier
from train import feature_transform


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photograph):
    """Four images, the last of another size."""
    path = tmp_path_factory.mktemp("images")
    for n, (top, left) in enumerate([(0, 0), (100, 200), (200, 100)]):
        Image.fromarray(photograph[top : top + 128, left : left + 160]).save(path / f"{n}.png")
    Image.fromarray(photograph[150:250, 300:400]).save(path / "3.png")
    return path


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory):
    tf.keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("classifier") / "c.safetensors"
    Classifier((8, 8, 8, 8, 16), ("cat", "dog", "church")).save_file(path)
    return path


def run(weights, folder, classifier_file, output, *flags):
    arguments = [str(weights), "--classifier", str(classifier_file), "--train_glob", f"{folder}/*.png"]
    sizes = ["--patchsize", "64", "--crops", "16", "--batchsize", "8"]
    return feature_transform.main([*arguments, "-o", str(output), *sizes, *flags])


def test_the_codec_stays_and_the_classes_are_new(
    tiny_elc_weights, tiny_elc, folder, classifier_file, tmp_path, crop, eagerly, capsys
):
    output = tmp_path / "new.safetensors"
    assert run(tiny_elc_weights, folder, classifier_file, output, "--epochs", "1") == 0
    assert "3 classes" in capsys.readouterr().out
    codec = load(output)
    assert codec.labels == ("cat", "dog", "church") and codec.stage == tiny_elc.stage
    image = crop(50, 70)
    before, after = tiny_elc.compress(image), codec.compress(image)
    assert after[8:-4] == before[8:-4] and after[4:8] == codec.weights_id != before[4:8]  # -4: a fingerprint of both
    np.testing.assert_array_equal(codec.decompress(after), tiny_elc.decompress(before))
    assert codec.classify(after).shape == (3,)


def test_it_learns(tiny_elc, classifier_file, photograph):
    """After some steps on few crops the answers are nearer to the classifier's."""
    from models.tasks import classifier as classifiers
    from transforms.networks import enhance

    tf.keras.utils.set_random_seed(2)
    classifier = classifiers.load(classifier_file)
    crops = np.stack([photograph[y : y + 64, x : x + 64] for y in (0, 128, 256) for x in (0, 128, 256, 384)])
    data = feature_transform.precomputed(tiny_elc, classifier, crops)
    assert data[0].shape == (12, 4, 4, tiny_elc.config.width) and data[1].shape == (12, 8, 8, 8)
    transform = enhance.feature_transform(tiny_elc.config.width, 16, 8)
    transform.build(None)
    student = feature_transform.Student(transform, classifier.tail)
    args = type("Args", (), {"batchsize": 12, "epochs": 60, "learning_rate": 3e-3, "seed": 0})
    history = feature_transform.fit(student, data, data, args)
    assert history["val_features"][-1] < 0.8 * history["val_features"][0]
    assert not any(variable is other for variable in student.trainable_variables for other in classifier.tail.variables)


def test_it_goes_on_from_a_transform_for_the_same_classifier(tiny_elc, classifier_file, tmp_path, crop, caplog):
    from models.tasks import classifier as classifiers

    classifier = classifiers.load(classifier_file)
    data = feature_transform.precomputed(tiny_elc, classifier, crop(64, 64)[None])
    first = feature_transform.first_transform(tiny_elc, classifier, *data)
    assert first is not tiny_elc.feature_transform and not caplog.text
    tensors, header = feature_transform.with_classifier(tiny_elc, classifier, first)
    weights.write(tmp_path / "c.safetensors", tensors, header)
    codec = load(tmp_path / "c.safetensors")
    assert feature_transform.first_transform(codec, classifier, *data) is codec.feature_transform
    assert "its training goes on" in caplog.text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--crops", "0"), "--crops 0: must be above 0"),
        (("--patchsize", "130"), "smaller than 130 pixels"),
    ],
)
def test_bad_input_is_one_line(flags, says, tiny_elc_weights, folder, classifier_file, tmp_path):
    with pytest.raises(SystemExit, match=says):
        run(tiny_elc_weights, folder, classifier_file, tmp_path / "new.safetensors", *flags)
    assert not list(tmp_path.iterdir())


def test_damaged_and_small_images_are_left_out(folder, tmp_path, caplog):
    (tmp_path / "damaged.png").write_bytes((folder / "0.png").read_bytes()[:500])
    paths = [str(tmp_path / "damaged.png"), str(folder / "0.png"), str(folder / "3.png")]
    crops = feature_transform.random_crops(paths, 8, 110, 0)
    assert crops.shape == (3, 110, 110, 3)  # of 0.png alone
    assert "2 of 3 images are left out" in caplog.text and "3.png: smaller than 110 pixels" in caplog.text


def test_weights_of_another_model_are_refused(tiny_weights, folder, classifier_file, tmp_path):
    with pytest.raises(SystemExit, match="of elic, not of elc"):
        run(tiny_weights, folder, classifier_file, tmp_path / "new.safetensors")


def test_windows_show_the_same_place():
    latents = np.arange(2 * 10 * 10).reshape(2, 10, 10, 1).astype(np.float32)
    features = np.kron(latents[..., 0], np.ones([1, 2, 2], np.float32))[..., None]
    sizes = set()
    for _ in range(20):
        y, f = feature_transform.random_window(latents, features)
        np.testing.assert_array_equal(f[:, ::2, ::2], y)
        sizes.add(y.shape[1])
    assert len(sizes) > 1 and min(sizes) >= 7 and max(sizes) <= 10
