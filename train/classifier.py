"""Trains the classifier that ELC builds on, on uncompressed images: `python -m train.classifier DIR -o FILE`.

    python -m train.classifier flowers -o small.safetensors --preset small --epochs 40 --learning_rate 1e-3
    python -m train.classifier flowers -o resnet50.safetensors --init imagenet     fine-tunes what Keras has
    python -m train.classifier -o imagenet.safetensors --init imagenet             takes it as it is, 1000 classes
    python -m train.classifier flowers -o b.safetensors --init a.safetensors       goes on from one of its own
    python -m train.classifier flowers -o lite.safetensors --preset efficientnet_lite0 --init efficientnet_lite0

`models/elc.py train --stage classification --classifier FILE` reads the file that it writes. DIR is a folder of classes
or the name of a TensorFlow Datasets data set: see `train/labelled.py`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from models.codec import weights
from models.io import files
from models.io.errors import UserError
from models.tasks.classifier import RESNET50, SMALL_WIDTHS, Classifier, load
from train import data, labelled
from train.callbacks import StopOnNaN
from train.fit import user_errors
from transforms.networks.efficientnet_lite import VARIANTS

PRESETS = {"base": RESNET50, "small": SMALL_WIDTHS, **{name: name for name in VARIANTS}}


def augmented(images: tf.Tensor) -> tf.Tensor:
    """A random square of 3/4 to all of each image's side, at its size again: [B, P, P, 3], float32 in 0..255.

    And other brightness and contrast. Flips come with the data.
    """
    images = tf.cast(images, tf.float32)
    batch, side = tf.shape(images)[0], tf.shape(images)[1]
    size = tf.random.uniform([batch, 1], 0.75, 1.0)
    corner = tf.random.uniform([batch, 2]) * (1 - size)
    boxes = tf.concat([corner, corner + size], 1)
    images = tf.image.crop_and_resize(images, boxes, tf.range(batch), [side, side])
    gain, shift = (tf.random.uniform([batch, 1, 1, 1], -s, s) for s in (0.2, 25.0))
    return tf.clip_by_value((images - 128) * (1 + gain) + 128 + shift, 0.0, 255.0)


@user_errors()
def fit(classifier: Classifier, train, validation, args) -> dict[str, list[float]]:
    """Trains on a `train.labelled.LabelledImages`; leaves the weights of the best epoch.

    Returns:
      Keras' history.

    Raises:
      UserError: the loss is not finite any more; or as of `train.fit.user_errors`.
    """
    epochs, steps = args.epochs, max(1, len(train) // args.batchsize)
    rate = tf.keras.optimizers.schedules.CosineDecay(args.learning_rate, epochs * steps)
    classifier.compile(
        tf.keras.optimizers.Adam(rate, global_clipnorm=1.0),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    batches = data.training_dataset(train, args.batchsize, args.patchsize, seed=args.seed)
    held_out = data.validation_dataset(validation.centre_crops(len(validation)), args.batchsize)
    history = classifier.fit(
        batches.map(lambda images, labels: (augmented(images), labels)),
        epochs=epochs,
        steps_per_epoch=steps,
        validation_data=held_out,
        callbacks=[StopOnNaN(), BestWeights()],
        verbose=2,
    )
    return history.history


class BestWeights(tf.keras.callbacks.Callback):
    """Leaves the weights of the epoch with the highest validation accuracy, the earliest of them."""

    def on_train_begin(self, logs=None) -> None:
        self.best, self.weights = -1.0, None

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        if logs["val_accuracy"] > self.best:
            self.best, self.weights = logs["val_accuracy"], self.model.get_weights()

    def on_train_end(self, logs=None) -> None:
        if self.weights is not None:
            self.model.set_weights(self.weights)


def imagenet_labels() -> list[str]:
    """The names of ImageNet's 1000 classes; Keras downloads them."""
    import numpy as np

    decoded = tf.keras.applications.resnet50.decode_predictions(np.eye(1000, dtype=np.float32), top=1)
    return [entry[0][1] for entry in decoded]


def check_numbers(args: argparse.Namespace, *names: str) -> None:
    """UserError unless the flags of these names are above 0, and --seed is one."""
    for name in names:
        if not getattr(args, name) > 0:
            raise UserError(f"--{name} {getattr(args, name)}: must be above 0")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: must be at least 0 and below 2**32")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.classifier", description="Trains a classifier on images with labels."
    )
    parser.add_argument("labelled", nargs="?", metavar="DIR", help="A folder of classes, or a TFDS name.")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="Where the weights go (.safetensors).")
    parser.add_argument("-f", "--force", action="store_true", help="Replace it.")
    parser.add_argument(
        "--preset", choices=list(PRESETS), default="base", help="ResNet50, a small network, or a Lite one."
    )
    parser.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="What it starts from: a file of this program, or one that ships, such as efficientnet_lite0; for ResNet50 "
        "also imagenet or a file of Keras'.",
    )
    parser.add_argument("--patchsize", type=int, default=224, help="Images are scaled and cut to this.")
    parser.add_argument("--batchsize", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=30, help="Passes through the images.")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        check_numbers(args, "patchsize", "batchsize", "epochs", "learning_rate")
        if not args.labelled and args.init != "imagenet":
            raise UserError("give a folder of classes to train on (without one, only --init imagenet can be written)")
        files.check_target(args.output, args.force)
        tf.keras.utils.set_random_seed(args.seed)
        facts = {}
        if args.labelled:
            train, validation = labelled.open_labelled(args.labelled, args.patchsize)
        classifier = Classifier(PRESETS[args.preset], train.classes if args.labelled else imagenet_labels())
        if args.init and weights.of_classifier(args.init):
            classifier.begin_as(load(args.init))
        elif args.init:
            classifier.load_keras(args.init)
        if args.labelled:
            history = fit(classifier, train, validation, args)
            facts = {"val_accuracy": f"{max(history['val_accuracy']):.4f}", "epochs": str(args.epochs)}
        classifier.save_file(args.output, facts, force=args.force)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{args.output}: {len(classifier.labels)} classes {facts or ''}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
