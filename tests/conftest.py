"""What several folders of tests share: the tiny golden ELIC, images, an interpreter with JAX."""

import gzip
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# As many workers as cores are to run the tests (make test): more threads would wait for each other.
for threads in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
# Pixels are compared with those of golden files, on whatever processor this is; tests of bfloat16 name it.
os.environ["ZOO_PRECISION"] = "float32"


def pytest_configure(config):
    """A temporary folder for this process and those it starts: TensorFlow's AutoGraph leaves files there."""
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="zoo-tests-")


def pytest_unconfigure(config):
    shutil.rmtree(tempfile.tempdir, ignore_errors=True)


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
def golden_weights(tmp_path_factory):
    """Path of the golden weights file of a model, by the model's name."""

    def unpack(model: str) -> Path:
        path = tmp_path_factory.mktemp("weights") / f"{model}_tiny.safetensors"
        path.write_bytes(gzip.decompress((GOLDEN / f"{path.name}.gz").read_bytes()))
        return path

    return unpack


@pytest.fixture(scope="session")
def tiny_weights(golden_weights):
    """Weights file of the tiny model, trained just enough for its latents to say something."""
    return golden_weights("elic")


@pytest.fixture(scope="session")
def tiny(tiny_weights):
    """The tiny model, ready to code. Do not change it: all tests share it."""
    from models.codec import load

    return load(tiny_weights)


@pytest.fixture(scope="session")
def tiny_cwic_weights(golden_weights):
    """The same for CWIC, of stage 2."""
    return golden_weights("cwic")


@pytest.fixture(scope="session")
def tiny_cwic(tiny_cwic_weights):
    """The tiny CWIC, ready to code. Do not change it: all tests share it."""
    from models.codec import load

    return load(tiny_cwic_weights)


@pytest.fixture(scope="session")
def tiny_sae_spn(golden_weights):
    """The tiny SAE-SPN, of stage 1, ready to code. Do not change it: all tests share it."""
    from models.codec import load

    return load(golden_weights("sae_spn"))


@pytest.fixture(scope="session")
def tiny_elc_weights(golden_weights):
    """The same for ELC, of stage "decoder"."""
    return golden_weights("elc")


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


@pytest.fixture
def eagerly():
    """Keras' steps run as they are: of a few, tracing would take most of the time."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
