"""Finds the format of an image file, the plug-in that reads it, and the advice where nothing does.

Pillow reads most formats. Its plug-ins for HEIC and JPEG XL are used where they are installed. A new format with a
plug-in gets an entry in `FOREIGN` and its extensions in `PLUG_IN_EXTENSIONS`; one without a plug-in needs a reader that
`PIL.Image.register_open` registers. Servers take PNG and JPEG only.
"""

from __future__ import annotations

import importlib
import os
import re
import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from models.io.errors import UserError, one_line, reason

#: Extensions, in lower case, of images that Pillow reads with a plug-in only: those of `FOREIGN` that have one.
PLUG_IN_EXTENSIONS = frozenset({".heic", ".heif", ".hif", ".jxl"})

_PREFIX = 4096  # bytes that tell the format
_CONVERT = "convert it to PNG first"
_FLOAT = f"its pixels are light in floating point, with no one way to show them: {_CONVERT}"
_RAW = f"camera data, not yet an image: develop it, or {_CONVERT}"


class Foreign(NamedTuple):
    """A format that Pillow does not read by itself.

    Attributes:
      name: as users know it.
      matches: whether the first bytes are of this format.
      advice: what the user can do.
      plug_in: the module that teaches Pillow the format, and its function that does so, if importing is not enough.
    """

    name: str
    matches: Callable[[bytes], object]
    advice: str
    plug_in: tuple[str, str | None] | None = None


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda prefix: prefix.startswith(magics)


def _is_heic(prefix: bytes) -> bool:
    """Tells HEIC by the brands that it lists; AVIF, which Pillow reads, is of the same family."""
    if prefix[4:8] != b"ftyp":
        return False
    size = struct.unpack(">I", prefix[:4])[0]
    brands = {prefix[i : i + 4] for i in range(8, min(size, len(prefix)), 4)}
    return bool(brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}) and not (
        brands & {b"avif", b"avis"}
    )


def _is_svg(prefix: bytes) -> bool:
    text = prefix.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(b"<") and re.search(rb"<(\w+:)?svg[\s>]", text) is not None


FOREIGN = (
    Foreign(
        "HEIC",
        _is_heic,
        "pip install pillow-heif, or convert it: heif-convert IMAGE.heic IMAGE.png",
        ("pillow_heif", "register_heif_opener"),
    ),
    Foreign(
        "JPEG XL",
        _starts(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
        "pip install pillow-jxl-plugin, or convert it: djxl IMAGE.jxl IMAGE.png",
        ("pillow_jxl", None),
    ),
    Foreign("SVG", _is_svg, "a drawing without pixels: render it first: rsvg-convert IMAGE.svg -o IMAGE.png"),
    Foreign("PDF", _starts(b"%PDF-"), "a document without pixels: render it first: pdftoppm -png FILE.pdf PAGE"),
    Foreign("OpenEXR", _starts(b"\x76\x2f\x31\x01"), _FLOAT),
    Foreign("Radiance HDR", _starts(b"#?RADIANCE", b"#?RGBE"), _FLOAT),
    Foreign("PFM", _starts(b"PF\n", b"PF "), _FLOAT),
    Foreign("raw", _starts(b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"\0\0\0\x18ftypcrx "), _RAW),
    Foreign("XCF", _starts(b"gimp xcf"), f"the program GIMP reads it: {_CONVERT}"),
    Foreign("PSB", _starts(b"8BPS\0\2"), _CONVERT),
)


def open_image(file: BinaryIO, path: str | os.PathLike) -> Image.Image:
    """Opens an image file and reads its header.

    Args:
      file: the content, from its beginning; can be read from wherever one likes.
      path: what to call it in messages.

    Raises:
      UserError: it is empty, not an image, of a format or a kind that is not supported, damaged, or has too many pixels
        (a decompression bomb).
    """
    try:
        prefix = file.read(_PREFIX)
        file.seek(0)
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error
    if not prefix:
        raise UserError(f"{path}: is empty")
    foreign = next((foreign for foreign in FOREIGN if foreign.matches(prefix)), None)
    if foreign and not _plugged_in(foreign):
        raise UserError(f"{path}: {foreign.name} is not supported: {foreign.advice}")
    _check_declared_size(prefix, path)
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise _explained(file, prefix, path) from error
    except Exception as error:
        raise failure(error, path, next(iter(_candidates(prefix)), None)) from error


def failure(error: Exception, path: str | os.PathLike, name: str | None = None) -> UserError:
    """Makes the error for a failure of Pillow's in an image file.

    Pillow meets damaged data with whatever comes to hand: OSError, SyntaxError, struct.error, EOFError, IndexError, ...
    What it lacks it says in words, or with the KeyError of a table of pixel modes.

    Args:
      error: any of them.
      path: what to call the file.
      name: of the format, where it is known.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        (pixels, *_) = re.findall(r"\d+", str(error)) or [""]
        return _too_many_pixels(path, pixels)
    if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
        return UserError(f"{path}: {reason(error)}")
    kind, detail = f"{name} image" if name else "image", one_line(error)
    cause = error.__cause__ or error
    if isinstance(cause, KeyError):
        detail = _pixel_type(name, *cause.args[:1])
    words = r"unsupported|not (yet )?supported|unimplemented|unknown|cannot (handle|find loader)|unable to locate"
    if isinstance(cause, (KeyError, NotImplementedError)) or re.search(words, detail, re.IGNORECASE):
        return UserError(f"{path}: {kind} of a kind that is not supported ({detail}): {_CONVERT}")
    return UserError(f"{path}: damaged or truncated {kind} ({detail})")


def _pixel_type(name: str | None, key: object = None) -> str:
    """Names a pixel type that a table of Pillow's does not have; of TIFF, in words."""
    if name == "TIFF" and isinstance(key, tuple) and len(key) == 6:
        _, _, sample_formats, _, bits, _ = key
        kinds = {1: "integers", 2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex numbers"}
        names = "/".join(kinds.get(kind, "unknown") for kind in sample_formats)
        return f"samples of {'/'.join(map(str, bits))} bits, {names}"
    return f"pixel type {key}"


def _too_many_pixels(path: str | os.PathLike, pixels: object) -> UserError:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Pillow refuses; it warns from half of that
    return UserError(f"{path}: has too many pixels: {pixels}, and at most {limit} are read")


def _check_declared_size(prefix: bytes, path: str | os.PathLike) -> None:
    """Refuses AVIF and HEIC images that are too large, of which their decoders say only that they failed."""
    if prefix[4:8] == b"ftyp" and Image.MAX_IMAGE_PIXELS:
        sizes = [struct.unpack(">II", size) for size in re.findall(rb"ispe....(.{8})", prefix, re.DOTALL)]
        pixels = max((width * height for width, height in sizes), default=0)
        if pixels > 2 * Image.MAX_IMAGE_PIXELS:
            raise _too_many_pixels(path, pixels)


def _plugged_in(foreign: Foreign) -> bool:
    """Teaches Pillow the format, and returns whether that is possible."""
    if foreign.plug_in is None:
        return False
    module, register = foreign.plug_in
    try:
        plug_in = importlib.import_module(module)
        if register:
            getattr(plug_in, register)()
    except Exception:  # not installed, or broken
        return False
    return True


def _candidates(prefix: bytes) -> dict[str, bool | str]:
    """The formats that know these first bytes as theirs, each with True or why it cannot be read here."""
    accepts = {name: Image.OPEN[name][1] for name in Image.ID}
    start = prefix[:16].ljust(16, b"\0")  # some of them look at bytes that a short file does not have
    answers = {name: accept(start) for name, accept in accepts.items() if accept}
    return {name: answer for name, answer in answers.items() if answer}


def _explained(file: BinaryIO, prefix: bytes, path: str | os.PathLike) -> UserError:
    """Makes the error for a file that Pillow cannot identify: why reading the format that it seems to have fails."""
    for name, answer in _candidates(prefix).items():
        if isinstance(answer, str):
            return UserError(f"{path}: {name} images are not supported here ({answer})")
        file.seek(0)
        try:
            Image.OPEN[name][0](file, "")
        except Exception as error:
            if not re.match(r"not an? |not identified", one_line(error)):
                return failure(error, path, name)
    return UserError(f"{path}: is not an image, or of an unknown format")


def extensions() -> frozenset[str]:
    """Returns the extensions of image files, in lower case and with their dot."""
    known = {extension for extension, name in Image.registered_extensions().items() if name in Image.OPEN}
    return frozenset(known) | PLUG_IN_EXTENSIONS
