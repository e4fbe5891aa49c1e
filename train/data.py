"""Training patches and validation patches, from image files or TensorFlow Datasets.

    glob ─ headers ─ large enough? ─ hold some out ─┬─ decode, random crops, flips ─ batches   (training)
                                                    └─ centre crops ─ batches                  (validation)

Which image comes when, and where it is cut, is a function of the seed and the number of the draw alone, not
the state of a shuffle buffer. So a run that resumes at step n sees what it would have seen, and every worker
computes its own share of a global batch without decoding that of the others.
"""

from __future__ import annotations

import glob
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, Union

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from models.io.errors import UserError
from models.io.files import expand_inputs, open_input
from models.io.formats import open_image
from models.io.images import read_image
from train.crops import HOLD_OUT, MAX_DAMAGED, as_rgb, centre_crop, corner, permutation, random_crop
from train.labelled import open_labelled
from train.options import FitOptions

logger = logging.getLogger(__name__)

# Images, uint8 `[N, P, P, 3]`; of labelled images those and their classes, int32 `[N]`.
Crops = Union[np.ndarray, tuple[np.ndarray, np.ndarray]]


class Source(Protocol):
    """A source of patches: `Photographs`, `TfdsImages`, or `train.labelled.LabelledImages`."""

    def crops(
        self, draws: tf.data.Dataset, seed: int, count: int, context: tf.distribute.InputContext
    ) -> tf.data.Dataset:
        """Cuts random crops of one image, uint8 `[count, P, P, 3]`, for each draw (an int64 number).

        Labelled images give such crops and their class, int32 `[count]`.
        """


# --- images from files -----------------------------------------------------------------------------------


class Photograph(NamedTuple):
    """Facts from the header of an image file."""

    path: str
    height: int
    width: int
    # "JPEG" or "PNG", which TensorFlow decodes in two thirds of Pillow's time; "" for others.
    tf_format: str
    # Among all images that were named, too small ones and those found damaged later included.
    place: int = 0


class Photographs:
    """Images that are at least as large as a patch; held decoded in memory if they are few enough.

    Damaged files that the header does not give away are skipped when they are met, and counted.
    """

    def __init__(self, photographs: Sequence[Photograph], patchsize: int, pixels: Sequence[np.ndarray] | None = None):
        """Takes the images that `open_photographs` found.

        Args:
          photographs: one or more.
          patchsize: P, side of the patches.
          pixels: their decoded pixels, each uint8 `[H, W, 3]`; None to decode at each use.
        """
        self.photographs = list(photographs)
        self.patchsize = patchsize
        self._pixels = pixels
        self._damaged: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.photographs)

    def split(self, every: int = HOLD_OUT) -> tuple[Photographs, Photographs]:
        """Splits into images to train on and images held out: every `every`-th of those named, at least one of each.

        So what is held out at one patchsize is not trained on at another, whatever else is too small for it. A single
        image is both.
        """
        if len(self) == 1:
            return self, self
        held_out = {i for i, photograph in enumerate(self.photographs) if photograph.place % every == 0}
        if not 0 < len(held_out) < len(self):
            held_out = {0}
        return self._subset(i for i in range(len(self)) if i not in held_out), self._subset(sorted(held_out))

    def without(self, others: Photographs) -> Photographs:
        """Returns the photographs whose files are not among the others'.

        Raises:
          UserError: that leaves none.
        """
        theirs = {os.path.realpath(photograph.path) for photograph in others.photographs}
        kept = [i for i, photograph in enumerate(self.photographs) if os.path.realpath(photograph.path) not in theirs]
        if not kept:
            raise UserError("--validation_glob: names all images to train on")
        if len(kept) < len(self):
            logger.warning("--validation_glob: %d of its images are not trained on", len(self) - len(kept))
        return self._subset(kept)

    def _subset(self, indices: Iterable[int]) -> Photographs:
        indices = list(indices)
        pixels = None if self._pixels is None else [self._pixels[i] for i in indices]
        return Photographs([self.photographs[i] for i in indices], self.patchsize, pixels)

    def crops(
        self, draws: tf.data.Dataset, seed: int, count: int, context: tf.distribute.InputContext
    ) -> tf.data.Dataset:
        """See `Source.crops`. Each pass through the images is another permutation of them."""
        del context  # the draws are this worker's own already

        def crops(draw: np.ndarray) -> np.ndarray:
            return self.random_crops(int(draw), seed, count)

        shape = (count, self.patchsize, self.patchsize, 3)
        return draws.map(
            lambda draw: tf.ensure_shape(tf.numpy_function(crops, [draw], tf.uint8, stateful=False), shape),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def random_crops(self, draw: int, seed: int, count: int) -> np.ndarray:
        """The patches of one draw, uint8 `[count, P, P, 3]`; the same for the same arguments.

        Raises:
          UserError: this image and the `MAX_DAMAGED` after it are damaged.
        """
        turn, place = divmod(draw, len(self))
        order = permutation(seed, turn, len(self))
        for attempt in range(min(len(self), MAX_DAMAGED)):
            index = order[(place + attempt) % len(self)]
            if self.photographs[index].path in self._damaged:
                continue
            random = np.random.Generator(np.random.Philox(key=[seed, draw]))
            try:
                if count == 1:
                    return self._one_crop(index, random)[np.newaxis]
                pixels = self._read(index)
                return np.stack([random_crop(pixels, self.patchsize, random) for _ in range(count)])
            except UserError as error:
                self._note_damaged(error, self.photographs[index].path)
        raise UserError(f"{self.photographs[index].path}: damaged, and so are those around it")

    def _one_crop(self, index: int, random: np.random.Generator) -> np.ndarray:
        """One random patch; where it can, by decoding no more of a JPEG than its window."""
        photograph = self.photographs[index]
        if self._pixels is not None or photograph.tf_format != "JPEG":
            return random_crop(self._read(index), self.patchsize, random)
        window = [*corner(photograph.height, photograph.width, self.patchsize, random)] + [
            self.patchsize,
            self.patchsize,
        ]
        patch = _tf_decode(photograph.path, lambda data: tf.io.decode_and_crop_jpeg(data, window, channels=3))
        return patch[:, :: -1 if random.integers(2) else 1]

    def centre_crops(self, limit: int) -> np.ndarray:
        """The centres of at most `limit` images, spread over the folder: uint8 `[N, P, P, 3]`.

        Raises:
          UserError: none of them can be decoded.
        """
        crops = []
        for index in dict.fromkeys(np.linspace(0, len(self) - 1, min(limit, len(self))).round().astype(int)):
            try:
                crops.append(centre_crop(self._read(index), self.patchsize))
            except UserError as error:
                self._note_damaged(error, self.photographs[index].path)
        if not crops:
            raise UserError(f"{self.photographs[0].path}: damaged, and so are all others to validate on")
        return np.stack(crops)

    def _read(self, index: int) -> np.ndarray:
        if self._pixels is not None:
            return self._pixels[index]
        return decode(self.photographs[index])

    def _note_damaged(self, error: UserError, path: str) -> None:
        with self._lock:
            if path not in self._damaged:
                self._damaged.add(path)
                logger.warning("damaged images skipped so far: %d. The last: %s", len(self._damaged), error)


def find_photographs(patterns: str | Sequence[str]) -> list[str]:
    """Returns the files that globs name, each once.

    Args:
      patterns: one or several. One that matches nothing as a whole is split at its commas.

    Raises:
      UserError: a glob matches no file.
    """
    globs: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        whole = os.path.expanduser(pattern)
        if os.path.lexists(whole) or glob.glob(whole, recursive=True):
            globs.append(whole)
        else:
            globs += [os.path.expanduser(part.strip()) for part in pattern.split(",") if part.strip()]
    return [str(path) for path in expand_inputs(globs)]


def open_photographs(patterns: str | Sequence[str], patchsize: int, cache_bytes: int) -> Photographs:
    """Finds images, reads their headers, and decodes them if the result fits in memory.

    Images that are smaller than a patch, and files that are damaged or no images, are skipped; a warning
    is logged that counts them.

    Args:
      patterns: as of `find_photographs`; `**` descends into folders.
      patchsize: smallest side, in pixels, that is of use.
      cache_bytes: limit of the decoded size, in bytes, up to which the images are held in memory.

    Returns:
      One or more images, in the order of their names.

    Raises:
      UserError: a pattern matches no file, or no image is large enough and undamaged.
    """
    pattern = patterns if isinstance(patterns, str) else ", ".join(patterns)  # for messages
    paths = find_photographs(patterns)
    found = [header for header in _in_threads(_header, paths, "looking at images") if header]
    found = [photograph._replace(place=place) for place, photograph in enumerate(found)]
    large = [photograph for photograph in found if min(photograph.height, photograph.width) >= patchsize]
    damaged, small = len(paths) - len(found), len(found) - len(large)

    pixels = None
    if sum(3 * photograph.height * photograph.width for photograph in large) <= cache_bytes:
        decoded = _in_threads(_decode_or_none, large, "reading images")
        kept = [i for i, array in enumerate(decoded) if array is not None]
        damaged += len(large) - len(kept)
        large, pixels = [large[i] for i in kept], [decoded[i] for i in kept]
    elif not any(_decode_or_none(photograph) is not None for photograph in large):
        damaged, large = damaged + len(large), []

    skipped = f"{small} smaller than {patchsize}x{patchsize} and {damaged} unreadable or damaged"
    if not large:
        raise UserError(f"{pattern}: no image to train with among {len(paths)} files: {skipped}")
    logger.log(
        logging.WARNING if damaged or small else logging.INFO,
        "%s: %d of %d files%s; skipped %s",
        *(pattern, len(large), len(paths), "" if pixels is None else ", held in memory", skipped),
    )
    return Photographs(large, patchsize, pixels)


def _in_threads(function, items: Sequence[Any], what: str) -> list[Any]:
    """`map` in as many threads as there are cores; Pillow and TensorFlow decode outside of Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # A progress bar for what takes long, such as a folder of ImageNet's size or on a slow network.
        return list(tqdm(pool.map(function, items), what, len(items), delay=2, unit="files", leave=False))


def _header(path: str) -> Photograph | None:
    """The header of an image; None if there is none or it is damaged."""
    try:
        with open_input(path) as file, open_image(file, path) as image:
            # TensorFlow makes 8-bit RGB of every JPEG (CMYK, too) and PNG (16 bit, palette, ...).
            tf_format = image.format if image.format in ("JPEG", "PNG") else ""
            return Photograph(path, image.height, image.width, tf_format)
    except Exception:  # Pillow meets damaged data with exceptions of any kind
        return None


def decode(photograph: Photograph) -> np.ndarray:
    """The pixels of an image, uint8 RGB `[H, W, 3]`; transparency is dropped.

    Raises:
      UserError: the file is damaged.
    """
    if not photograph.tf_format:
        return read_image(photograph.path)
    return _tf_decode(photograph.path, lambda data: tf.io.decode_image(data, channels=3))


def _tf_decode(path: str, decoder) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            data = file.read()
        # Without the device, TensorFlow would copy pixels to a GPU and back.
        with tf.device("cpu:0"):
            return decoder(data).numpy()
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except tf.errors.OpError as error:
        raise UserError(f"{path}: damaged or truncated image") from error


def _decode_or_none(photograph: Photograph) -> np.ndarray | None:
    try:
        return decode(photograph)
    except UserError:
        return None


# --- images from TensorFlow Datasets ---------------------------------------------------------------------


class TfdsImages:
    """The images of one split of a TensorFlow Datasets data set that are at least as large as a patch.

    Unlike `Photographs`, a resumed run sees other draws than it would have seen: the data set has no random
    access.
    """

    def __init__(self, builder: Any, split: str, patchsize: int):
        """Takes a prepared `tfds.core.DatasetBuilder` and the name of a split of it, such as `train[64:]`."""
        self._builder = builder
        self._split = split
        self.patchsize = patchsize
        self.skipped = 0

    def _images(self, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """Images of sufficient size, each uint8 `[H, W, C]`, of this worker's share of the data set."""
        images = self._builder.as_dataset(split=self._split, shuffle_files=context is not None)
        if not (isinstance(images.element_spec, dict) and "image" in images.element_spec):
            raise UserError(f"--tfds {self._builder.name}: its records have no field named image")
        if context is not None:
            images = images.shard(context.num_input_pipelines, context.input_pipeline_id)
        images = images.map(lambda record: record["image"], num_parallel_calls=tf.data.AUTOTUNE)
        return images.filter(lambda image: tf.numpy_function(self._is_large, [tf.shape(image)], tf.bool))

    def _is_large(self, shape: np.ndarray) -> np.bool_:
        if shape[:2].min() >= self.patchsize:
            return np.True_
        self.skipped += 1
        # Passes repeat without end: a line for the first, the tenth, the hundredth, ...
        if str(self.skipped).strip("0") == "1":
            size = f"{self.patchsize}x{self.patchsize}"
            logger.warning("--tfds %s: skipped %d smaller than %s", self._builder.name, self.skipped, size)
        return np.False_

    def crops(
        self, draws: tf.data.Dataset, seed: int, count: int, context: tf.distribute.InputContext
    ) -> tf.data.Dataset:
        """See `Source.crops`.

        Raises:
          UserError: no image of this worker's share is large enough.
        """
        images = self._images(context)
        if not any(True for _ in images.take(1)):  # repeating nothing would never end
            size = f"{self.patchsize}x{self.patchsize}"
            raise UserError(f"--tfds {self._builder.name}: no image of {self._split} is at least {size}")

        def crops(image: np.ndarray, draw: np.ndarray) -> np.ndarray:
            random = np.random.Generator(np.random.Philox(key=[seed, int(draw)]))
            image = as_rgb(image)
            return np.stack([random_crop(image, self.patchsize, random) for _ in range(count)])

        def tf_crops(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
            patches = tf.numpy_function(crops, [image, draw], tf.uint8, stateful=False)
            return tf.ensure_shape(patches, (count, self.patchsize, self.patchsize, 3))

        patches = tf.data.Dataset.zip((images.repeat(), draws)).map(tf_crops, num_parallel_calls=tf.data.AUTOTUNE)
        return patches.shuffle(256, seed=seed)

    def centre_crops(self, limit: int) -> np.ndarray:
        """The centres of the first `limit` images of sufficient size: uint8 `[N, P, P, 3]`.

        Raises:
          UserError: there is none.
        """
        images = self._images().take(limit)
        crops = [centre_crop(as_rgb(image), self.patchsize) for image in images.as_numpy_iterator()]
        if not crops:
            size = f"{self.patchsize}x{self.patchsize}"
            raise UserError(f"--tfds {self._builder.name}: no image of {self._split} is at least {size}")
        return np.stack(crops)


def open_tfds(name: str, patchsize: int, held_out: int) -> tuple[TfdsImages, TfdsImages]:
    """Prepares (downloads, where needed) a data set.

    Args:
      name: as of `tfds.builder`: `clic`, `div2k/bicubic_x2`, ...
      patchsize: smallest side, in pixels, that is of use.
      held_out: number of training images to hold out if the data set has no validation split.

    Returns:
      The images to train on, and those to validate on.

    Raises:
      UserError: TensorFlow Datasets is not installed, does not know the name or cannot prepare the data set.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"--tfds {name}: needs TensorFlow Datasets: pip install tensorflow-datasets") from error
    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
        splits = builder.info.splits
    # Unknown names, failed downloads, full disks: an exception type for each, and one line for the user.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"--tfds {name}: {reason}") from error
    if "train" not in splits:
        raise UserError(f"--tfds {name}: has no split named train, only {', '.join(splits)}")
    # Never the test split: weights chosen by its images could not be judged by them any more.
    if "validation" in splits:
        return TfdsImages(builder, "train", patchsize), TfdsImages(builder, "validation", patchsize)
    return (
        TfdsImages(builder, f"train[{held_out}:]", patchsize),
        TfdsImages(builder, f"train[:{held_out}]", patchsize),
    )


# --- batches -----------------------------------------------------------------------------------------------


def training_dataset(
    source: Source,
    batchsize: int,
    patchsize: int,
    *,
    seed: int,
    start_step: int = 0,
    crops_per_image: int = 1,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Batches of random patches without end.

    All workers and devices together see the same global batches, however many there are: pass this to
    `tf.distribute.Strategy.distribute_datasets_from_function`.

    Args:
      source: a `Source`.
      batchsize: B, patches per step over all devices and workers.
      patchsize: P, side of the patches.
      seed: decides all random choices, 0..2**32-1.
      start_step: number of the step, from 0, that the first batch is for.
      crops_per_image: C, patches cut from an image at once. They land in C successive steps, so that those
        of one batch come from different images.
      context: which share of each global batch is wanted; None for all of it in one batch.

    Returns:
      uint8 `[B / replicas, P, P, 3]`: for each step, one batch for each replica of this worker. Of labelled
      images, such batches and int32 `[B / replicas]`.
    """
    context = context or tf.distribute.InputContext()
    per_replica = context.get_per_replica_batch_size(batchsize)
    per_worker = batchsize // context.num_input_pipelines
    # Images are drawn for C steps at a time: "round" r covers the steps r*C ... r*C+C-1.
    first_round, step_in_round = divmod(start_step, crops_per_image)
    draws = tf.data.Dataset.range(first_round * per_worker, np.iinfo(np.int64).max).map(
        lambda k: (k // per_worker) * batchsize + context.input_pipeline_id * per_worker + k % per_worker
    )

    def per_step_and_replica(patches: tf.Tensor) -> tf.Tensor:
        """`[per worker, C, ...]` to `[C * replicas, per replica, ...]`."""
        patches = tf.transpose(patches, (1, 0, *range(2, patches.shape.rank)))
        return tf.reshape(patches, (-1, per_replica, *patches.shape[2:]))

    batches = source.crops(draws, seed, crops_per_image, context).batch(per_worker, drop_remainder=True)
    batches = batches.map(
        lambda *parts: tf.nest.map_structure(per_step_and_replica, parts if len(parts) > 1 else parts[0]),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).unbatch()
    batches = batches.skip(step_in_round * (per_worker // per_replica))
    return _unsharded(batches.prefetch(tf.data.AUTOTUNE))


def validation_dataset(
    crops: Crops, batchsize: int, *, context: tf.distribute.InputContext | None = None
) -> tf.data.Dataset:
    """Makes batches of validation patches: the same in the same order each time it is iterated.

    The last batch is filled up from the start: every replica gets a full batch, and none an empty one.

    Args:
      crops: uint8 `[N, P, P, 3]`, as of `centre_crops`; or such crops and their classes, int32 `[N]`.
      batchsize: B, patches per step over all devices and workers.
      context: which share of each global batch is wanted; None for all of it in one batch.

    Returns:
      As `crops`, of B / replicas; `validation_steps(N, B)` batches for each replica of this worker.
    """
    context = context or tf.distribute.InputContext()
    per_replica = context.get_per_replica_batch_size(batchsize)
    count = len(images_of(crops))
    steps = validation_steps(count, batchsize)
    # [steps, workers, batch of a worker]: the rows of one worker, split among its replicas.
    order = np.arange(steps * batchsize).reshape(steps, context.num_input_pipelines, -1) % count
    mine = order[:, context.input_pipeline_id].reshape(-1)
    chosen = tf.nest.map_structure(lambda values: values[mine], crops)
    return _unsharded(tf.data.Dataset.from_tensor_slices(chosen).batch(per_replica, drop_remainder=True))


def images_of(crops: Crops) -> np.ndarray:
    """Takes the images of crops, with or without labels."""
    return crops[0] if isinstance(crops, tuple) else crops


def validation_steps(count: int, batchsize: int) -> int:
    """Global batches that hold `count` patches."""
    return -(-count // batchsize)


def _unsharded(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps tf.distribute from sharding what is a worker's own share already."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def open_data(options: FitOptions) -> tuple[Source, Crops]:
    """Opens the images that the settings name: the source of training patches, and the validation patches.

    Returns:
      The source, and uint8 `[N, P, P, 3]` with N at most `validation_steps * batchsize`, with their classes if
      the images have labels.

    Raises:
      UserError: as of `open_photographs` and `open_tfds`.
    """
    limit = options.validation_steps * options.batchsize
    if options.labelled:
        train, validation = open_labelled(options.labelled, options.patchsize)
        return train, validation.centre_crops(limit)
    if options.tfds:
        train, validation = open_tfds(options.tfds, options.patchsize, limit)
    else:
        train = open_photographs(options.train_glob, options.patchsize, int(options.cache_gb * 2**30))
        if options.validation_glob is None:
            train, validation = train.split()
    if options.validation_glob is not None:
        validation = open_photographs(options.validation_glob, options.patchsize, 0)
        if isinstance(train, Photographs):
            train = train.without(validation)
    return train, validation.centre_crops(limit)
