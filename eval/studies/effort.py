"""What the iterations of RDOQ cost and bring: `python -m eval.studies.effort 'photos/*.png' -o effort.png`.

Real files at several qualities and efforts, with compiled graphs. For each effort: processor seconds an image and the
mean BD-rate against the default effort, image by image. Choose images that the weights did not learn from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from tqdm import tqdm

from eval import report
from eval.metrics import bpp, psnr
from eval.studies import exit_code
from models.codec import EncoderOptions, load, weights
from models.io.errors import UserError
from models.io.files import atomic_write, expand_inputs
from models.io.images import read_image

DEFAULT = EncoderOptions().effort


def measure(codec, images: Sequence[np.ndarray], qualities: Sequence[float], efforts: Sequence[int]) -> list[dict]:
    """For each effort its seconds of compressing an image, processor time, and its BD-rate in percent.

    Args:
      codec: of several rates, with RDOQ.
      images: uint8 [H, W, 3] each.
      qualities: two at least.
      efforts: the default must be among them.
    """
    curves, seconds = {}, {}
    for effort in efforts:
        options = EncoderOptions(effort=effort)
        codec.trace(options)
        for image in {image.shape: image for image in images}.values():
            codec.decompress(codec.compress(image, options, quality=qualities[0]))  # makes the graphs
        begin = time.process_time()
        files = [
            [codec.compress(image, options, quality=quality) for quality in qualities]
            for image in tqdm(images, desc=f"effort {effort}", leave=False, disable=None)
        ]
        seconds[effort] = (time.process_time() - begin) / (len(images) * len(qualities))
        curves[effort] = [
            report.Curve(
                "",
                tuple(bpp(len(data), *image.shape[:2]) for data in row),
                tuple(psnr(image, codec.decompress(data)) for data in row),
            )
            for image, row in zip(images, files)
        ]
    return [
        {
            "effort": effort,
            "seconds": seconds[effort],
            "bd_rate": float(np.mean([report.bd_rate(a, b) for a, b in zip(curves[DEFAULT], curves[effort])])),
        }
        for effort in efforts
    ]


def plot(path: Path, points: Sequence[dict]) -> None:
    """Draws BD-rates over processor time."""
    import io

    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="processor seconds an image, compressing", ylabel="BD-rate, %", xscale="log")
    axes.plot([p["seconds"] for p in points], [p["bd_rate"] for p in points], "o-", linewidth=2)
    for p in points:
        axes.annotate(f" --effort {p['effort']}", (p["seconds"], p["bd_rate"]), va="bottom")
    axes.set_xticks([p["seconds"] for p in points], [f"{p['seconds']:.1f}" for p in points])
    axes.minorticks_off()
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=report.check_plot(path), dpi=100)
    atomic_write(path, buffer.getvalue(), force=True)


def _run(args) -> int:
    report.check_plot(args.output)
    efforts, qualities = sorted({*args.efforts, DEFAULT}), args.qualities
    if efforts[0] < 0 or len(qualities) < 2:
        raise UserError("give efforts of 0 and more, and two qualities at least")
    images = [read_image(path) for path in expand_inputs(args.images)]
    codec = load(args.weights or weights.default("elic"))
    if not (codec.searchable and codec.rdoq and len(codec.lambdas) > 1):
        raise UserError(f"{codec.path}: weights of one rate, or without RDOQ")
    points = measure(codec, images, qualities, efforts)
    for p in points:
        print(f"--effort {p['effort']:2}  {p['seconds']:7.2f} s  BD-rate {p['bd_rate']:+6.2f} %")
    plot(args.output, points)
    facts = {"weights_id": codec.weights_id.hex(), "images": len(images), "qualities": qualities, "points": points}
    atomic_write(args.output.with_suffix(".json"), json.dumps(facts, indent=1).encode(), force=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""

    def numbers(kind):
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m eval.studies.effort", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", help="images, or globs")
    parser.add_argument("--weights", help="weights file; by default ELIC's that ship")
    parser.add_argument("--efforts", type=numbers(int), default=[0, 1, 2, 4, 6, 12, 24, 48])
    parser.add_argument("--qualities", type=numbers(float), default=[1.0, 3.0, 5.0])
    parser.add_argument("-o", "--output", type=Path, default=Path("effort.png"), help="plot; .json goes beside it")
    return exit_code(_run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
