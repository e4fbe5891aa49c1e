"""The tiny ELIC whose weights are a golden file, and pictures for it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
PHOTOGRAPH = Path(__file__).resolve().parents[2] / "res" / "eval" / "kodim23_512x384.png"


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Weights file of the tiny model, trained just enough for its latents to say something."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(gzip.decompress((GOLDEN / "elic_tiny.safetensors.gz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_weights):
    """The tiny model, ready to code. Do not change it: all tests share it."""
    from models.codec import load

    return load(tiny_weights)


@pytest.fixture(scope="session")
def photograph():
    """uint8 [384, 512, 3]."""
    return np.asarray(Image.open(PHOTOGRAPH).convert("RGB"))


@pytest.fixture(scope="session")
def crop(photograph):
    """A crop of a given size with something to see, uint8 [height, width, 3]."""

    def crop(height, width, top=80, left=100):
        return np.ascontiguousarray(photograph[top : top + height, left : left + width])

    return crop
