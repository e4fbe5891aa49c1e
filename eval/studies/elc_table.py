"""What ELC is for, measured: `python -m eval.studies.elc_table DIR --weights FILE`.

Of labelled images (a folder of classes, see `train/labelled.py`; its val or test if it has one), scaled and cut to
squares of `--size`, by real files:

    bpp, top-1 and top-5 from the latents, without an image; top-1 among the folder's classes alone, if the weights know
      more
    the same of a classifier on the images themselves, on those that the codec decodes with and without its enhancement,
      and on those of JPEG, WebP and AVIF in at most the same bytes, at the size that suits them best
    PSNR, MS-SSIM and, with --perceptual, what `eval/perceptual.py` measures of all of these

The classifier that looks at images should not be the one that the codec was trained with: EfficientNet-Lite2 is the
default for weights of ImageNet's classes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Sequence

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from eval import classical
from eval.metrics import bpp, ms_ssim, psnr
from eval.perceptual import JUDGE, Judge
from models.codec import load, weights
from models.codec.coding import to_uint8
from models.io import files
from models.io.errors import UserError
from models.tasks import classifier as classifiers
from train.labelled import open_test

CLASSICAL = ("jpeg", "webp", "avif")


def measure(
    codec, classifier, images: np.ndarray, labels: np.ndarray, among: Sequence[int] = (), perceptual: bool = False
) -> dict[str, dict[str, float]]:
    """The rows of the table, by name: means of the figures of each.

    Args:
      codec: an ELC of a stage that classifies.
      classifier: of images, with the codec's labels.
      images: uint8 [N, H, W, 3].
      labels: [N], numbers of the classes.
      among: the classes that occur, for a top-1 among those alone; none: it is left out.
      perceptual: whether a `Judge` looks at the images, too.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    judges = defaultdict(Judge)

    def note(name: str, logits, label: int, size=None, image=None, decoded=None) -> None:
        order = np.argsort(-np.asarray(logits), kind="stable")
        figures = {"top1": float(order[0] == label), "top5": float(label in order[:5])}
        if len(among):
            figures["top1 of folder"] = float(next(k for k in order if k in among) == label)
        if size is not None:
            figures["bpp"] = bpp(size, *image.shape[:2])
        if decoded is not None:
            figures |= {"psnr": psnr(image, decoded), "ms_ssim": ms_ssim(image, decoded)}
            if perceptual:
                figures |= judges[name].measure(image, decoded)
        rows.setdefault(name, []).append(figures)

    def see(image: np.ndarray) -> np.ndarray:
        return classifier(tf.cast(image[None], tf.float32))[0].numpy()

    for image, label in tqdm(zip(images, labels), total=len(images), unit="image", leave=False, disable=None):
        data = codec.compress(image)
        latents = codec.latents(data)
        note("latents", codec.logits(latents)[0].numpy(), label, len(data), image)
        height, width = image.shape[:2]
        shown = {"decoder's image": codec.reconstruct_plainly(latents)}
        if codec.enhances:
            shown["enhanced image"] = codec.reconstruct(latents)
        for name, decoded in shown.items():
            decoded = to_uint8(decoded[0, :height, :width])
            note(name, see(decoded), label, len(data), image, decoded)
        for name in CLASSICAL:
            file, decoded = classical.within_bytes(name, image, len(data))
            note(name, see(decoded), label, len(file), image, decoded)
        note("uncompressed", see(image), label)
    means = {
        name: {key: float(np.mean([figures[key] for figures in all_figures])) for key in all_figures[0]}
        for name, all_figures in rows.items()
    }
    for name, judge in judges.items():
        means[name]["frechet"] = judge.frechet().distance
    return means


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as a table of Markdown."""
    columns = {"bpp": ".4f", "top1": ".3f", "top5": ".3f", "top1 of folder": ".3f", "psnr": ".2f", "ms_ssim": ".4f"}
    columns |= {"ssimulacra2": ".2f", "feature_distance": ".4f", "frechet": ".4f"}
    columns = {name: form for name, form in columns.items() if any(name in row for row in rows.values())}
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, row in rows.items():
        cells = (format(row[column], form) if column in row else "" for column, form in columns.items())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.elc_table", description=__doc__.split("\n")[0])
    parser.add_argument("labelled", metavar="DIR", help="A folder of classes, or a TFDS name.")
    parser.add_argument("--weights", help="Weights file; by default the first that ship for elc.")
    parser.add_argument(
        "--classifier", default=JUDGE, metavar="NAME|FILE", help="Looks at images; it needs the labels of the codec."
    )
    parser.add_argument("--perceptual", action="store_true", help="As of `evaluate`.")
    parser.add_argument("--size", type=int, default=224, help="Side of the square that is compressed.")
    parser.add_argument("--limit", type=int, default=10**9, help="At most so many images, spread over the classes.")
    parser.add_argument("--json", metavar="FILE", help="Also write the figures there.")
    parser.add_argument("-f", "--force", action="store_true", help="Replace it.")
    args = parser.parse_args(argv)
    try:
        if args.json:
            files.check_target(args.json, args.force)
        path = args.weights or weights.default("elc")
        codec = load(path)
        if codec.entry.name != "elc" or codec.stage == "base":
            raise UserError(f"{path}: not weights of elc that classify")
        classifier = classifiers.load(args.classifier)
        if classifier.labels != codec.labels:
            raise UserError(f"{args.classifier}: its labels are not those of {path}")
        images, part = open_test(args.labelled, args.size)
        known = [classifiers.class_key(label) for label in codec.labels]
        unknown = [name for name in images.classes if classifiers.class_key(name) not in known]
        if unknown:
            raise UserError(f"{args.labelled}: classes that {path} does not know: {', '.join(unknown[:5])}")
        numbers = np.array([known.index(classifiers.class_key(name)) for name in images.classes])
        crops, labels = images.centre_crops(args.limit)
        among = numbers if len(numbers) < len(known) else ()
        rows = measure(codec, classifier, crops, numbers[labels], among, args.perceptual)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{len(crops)} {part} images of {args.size}x{args.size}\n\n{table(rows)}")
    if args.json:
        facts = {
            "pictures": len(crops),
            "part": part,
            "size": args.size,
            "weights_id": codec.weights_id.hex(),
            "rows": rows,
        }
        files.atomic_write(args.json, json.dumps(facts, indent=1).encode(), args.force)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
