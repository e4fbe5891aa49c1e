"""Accuracy against rate, with maps for a classifier and uniform ones: `python -m eval.studies.task_aware DATA`.

DATA is a folder of images of one size for each class, which are ImageNet's. EfficientNet-Lite0 finds the maps
(models/tasks/task_map.py), it and Lite2 judge the decoded images: a map that is made for one network should help
another. Accuracies are among ImageNet's 1000 classes. Rates are those of real files. Prints a table, and writes it as
JSON and as a plot.
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

from eval.perceptual import JUDGE
from eval.studies import exit_code
from models.io.errors import UserError
from models.io.files import atomic_write
from models.io.images import read_image
from models.tasks.classifier import class_key

BATCH = 10
#: The classifier that finds the maps; the judge has no part in it.
FINDER = "efficientnet_lite0"


def read_labelled(folder: Path, per_class: int | None = None) -> tuple[np.ndarray, list[str]]:
    """Images uint8 [N, H, W, 3] and the names of their classes [N].

    per_class: take the first so many of each.

    Raises:
      UserError: there are no classes, or images differ in size.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    files = [(path, name) for name in names for path in sorted((folder / name).iterdir())[:per_class]]
    if not files:
        raise UserError(f"{folder}: has no folders with images, one per class")
    images = [read_image(path) for path, _ in files]
    if len({p.shape for p in images}) > 1:
        raise UserError(f"{folder}: its images are not all of one size")
    return np.stack(images), [name for _, name in files]


def accuracies(judges: dict, images: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """The share of images uint8 [N, H, W, 3] that each of the classifiers puts in the class of its label."""
    found = {}
    for name, judge in judges.items():
        batches = (images[first : first + BATCH].astype(np.float32) for first in range(0, len(images), BATCH))
        answers = np.concatenate([np.argmax(judge(batch), -1) for batch in batches])
        found[name] = float(
            np.mean([class_key(judge.labels[k]) == class_key(label) for k, label in zip(answers, labels)])
        )
    return found


def measure(
    codec, judges: dict, images: np.ndarray, labels: Sequence[str], controls: Sequence[dict]
) -> dict[str, float]:
    """Mean bpp of real files, and the `accuracies` after decoding.

    controls: what `compress` takes for each image.
    """
    files = [codec.compress(image, **control) for image, control in zip(images, controls)]
    bpp = np.mean([8 * len(data) for data in files]) / np.prod(images.shape[1:3])
    return {"bpp": float(bpp), **accuracies(judges, np.stack([codec.decompress(data) for data in files]), labels)}


def plot(result: dict, path: Path) -> None:
    """Accuracy over bpp, as in the paper, for each judge."""
    from matplotlib.figure import Figure

    judges = list(result["originals"])
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, judge in zip(figure.subplots(1, len(judges), sharey=True), judges):
        for kind, style in (("uniform", "o-"), ("task-aware", "s-")):
            axes.plot([p["bpp"] for p in result[kind]], [p[judge] for p in result[kind]], style, label=f"{kind} maps")
        axes.axhline(result["originals"][judge], color="grey", linestyle=":", label="originals")
        axes.set(xlabel="bits per pixel", ylabel="top-1 of 1000 classes", title=judge)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.task_aware", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="of SFT; by default those that ship")
    parser.add_argument("--per_class", type=int, default=10, help="test images of each class")
    parser.add_argument("--steps", type=int, default=12, help="of gradient descent for each map")
    parser.add_argument(
        "--task_weights", default="0.01,0.03,0.1,0.3,1", help="bpp that a nat of cross-entropy is worth"
    )
    parser.add_argument("--qualities", default="0,0.1,0.2,0.3,0.4,0.5", help="of the uniform maps")
    parser.add_argument("-o", "--output", type=Path, default=Path("task_aware.png"), help="plot; .json goes beside it")
    return exit_code(_run, parser.parse_args(arguments))


def _run(args) -> int:
    from models.codec import load, load_for_training, weights
    from models.tasks import classifier, task_map

    path = args.weights or weights.default("sft")
    codec, frozen = load(path), load_for_training(path)
    judges = {name: classifier.load(name) for name in (FINDER, JUDGE)}
    finder = task_map.Classifier(judges[FINDER])
    images, labels = read_labelled(args.data, args.per_class)
    result = {"images": len(labels), "weights_id": codec.weights_id.hex(), "uniform": [], "task-aware": []}
    result["originals"] = accuracies(judges, images, labels)
    print(f"{len(labels)} originals: {_text(result['originals'])}", flush=True)

    def note(kind: str, setting: dict, controls) -> None:
        figures = measure(codec, judges, images, labels, controls)
        result[kind].append({**setting, **figures})
        print(f"{kind:10} {_text(setting):12} {_text(figures)}", flush=True)

    for quality in map(float, args.qualities.split(",")):
        note("uniform", {"quality": quality}, [{"quality": quality}] * len(labels))
    for weight in map(float, args.task_weights.split(",")):
        maps = [
            found
            for first in range(0, len(labels), BATCH)
            for found in task_map.find_maps(frozen, finder, images[first : first + BATCH], weight, args.steps)
        ]
        note("task-aware", {"weight": weight}, [{"quality_map": m} for m in maps])
    atomic_write(args.output.with_suffix(".json"), json.dumps(result, indent=1).encode() + b"\n", force=True)
    plot(result, args.output)
    return 0


def _text(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
