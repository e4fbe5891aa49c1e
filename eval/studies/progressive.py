"""What an image looks like after each group of ELIC's latent: `python -m eval.studies.progressive IMAGE`.

Compresses the image once, decodes the first group, the first two, and so on, and prints the share of the bits that each
step has read, and its PSNR. Leaves the images side by side (paper, section 3.4 "progressive").
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # a command line does not open with TensorFlow's log
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from eval.studies import exit_code
from models.codec import coding
from models.codec.options import DEFAULTS
from models.entropy.coders import TableRate
from models.io.images import read_image, write_image


class PassRate(TableRate):
    """Bits of each pass: `passes` is a list of (latent, bits), in coding order; images one at a time."""

    def __init__(self, bank):
        super().__init__(bank)
        self.passes: list[tuple[str, float]] = []

    def _code(self, name, symbols, rows, folded):
        self.passes.append((name, float(tf.reduce_sum(self.cost(symbols, rows, folded)))))
        return symbols


def bits_of_passes(codec, image: np.ndarray, **controls) -> list[tuple[str, float]]:
    """Measures the latent and the bits of each pass of the entropy networks, in the order of the file.

    Args:
      codec: with tables.
      image: uint8 [H, W, 3].
      controls: as `compress` takes them.
    """
    coder, padded = PassRate(codec.bank), codec.pad(image[None])
    _, tensors = coding.controls_from_args(codec, (1, *image.shape[:2]), controls)
    tensors = codec.pad_controls(tensors)
    analysed = coding.analyse_for_encoding(codec, padded, tensors, DEFAULTS)
    codec.code(coder, analysed, tf.shape(padded)[:3], **tensors)
    return coder.passes


def progress(codec, image: np.ndarray, **controls) -> list[tuple[float, np.ndarray]]:
    """Decodes the first group of an ELIC, the first two and so on: (share of the bits read, image uint8 [H, W, 3])."""
    z, *halves = (bits for _, bits in bits_of_passes(codec, image, **controls))
    read = z + np.cumsum(halves)[1::2]  # a group is two passes
    data = codec.compress(image, **controls)
    return [(bits / read[-1], codec.decompress(data, groups=k)) for k, bits in enumerate(read, 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.progressive", description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--preset", help="ELIC weights of this name; by default those that the command line takes")
    parser.add_argument("--quality", type=float)
    parser.add_argument("-o", "--output", type=Path, default=Path("progressive.png"), help="the images side by side")
    return exit_code(_run, parser.parse_args(arguments))


def _run(args) -> int:
    from eval import metrics
    from eval.demo import side_by_side
    from models.codec import load

    image = read_image(args.image)
    panels = {}
    print("groups  bits read  PSNR, dB")
    for k, (share, decoded) in enumerate(progress(load("elic", args.preset), image, quality=args.quality), 1):
        psnr = metrics.psnr(image, decoded)
        print(f"{k:6} {share:10.1%} {psnr:9.2f}")
        panels[f"{k}: {share:.0%} of the bits, {psnr:.2f} dB"] = decoded
    write_image(args.output, side_by_side(panels), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
