"""Runs a codec over images and measures what it wrote and what came back."""

from __future__ import annotations

import numpy as np

from eval.metrics import ms_ssim, psnr
from eval.report import Measurement


def measure(codec, image: np.ndarray, name: str, *options, **controls) -> Measurement:
    """Compresses to a real file's bytes, decompresses those, and measures.

    Args:
      codec: anything with `compress(uint8 [H, W, 3], *options, **controls) -> bytes` and `decompress(bytes) -> uint8`.
      image: uint8 [H, W, 3].
      name: of the image, for the table.
      options: of the encoder, where it takes some.
      controls: what `compress` takes besides, such as a quality.
    """
    data = codec.compress(image, *options, **controls)
    decoded = codec.decompress(data)
    height, width = image.shape[:2]
    return Measurement(name, len(data), height, width, psnr(image, decoded), ms_ssim(image, decoded))
