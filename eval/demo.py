"""`make demo`: a photograph through ELIC and back, on the command line as a user has it, beside the codecs
of every day.

Prints bytes, bpp, PSNR and MS-SSIM, and leaves `demo/<name>.png` (before, after, and JPEG at the same size
of file, side by side) and the compressed file `demo/<name>.tfci`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval import classical, metrics
from models.io.errors import UserError
from models.io.images import read_image, write_image

ROOT = Path(__file__).resolve().parent.parent
OPPONENTS = ("jpeg", "webp", "avif")
CAPTION_HEIGHT = 28  # pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo on the images named, or on the samples that ship; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.demo", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="*", type=Path, help="photographs; by default those in res/eval")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "demo", help="folder for the results")
    options = parser.parse_args(arguments)
    # Device probing of TensorFlow, here and in the programs started, is nothing that a demo should show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for image in options.images or sorted((ROOT / "res" / "eval").glob("*.png")):
            demonstrate(image, options.output)
    except subprocess.CalledProcessError as error:
        return error.returncode  # the program has said what is wrong
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def demonstrate(image: Path, folder: Path) -> None:
    """Compresses and decompresses one image, prints the figures and leaves the results in a folder.

    Raises:
      UserError: the image cannot be read, or the results cannot be written.
      subprocess.CalledProcessError: the command line failed.
    """
    before = read_image(image)
    stream = folder / f"{image.stem}.tfci"
    with tempfile.TemporaryDirectory() as temporary:
        decoded = Path(temporary) / "decoded.png"
        run_elic("compress", image, "-o", stream, "--force")
        run_elic("decompress", stream, "-o", decoded)
        after = read_image(decoded)
    size = stream.stat().st_size

    height, width = before.shape[:2]
    print(f"\n{image.name}, {width}x{height}; the others at no more bytes than ELIC:")
    print(f"{'':6} {'bytes':>8} {'bpp':>7} {'PSNR, dB':>9} {'MS-SSIM':>8}")
    print(figures("elic", size, before, after))
    panels = {"original": before, caption("ELIC", size, before, after): after}
    for codec in OPPONENTS:
        try:
            data, _ = classical.at_bytes(codec, before, size)
        except ValueError as error:
            print(error)
            continue
        other = classical.decode(data)
        print(figures(codec, len(data), before, other))
        if codec == "jpeg":
            panels[caption("JPEG", len(data), before, other)] = other

    target = folder / f"{image.stem}.png"
    write_image(target, side_by_side(panels), force=True)
    print(f"\nbefore and after: {_shown(target)}, compressed: {_shown(stream)}")


def run_elic(*arguments: str | Path) -> None:
    """Runs `python models/elic.py` with the arguments; shows the command and what it prints."""
    shown = [_shown(argument) if isinstance(argument, Path) else argument for argument in arguments]
    print("$", shlex.join(["python", "models/elic.py", *shown]), flush=True)
    subprocess.run([sys.executable, ROOT / "models" / "elic.py", *shown], check=True)


def figures(name: str, size: int, before: np.ndarray, after: np.ndarray) -> str:
    """A line of the table: what a file of `size` bytes costs, and how good its image is.

    Args:
      name: of the codec.
      size: bytes.
      before, after: uint8 `[H, W, 3]`.
    """
    rate = metrics.bpp(size, *before.shape[:2])
    similarity = metrics.ms_ssim(before, after)
    return f"{name:6} {size:>8} {rate:>7.4f} {metrics.psnr(before, after):>9.2f} {similarity:>8.4f}"


def caption(name: str, size: int, before: np.ndarray, after: np.ndarray) -> str:
    """What stands above a panel."""
    rate = metrics.bpp(size, *before.shape[:2])
    return f"{name}, {size} bytes, {rate:.3f} bpp, {metrics.psnr(before, after):.2f} dB"


def side_by_side(panels: dict[str, np.ndarray]) -> np.ndarray:
    """Images in a row, with their captions above.

    Args:
      panels: N images of one size, uint8 `[H, W, 3]`, by caption.

    Returns:
      uint8 `[H + CAPTION_HEIGHT, N * W, 3]`.
    """
    height, width = next(iter(panels.values())).shape[:2]
    sheet = Image.new("RGB", (width * len(panels), height + CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (text, panel) in enumerate(panels.items()):
        draw.text((index * width + 8, 5), text, fill="black", font=ImageFont.load_default(size=15))
        sheet.paste(Image.fromarray(panel), (index * width, CAPTION_HEIGHT))
    return np.asarray(sheet)


def _shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    sys.exit(main())
