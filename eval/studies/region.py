"""What a region of interest does: `python -m eval.studies.region IMAGE --roi 150,60,200,200`.

Compresses with SFT, quality 1 inside the region and 0 outside, and with the uniform quality that comes nearest to the
same size of file from below; prints PSNR inside and outside of both, and leaves the images side by side.
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

from eval.studies import exit_code
from models.app.flags.sft import region
from models.codec.options import DEFAULTS, EncoderOptions
from models.codec.quality_map import Region, paint
from models.io.errors import UserError
from models.io.images import read_image, write_image


def compare(
    codec, image: np.ndarray, region: Region, options: EncoderOptions = DEFAULTS
) -> dict[str, tuple[bytes, np.ndarray]]:
    """File and decoded image by kind of map: "region"; of two uniform ones of neighbouring qualities, "uniform below"
    of at most as many bytes and "uniform above" of more (sizes come in steps of a tenth, see res/doc/sft.md).

    Args:
      codec: an SFT, ready to code.
      image: uint8 [H, W, 3].
      region: its quality is that inside; outside it is 0.
      options: of the encoder.
    """
    qualities = codec.rate_control.qualities
    data = codec.compress(image, options, quality_map=paint(image.shape[:2], 0.0, [region]))
    below, above = (codec.compress(image, options, quality=float(q)) for q in (qualities[0], qualities[-1]))
    if not len(below) <= len(data) < len(above):
        raise UserError(f"no uniform map gives {len(data)} bytes: they give {len(below)} to {len(above)}")
    low, high = 0, len(qualities) - 1
    while high - low > 1:
        middle = (low + high) // 2
        uniform = codec.compress(image, options, quality=float(qualities[middle]))
        if len(uniform) <= len(data):
            low, below = middle, uniform
        else:
            high, above = middle, uniform
    files = {"uniform below": below, "region": data, "uniform above": above}
    return {kind: (file, codec.decompress(file)) for kind, file in files.items()}


def inside_and_outside(image: np.ndarray, decoded: np.ndarray, region: Region) -> tuple[float, float]:
    """PSNR in dB of the pixels inside the region, and of those outside."""
    inside = paint(image.shape[:2], 0.0, [region]) > 0
    error = np.square(image.astype(float) - decoded).mean(-1)
    return tuple(10 * np.log10(255**2 / max(error[where].mean(), 1e-9)) for where in (inside, ~inside))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.region", description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--roi", type=region, required=True, metavar="X,Y,W,H")
    parser.add_argument("--weights", type=Path, help="of SFT; by default those that ship")
    parser.add_argument("-o", "--output", type=Path, default=Path("region.png"), help="the images side by side")
    return exit_code(_run, parser.parse_args(arguments))


def _run(args) -> int:
    from eval.demo import side_by_side
    from models.codec import load, weights

    path = args.weights or weights.default("sft")
    image = read_image(args.image)
    place = Region(*args.roi)
    panels = {"original": image}
    print("map            bytes  PSNR inside  outside, dB")
    for kind, (data, decoded) in compare(load(path), image, place).items():
        inside, outside = inside_and_outside(image, decoded, place)
        print(f"{kind:14} {len(data):5} {inside:12.2f} {outside:8.2f}")
        panels[f"{kind}, {len(data)} bytes: inside {inside:.2f} dB, outside {outside:.2f} dB"] = decoded
    write_image(args.output, side_by_side(panels), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
