"""Runs a codec over images and measures what it wrote and what came back."""

from __future__ import annotations

import numpy as np

from eval.metrics import ms_ssim, psnr
from eval.perceptual import PATCH, Judge
from eval.report import Measurement
from models.io.errors import UserError


def measure(codec, image: np.ndarray, name: str, *options, judge: Judge | None = None, **controls) -> Measurement:
    """Compresses to a real file's bytes, decompresses those, and measures.

    Args:
      codec: anything with `compress(uint8 [H, W, 3], *options, **controls) -> bytes` and `decompress(bytes) -> uint8`.
      image: uint8 [H, W, 3].
      name: of the image, for the table.
      options: of the encoder, where it takes some.
      judge: measures how it looks as well.
      controls: what `compress` takes besides, such as a quality.

    Raises:
      UserError: the image is too small for the judge; or as of the codec.
    """
    if judge and min(image.shape[:2]) < PATCH:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise UserError(f"{name}: {size}, and --perceptual takes images of at least {PATCH}x{PATCH} pixels")
    data = codec.compress(image, *options, **controls)
    decoded = codec.decompress(data)
    height, width = image.shape[:2]
    seen = {} if judge is None else judge.measure(image, decoded)
    return Measurement(name, len(data), height, width, psnr(image, decoded), ms_ssim(image, decoded), **seen)
