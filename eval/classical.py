"""The codecs that everybody has, through Pillow: what a learned codec has to beat at the same size of file.

Their settings are those of `res/eval/anchors.json`, which was measured with them (Pillow 13: libjpeg-turbo
3.2, OpenJPEG 2.5, libwebp 1.6, libavif 1.4 with aom). HEIC and JPEG XL join
them where pillow-heif and pillow-jxl-plugin are installed.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from eval.metrics import psnr


@dataclass(frozen=True)
class Classical:
    """A codec and its one setting.

    Attributes:
      anchor: its name in `res/eval/anchors.json`.
      save: the arguments of Pillow's `save` for a quality.
      lowest, highest: the range of the quality, both ends included.
      step: what tells two qualities apart.
    """

    anchor: str
    save: Callable[[float], dict[str, Any]]
    lowest: float
    highest: float
    step: float = 1


def _jpeg(quality: float) -> dict[str, Any]:
    # 4:2:0 and Huffman tables made for the image: what a careful user would choose.
    return {"format": "JPEG", "quality": int(quality), "subsampling": "4:2:0", "optimize": True}


def _jpeg_444(quality: float) -> dict[str, Any]:
    return {**_jpeg(quality), "subsampling": "4:4:4"}


def _jpeg2000(quality: float) -> dict[str, Any]:
    # A bare codestream (the file format around it costs 85 bytes), the irreversible 9-7 wavelet, one layer
    # at the target rate. `rates` are ratios to the 24 bits of an uncompressed pixel.
    return {
        "format": "JPEG2000",
        "no_jp2": True,
        "irreversible": True,
        "mct": 1,
        "quality_mode": "rates",
        "quality_layers": [24 / quality],
    }


def _webp(quality: float) -> dict[str, Any]:
    return {"format": "WEBP", "quality": int(quality), "method": 6}


def _avif(quality: float) -> dict[str, Any]:
    # One thread: more of them cut the image into tiles, which cost bytes.
    return {"format": "AVIF", "quality": int(quality), "speed": 4, "subsampling": "4:4:4", "max_threads": 1}


def _avif_psnr(quality: float) -> dict[str, Any]:
    # The default tunes for what people see, at a loss in PSNR; this is the fair opponent in PSNR.
    return {**_avif(quality), "advanced": {"tune": "psnr"}}


CODECS = {
    "jpeg": Classical("jpeg-420", _jpeg, 1, 95),
    "jpeg-444": Classical("jpeg-444", _jpeg_444, 1, 95),
    "jpeg2000": Classical("jpeg2000", _jpeg2000, 0.005, 8, step=0.005),  # quality: the target rate in bpp
    "webp": Classical("webp-m6", _webp, 0, 100),
    "avif": Classical("avif-444-s4", _avif, 0, 100),
    "avif-psnr": Classical("avif-444-s4-tunepsnr", _avif_psnr, 0, 100),
}


def _load_plugin(name: str) -> bool:
    """Makes a plug-in of Pillow known to it; False where it is not installed."""
    try:
        plugin = importlib.import_module(name)
    except ImportError:
        return False
    getattr(plugin, "register_heif_opener", lambda: None)()  # the other registers itself
    return True


def _heic(quality: float) -> dict[str, Any]:
    return {"format": "HEIF", "quality": int(quality), "chroma": 444}


def _jxl(quality: float) -> dict[str, Any]:
    return {"format": "JXL", "quality": int(quality), "effort": 7, "num_threads": 1}


if _load_plugin("pillow_heif"):
    CODECS["heic"] = Classical("heic-x265-444", _heic, 0, 100)
if _load_plugin("pillow_jxl"):
    CODECS["jxl"] = Classical("jxl-e7", _jxl, 0, 99)  # 100 is without loss


def encode(codec: str, image: np.ndarray, quality: float) -> bytes:
    """Compresses an image.

    Args:
      codec: a name in `CODECS`.
      image: uint8 `[H, W, 3]`.
      quality: within the codec's range; for `jpeg2000` the target rate in bpp.

    Returns:
      The whole file.

    Raises:
      ValueError: the quality is out of range, or there is no such codec.
    """
    if codec not in CODECS:
        raise ValueError(f"no codec {codec!r}: choose one of {', '.join(CODECS)}")
    entry = CODECS[codec]
    if not entry.lowest <= quality <= entry.highest:
        raise ValueError(f"quality {quality} of {codec} is not in {entry.lowest}..{entry.highest}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **entry.save(quality))
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """The image in a file of any of the codecs: uint8 `[H, W, 3]`."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def at_bytes(codec: str, image: np.ndarray, target_bytes: int) -> tuple[bytes, float]:
    """The best file of a codec that is no larger than a given one.

    Bisects the quality, so it takes about seven encodings. Sizes grow with the quality but for a few bytes
    here and there; where they do not, the answer is still within the target, and the next quality is above
    it.

    Args:
      codec: a name in `CODECS`.
      image: uint8 `[H, W, 3]`.
      target_bytes: the limit.

    Returns:
      The file and its quality.

    Raises:
      ValueError: even the lowest quality takes more bytes, or there is no such codec.
    """
    if codec not in CODECS:
        raise ValueError(f"no codec {codec!r}: choose one of {', '.join(CODECS)}")
    entry = CODECS[codec]

    def quality(index: int) -> float:
        return min(entry.lowest + index * entry.step, entry.highest)

    fits, too_large = 0, round((entry.highest - entry.lowest) / entry.step) + 1
    best = encode(codec, image, entry.lowest)
    if len(best) > target_bytes:
        raise ValueError(f"{codec} cannot do it in {target_bytes} bytes: its least is {len(best)}")
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        data = encode(codec, image, quality(middle))
        if len(data) <= target_bytes:
            fits, best = middle, data
        else:
            too_large = middle
    return best, quality(fits)


def within_bytes(codec: str, image: np.ndarray, target_bytes: int, parts: Sequence[int] = (1, 2, 3)) -> tuple:
    """The best that a codec can do in so many bytes, at whatever size of the image, as a user would go about it.

    The image is coded whole, at half and at a third of its size, and enlarged again (Lanczos); the highest PSNR counts.

    Args:
      codec, image, target_bytes: as of `at_bytes`.
      parts: of the size that are tried.

    Returns:
      The file, and what is shown of it, uint8 of the image's shape. Where even the lowest quality at the smallest size
      takes more bytes, that.
    """
    height, width = image.shape[:2]
    found = []
    for part in parts:
        small = Image.fromarray(image)
        if part > 1:
            small = small.resize((-(-width // part), -(-height // part)), Image.Resampling.LANCZOS)
        pixels = np.asarray(small)
        try:
            data = at_bytes(codec, pixels, target_bytes)[0]
        except ValueError:
            if part != parts[-1] or found:
                continue
            data = encode(codec, pixels, CODECS[codec].lowest)
        shown = Image.fromarray(decode(data)).resize((width, height), Image.Resampling.LANCZOS)
        found.append((data, np.asarray(shown)))
    return max(found, key=lambda one: psnr(image, one[1]))
