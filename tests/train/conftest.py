"""Images and the stand-in codec."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tiny_codec():
    """The class `TinyCodec`."""
    path = Path(__file__).with_name("standin.py")
    spec = importlib.util.spec_from_file_location("standin", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TinyCodec


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A glob of twelve small images, smooth and all different."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(7)
    for i in range(12):
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return str(folder / "*.png")
