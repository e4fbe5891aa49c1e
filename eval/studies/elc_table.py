"""What ELC is for, measured: `python -m eval.studies.elc_table DIR --weights FILE --classifier FILE`.

Of labelled images (a folder of classes, see `train/labelled.py`; its val or test if it has one), scaled and cut to
squares of `--size`, by real files:

    bpp, top-1 and top-5 from the latents, without an image
    top-1 of the same classifier on the images themselves, on those that the codec decodes with and without its
      enhancement, and on those of JPEG, WebP and AVIF in at most the same bytes
    PSNR, MS-SSIM and, where --perceptual names a network, the distance of `transforms.losses.deep_features` of all of
    these

A classical codec that cannot do it in so few bytes is measured at its lowest quality: its own bpp say so.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from eval import classical
from eval.metrics import bpp, ms_ssim, psnr
from models.app.flags.elc import perceptual_features
from models.codec import load, weights
from models.codec.coding import to_uint8
from models.io import files
from models.io.errors import UserError
from models.tasks import classifier as classifiers
from train.labelled import open_test
from transforms.losses import deep_features

CLASSICAL = ("jpeg", "webp", "avif")


def measure(codec, classifier, images: np.ndarray, labels: np.ndarray, features=None) -> dict[str, dict[str, float]]:
    """The rows of the table, by name: means of the figures of each.

    Args:
      codec: an ELC of a stage that classifies.
      classifier: the whole one, whose tail is the codec's.
      images: uint8 [N, H, W, 3].
      labels: [N], numbers of the classes.
      features: as of `transforms.losses.deep_features`, if that distance is wanted.
    """
    rows: dict[str, list[dict[str, float]]] = {}

    def note(name: str, probabilities, label: int, size=None, image=None, decoded=None) -> None:
        order = np.argsort(-np.asarray(probabilities), kind="stable")
        figures = {"top1": float(order[0] == label), "top5": float(label in order[:5])}
        if size is not None:
            figures["bpp"] = bpp(size, *codec_shape)
        if decoded is not None:
            figures |= {"psnr": psnr(image, decoded), "ms_ssim": ms_ssim(image, decoded)}
            if features is not None:
                a, b = (tf.cast(x[None], tf.float32) for x in (image, decoded))
                figures["perceptual"] = float(deep_features.distance(features, a, b)[0])
        rows.setdefault(name, []).append(figures)

    def see(image: np.ndarray) -> np.ndarray:
        return classifier(tf.cast(image[None], tf.float32))[0].numpy()

    codec_shape = images.shape[1:3]
    for image, label in tqdm(zip(images, labels), total=len(images), unit="image", leave=False, disable=None):
        data = codec.compress(image)
        latents = codec.latents(data)
        note("latents", codec.logits(latents)[0].numpy(), label, len(data))
        height, width = codec_shape
        plain = to_uint8(codec.reconstruct_plainly(latents)[0, :height, :width])
        note("decoder's image", see(plain), label, len(data), image, plain)
        if codec.enhances:
            enhanced = to_uint8(codec.reconstruct(latents)[0, :height, :width])
            note("enhanced image", see(enhanced), label, len(data), image, enhanced)
        for name in CLASSICAL:
            file = classical.at_bytes_or_least(name, image, len(data))
            decoded = classical.decode(file)
            note(name, see(decoded), label, len(file), image, decoded)
        note("uncompressed", see(image), label)
    return {
        name: {key: float(np.mean([figures[key] for figures in all_figures])) for key in all_figures[0]}
        for name, all_figures in rows.items()
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as a table of Markdown."""
    columns = {"bpp": ".4f", "top1": ".3f", "top5": ".3f", "psnr": ".2f", "ms_ssim": ".4f", "perceptual": ".4f"}
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
    parser.add_argument("--classifier", required=True, metavar="FILE", help="The one that the codec was trained with.")
    parser.add_argument("--perceptual", metavar="WEIGHTS", help="As of `models/elc.py train`.")
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
        if classifier.labels != codec.labels or classifier.widths != codec.config.classifier_widths:
            raise UserError(f"{args.classifier}: not the classifier of {path}")
        images, part = open_test(args.labelled, args.size)
        if images.classes != codec.labels:
            raise UserError(f"{args.labelled}: its classes are not the labels of {path}")
        features = perceptual_features(args.perceptual) if args.perceptual else None
        crops, labels = images.centre_crops(args.limit)
        rows = measure(codec, classifier, crops, labels, features)
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
