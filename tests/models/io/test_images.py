"""Every kind of picture that people have, and every way in which a file can be none."""

import io
import os
import re
import struct
import sys
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from models.io import images
from models.io.errors import UserError

RNG = np.random.default_rng(3)
# Smooth, so that lossy formats keep it; without symmetry, so that a wrong rotation shows.
RAMP = np.stack(
    [
        np.add.outer(np.arange(24) * 4, np.arange(40) * 2),
        np.add.outer(np.arange(24) * 0, np.arange(40) * 6),
        np.add.outer(np.arange(24) * 10, np.arange(40) * 0),
    ],
    axis=-1,
).astype(np.uint8)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """No reading warns unless its test says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def saved(path, image, **options):
    image.save(path, **options)
    return path


def png_chunks(width, height, depth, colour_type, rows, extra=b""):
    """A PNG by hand, for what Pillow cannot write (16-bit colour)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# --- kinds of pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["png", "bmp", "ppm", "tif", "webp"])
def test_plain_rgb_comes_as_it_is(tmp_path, extension):
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path / f"a.{extension}", Image.fromarray(RAMP), **options)
    result = images.read_image(path)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, extension):
    upright = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: np.rot90(RAMP, -1),
        7: RAMP[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RAMP),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if extension == "jpg" else {}
    if extension == "webp":
        options = {"lossless": True}
    path = saved(tmp_path / f"a.{extension}", Image.fromarray(RAMP), exif=exif, **options)
    result = images.read_image(path)
    assert result.shape == upright.shape
    np.testing.assert_allclose(result.astype(int), upright, atol=12 if extension == "jpg" else 0)


def test_grey_and_one_bit(tmp_path):
    grey = RAMP[..., 0]
    result = images.read_image(saved(tmp_path / "l.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(result, np.repeat(grey[..., None], 3, axis=-1))
    bits = RNG.integers(0, 2, (9, 13)).astype(bool)
    result = images.read_image(saved(tmp_path / "1.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(result, np.repeat(bits[..., None] * np.uint8(255), 3, axis=-1))


def test_palette_gives_its_colours(tmp_path):
    indices = RNG.integers(0, 4, (9, 13)).astype(np.uint8)
    colours = RNG.integers(0, 256, (4, 3)).astype(np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colours.tobytes())
    for extension in ("png", "gif", "bmp"):
        result = images.read_image(saved(tmp_path / f"p.{extension}", image))
        np.testing.assert_array_equal(result, colours[indices])


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, extension):
    samples = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    result = images.read_image(saved(tmp_path / f"g.{extension}", Image.fromarray(samples)))
    expected = np.round(samples / 257.0).astype(int)
    np.testing.assert_array_equal(result, np.repeat(expected[..., None], 3, axis=-1))


def test_16_bit_grey_tiff_of_the_other_byte_order(tmp_path):
    samples = np.linspace(0, 65535, 60).astype(np.uint16).reshape(6, 10)
    # The smallest big-endian TIFF: its header, the samples, and a directory of the required tags.
    data = samples.astype(">u2").tobytes()
    tags = [
        (256, 10),
        (257, 6),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 6),
        (279, len(data)),
    ]
    directory = struct.pack(">H", len(tags))
    directory += b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags) + b"\0\0\0\0"
    (tmp_path / "b.tif").write_bytes(b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + directory)
    result = images.read_image(tmp_path / "b.tif")
    np.testing.assert_array_equal(result[..., 1], np.round(samples / 257.0).astype(int))


def test_16_bit_colour_keeps_its_high_byte(tmp_path):
    samples = RNG.integers(0, 65536, (6, 10, 3)).astype(np.uint16)
    rows = [row.astype(">u2").tobytes() for row in samples]
    (tmp_path / "c.png").write_bytes(png_chunks(10, 6, 16, 2, rows))
    result = images.read_image(tmp_path / "c.png").astype(int)
    assert np.abs(result - samples / 257.0).max() <= 1


@pytest.mark.parametrize("mode, dtype", [("I", np.int32), ("F", np.float32)])
def test_32_bit_pixels_are_refused(tmp_path, mode, dtype):
    values = (RNG.random((6, 10)) * 1e6).astype(dtype)
    path = saved(tmp_path / "w.tif", Image.fromarray(values))
    with pytest.raises(UserError, match="w.tif: has 32-bit pixels"):
        images.read_image(path)


@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_cmyk_has_the_right_polarity(tmp_path, extension):
    # Pillow writes CMYK JPEG inverted with an Adobe marker, as Photoshop does.
    cmyk = Image.fromarray(RAMP).convert("CMYK")
    options = {"quality": 98, "subsampling": 0} if extension == "jpg" else {}
    path = saved(tmp_path / f"k.{extension}", cmyk, **options)
    if extension == "jpg":
        assert b"Adobe" in path.read_bytes()
    np.testing.assert_allclose(images.read_image(path).astype(int), RAMP, atol=12)


# --- transparency ----------------------------------------------------------------------------------------


def with_alpha(alpha):
    return Image.fromarray(np.dstack([RAMP, np.broadcast_to(np.uint8(alpha), RAMP.shape[:2])]))


@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
def test_alpha_is_dropped_with_a_warning(tmp_path, extension):
    options = {"lossless": True, "exact": True} if extension == "webp" else {}
    alpha = np.linspace(0, 255, RAMP[..., 0].size).reshape(RAMP.shape[:2])
    path = saved(tmp_path / f"a.{extension}", with_alpha(alpha.astype(np.uint8)), **options)
    with pytest.warns(images.ImageWarning, match=rf"a.{extension}: transparency is dropped"):
        result = images.read_image(path)
    np.testing.assert_array_equal(result, RAMP)


def test_an_opaque_alpha_channel_loses_nothing_and_says_nothing(tmp_path):
    path = saved(tmp_path / "o.png", with_alpha(255))
    np.testing.assert_array_equal(images.read_image(path), RAMP)


def test_other_ways_to_be_transparent(tmp_path):
    grey = RAMP[..., 0]
    grey_alpha = Image.merge("LA", [Image.fromarray(grey), Image.new("L", grey.shape[::-1], 100)])
    key_colour = Image.fromarray(RAMP)
    palette = Image.fromarray(RAMP).quantize(16)
    grey_16 = Image.fromarray((grey.astype(np.uint16)) * 257)
    cases = {
        "la": (grey_alpha, {}, np.repeat(grey[..., None], 3, axis=-1)),
        "key": (key_colour, {"transparency": tuple(int(v) for v in RAMP[3, 5])}, RAMP),
        "palette": (palette, {"transparency": bytes(range(16))}, np.asarray(palette.convert("RGB"))),
        "entry": (palette, {"transparency": 3}, np.asarray(palette.convert("RGB"))),
        "grey16": (grey_16, {"transparency": 257}, np.repeat(grey[..., None], 3, axis=-1)),
    }
    for name, (image, options, expected) in cases.items():
        path = saved(tmp_path / f"{name}.png", image, **options)
        with pytest.warns(images.ImageWarning, match=f"{name}.png: transparency"):
            result = images.read_image(path)
        np.testing.assert_array_equal(result, expected, err_msg=name)


# --- several frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_several(tmp_path, extension):
    frames = [Image.new("RGB", (20, 12), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path / f"m.{extension}", frames[0], save_all=True, append_images=frames[1:], **options)
    with pytest.warns(images.ImageWarning, match="has 3 frames, only the first"):
        result = images.read_image(path)
    np.testing.assert_array_equal(result, np.broadcast_to(np.uint8([255, 0, 0]), (12, 20, 3)))


# --- colour profiles -------------------------------------------------------------------------------------


def matrix_profile(swap=False):
    """An RGB profile with the primaries of sRGB, or with red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swap:
        red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
        data[red : red + 4], data[blue : blue + 4] = data[blue : blue + 4], data[red : red + 4]
    return bytes(data)


@pytest.mark.parametrize("rounding", [0, 8])
def test_an_srgb_profile_changes_no_pixel(tmp_path, rounding):
    profile = bytearray(matrix_profile())
    # Profiles of sRGB differ in the last digits of their primaries: here the X of green, in units of 2**-16.
    offset = struct.unpack(">I", profile[profile.index(b"gXYZ") + 4 :][:4])[0] + 8
    profile[offset : offset + 4] = struct.pack(">i", struct.unpack(">i", profile[offset:][:4])[0] + rounding)
    noise = RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    path = saved(tmp_path / "s.png", Image.fromarray(noise), icc_profile=bytes(profile))
    np.testing.assert_array_equal(images.read_image(path), noise)


def test_another_profile_is_converted(tmp_path):
    # With red and blue exchanged in the profile the stored picture means its own mirror image in colour.
    path = saved(tmp_path / "x.png", Image.fromarray(RAMP), icc_profile=matrix_profile(swap=True))
    np.testing.assert_allclose(images.read_image(path).astype(int), RAMP[..., ::-1], atol=2)


def test_a_profile_of_a_palette_picture_is_converted(tmp_path):
    palette = Image.fromarray(RAMP).quantize(64)
    path = saved(tmp_path / "x.png", palette, icc_profile=matrix_profile(swap=True))
    expected = np.asarray(palette.convert("RGB"))[..., ::-1]
    np.testing.assert_allclose(images.read_image(path).astype(int), expected, atol=2)


# Named, since a profile tells the second in which it was made, and processes that test in parallel must agree on names.
@pytest.mark.parametrize(
    "profile", [b"not a profile", matrix_profile()[:200], b"\0" * 128], ids=["text", "cut off", "zeros"]
)
def test_a_broken_profile_is_ignored(tmp_path, profile):
    path = saved(tmp_path / "b.png", Image.fromarray(RAMP), icc_profile=profile)
    np.testing.assert_array_equal(images.read_image(path), RAMP)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_for_other_pixels_is_ignored(tmp_path, mode):
    image = Image.fromarray(RAMP).convert(mode)
    path = saved(tmp_path / "c.tif", image, icc_profile=matrix_profile(swap=True))
    np.testing.assert_array_equal(images.read_image(path), np.asarray(image.convert("RGB")))


def grey_profile():
    # A grey profile with gamma 1.0: light is stored in proportion, so a middle grey is shown brighter.
    chunks = {
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0),
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(chunks)
    for name, chunk in chunks.items():
        table += name + struct.pack(">II", start + len(body), len(chunk))
        body += chunk + b"\0" * (-len(chunk) % 4)
    rest = struct.pack(">I", len(chunks)) + table + body
    header = struct.pack(">I4sI4s4s4s", 128 + len(rest), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + rest


@pytest.mark.parametrize("kind", ["L", "LA", "L with a key", "16 bits", "one bit"])
def test_a_grey_profile_is_converted_whatever_happens_to_alpha(tmp_path, kind):
    level, shown = (255, 255) if kind == "one bit" else (128, 188)
    image = Image.new("L", (8, 8), level)
    options = {"icc_profile": grey_profile()}
    if kind == "LA":
        image = Image.merge("LA", [image, Image.new("L", (8, 8), 77)])
    elif kind == "L with a key":
        options["transparency"] = 128
    elif kind == "16 bits":
        image = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    elif kind == "one bit":
        image = image.convert("1")
    path = saved(tmp_path / "g.png", image, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", images.ImageWarning)
        np.testing.assert_allclose(images.read_image(path).astype(int), shown, atol=1)


@pytest.mark.parametrize("kind", ["RGBA", "RGB with a key", "palette", "palette with alpha"])
def test_a_colour_profile_is_converted_whatever_happens_to_alpha(tmp_path, kind):
    options, image = {"icc_profile": matrix_profile(swap=True)}, Image.fromarray(RAMP)
    if kind == "RGBA":
        image.putalpha(77)
    elif kind == "RGB with a key":
        options["transparency"] = tuple(int(v) for v in RAMP[3, 5])
    else:
        image = image.quantize(64)
        if kind == "palette with alpha":
            options["transparency"] = bytes(range(64))
    path = saved(tmp_path / "x.png", image, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", images.ImageWarning)
        result = images.read_image(path).astype(int)
    np.testing.assert_allclose(result, np.asarray(image.convert("RGB"))[..., ::-1], atol=2)


# --- gAMA and cHRM -----------------------------------------------------------------------------------------

SRGB_XY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
ADOBE_XY = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def png_with(path, pixels, gamma=None, xy=None, is_srgb=False, **options):
    """Saves a PNG with chunks of colour."""
    info = PngImagePlugin.PngInfo()
    if gamma is not None:
        info.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    if xy is not None:
        info.add(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in xy)))
    if is_srgb:
        info.add(b"sRGB", b"\0")
    return saved(path, Image.fromarray(pixels), pnginfo=info, **options)


def test_png_gamma_and_primaries_are_applied(tmp_path):
    """Against the formulas of sRGB and of colorimetry."""

    def to_xyz(xy):
        x, y = np.reshape(xy, (4, 2)).T
        white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=-1)
        primaries = np.transpose(primaries)
        return primaries * np.linalg.solve(primaries, white)

    for gamma, xy in ((1.0, None), (0.3, SRGB_XY), (1 / 1.8, ADOBE_XY), (1.0, ADOBE_XY)):
        light = (RAMP / 255) ** (1 / gamma)
        light = light @ np.linalg.solve(to_xyz(SRGB_XY), to_xyz(xy or SRGB_XY)).T
        light = light.clip(0, 1)
        expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        result = images.read_image(png_with(tmp_path / "g.png", RAMP, gamma, xy))
        np.testing.assert_allclose(result.astype(int), expected, atol=1.5)


def test_png_gamma_of_grey_and_beside_what_comes_first(tmp_path):
    grey = png_with(tmp_path / "g.png", np.full((8, 8), 128, np.uint8), 1.0)
    np.testing.assert_allclose(images.read_image(grey).astype(int), 188, atol=1)
    for options in ({"is_srgb": True}, {"icc_profile": matrix_profile()}):
        path = png_with(tmp_path / "s.png", RAMP, 1.0, **options)
        np.testing.assert_array_equal(images.read_image(path), RAMP)


@pytest.mark.parametrize(
    "gamma, xy",
    [
        (0.45455, None),
        (0.45455, SRGB_XY),
        (None, SRGB_XY),
        (0.0, None),
        (9999, None),
        (None, (0.0,) * 8),
        (1.0, (0.3,) * 8),
    ],
)
def test_png_chunks_that_say_srgb_or_nothing_change_no_pixel(tmp_path, gamma, xy):
    np.testing.assert_array_equal(images.read_image(png_with(tmp_path / "s.png", RAMP, gamma, xy)), RAMP)


# --- files that are no pictures --------------------------------------------------------------------------


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        images.read_image(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_picture_is_one_line(tmp_path):
    (tmp_path / "text.png").write_text("Dear picture,\n")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "text.png", "is not an image, or of an unknown format")
    refused(tmp_path / "empty.png", "is empty")
    refused(tmp_path / "missing.png", "no such file")
    refused(tmp_path, "directory")
    refused(tmp_path / "text.png" / "a.png", "not a directory")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm", "jp2", "avif"])
def test_truncated_anywhere_is_one_line_or_no_picture(tmp_path, extension):
    whole = saved(tmp_path / f"w.{extension}", Image.fromarray(np.tile(RAMP, (3, 3, 1)))).read_bytes()
    for size in sorted({1, 7, 20, 60, len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4}):
        path = tmp_path / f"cut.{extension}"
        path.write_bytes(whole[:size])
        refused(path, "not an image|damaged")


def test_any_damaged_byte_of_a_png_is_a_picture_or_one_line(tmp_path):
    whole = saved(tmp_path / "w.png", Image.fromarray(RAMP[:6, :6])).read_bytes()
    path = tmp_path / "flipped.png"
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            result = images.read_image(path)
        except UserError:
            continue
        assert result.dtype == np.uint8 and result.shape[2] == 3


def bomb(name):
    """An image file whose header declares 60000x60000 pixels, or as many as its format can hold."""
    if name == "png":
        return png_chunks(60000, 60000, 1, 0, [b"\0"])
    if name == "ppm":
        return b"P6 60000 60000 255\n"
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(
        buffer, {"jpg": "JPEG"}.get(name, name), **({"lossless": True} if name == "webp" else {})
    )
    data = bytearray(buffer.getvalue())
    mark, skipped, size = {
        "bmp": (b"\x28\0\0\0", 4, struct.pack("<ii", 60000, 60000)),
        "gif": (b"GIF87a", 6, struct.pack("<HH", 65535, 65535)),
        "jpg": (b"\xff\xc0", 5, struct.pack(">HH", 60000, 60000)),
        "avif": (b"ispe", 8, struct.pack(">II", 60000, 60000)),
        "webp": (b"VP8L", 9, struct.pack("<I", 16383 | 16383 << 14)),
    }[name]
    start = data.index(mark) + skipped
    data[start : start + len(size)] = size
    return bytes(data)


@pytest.mark.parametrize("name", ["png", "ppm", "bmp", "gif", "jpg", "avif", "webp"])
def test_a_decompression_bomb_is_refused(tmp_path, name):
    (tmp_path / f"bomb.{name}").write_bytes(bomb(name))
    refused(tmp_path / f"bomb.{name}", "has too many pixels: [0-9]+, and at most 178956970")


def test_damage_that_hides_the_format_names_it(tmp_path):
    whole = saved(tmp_path / "a.png", Image.fromarray(RAMP)).read_bytes()
    bad_sum = whole[:33] + b"\0\0\0\4tEXta\0bc\0\0\0\0" + whole[33:]
    (tmp_path / "sum.png").write_bytes(bad_sum)
    refused(tmp_path / "sum.png", "damaged or truncated PNG image.*checksum in b'tEXt'")


def tiff(bits, sample_format, samples=1):
    """The header of a TIFF of 4x4 pixels."""
    tags = [(256, 4), (257, 4), (258, bits), (259, 1), (262, 2 if samples == 3 else 1), (273, 8), (277, samples)]
    tags += [(278, 4), (279, 10), (339, sample_format)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + directory + b"\0" * 4


def bmp_444():
    """A sound BMP of 12 bits a pixel."""
    info = struct.pack("<IiiHHIIiiII", 56, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0) + struct.pack("<IIII", 0xF00, 0xF0, 0xF, 0)
    return b"BM" + struct.pack("<IHHI", 70 + 32, 0, 0, 70) + info + b"\0" * 32


UNSUPPORTED = {
    "444.bmp": (bmp_444(), "BMP image of a kind that is not supported (Unsupported BMP bitfields layout): convert it"),
    "float.tif": (
        tiff(32, 3, 3),
        "TIFF image of a kind that is not supported (samples of 32/32/32 bits, floating point)",
    ),
    "double.tif": (tiff(64, 3), "TIFF image of a kind that is not supported (samples of 64 bits, floating point)"),
    "a.dds": (
        b"DDS "
        + struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0)
        + b"\0" * 44
        + struct.pack("<II4s", 32, 4, b"XXXX")
        + b"\0" * 40,
        "DDS image of a kind that is not supported",
    ),
    "a.exr": (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR is not supported: its pixels are light in floating point"),
    "a.hdr": (b"#?RADIANCE\n", "Radiance HDR is not supported: its pixels are light in floating point"),
    "a.pfm": (b"PF\n4 4\n-1.0\n", "PFM is not supported: its pixels are light in floating point"),
    "a.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40,
        "HEIC is not supported: pip install pillow-heif, or",
    ),
    "mif1.heic": (b"\0\0\0\x18ftypmif1\0\0\0\0heicmif1" + b"\0" * 40, "HEIC is not supported"),
    "a.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40, "JPEG XL is not supported: pip install pillow-jxl-plugin, or"),
    "bare.jxl": (b"\xff\x0a" + b"\0" * 40, "JPEG XL is not supported"),
    "a.svg": (
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg width="4"/>',
        "SVG is not supported: a drawing without",
    ),
    "a.pdf": (b"%PDF-1.7\n", "PDF is not supported"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_says_so_and_what_to_do(tmp_path, monkeypatch, name):
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed
    data, says = UNSUPPORTED[name]
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, re.escape(says))


def test_a_plug_in_that_is_installed_reads_its_format(tmp_path, monkeypatch):
    """A plug-in's way of teaching Pillow, with a format that Pillow knows under another signature."""

    def register_heif_opener():
        Image.register_open("HEIF", lambda file, name: Image.open(io.BytesIO(file.read()[24:])), lambda p: b"heic" in p)

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    png = saved(tmp_path / "a.png", Image.fromarray(RAMP)).read_bytes()
    (tmp_path / "a.heic").write_bytes(UNSUPPORTED["a.heic"][0][:24] + png)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.heic"), RAMP)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = saved(tmp_path / "p.png", Image.fromarray(RAMP))
    path.chmod(0)
    refused(path, "permission denied")


# --- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, form", [("a.png", "PNG"), ("a", "PNG"), ("a.BMP", "BMP"), ("a.webp", "WEBP")])
def test_written_pictures_keep_their_pixels(tmp_path, name, form):
    images.write_image(tmp_path / name, RAMP)
    with Image.open(tmp_path / name) as image:
        assert image.format == form
        np.testing.assert_array_equal(np.asarray(image), RAMP)


def test_jpeg_is_written_nearly_without_loss(tmp_path):
    images.write_image(tmp_path / "a.jpg", RAMP)
    np.testing.assert_allclose(images.read_image(tmp_path / "a.jpg").astype(int), RAMP, atol=12)


def test_an_unknown_extension_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.doc: cannot write images as \.doc"):
        images.write_image(tmp_path / "a.doc", RAMP)
    assert os.listdir(tmp_path) == []


def test_encoding_to_memory_is_the_file(tmp_path):
    images.write_image(tmp_path / "a.png", RAMP)
    assert images.encode_image(RAMP) == (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(images.encode_image(RAMP)))), RAMP)
