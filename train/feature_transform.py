"""Lets ELC's latents speak to another classifier: `python -m train.feature_transform FILE --classifier NAME -o FILE`.

    images ──► codec ──► y_hat ──► feature transform ──► tail of the classifier ──► activations, logits
       │                                                                               are to be those of
       └────────────────────► front of the classifier ──► tail of the classifier ──► activations, logits

Only the feature transform learns; the codec, its rate and its images stay as they are. So y_hat and the front's
features are computed once, of random crops, and a step takes a tenth of the time of one of `models/elc.py train --stage
classification`, which trains the codec as well. No labels are needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Sequence

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from models.codec import load, weights
from models.codec.variables import variables_by_path
from models.elc import ELC
from models.io import files
from models.io.errors import UserError
from models.io.images import read_image
from models.tasks import classifier as classifiers
from train.callbacks import StopOnNaN
from train.classifier import check_numbers
from train.crops import HOLD_OUT, random_crop
from train.data import find_photographs
from train.fit import user_errors
from train.labelled import scaled
from transforms.networks import enhance
from transforms.starts import least_squares

logger = logging.getLogger(__name__)

#: What the squared errors of activations, in parts of their variances, weigh beside the divergence of the answers in
#: nats: at the cut, and of the mean over the layers behind it (res/doc/log/elc.md).
CUT_WEIGHT, TAIL_WEIGHT = 1.0, 4.0
#: Crops that the codec and the classifier take at once.
BATCH = 16
#: The least part of the side of a crop that a step looks at: other windows are other images for the tail.
WINDOW = 0.64


class Student(tf.keras.Model):
    """The feature transform in training, before the tail of a classifier: a model of y_hat [B, H, W, N].

    Args:
      transform: the layer that learns.
      tail: whose activations are matched; it stays as it is.
    """

    def __init__(self, transform: tf.keras.layers.Layer, tail: classifiers.Tail):
        super().__init__()
        self.transform, self.tail = transform, tail
        tail.trainable = False
        self.means = {
            name: tf.keras.metrics.Mean(name=name) for name in ("loss", "divergence", "features", "agreement")
        }

    @property
    def metrics(self):
        return list(self.means.values())

    def losses_of(self, latents: tf.Tensor, features: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scalars by name, for y_hat [B, H, W, N] and the front's features of the same crops [B, 2 H, 2 W, C].

        divergence: from the classifier's answer to the original, in nats.
        features: squared errors of activations in parts of their variances, weighed and added up.
        agreement: how often the most probable class is the same.
        """
        *expected, answer = self.tail.activations(tf.cast(features, tf.float32))
        *found, logits = self.tail.activations(self.transform(tf.cast(latents, tf.float32)))
        answer = tf.nn.softmax(answer)
        cut, *behind = (
            tf.reduce_mean(tf.math.squared_difference(a, b)) / tf.math.reduce_variance(b)
            for a, b in zip(found, expected)
        )
        same = tf.argmax(logits, -1) == tf.argmax(answer, -1)
        figures = {
            "divergence": tf.reduce_mean(tf.keras.losses.kl_divergence(answer, tf.nn.softmax(logits))),
            "features": CUT_WEIGHT * cut + TAIL_WEIGHT * tf.add_n(behind) / len(behind),
            "agreement": tf.reduce_mean(tf.cast(same, tf.float32)),
        }
        return {"loss": figures["divergence"] + figures["features"], **figures}

    def _noted(self, figures: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for name, value in figures.items():
            self.means[name].update_state(value)
        return {name: mean.result() for name, mean in self.means.items()}

    def train_step(self, data):
        with tf.GradientTape() as tape:
            figures = self.losses_of(*random_window(*data))
        self.optimizer.minimize(figures["loss"], self.transform.trainable_variables, tape=tape)
        return self._noted(figures)

    def test_step(self, data):
        return self._noted(self.losses_of(*data))


def random_window(latents: tf.Tensor, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts the same square of random size and place out of y_hat [B, H, W, N] and features [B, 2 H, 2 W, C]."""
    side = tf.shape(latents)[1]
    least = tf.cast(tf.math.ceil(WINDOW * tf.cast(side, tf.float32)), tf.int32)
    size = tf.random.uniform([], least, side + 1, tf.int32)
    top, left = tf.unstack(tf.random.uniform([2], 0, side - size + 1, tf.int32))
    return (
        latents[:, top : top + size, left : left + size],
        features[:, 2 * top : 2 * (top + size), 2 * left : 2 * (left + size)],
    )


def random_crops(paths: Sequence[str], count: int, size: int, seed: int) -> np.ndarray:
    """Cuts squares out of images that were scaled down at random, so that the shorter side is `size` to twice `size`.

    Returns:
      uint8 [count, size, size, 3], as many of each image; fewer where images are left out, which a warning counts.

    Raises:
      UserError: all images are damaged, or smaller than `size`.
    """
    random = np.random.default_rng(seed)
    of_each = -(-count // len(paths))
    crops, filled, left_out = np.empty([of_each * len(paths), size, size, 3], np.uint8), 0, []
    for path in tqdm(paths, desc="crops", leave=False, disable=None):
        try:
            image = read_image(path)
            if min(image.shape[:2]) < size:
                raise UserError(f"{path}: smaller than {size} pixels")
        except UserError as error:
            left_out.append(str(error))
            continue
        for _ in range(of_each):
            side = int(random.integers(size, min(2 * size, *image.shape[:2]) + 1))
            crops[filled] = random_crop(scaled(image, side), size, random)
            filled += 1
    if not filled:
        raise UserError(left_out[-1])
    if left_out:
        logger.warning("%d of %d images are left out. The last: %s", len(left_out), len(paths), left_out[-1])
    return crops[: min(filled, count)]


def precomputed(codec: ELC, classifier: classifiers.Classifier, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a step needs of crops, uint8 [N, P, P, 3]: y_hat and the front's features, float16."""

    @tf.function(autograph=False, reduce_retracing=True)
    def compute(images):
        images = codec.pad(tf.cast(images, tf.float32))
        latents = codec.quantise(images, {}, training=False).latents
        return tf.cast(latents, tf.float16), tf.cast(classifier.features_at_cut(images), tf.float16)

    batches = range(0, len(crops), BATCH)
    found = [compute(crops[k : k + BATCH]) for k in tqdm(batches, desc="latents", leave=False, disable=None)]
    latents, features = (np.concatenate([part.numpy() for part in parts]) for parts in zip(*found))
    return latents, features


def first_transform(
    codec: ELC, classifier: classifiers.Classifier, latents: np.ndarray, features: np.ndarray
) -> tf.keras.layers.Layer:
    """The feature transform to begin with: the codec's if it has one for this classifier, else a new one, the best
    linear one for y_hat and features as of `precomputed`."""
    if (codec.labels, codec.config.classifier) == (tuple(classifier.labels), classifier.architecture):
        logger.warning("%s has a feature transform for this classifier: its training goes on", codec.path)
        return codec.feature_transform
    channels = classifiers.cut_channels(classifier.architecture)
    transform = enhance.feature_transform(codec.config.width, codec.config.transform_width, channels)
    transform.build(None)
    least_squares.begin(transform, *least_squares.regression(latents, features))
    return transform


@user_errors()
def fit(student: Student, train, validation, args) -> dict[str, list[float]]:
    """Trains on y_hat and features as of `precomputed`; leaves the averaged weights. Returns Keras' history.

    Raises:
      UserError: the loss is not finite any more; or as of `train.fit.user_errors`.
    """
    steps = max(1, len(train[0]) // args.batchsize)
    rate = tf.keras.optimizers.schedules.CosineDecay(
        0.0, args.epochs * steps, warmup_target=args.learning_rate, warmup_steps=min(100, steps)
    )
    student.compile(tf.keras.optimizers.Adam(rate, global_clipnorm=1.0, use_ema=True, ema_momentum=0.99))
    data = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), args.seed)
    return student.fit(
        data.batch(args.batchsize, drop_remainder=len(train[0]) >= args.batchsize),
        epochs=args.epochs,
        validation_data=tf.data.Dataset.from_tensor_slices(validation).batch(args.batchsize),
        callbacks=[StopOnNaN()],
        verbose=2,
    ).history


def with_classifier(
    codec: ELC, classifier: classifiers.Classifier, transform: tf.keras.layers.Layer
) -> tuple[dict, dict]:
    """Tensors and header of a codec's file with another feature transform and classifier; everything else is kept."""
    tensors, header = weights.read(codec.path)
    tensors = {n: v for n, v in tensors.items() if not n.startswith(("feature_transform/", "classifier/"))}
    for name, variable in variables_by_path(transform).items():
        tensors[f"feature_transform/{name}"] = variable.numpy().astype(np.float16)
    for name, variable in variables_by_path(classifier.tail).items():
        tensors[f"classifier/{name}"] = variable.numpy().astype(np.float16)
    config = dataclasses.replace(codec.config, classifier=classifier.architecture)
    if header["stage"] == "base":
        header["stage"] = "classification"
    header |= {"config": weights.config_to_json(config), "labels": json.dumps(classifier.labels)}
    return tensors, {**header, "weights_id": weights.fingerprint(tensors).hex()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.feature_transform",
        description="Trains the feature transform of ELC's weights for another classifier; the rest of them stays.",
    )
    parser.add_argument("weights", metavar="FILE", help="Weights of ELC, of any stage.")
    parser.add_argument("--classifier", required=True, metavar="NAME|FILE", help="As of `models/elc.py train`.")
    parser.add_argument("--train_glob", required=True, action="append", help="Images; no labels are needed.")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="Where the weights go (.safetensors).")
    parser.add_argument("-f", "--force", action="store_true", help="Replace it.")
    parser.add_argument("--crops", type=int, default=16000, help="Random crops; 1,000 take 90 MB of memory.")
    parser.add_argument("--patchsize", type=int, default=224, help="Their side.")
    parser.add_argument("--batchsize", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10, help="Passes through the crops.")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        check_numbers(args, "crops", "patchsize", "batchsize", "epochs", "learning_rate")
        files.check_target(args.output, args.force)
        tf.keras.utils.set_random_seed(args.seed)
        weights.check_model(args.weights, "elc")
        codec, classifier = load(args.weights, precision="float32"), classifiers.load(args.classifier)
        paths = find_photographs(args.train_glob)
        held_out = paths[::HOLD_OUT]
        rest = [path for path in paths if path not in set(held_out)] or held_out
        shown = random_crops(rest, args.crops, args.patchsize, args.seed)
        judged = random_crops(held_out, max(1, args.crops // 64), args.patchsize, args.seed + 1)
        train, validation = (precomputed(codec, classifier, crops) for crops in (shown, judged))
        transform = first_transform(codec, classifier, *train)
        history = fit(Student(transform, classifier.tail), train, validation, args)
        facts = {f"transform_{name}": f"{history[f'val_{name}'][-1]:.4f}" for name in ("divergence", "agreement")}
        tensors, header = with_classifier(codec, classifier, transform)
        weights.write(args.output, tensors, {**header, **facts}, force=args.force)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{args.output}: {len(classifier.labels)} classes {facts}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
