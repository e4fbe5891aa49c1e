"""Accuracy against rate, with maps for a classifier and uniform ones: `python -m eval.studies.task_aware DATA`.

DATA has folders `train` and `test`, each with a folder of images of one size per class. Two small classifiers are
trained: one finds the maps (models/tasks/task_map.py), the other one, of another shape, judges the decoded images, as
the paper has it. Rates are those of real files. Prints a table, and writes it as JSON and as a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # a command line does not open with TensorFlow's log
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from models.io.errors import UserError
from models.io.files import atomic_write
from models.io.images import read_image

BATCH = 10


def read_labelled(folder: Path, per_class: int | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images uint8 [N, H, W, 3], their classes [N], and what the classes are called.

    per_class: take the first so many of each.

    Raises:
      UserError: there are no classes, or images differ in size.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    files = [
        (path, label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())[:per_class]
    ]
    if not files:
        raise UserError(f"{folder}: has no folders with images, one per class")
    images = [read_image(path) for path, _ in files]
    if len({p.shape for p in images}) > 1:
        raise UserError(f"{folder}: its images are not all of one size")
    return np.stack(images), np.array([label for _, label in files]), names


def make_classifier(images: np.ndarray, labels: np.ndarray, widths: Sequence[int], epochs: int, seed: int):
    """A small residual network, trained on images uint8 [N, H, W, 3]; takes 0..255, gives probabilities."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    layers = tf.keras.layers
    x = inputs = tf.keras.Input(images.shape[1:])
    x = layers.Rescaling(1 / 127.5, -1)(x)
    for augment in (layers.RandomFlip("horizontal"), layers.RandomTranslation(0.1, 0.1), layers.RandomZoom(0.2)):
        x = augment(x)
    x = layers.Conv2D(widths[0], 5, 4, "same", use_bias=False)(x)
    for width in widths:
        x = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.Conv2D(width, 3, 2, "same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(width, 3, 1, "same", use_bias=False)(y)
        # Every other pixel, then 1x1: TensorFlow 2.14 corrupts memory in the gradient of a strided 1x1 convolution.
        x = y + layers.Conv2D(width, 1, use_bias=False)(layers.MaxPool2D(1, 2, "same")(x))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    outputs = layers.Dense(labels.max() + 1, "softmax", dtype="float32")(layers.Dropout(0.3)(x))
    model = tf.keras.Model(inputs, outputs)
    steps = -(-len(labels) // 32) * epochs
    rate = tf.keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(tf.keras.optimizers.AdamW(rate, weight_decay=0.01), "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels), seed).repeat().batch(32)
    model.fit(data, epochs=epochs, steps_per_epoch=steps // epochs, verbose=0)
    return model


def measure(codec, judge, images: np.ndarray, labels: np.ndarray, controls: Sequence[dict]) -> dict[str, float]:
    """Mean bpp of real files, and the share of images that the judge gets right after decoding.

    controls: what `compress` takes for each image.
    """
    files = [codec.compress(image, **control) for image, control in zip(images, controls)]
    decoded = np.stack([codec.decompress(data) for data in files])
    answers = judge.predict(decoded, batch_size=BATCH, verbose=0).argmax(-1)
    bpp = np.mean([8 * len(data) for data in files]) / np.prod(images.shape[1:3])
    return {"bpp": float(bpp), "accuracy": float(np.mean(answers == labels))}


def plot(result: dict, path: Path) -> None:
    """Accuracy over bpp, as in the paper."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for kind, style in (("uniform", "o-"), ("task-aware", "s-")):
        axes.plot([p["bpp"] for p in result[kind]], [p["accuracy"] for p in result[kind]], style, label=f"{kind} maps")
    axes.axhline(result["accuracy_of_originals"], color="grey", linestyle=":", label="originals")
    axes.set(xlabel="bits per pixel", ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.task_aware", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="of SFT; by default those that ship")
    parser.add_argument("--per_class", type=int, default=10, help="test images of each class")
    parser.add_argument("--epochs", type=int, default=40, help="of the classifiers' training")
    parser.add_argument("--steps", type=int, default=12, help="of gradient descent for each map")
    parser.add_argument(
        "--task_weights", default="0.01,0.03,0.1,0.3,1", help="bpp that a nat of cross-entropy is worth"
    )
    parser.add_argument("--qualities", default="0,0.1,0.2,0.3,0.4,0.5", help="of the uniform maps")
    parser.add_argument("--save_classifier", type=Path, help="also save the one that finds the maps (.keras)")
    parser.add_argument("-o", "--output", type=Path, default=Path("task_aware.png"), help="plot; .json goes beside it")
    args = parser.parse_args(arguments)
    try:
        return _run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args) -> int:
    from models.codec import load, load_for_training, weights
    from models.tasks.task_map import Classifier, find_maps

    path = args.weights or weights.default("sft")
    codec, frozen = load(path), load_for_training(path)
    images, labels, _ = read_labelled(args.data / "train")
    finder = make_classifier(images, labels, (32, 64, 128), args.epochs, seed=1)
    judge = make_classifier(images, labels, (24, 48, 96, 160), args.epochs, seed=2)
    if args.save_classifier:
        finder.save(args.save_classifier)
    images, labels, _ = read_labelled(args.data / "test", args.per_class)
    result = {
        kind: float(np.mean(model.predict(images, batch_size=BATCH, verbose=0).argmax(-1) == labels))
        for kind, model in (("accuracy_of_originals", judge), ("accuracy_of_originals_by_the_finder", finder))
    }
    result |= {"pictures": len(labels), "uniform": [], "task-aware": []}
    print(f"{len(labels)} originals: accuracy {result['accuracy_of_originals']:.3f}")

    def note(kind: str, setting: dict, controls) -> None:
        figures = measure(codec, judge, images, labels, controls)
        result[kind].append({**setting, **figures})
        text = ", ".join(f"{name} {value:g}" for name, value in setting.items())
        print(f"{kind:10} {text:12} {figures['bpp']:.4f} bpp, accuracy {figures['accuracy']:.3f}", flush=True)

    for quality in map(float, args.qualities.split(",")):
        note("uniform", {"quality": quality}, [{"quality": quality}] * len(labels))
    for weight in map(float, args.task_weights.split(",")):
        maps = [
            found
            for first in range(0, len(labels), BATCH)
            for found in find_maps(frozen, Classifier(finder), images[first : first + BATCH], weight, args.steps)
        ]
        note("task-aware", {"weight": weight}, [{"quality_map": m} for m in maps])
    atomic_write(args.output.with_suffix(".json"), json.dumps(result, indent=1).encode() + b"\n", force=True)
    plot(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
