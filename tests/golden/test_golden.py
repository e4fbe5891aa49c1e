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

HERE = Path(__file__).resolve().parent
NAME = "elic_tiny"
SETTINGS = {
    f"onednn {onednn}, {threads} threads{', xla' * bool(flags)}": (onednn, threads, flags)
    for onednn, threads, flags in [("1", "2", ()), ("0", "1", ()), ("1", "1", ("jit",))]
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / f"{NAME}.safetensors"
    path.write_bytes(gzip.decompress((HERE / f"{NAME}.safetensors.gz").read_bytes()))
    return path


@pytest.mark.parametrize("setting", SETTINGS)
def test_decodes_everywhere(setting, weights, tmp_path):
    onednn, threads, flags = SETTINGS[setting]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn, "TF_CPP_MIN_LOG_LEVEL": "3"}
    stream, picture = HERE / f"{NAME}.tfci", tmp_path / "picture.npy"
    process = subprocess.run(
        [sys.executable, HERE / "decode.py", weights, stream, picture, threads, *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    facts = json.loads((HERE / f"{NAME}.json").read_text())
    assert process.stdout.split()[-1] == facts["symbols"]
    decoded = np.load(picture).astype(int)
    expected = np.asarray(Image.open(HERE / f"{NAME}.png").convert("RGB"))
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 1


def test_the_golden_picture_shows_something():
    decoded = np.asarray(Image.open(HERE / f"{NAME}.png"))
    assert decoded.shape == (75, 93, 3) and decoded.std() > 20
    size = (HERE / f"{NAME}.tfci").stat().st_size
    assert 150 < size < 5000
    assert sum(path.stat().st_size for path in HERE.glob(f"{NAME}*")) < 150_000
