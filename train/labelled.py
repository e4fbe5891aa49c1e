"""Images with labels: folders of classes, and TensorFlow Datasets.

    DIR/CLASS/*.jpg                 one image in twenty is held out for validation
    DIR/train/CLASS/*.jpg           with DIR/val, DIR/valid or DIR/validation of the same classes, or one in twenty
    DIR/test/CLASS/*.jpg            is for `open_test` alone: what is chosen by it cannot be judged by it any more

Classes are numbered in the order of their names. An image is scaled until its shorter side is that of the patch, for a
crop of a small part may not show what the label says.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from models.io.errors import UserError
from models.io.images import read_image
from train.crops import HOLD_OUT, MAX_DAMAGED, as_rgb, centre_crop, permutation, random_crop

logger = logging.getLogger(__name__)

VALIDATION_FOLDERS = ("val", "valid", "validation")
TEST = "test"
#: Most images taken from a split of TensorFlow Datasets: they are held in memory.
MAX_IN_MEMORY = 10_000


def scaled(image: np.ndarray, size: int) -> np.ndarray:
    """An image uint8 [H, W, 3], scaled until its shorter side is `size`."""
    height, width = image.shape[:2]
    factor = size / min(height, width)
    if factor == 1:
        return image
    target = max(size, round(width * factor)), max(size, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.LANCZOS))


class LabelledImages:
    """Images and their classes; a `train.data.Source`.

    Args:
      images: paths, or pixels uint8 [H, W, 3].
      labels: the class of each, 0 .. len(classes) - 1.
      classes: their names.
      patchsize: P, side of the patches.
    """

    def __init__(self, images: Sequence, labels: Sequence[int], classes: Sequence[str], patchsize: int):
        self.images, self.labels = list(images), np.asarray(labels, np.int32)
        self.classes, self.patchsize = tuple(classes), patchsize
        self._damaged: set[str] = set()
        self._read = functools.lru_cache(maxsize=4096)(self._read_uncached)

    def __len__(self) -> int:
        return len(self.images)

    def _read_uncached(self, index: int) -> np.ndarray:
        image = self.images[index]
        return scaled(image if isinstance(image, np.ndarray) else read_image(image), self.patchsize)

    def split(self, every: int = HOLD_OUT) -> tuple[LabelledImages, LabelledImages]:
        """Splits into images to train on and images held out, every `every`-th; a single image is both."""
        held_out = list(range(0, len(self), every))
        rest = [i for i in range(len(self)) if i % every] or held_out
        return self._subset(rest), self._subset(held_out)

    def _subset(self, indices: Sequence[int]) -> LabelledImages:
        images = [self.images[i] for i in indices]
        return LabelledImages(images, self.labels[indices], self.classes, self.patchsize)

    def crops(
        self, draws: tf.data.Dataset, seed: int, count: int, context: tf.distribute.InputContext
    ) -> tf.data.Dataset:
        """See `train.data.Source.crops`. Each pass through the images is another permutation of them.

        Damaged images are skipped when they are met, and counted.
        """
        del context  # the draws are this worker's own already
        p = self.patchsize

        def crops(draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            turn, place = divmod(int(draw), len(self))
            order = permutation(seed, turn, len(self))
            random = np.random.Generator(np.random.Philox(key=[seed, int(draw)]))
            for attempt in range(min(len(self), MAX_DAMAGED)):
                index = int(order[(place + attempt) % len(self)])
                try:
                    image = self._read(index)
                except UserError as error:
                    self._note_damaged(error)
                    continue
                patches = np.stack([random_crop(image, p, random) for _ in range(count)])
                return patches, np.full([count], self.labels[index])
            raise UserError(f"{self.images[index]}: damaged, and so are those around it")

        def tf_crops(draw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            patches, labels = tf.numpy_function(crops, [draw], (tf.uint8, tf.int32), stateful=False)
            return tf.ensure_shape(patches, (count, p, p, 3)), tf.ensure_shape(labels, (count,))

        return draws.map(tf_crops, num_parallel_calls=tf.data.AUTOTUNE)

    def centre_crops(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """The centres of at most `limit` images, spread over them: uint8 [N, P, P, 3]; their classes, int32 [N].

        Raises:
          UserError: none of them can be decoded.
        """
        patches, labels = [], []
        for index in np.unique(np.linspace(0, len(self) - 1, min(limit, len(self))).round().astype(int)):
            try:
                patches.append(centre_crop(self._read(int(index)), self.patchsize))
                labels.append(self.labels[index])
            except UserError as error:
                self._note_damaged(error)
        if not patches:
            raise UserError(f"{self.images[0]}: damaged, and so are all others to validate on")
        return np.stack(patches), np.array(labels, np.int32)

    def _note_damaged(self, error: UserError) -> None:
        if str(error) not in self._damaged:
            self._damaged.add(str(error))
            logger.warning("damaged images skipped so far: %d. The last: %s", len(self._damaged), error)


def open_labelled(name: str, patchsize: int) -> tuple[LabelledImages, LabelledImages]:
    """The images to train on and those to validate on, of a folder or a TensorFlow Datasets data set.

    Raises:
      UserError: no such folder or data set; no classes, a class without images, other classes to validate on.
    """
    if not _is_folder(name):
        return _Tfds(name, patchsize).training()
    train = Path(name).expanduser() / "train"
    if not train.is_dir():
        return open_classes(train.parent, patchsize).split()
    images = open_classes(train, patchsize)
    validation = _beside(images, train, VALIDATION_FOLDERS)
    return (images, validation) if validation else images.split()


def open_test(name: str, patchsize: int) -> tuple[LabelledImages, str]:
    """The images to measure on, and what they are called: "test" where there is such a folder or split.

    Without one, the validation images, by which weights may have been chosen.

    Raises:
      UserError: as of `open_labelled`.
    """
    if not _is_folder(name):
        return _Tfds(name, patchsize).test()
    train = Path(name).expanduser() / "train"
    if train.is_dir():
        test = _beside(open_classes(train, patchsize), train, [TEST])
        if test:
            return test, TEST
    return open_labelled(name, patchsize)[1], "validation"


def _is_folder(name: str) -> bool:
    """UserError if it is neither a folder nor may be the name of a data set."""
    if Path(name).expanduser().is_dir():
        return True
    if os.sep in name and name.startswith((".", os.sep, "~")):
        raise UserError(f"--labelled {name}: no such folder")
    return False


def _beside(images: LabelledImages, train: Path, names: Sequence[str]) -> LabelledImages | None:
    """The images of the first of the folders that lies beside `train`, whose classes must be the same."""
    for folder in (train.parent / name for name in names):
        if folder.is_dir():
            others = open_classes(folder, images.patchsize)
            if others.classes != images.classes:
                odd = sorted(set(others.classes) ^ set(images.classes))
                raise UserError(f"{folder}: other classes than {train}: {', '.join(odd[:5])}")
            return others
    return None


def open_classes(folder, patchsize: int) -> LabelledImages:
    """The images of a folder that has one folder for each class. UserError as of `open_labelled`."""
    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"{folder}: no folders of classes in it")
    known = set(Image.registered_extensions())
    paths, labels = [], []
    for number, name in enumerate(classes):
        inside = sorted(p for p in (Path(folder) / name).iterdir() if p.suffix.lower() in known)
        if not inside:
            raise UserError(f"{Path(folder) / name}: a class folder without images")
        paths += inside
        labels += [number] * len(inside)
    return LabelledImages(paths, labels, classes, patchsize)


class _Tfds:
    """A TensorFlow Datasets data set with labels. UserError if there is none of this name."""

    def __init__(self, name: str, patchsize: int):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                f"--labelled {name}: no such folder; for a data set of that name: pip install tensorflow-datasets"
            ) from error
        try:
            self._builder = tfds.builder(name)
            self._builder.download_and_prepare()
            info = self._builder.info
            self._classes, self._splits = info.features["label"].names, info.splits
        # Unknown names, failed downloads, no labels: an exception type for each, and one line for the user.
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"--labelled {name}: {reason}") from error
        if "train" not in self._splits:
            raise UserError(f"--labelled {name}: has no split named train, only {', '.join(self._splits)}")
        self._name, self._patchsize = name, patchsize

    def training(self) -> tuple[LabelledImages, LabelledImages]:
        """Opens the images of `open_labelled`."""
        train = self._read("train")
        return (train, self._read("validation")) if "validation" in self._splits else train.split()

    def test(self) -> tuple[LabelledImages, str]:
        """Opens the images of `open_test`."""
        if TEST in self._splits:
            return self._read(TEST), TEST
        return self.training()[1], "validation"

    def _read(self, split: str) -> LabelledImages:
        records = self._builder.as_dataset(split=split).take(MAX_IN_MEMORY + 1).as_numpy_iterator()
        pairs = [(scaled(as_rgb(record["image"]), self._patchsize), record["label"]) for record in records]
        if not pairs:
            raise UserError(f"--labelled {self._name}: no images in {split}")
        if len(pairs) > MAX_IN_MEMORY:
            pairs.pop()
            logger.warning("--labelled %s: the first %d images of %s are used", self._name, len(pairs), split)
        return LabelledImages(*zip(*pairs), self._classes, self._patchsize)
