"""Images in and out of files.

Everything that is read here becomes what a viewer would show, as 8-bit RGB. (Training decodes JPEG and PNG with
TensorFlow, see `train/data.py`: without EXIF rotation and colour profiles.) No TensorFlow here: the command line
refuses a bad image before it pays for that import.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from models.io import colour, formats
from models.io.errors import UserError, one_line, reason
from models.io.files import PathLike, atomic_write, open_input

# Formats an image can be saved in. All keep the pixels but JPEG, which the user asks for by name and gets at a high
# quality.
WRITERS = {
    ".png": ("PNG", {}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".webp": ("WEBP", {"lossless": True}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}


# Formats whose files cannot hold longer sides.
MAX_SIDE = {"WEBP": 16383, "JPEG": 65500}


class ImageWarning(UserWarning):
    """The image could be read, but something of it (transparency, further frames) is not in the result."""


# --- reading ---------------------------------------------------------------------------------------------


def read_image(path: PathLike) -> np.ndarray:
    """Reads an image as a viewer would show it.

    The EXIF orientation is applied, an embedded colour profile (or PNG's gAMA and cHRM) is converted to sRGB, palettes,
    grey, 16-bit and CMYK become 8-bit RGB. Of an animation the first frame is taken. Transparency is dropped: the
    colours stored under it show. The last two raise an `ImageWarning`.

    Args:
      path: a file of any format that Pillow reads, see `models.io.formats`.

    Returns:
      uint8 `[H, W, 3]`, sRGB, 0..255.

    Raises:
      UserError: the file is missing, a directory or unreadable, as of `models.io.formats.open_image`, or of a pixel
        type (32-bit integer or float) that no viewer has one way to show.
    """
    with _opened(path) as file:
        return _decoded(file, path)


def decode_image(data: bytes, name: PathLike) -> np.ndarray:
    """Reads an image as `read_image` does, from the bytes of a file that is called `name` in messages."""
    return _decoded(io.BytesIO(data), name)


def _decoded(file: BinaryIO, path: PathLike) -> np.ndarray:
    with formats.open_image(file, path) as image:
        _note_frames(image, path)
        try:
            image.load()
            pixels = np.asarray(_as_srgb(_upright(image, path), path))
        except MemoryError as error:
            size = f"{image.width}x{image.height}"
            raise UserError(f"{path}: too large for this machine's memory ({size})") from error
        except Exception as error:
            raise formats.failure(error, path, image.format) from error
    return np.ascontiguousarray(pixels)


def _opened(path: PathLike) -> BinaryIO:
    try:
        return open_input(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: {reason(error)}") from error


def _note_frames(image: Image.Image, path: PathLike) -> None:
    """Warns that an animation, or a file of several pages, is cut to its first frame.

    Not so for the two-frame MPO files of cameras: their second frame is a preview of the first.
    """
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # counting walks through a file that may be damaged: load() says that better
        return
    if frames > 1 and image.format != "MPO":
        warnings.warn(f"{path}: has {frames} frames, only the first is used", ImageWarning, stacklevel=3)


def _upright(image: Image.Image, path: PathLike) -> Image.Image:
    """Applies the EXIF orientation; metadata too damaged to hold one is ignored, as viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        warnings.warn(f"{path}: EXIF data ignored ({one_line(error)})", ImageWarning, stacklevel=3)
        return image


def _as_srgb(image: Image.Image, path: PathLike) -> Image.Image:
    """Any mode of Pillow's to 8-bit RGB in sRGB."""
    return colour.to_srgb(_drop_alpha(_to_8_bit(image, path), path), image.info)


def _to_8_bit(image: Image.Image, path: PathLike) -> Image.Image:
    """Scales 16-bit grey to `L` (Pillow's own conversion clips it to white); other 8-bit modes pass."""
    if image.mode == "F" or (image.mode == "I" and not _fits_16_bits(image)):
        raise UserError(f"{path}: has 32-bit pixels, with no one way to show them: convert it to 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    transparency = image.info.get("transparency")
    # `I;16B` and the like hold their samples in the byte order of their name, `I` in the machine's own.
    samples = np.asarray(image.convert("I"), dtype=np.uint32)
    grey = Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8))
    if transparency is not None:
        warnings.warn(f"{path}: transparency is dropped", ImageWarning, stacklevel=4)
    return grey


def _fits_16_bits(image: Image.Image) -> bool:
    """Tells whether 32-bit integer samples hold only 16-bit ones, as Pillow gives them for PGM files."""
    low, high = image.getextrema()
    return low >= 0 and high <= 65535


def _drop_alpha(image: Image.Image, path: PathLike) -> Image.Image:
    """Removes transparency (a channel, palette entry or key colour); warns if anything was transparent.

    Grey stays grey: its colour profile is one of grey.
    """
    if not image.has_transparency_data and image.mode not in ("RGBa", "La"):
        return image.convert("RGB") if image.mode == "P" else image
    grey = image.mode in ("1", "L", "LA", "La")
    with_alpha = image.convert("LA" if grey else "RGBA")
    if with_alpha.getchannel("A").getextrema()[0] < 255:
        warnings.warn(f"{path}: transparency is dropped", ImageWarning, stacklevel=4)
    return with_alpha.convert("L" if grey else "RGB")


# --- writing ---------------------------------------------------------------------------------------------


def encode_image(array: np.ndarray, extension: str = ".png") -> bytes:
    """An image as the bytes of a file.

    Args:
      array: uint8 `[H, W, 3]`, sRGB.
      extension: one of `WRITERS`, in any case; an empty one is `.png`.

    Raises:
      UserError: nothing is known of the extension, or such files cannot hold an image of this size.
    """
    file_format, options = _writer(extension, *array.shape[:2])
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, file_format, **options)
    return buffer.getvalue()


def check_writable(path: PathLike, height: int, width: int) -> None:
    """Says early what `write_image` would refuse of a path's extension and an image's size. UserError if so."""
    try:
        _writer(Path(path).suffix, height, width)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _writer(extension: str, height: int, width: int) -> tuple[str, dict]:
    extension = extension.lower() or ".png"
    if extension not in WRITERS:
        raise UserError(f"cannot write images as {extension}: choose one of {' '.join(WRITERS)}")
    file_format, options = WRITERS[extension]
    limit = MAX_SIDE.get(file_format)
    if limit and max(height, width) > limit:
        raise UserError(f"{extension} files hold at most {limit} pixels a side, and the image is {width}x{height}")
    return file_format, options


def write_image(path: PathLike, array: np.ndarray, force: bool = False) -> None:
    """Writes an image in the format of the path's extension, PNG where it has none.

    Args:
      path: where to; see `WRITERS` for the extensions.
      array: uint8 `[H, W, 3]`, sRGB.
      force: whether an existing file may be replaced.

    Raises:
      UserError: as of `encode_image` and `atomic_write`.
    """
    check_writable(path, *array.shape[:2])
    atomic_write(path, encode_image(array, Path(path).suffix), force)
