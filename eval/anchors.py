"""Curves of the classical codecs on images of one's own: `python -m eval.anchors 'photos/*.png' -o photos.json`.

The anchors that ship (`res/eval/anchors.json`) are of the 24 Kodak images. This measures JPEG, JPEG 2000, WebP and
AVIF on others, with the settings and at the qualities of those (`eval/classical.py`), and writes a file that
`evaluate --anchors FILE` compares with.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import PIL

from eval import classical, report, sweep
from models.io import files
from models.io.errors import UserError
from models.io.images import read_image


class _Codec:
    """A classical codec as `sweep.measure` takes it."""

    def __init__(self, name: str):
        self._name = name

    def compress(self, image: np.ndarray, quality: float) -> bytes:
        return classical.encode(self._name, image, quality)

    def decompress(self, data: bytes) -> np.ndarray:
        return classical.decode(data)


def qualities(codec: str) -> list[float]:
    """Those at which a codec of `classical.CODECS` was measured for `res/eval/anchors.json`."""
    content = json.loads(report.ANCHORS.read_text(encoding="utf-8"))
    return content["codecs"][classical.CODECS[codec].anchor]["q"]


def measure(paths: Sequence[Path], codecs: Sequence[str]) -> dict[str, dict]:
    """Curves as they are in a file of anchors: under the name of each codec's anchor `setting`, `q`, and the means over
    images `bpp`, `psnr` and `ms_ssim`, which is left out where all are too small for it.

    Args:
      paths: of the images.
      codecs: names in `classical.CODECS`.

    Raises:
      UserError: an image cannot be read, or a codec keeps it without any loss: no mean holds an infinite PSNR.
    """
    from tqdm import tqdm

    grid = {codec: qualities(codec) for codec in codecs}
    measured = {(codec, quality): [] for codec in codecs for quality in grid[codec]}
    with tqdm(total=len(paths) * len(measured), unit="file", leave=False, disable=None) as bar:
        for path in paths:
            image = read_image(path)
            for codec, quality in measured:
                one = sweep.measure(_Codec(codec), image, path.name, quality=quality)
                if not math.isfinite(one.psnr):
                    raise UserError(f"{path}: {codec} keeps it without loss at quality {quality:g}: leave it out")
                measured[codec, quality].append(one)
                bar.update()
    result = {}
    for codec in codecs:
        means = [report.mean(measured[codec, quality]) for quality in grid[codec]]
        curve = {key: [round(mean[key], 5) for mean in means] for key in report.KEYS}
        if not np.all(np.isfinite(curve["ms_ssim"])):
            del curve["ms_ssim"]
        setting = f"Pillow {PIL.__version__}, as eval/classical.py has it"
        result[classical.CODECS[codec].anchor] = {"setting": setting, "q": grid[codec], **curve}
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.anchors", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Images, or globs.")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="Where the curves go, as JSON.")
    parser.add_argument(
        "--codecs",
        default=",".join(classical.CODECS),
        metavar="NAME[,NAME…]",
        help="Which of %(default)s. AVIF takes most of the time: seconds for an image of 768x512 at each quality.",
    )
    parser.add_argument("-f", "--force", action="store_true", help="Replace the file.")
    args = parser.parse_args(arguments)
    codecs = list(dict.fromkeys(args.codecs.split(",")))
    for name in codecs:
        if name not in classical.CODECS:
            raise SystemExit(f"error: --codecs: there is no {name!r}; choose from {', '.join(classical.CODECS)}")
    try:
        files.check_target(args.output, args.force)
        paths = files.expand_inputs(args.images)
        curves = measure(paths, codecs)
        content = {
            "data": f"{len(paths)} of one's own: {', '.join(path.name for path in paths)}",
            "how": "means of the images' values; bpp counts the whole file",
            "codecs": curves,
        }
        files.atomic_write(args.output, (json.dumps(content, indent=1) + "\n").encode(), args.force)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    for name, curve in curves.items():
        ends = " to ".join(f"{curve['psnr'][n]:.2f} dB at {curve['bpp'][n]:.4f} bpp" for n in (0, -1))
        print(f"{name:24} {ends}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
