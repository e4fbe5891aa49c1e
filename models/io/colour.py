"""The colours of an image file as 8-bit sRGB: what an embedded profile says, or PNG's gAMA and cHRM chunks."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms

# CIE xy of white, red, green and blue, and the exponent that encodes them, of an sRGB display.
SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
SRGB_GAMMA = 1 / 2.2
D50 = (0.9642, 1.0, 0.8249)

# The cone responses of Bradford's chromatic adaptation, as ICC.1 Annex E has them.
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(image: Image.Image, info: Mapping[str, Any]) -> Image.Image:
    """Converts the colours of an image without alpha to sRGB, as `info` describes them.

    An embedded profile comes first, then PNG's sRGB chunk, then gAMA and cHRM, as in browsers. A profile that is broken
    or is not for this kind of pixels is ignored, as viewers do. One that is sRGB by another name, or with other
    roundings, leaves every pixel as it is.

    Args:
      image: of a mode of 8 bits or 1 bit, without alpha.
      info: what Pillow read of the file: `icc_profile`, `srgb`, `gamma`, `chromaticity`.

    Returns:
      Mode `RGB`.
    """
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if info.get("icc_profile"):
        image = _convert(image, info["icc_profile"])
    elif "srgb" not in info and ("gamma" in info or "chromaticity" in info):
        profile = _profile_of_png(info.get("gamma"), info.get("chromaticity"))
        if profile:
            image = _convert(image.convert("RGB"), profile)
    return image.convert("RGB")


def _convert(image: Image.Image, profile_bytes: bytes) -> Image.Image:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode == "RGB" and _is_identity(transform):
            return image
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Tells whether a transform moves no colour of a 16x16x16 grid by more than rounding does (one level)."""
    level = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(64, 64, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
    return int(np.abs(moved.astype(int) - grid).max()) <= 1


def _profile_of_png(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """An ICC profile that says what the chunks say; None where that is sRGB, or makes no sense.

    1/2.2 is how sRGB's curve is written in a gAMA chunk, and libpng takes 5 % from it for the same.
    """
    if gamma is not None and not 0.01 <= gamma <= 100:  # damaged
        return None
    chromaticity = chromaticity or SRGB_CHROMATICITY
    is_srgb_curve = gamma is None or abs(gamma / SRGB_GAMMA - 1) < 0.05
    if is_srgb_curve and np.allclose(chromaticity, SRGB_CHROMATICITY, atol=0.01):
        return None
    try:
        columns = _d50_primaries(chromaticity)
        # Type 0 is a power; type 3 is sRGB's curve.
        curve = (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045) if is_srgb_curve else (0, 1 / gamma)
        return _icc_profile(columns, curve)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError, struct.error):
        return None


def _d50_primaries(chromaticity: tuple[float, ...]) -> np.ndarray:
    """The XYZ of red, green and blue as the columns of [3, 3], adapted from the white point to D50."""
    x, y = np.reshape(chromaticity, (4, 2)).T
    if not np.all(y > 0):
        raise ValueError("chromaticity without luminance")
    white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=-1)
    primaries = np.stack(primaries, axis=-1)
    primaries = primaries * np.linalg.solve(primaries, white)
    adaptation = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
    return np.linalg.solve(BRADFORD, adaptation @ BRADFORD @ primaries)


def _icc_profile(columns: np.ndarray, curve: tuple[float, ...]) -> bytes:
    """The smallest ICC profile of a display: three primaries, and one parametric curve (type, parameters)."""

    def fixed(values) -> bytes:
        numbers = [round(float(value) * 65536) for value in values]
        return struct.pack(f">{len(numbers)}i", *numbers)

    shared_curve = b"para\0\0\0\0" + struct.pack(">HH", curve[0], 0) + fixed(curve[1:])
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(D50)}
    tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + fixed(column) for name, column in zip((b"r", b"g", b"b"), columns.T)}
    tags |= {name + b"TRC": shared_curve for name in (b"r", b"g", b"b")}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(D50)
    return header.ljust(128, b"\0") + table + body
