"""The patches that training sees."""

import itertools
import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from models.io.errors import UserError
from train import data
from train.options import FitOptions

GIB = 2**30


def ramp(height: int, width: int, blue: int = 0) -> np.ndarray:
    """An image whose red is the column and whose green is the row."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, blue)], axis=-1).astype(np.uint8)


def flat(folder, count: int, size: int = 16) -> str:
    """Images of one colour each; the red of number i is i. Returns their glob."""
    for i in range(count):
        Image.new("RGB", (size, size), (i, 0, 0)).save(folder / f"{i:02}.png")
    return str(folder / "*.png")


def batches(source, count, batchsize=4, patchsize=8, seed=1, **kwargs) -> np.ndarray:
    """The first so many batches."""
    dataset = data.training_dataset(source, batchsize, patchsize, seed=seed, **kwargs)
    return np.stack(list(dataset.take(count).as_numpy_iterator()))


@pytest.mark.parametrize("cache", [0, GIB])
def test_every_format_becomes_rgb(tmp_path, cache):
    red, grey = (200, 40, 90), 128
    pictures = {
        "rgb.png": Image.new("RGB", (16, 16), red),
        "rgb.jpg": Image.new("RGB", (16, 16), red),
        "rgb.webp": Image.new("RGB", (16, 16), red),
        "rgb.tiff": Image.new("RGB", (16, 16), red),
        "rgb.bmp": Image.new("RGB", (16, 16), red),
        "rgb.avif": Image.new("RGB", (16, 16), red),
        "palette.png": Image.new("RGB", (16, 16), red).convert("P", palette=Image.Palette.ADAPTIVE),
        "alpha.png": Image.new("RGBA", (16, 16), (*red, 255)),
        "cmyk.jpg": Image.new("CMYK", (16, 16), (0, 127, 127, 0)),
        "grey.png": Image.new("L", (16, 16), grey),
        "grey.jpg": Image.new("L", (16, 16), grey),
        "grey16.png": Image.fromarray(np.full((16, 16), grey * 257, np.uint16)),
    }
    expected = {"cmyk.jpg": (255, 128, 128)}
    for name, picture in pictures.items():
        picture.save(tmp_path / name, quality=95)
        source = data.open_photographs(str(tmp_path / name), 8, cache)
        want = expected.get(name, (grey,) * 3 if name.startswith("grey") else red)
        got = batches(source, 1)
        assert got.dtype == np.uint8 and got.shape == (1, 4, 8, 8, 3)
        assert np.abs(got.astype(int) - want).max() <= 6, name


def test_globs_descend_and_combine(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.fromarray(ramp(16, 16)).save(tmp_path / "a" / "b" / "one.png")
    Image.fromarray(ramp(16, 16)).save(tmp_path / "two.jpg")
    assert len(data.open_photographs(f"{tmp_path}/**/*.png, {tmp_path}/*.jpg", 8, 0)) == 2


def test_a_glob_that_matches_as_a_whole_is_not_split_at_its_commas(tmp_path):
    for folder in ("ph, 2023", "ph", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    named, ph, other = (str(tmp_path / folder / "a.png") for folder in ("ph, 2023", "ph", "other"))
    assert data.find_photographs(f"{tmp_path}/ph, 2023/*.png") == [named]
    assert data.find_photographs(named) == [named]
    assert data.find_photographs(f"{ph}, {other}") == [ph, other]
    assert data.find_photographs([f"{tmp_path}/ph, 2023/*", f"{tmp_path}/oth*/*,{ph}"]) == [named, other, ph]


@pytest.mark.parametrize("cache", [0, GIB])
def test_small_and_damaged_pictures_are_skipped_and_counted(tmp_path, caplog, cache):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "good.jpg")
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        noise.save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    noise.crop((0, 0, 64, 31)).save(tmp_path / "small.png")
    with caplog.at_level(logging.WARNING):
        source = data.open_photographs(str(tmp_path / "*"), 32, cache)
        got = batches(source, 6, patchsize=32)
    damaged = 5 if cache else 3  # the header of a cut WebP says so; the other two are found when drawn
    first = f"1 smaller than 32x32 and {damaged} unreadable or damaged"
    assert first in caplog.records[0].getMessage()
    assert len(caplog.records) == (1 if cache else 3)
    if not cache:
        assert "damaged images skipped so far: 2" in caplog.records[-1].getMessage()
    assert got.shape == (6, 4, 32, 32, 3)
    assert got.std(axis=3).min() > 10  # noise everywhere, and no grey rows of a cut image


def test_nothing_usable_is_one_line(tmp_path):
    with pytest.raises(UserError, match="matches no file"):
        data.open_photographs(str(tmp_path / "*.png"), 8, 0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 smaller than 65x65") as error:
        data.open_photographs(str(tmp_path / "*.png"), 65, 0)
    assert "\n" not in str(error.value)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    for cache in (0, GIB):
        with pytest.raises(UserError, match="1 unreadable or damaged") as error:
            data.open_photographs(str(tmp_path / "*.png"), 8, cache)
        assert "\n" not in str(error.value)


def test_crops_come_from_everywhere_and_are_flipped_half_of_the_time(tmp_path):
    Image.fromarray(ramp(20, 24)).save(tmp_path / "ramp.png")
    got = batches(data.open_photographs(str(tmp_path / "*"), 8, 0), 100).reshape(-1, 8, 8, 3).astype(int)
    steps = np.diff(got[..., 0], axis=2)
    forward = (steps == 1).all((1, 2))
    assert (forward | (steps == -1).all((1, 2))).all()
    assert 0.4 < forward.mean() < 0.6
    assert (np.diff(got[..., 1], axis=1) == 1).all()
    left, top = got[..., 0].min((1, 2)), got[..., 1].min((1, 2))
    assert set(left) == set(range(17)) and set(top) == set(range(13))


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_the_cache_changes_nothing(tmp_path, extension):
    for i in range(3):
        picture = Image.fromarray(ramp(40, 50, 80 * i))
        picture.save(tmp_path / f"{i}.{extension}", quality=95, subsampling=0)
    cold, warm = (batches(data.open_photographs(str(tmp_path / "*"), 8, n), 5) for n in (0, GIB))
    np.testing.assert_array_equal(cold, warm)


def test_memory_limit_is_kept(tmp_path):
    pattern = flat(tmp_path, 4)
    assert data.open_photographs(pattern, 8, 4 * 16 * 16 * 3)._pixels is not None
    assert data.open_photographs(pattern, 8, 4 * 16 * 16 * 3 - 1)._pixels is None


def test_seed_decides_and_steps_continue(pictures):
    source = data.open_photographs(pictures, 8, GIB)
    whole = batches(source, 9)
    np.testing.assert_array_equal(whole, batches(source, 9))
    assert (batches(source, 9, seed=2) != whole).any()
    np.testing.assert_array_equal(whole[5:], batches(source, 4, start_step=5))


def test_each_pass_shows_each_picture_once_in_another_order(tmp_path):
    source = data.open_photographs(flat(tmp_path, 12), 8, GIB)
    passes = batches(source, 6)[..., 0, 0, 0].reshape(2, 12)
    assert [sorted(p) for p in passes.tolist()] == [list(range(12))] * 2
    assert passes[0].tolist() != passes[1].tolist()


def test_crops_of_one_picture_go_to_successive_batches(tmp_path):
    source = data.open_photographs(flat(tmp_path, 12), 8, GIB)
    reds = batches(source, 6, crops_per_image=3)[..., 0, 0, 0]
    assert (reds[:3] == reds[0]).all() and (reds[3:] == reds[3]).all()
    assert all(len(set(batch)) == 4 for batch in reds.tolist())
    Image.fromarray(ramp(200, 200)).save(tmp_path / "ramp.png")
    source = data.open_photographs(str(tmp_path / "ramp.png"), 8, GIB)
    corners = batches(source, 2, crops_per_image=2)[..., :2].min((2, 3)).reshape(-1, 2)
    assert len(set(map(tuple, corners))) == 8


@pytest.mark.parametrize("crops_per_image", [1, 3])
@pytest.mark.parametrize("start_step", [0, 4])
def test_workers_and_devices_share_the_global_batch(pictures, crops_per_image, start_step):
    source = data.open_photographs(pictures, 8, GIB)
    settings = dict(batchsize=8, crops_per_image=crops_per_image, start_step=start_step)
    whole = batches(source, 5, **settings)
    shares = []
    for worker in range(2):
        context = tf.distribute.InputContext(2, worker, 4)
        share = batches(source, 10, context=context, **settings)
        assert share.shape == (10, 2, 8, 8, 3)
        shares.append(share.reshape(5, 4, 8, 8, 3))
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_validation_patches_are_full_batches_of_centres(tmp_path):
    for i in range(5):
        Image.fromarray(ramp(10 + 2 * i, 20, i)).save(tmp_path / f"{i}.png")
    crops = data.open_photographs(str(tmp_path / "*"), 8, 0).centre_crops(100)
    assert crops.shape == (5, 8, 8, 3)
    for i, crop in enumerate(crops):
        assert (crop[0, 0] == (6, 1 + i, i)).all()
    dataset = data.validation_dataset(crops, 4)
    got = [np.stack(list(dataset.as_numpy_iterator())) for _ in range(2)]
    np.testing.assert_array_equal(*got)
    assert got[0].shape == (data.validation_steps(5, 4), 4, 8, 8, 3)
    assert got[0][..., 0, 0, 2].tolist() == [[0, 1, 2, 3], [4, 0, 1, 2]]
    shares = [data.validation_dataset(crops, 4, context=tf.distribute.InputContext(2, w, 4)) for w in (0, 1)]
    shares = [np.concatenate(list(s.as_numpy_iterator())).reshape(2, 2, 8, 8, 3) for s in shares]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), got[0])


def test_held_out_pictures_are_not_trained_on(tmp_path):
    source = data.open_photographs(flat(tmp_path, 41), 8, GIB)
    train, held_out = source.split()
    validated = set(held_out.centre_crops(99)[:, 0, 0, 0].tolist())
    trained = set(batches(train, 38, batchsize=1)[..., 0, 0, 0].ravel().tolist())
    assert len(validated) == 3 and trained == set(range(41)) - validated
    again, _ = data.open_photographs(str(tmp_path / "*.png"), 8, 0).split()
    assert again.photographs == train.photographs


def test_what_is_held_out_does_not_depend_on_the_patchsize(tmp_path):
    """Images that are too small, or damaged in their pixels, shift no other from one part to the other."""
    for i in range(60):
        side = 8 if i in (1, 2, 21, 40) else 32
        Image.new("RGB", (side, side), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    held_out = {}
    for patchsize in (8, 16):
        train, validation = data.open_photographs(str(tmp_path / "*.png"), patchsize, 0).split()
        held_out[patchsize] = {Path(p.path).stem for p in validation.photographs}
        assert not held_out[patchsize] & {Path(p.path).stem for p in train.photographs}
    assert held_out == {8: {"00", "20", "40"}, 16: {"00", "20"}}


def test_one_of_each_part_at_least(tmp_path):
    """Where all that are large enough are to be held out, and where none is."""
    for large in ((0, 20, 40), (1, 2, 30)):
        for i in range(41):
            side = 32 if i in large else 8
            Image.new("RGB", (side, side), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
        train, validation = data.open_photographs(str(tmp_path / "*.png"), 16, 0).split()
        assert (len(train), len(validation)) == (2, 1)


def test_pictures_to_validate_on_are_not_trained_on(tmp_path, caplog):
    pattern = flat(tmp_path, 12)
    options = dict(train_path="", patchsize=8, batchsize=2, train_glob=pattern, seed=0)
    source, crops = data.open_data(FitOptions(validation_glob=str(tmp_path / "*[05].png"), **options))
    validated = set(crops[:, 0, 0, 0].tolist())
    trained = set(batches(source, 30, batchsize=1)[..., 0, 0, 0].ravel().tolist())
    assert validated and trained and not validated & trained
    assert len(trained) + len(validated) == 12 and f"{len(validated)} of its images are not trained on" in caplog.text
    with pytest.raises(UserError, match="names all images to train on"):
        data.open_data(FitOptions(validation_glob=pattern, **options))


def test_validation_glob_and_limit(tmp_path, pictures):
    pattern = flat(tmp_path, 9)
    options = dict(train_path="", patchsize=8, batchsize=2, validation_steps=3, seed=0)
    source, crops = data.open_data(FitOptions(train_glob=pictures, validation_glob=pattern, **options))
    assert len(source) == 12 and len(crops) == 6 and (crops[..., 1:] == 0).all()
    source, crops = data.open_data(FitOptions(train_glob=pictures, **options))
    assert len(source) == 11 and len(crops) == 1


class FakeBuilder:
    """What this module uses of a `tfds.core.DatasetBuilder`: grey and RGB images, some of them small."""

    name = "fake"

    def __init__(self, splits=("train", "validation"), field="image"):
        self.field = field
        self.info = types.SimpleNamespace(splits=dict.fromkeys(splits))
        self.asked = []

    def download_and_prepare(self):
        pass

    def as_dataset(self, split, shuffle_files):
        self.asked.append(split)

        def records():
            for i in range(10):
                yield {self.field: np.full((16, 4 if i == 3 else 16, 1 if i % 2 else 3), i, np.uint8)}

        signature = {self.field: tf.TensorSpec([None, None, None], tf.uint8)}
        return tf.data.Dataset.from_generator(records, output_signature=signature)


@pytest.fixture
def fake_tfds(monkeypatch):
    def install(builder):
        def make(name):
            if name != "fake":
                raise LookupError(f"no data set {name}\nand a long explanation")
            return builder

        monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(builder=make))
        return FitOptions("", tfds="fake", patchsize=8, batchsize=2, validation_steps=2, seed=0)

    return install


def test_tfds(fake_tfds, caplog):
    builder = FakeBuilder()
    options = fake_tfds(builder)
    source, crops = data.open_data(options)
    assert builder.asked == ["validation"]
    assert crops[:, 0, 0].tolist() == [[i] * 3 for i in (0, 1, 2, 4)]
    got = batches(source, 200, batchsize=2, crops_per_image=2)  # of fewer, one run in hundreds lacks an image
    assert got.shape == (200, 2, 8, 8, 3) and builder.asked[-1] == "train"
    assert (got == got[..., :1]).all()
    assert set(got[..., 0].ravel()) == set(range(10)) - {3}
    assert "skipped 1 smaller than 8x8" in caplog.text
    shares = [
        set(batches(source, 40, batchsize=2, context=tf.distribute.InputContext(2, w, 2))[..., 0].ravel())
        for w in (0, 1)
    ]
    assert shares == [{0, 2, 4, 6, 8}, {1, 5, 7, 9}]


def test_tfds_without_a_validation_split_holds_pictures_out(fake_tfds):
    builder = FakeBuilder(splits=("train",))
    source, _ = data.open_data(fake_tfds(builder))
    batches(source, 1)
    assert builder.asked[0] == "train[:4]" and builder.asked[-1] == "train[4:]"


@pytest.mark.parametrize(
    "builder, change, message",
    [
        (FakeBuilder(), dict(tfds="other"), "^--tfds other: no data set other$"),
        (FakeBuilder(splits=("left", "right")), {}, "no split named train, only left, right"),
        (FakeBuilder(field="audio"), {}, "no field named image"),
        (FakeBuilder(), dict(patchsize=17), "no image of .* is at least 17x17"),
    ],
)
def test_tfds_mistakes(fake_tfds, builder, change, message):
    options = fake_tfds(builder)
    with pytest.raises(UserError, match=message):
        data.open_data(FitOptions(**{**vars(options), **change}))


def test_tfds_training_split_of_small_pictures_does_not_hang(fake_tfds):
    fake_tfds(FakeBuilder())
    source, _ = data.open_tfds("fake", 17, 1)
    with pytest.raises(UserError, match="no image of train is at least 17x17"):
        data.training_dataset(source, 2, 17, seed=0)


def test_tfds_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        data.open_tfds("clic", 8, 1)


def test_all_damaged_after_the_start_is_an_error_and_not_a_hang(tmp_path):
    pattern = flat(tmp_path, 3)
    source = data.open_photographs(pattern, 8, 0)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(tf.errors.OpError, match="damaged"):
        batches(source, 1)


def test_draws_do_not_repeat_each_other(pictures):
    got = batches(data.open_photographs(pictures, 8, GIB), 12).reshape(48, -1)
    assert all((a != b).any() for a, b in itertools.combinations(got, 2))
