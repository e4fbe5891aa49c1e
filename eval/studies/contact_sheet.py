"""Images side by side: `python -m eval.studies.contact_sheet IMAGE… --weights A.safetensors B.safetensors -o
sheet.jpg`.

Each image through each of the weights files, of any models of the zoo, by real files; and through JPEG, WebP and AVIF
at no more bytes than the first of them takes, at the size of the image that suits them best (`classical.within_bytes`).
Prints bpp, PSNR, MS-SSIM and, with `--perceptual`, what `eval/perceptual.py` measures; draws a row for each image.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from eval import classical, metrics, perceptual
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
        data, shown = classical.within_bytes(name, image, limit)
        result[name] = len(data), shown
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
    parser.add_argument("--perceptual", action="store_true", help="As of `evaluate`.")
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
    judges = defaultdict(perceptual.Judge) if args.perceptual else {}
    rows, figures = [], {}
    for path in expand_inputs(args.images):
        image = read_image(path)
        panels = {"original": image}
        for name, (size, decoded) in files(image, codecs).items():
            measured = [metrics.bpp(size, *image.shape[:2]), metrics.psnr(image, decoded)]
            measured.append(metrics.ms_ssim(image, decoded))
            if args.perceptual:
                measured += judges[name].measure(image, decoded).values()
            figures.setdefault(name, []).append(measured)
            panels[f"{name}: {measured[0]:.3f} bpp, {measured[1]:.2f} dB"] = decoded
        if len(rows) < args.show:
            cut = min(args.width, *(panel.shape[1] for panel in panels.values()))
            rows.append(side_by_side({text: panel[: cut * 3 // 4, :cut] for text, panel in panels.items()}))
    columns = ["ssimulacra2", "features", "Fréchet"] if args.perceptual else []
    print(f"{'means':16} {'bpp':>8} {'PSNR':>7} {'MS-SSIM':>8}" + "".join(f" {column:>12}" for column in columns))
    for name, measured in figures.items():
        bpp, psnr, ms_ssim, *seen = np.mean(measured, 0)
        seen += [judges[name].frechet().distance] if args.perceptual else []
        print(f"{name:16} {bpp:8.4f} {psnr:7.2f} {ms_ssim:8.4f}" + "".join(f" {value:12.4f}" for value in seen))
    width = min(row.shape[1] for row in rows)
    write_image(args.output, np.concatenate([row[:, :width] for row in rows]), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
