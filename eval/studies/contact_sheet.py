"""Images side by side: `python -m eval.studies.contact_sheet IMAGE… --weights A.safetensors B.safetensors -o
sheet.jpg`.

Each image through each of the weights files, of any models of the zoo, by real files; and through JPEG, WebP and AVIF
at no more bytes than the first of them takes, or at the smallest file that they can write. Prints bpp, PSNR, MS-SSIM
and, where `--perceptual` names a network, the distance of `transforms.losses.deep_features`; draws a row for each
image.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from eval import classical, metrics
from eval.demo import side_by_side
from models.io.errors import UserError
from models.io.files import expand_inputs
from models.io.images import read_image, write_image

CLASSICAL = ("jpeg", "webp", "avif")


def files(image: np.ndarray, codecs: dict) -> dict[str, tuple[int, np.ndarray]]:
    """Size in bytes and decoded image, by the name of what made it.

    Args:
      image: uint8 [H, W, 3].
      codecs: codecs of the zoo by name; the first one's file sets the limit for the classical ones.
    """
    result = {}
    for name, codec in codecs.items():
        data = codec.compress(image)
        result[name] = len(data), codec.decompress(data)
    limit = next(iter(result.values()))[0]
    for name in CLASSICAL:
        data = classical.at_bytes_or_least(name, image, limit)
        result[name] = len(data), classical.decode(data)
    return result


def names_of(paths: Sequence[str]) -> list[str]:
    """File names as captions; with their folders where they are not enough to tell them apart."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [f"{Path(p).parent.name}/{Path(p).stem}" for p in paths]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.contact_sheet", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Images, or globs.")
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="Weights files.")
    parser.add_argument("--show", type=int, default=4, help="How many of the images to draw; all are measured.")
    parser.add_argument("--width", type=int, default=384, help="Of a panel, in pixels; larger images are cut.")
    parser.add_argument("--perceptual", metavar="WEIGHTS", help="As of `models/elc.py train`.")
    parser.add_argument("-o", "--output", default="sheet.jpg", help="The contact sheet.")
    args = parser.parse_args(arguments)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args) -> int:
    from models.codec import load

    codecs = {name: load(path) for name, path in zip(names_of(args.weights), args.weights)}
    distance = _perceptual(args.perceptual)
    rows, figures = [], {}
    for path in expand_inputs(args.images):
        image = read_image(path)
        panels = {"original": image}
        for name, (size, decoded) in files(image, codecs).items():
            measured = [metrics.bpp(size, *image.shape[:2]), metrics.psnr(image, decoded)]
            measured += [metrics.ms_ssim(image, decoded), *([distance(image, decoded)] if distance else [])]
            figures.setdefault(name, []).append(measured)
            panels[f"{name}: {measured[0]:.3f} bpp, {measured[1]:.2f} dB"] = decoded
        if len(rows) < args.show:
            cut = min(args.width, *(panel.shape[1] for panel in panels.values()))
            rows.append(side_by_side({text: panel[: cut * 3 // 4, :cut] for text, panel in panels.items()}))
    print(f"{'means':16} {'bpp':>8} {'PSNR':>7} {'MS-SSIM':>8}{'  perceptual' if distance else ''}")
    for name, measured in figures.items():
        mean = np.mean(measured, 0)
        print(f"{name:16} {mean[0]:8.4f} {mean[1]:7.2f} {mean[2]:8.4f}{f'{mean[3]:12.4f}' if distance else ''}")
    width = min(row.shape[1] for row in rows)
    write_image(args.output, np.concatenate([row[:, :width] for row in rows]), force=True)
    return 0


def _perceptual(which: str | None):
    """The distance of two images, uint8 [H, W, 3], if a network is named for it."""
    if which is None:
        return None
    import tensorflow as tf

    from models.app.flags.elc import perceptual_features
    from transforms.losses import deep_features

    features = perceptual_features(which)
    return lambda *pair: float(deep_features.distance(features, *(tf.cast(x[None], tf.float32) for x in pair))[0])


if __name__ == "__main__":
    sys.exit(main())
