"""The classical codecs have the settings that the anchors were measured with."""

import io

import numpy as np
import pytest
from PIL import Image

from eval import classical, metrics, report
from models.io.images import read_image

SAMPLE = report.ANCHORS.parent / "kodim23_512x384.png"


@pytest.fixture(scope="module")
def sample():
    return read_image(SAMPLE)[64:256, 128:384]


@pytest.mark.parametrize("codec", classical.CODECS)
def test_files_decode_to_about_the_picture(codec, sample):
    entry = classical.CODECS[codec]
    middle = 1.0 if codec == "jpeg2000" else 60
    data = classical.encode(codec, sample, middle)
    decoded = classical.decode(data)
    assert decoded.shape == sample.shape and decoded.dtype == np.uint8
    assert metrics.psnr(sample, decoded) > 30
    assert len(classical.encode(codec, sample, entry.lowest)) < len(data)


@pytest.mark.parametrize("codec", classical.CODECS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3)])
def test_small_pictures(codec, shape):
    data = classical.encode(codec, np.full(shape, 100, np.uint8), classical.CODECS[codec].highest)
    np.testing.assert_allclose(classical.decode(data), 100, atol=3)


@pytest.mark.parametrize("codec", classical.CODECS)
def test_an_anchor_is_known_for_every_codec(codec):
    anchor = report.load_anchors()[classical.CODECS[codec].anchor]
    assert len(anchor.bpp) == len(anchor.psnr) == len(anchor.ms_ssim) >= 5


def test_jpeg_is_420_with_its_own_huffman_tables(sample):
    data = classical.encode("jpeg", sample, 50)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
    buffer = io.BytesIO()
    Image.fromarray(sample).save(buffer, "JPEG", quality=50, subsampling="4:2:0")
    assert len(data) < len(buffer.getvalue())
    np.testing.assert_array_equal(classical.decode(data), classical.decode(buffer.getvalue()))


def test_jpeg2000_is_a_bare_codestream_at_the_rate(sample):
    data = classical.encode("jpeg2000", sample, 1.0)
    assert data[:4] == b"\xff\x4f\xff\x51"
    assert 0.95 < metrics.bpp(len(data), *sample.shape[:2]) <= 1.0
    # Coding style default: one layer, component transform on, irreversible wavelet (0).
    style = data[data.index(b"\xff\x52") + 4 :]
    assert style[2:4] == b"\0\1" and style[4] == 1 and style[9] == 0


def test_webp_is_lossy_with_full_effort(sample):
    data = classical.encode("webp", sample, 50)
    assert data[12:16] == b"VP8 "
    sizes = {}
    for method in (4, 6):
        buffer = io.BytesIO()
        Image.fromarray(sample).save(buffer, "WEBP", quality=50, method=method)
        sizes[method] = len(buffer.getvalue())
    assert len(data) == sizes[6] != sizes[4]


def test_avif_keeps_all_chroma(sample):
    data = classical.encode("avif", sample, 50)
    assert data[4:12] == b"ftypavif"
    # In `av1C`: high bit depth, twelve bit, monochrome, subsampling x and y, chroma position.
    assert data[data.index(b"av1C") + 6] & 0b01111100 == 0


def test_avif_tuned_for_psnr_is_better_in_psnr(sample):
    sample = sample[:96, :128]  # AVIF is slow
    default = classical.encode("avif", sample, 40)
    tuned, _ = classical.at_bytes("avif-psnr", sample, len(default))
    assert len(tuned) <= len(default)
    assert metrics.psnr(sample, classical.decode(tuned)) > metrics.psnr(sample, classical.decode(default))


@pytest.mark.parametrize("codec", ["jpeg", "webp", "jpeg2000"])
def test_at_bytes_is_the_largest_file_within_the_target(codec, sample):
    entry = classical.CODECS[codec]
    for target in (2000, 6000, 20000):
        data, quality = classical.at_bytes(codec, sample, target)
        assert len(data) <= target
        assert data == classical.encode(codec, sample, quality)
        if quality + entry.step <= entry.highest:
            assert len(classical.encode(codec, sample, quality + entry.step)) > target


def test_at_bytes_takes_a_file_of_just_the_target(sample):
    data = classical.encode("jpeg", sample, 40)
    assert classical.at_bytes("jpeg", sample, len(data)) == (data, 40)
    assert classical.at_bytes("jpeg", sample, len(data) - 1)[1] < 40


def test_at_bytes_reaches_both_ends(sample):
    entry = classical.CODECS["jpeg"]
    least = len(classical.encode("jpeg", sample, entry.lowest))
    assert len(classical.at_bytes("jpeg", sample, least)[0]) == least
    assert classical.at_bytes("jpeg", sample, 10**6)[1] == entry.highest
    with pytest.raises(ValueError, match=f"cannot do it in {least - 1} bytes: its least is {least}"):
        classical.at_bytes("jpeg", sample, least - 1)


def test_a_codec_that_cannot_go_so_low_gives_its_least(sample):
    data, shown = classical.within_bytes("jpeg", sample, 9000)
    assert data == classical.at_bytes("jpeg", sample, 9000)[0]
    np.testing.assert_array_equal(shown, classical.decode(data))
    half, shown = classical.within_bytes("jpeg", sample, 2200)  # whole it is a file of 2,500 bytes at least
    assert len(half) <= 2200 and shown.shape == sample.shape
    assert classical.decode(half).shape[0] < sample.shape[0]
    least = classical.within_bytes("jpeg", sample, 10)[0]
    assert classical.decode(least).shape[0] == -(-sample.shape[0] // 3)


def test_mistakes_are_refused(sample):
    with pytest.raises(ValueError, match="no codec 'gif'"):
        classical.encode("gif", sample, 50)
    with pytest.raises(ValueError, match="no codec 'gif'"):
        classical.at_bytes("gif", sample, 5000)
    with pytest.raises(ValueError, match=r"quality 101 of webp is not in 0\.\.100"):
        classical.encode("webp", sample, 101)
