"""What several folders of tests share: the tiny golden ELIC, pictures, an interpreter with JAX."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
PHOTOGRAPH = ROOT / "res" / "eval" / "kodim23_512x384.png"


@pytest.fixture(scope="session")
def jax_python() -> str:
    """An interpreter that has JAX: that of ZOO_JAX_PYTHON, or of .venv-jax (`make jax`)."""
    named = os.environ.get("ZOO_JAX_PYTHON")
    if named:
        assert Path(named).exists(), f"ZOO_JAX_PYTHON={named} does not exist"
        return named
    python = ROOT / ".venv-jax" / "bin" / "python"
    if not python.exists():
        pytest.skip("no interpreter with JAX: neither ZOO_JAX_PYTHON nor .venv-jax (make jax)")
    return str(python)


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
def tiny_cwic_weights(tmp_path_factory):
    """The same for CWIC, of stage 2."""
    path = tmp_path_factory.mktemp("weights") / "tiny_cwic.safetensors"
    path.write_bytes(gzip.decompress((GOLDEN / "cwic_tiny.safetensors.gz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def tiny_cwic(tiny_cwic_weights):
    """The tiny CWIC, ready to code. Do not change it: all tests share it."""
    from models.codec import load

    return load(tiny_cwic_weights)


@pytest.fixture(scope="session")
def tiny_sae_spn(tmp_path_factory):
    """The tiny SAE-SPN, of stage 1, ready to code. Do not change it: all tests share it."""
    from models.codec import load

    path = tmp_path_factory.mktemp("weights") / "tiny_sae_spn.safetensors"
    path.write_bytes(gzip.decompress((GOLDEN / "sae_spn_tiny.safetensors.gz").read_bytes()))
    return load(path)


@pytest.fixture(scope="session")
def tiny_elc_weights(tmp_path_factory):
    """The same for ELC, of stage "decoder"."""
    path = tmp_path_factory.mktemp("weights") / "tiny_elc.safetensors"
    path.write_bytes(gzip.decompress((GOLDEN / "elc_tiny.safetensors.gz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def tiny_elc(tiny_elc_weights):
    """The tiny ELC, ready to code. Do not change it: all tests share it."""
    from models.codec import load

    return load(tiny_elc_weights)


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
