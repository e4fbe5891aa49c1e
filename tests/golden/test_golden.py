"""Streams that were written once decode for ever, to the same symbols on every device.

The golden files are made by `make.py` beside this file. Symbols, table rows included, must be the same bit for bit;
pixels may differ by one level, as the synthesis rounds as the device does.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import classical
from eval.metrics import psnr
from models.codec import EncoderOptions, load
from models.codec.weights import SHIPPED
from models.io.images import read_image

HERE = Path(__file__).resolve().parent
NAMES = ("elic_tiny", "sft_tiny", "cwic_tiny", "sae_spn_tiny", "elc_tiny")
SETTINGS = {
    f"onednn {onednn}, {threads} threads{', xla' * bool(flags)}": (onednn, threads, flags)
    for onednn, threads, flags in [("1", "2", ()), ("0", "1", ()), ("1", "1", ("jit",))]
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_decodes_everywhere(setting, name, tmp_path):
    weights = tmp_path / f"{name}.safetensors"
    weights.write_bytes(gzip.decompress((HERE / f"{name}.safetensors.gz").read_bytes()))
    onednn, threads, flags = SETTINGS[setting]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn, "TF_CPP_MIN_LOG_LEVEL": "3"}
    stream, picture = HERE / f"{name}.tfci", tmp_path / "picture.npy"
    process = subprocess.run(
        [sys.executable, HERE / "decode.py", weights, stream, picture, threads, *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    facts = json.loads((HERE / f"{name}.json").read_text())
    assert process.stdout.split()[-1] == facts["symbols"]
    decoded = np.load(picture).astype(int)
    expected = np.asarray(Image.open(HERE / f"{name}.png").convert("RGB"))
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_picture_shows_something(name):
    decoded = np.asarray(Image.open(HERE / f"{name}.png"))
    assert decoded.shape == (75, 93, 3) and decoded.std() > 20
    size = (HERE / f"{name}.tfci").stat().st_size
    assert 80 < size < 5000
    assert sum(path.stat().st_size for path in HERE.glob(f"{name}*")) < 200_000


@pytest.mark.parametrize(("name", "file"), [("elic_variable", "small"), ("elic_medium", "medium")])
def test_a_stream_of_the_weights_that_ship_decodes_to_known_pixels(name, file):
    """Rows 60 to 190, columns 120 to 301 of the sample, written when these weights were trained; quality 3 of several.

    New weights have a new id: then write both anew with `Codec.compress` and `Codec.decompress`.
    """
    codec = load(SHIPPED / "elic" / f"{file}.safetensors")
    decoded = codec.decompress((HERE / f"{name}.tfci").read_bytes()).astype(int)
    expected = np.asarray(Image.open(HERE / f"{name}.png").convert("RGB"))
    assert decoded.shape == expected.shape == (130, 181, 3)
    assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_sft_meets_any_size(share):
    """What it sends of the quality has 17 steps; see `models.sft.DITHER`."""
    photograph = read_image(SHIPPED.parent / "eval" / "kodim23_512x384.png")
    codec = load(SHIPPED / "sft" / "small.safetensors")
    options = EncoderOptions(effort=0)
    low, high = (len(codec.compress(photograph, options, quality=quality)) for quality in (0, 1))
    target = round(low ** (1 - share) * high**share)
    assert 0.97 * target < len(codec.compress_to(photograph, target, options)) <= target


@pytest.mark.parametrize("preset", ["small", "medium"])
def test_the_weights_of_variable_rate_beat_webp_up_to_half_a_bit(preset):
    """On the sample, by real files; the 24 Kodak pictures are in res/eval/elic_PRESET_kodak.json."""
    photograph = read_image(SHIPPED.parent / "eval" / "kodim23_512x384.png")
    codec = load(SHIPPED / "elic" / f"{preset}.safetensors")
    sizes = []
    for quality in (1, 2.5, 4):
        data = codec.compress(photograph, EncoderOptions(effort=1), quality=quality)
        webp, _ = classical.at_bytes("webp", photograph, len(data))
        assert psnr(photograph, codec.decompress(data)) > psnr(photograph, classical.decode(webp)) + 0.2
        sizes.append(len(data))
    assert sizes[0] < 0.7 * sizes[1] < 0.5 * sizes[2]
    target = round(1.5 * sizes[0])
    assert 0.97 * target < len(codec.compress_to(photograph, target, EncoderOptions(effort=0))) <= target
