"""The model of res/doc/add_a_model.md, taken from the page, does all that the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.io.images import read_image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "res" / "doc" / "add_a_model.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, module_photograph):
    """With the program, and images to train on."""
    folder = tmp_path_factory.mktemp("own")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 90
    (folder / "hyperprior.py").write_text(code)
    for n in range(4):
        Image.fromarray(module_photograph[40 * n : 40 * n + 70, 30 * n : 30 * n + 80]).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def module_photograph():
    return np.asarray(Image.open(ROOT / "res" / "eval" / "kodim23_512x384.png").convert("RGB"))


def run(folder, *arguments):
    command = [sys.executable, "hyperprior.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_all_of_the_command_line(folder):
    size = "--patchsize", "64", "--batchsize", "2", "--epochs", "1", "--steps_per_epoch", "2", "--calibration", "4"
    done = run(folder, "train", "--preset", "tiny", "--lambda", "0.01", "--train_glob", "*.png", *size)
    assert done.returncode == 0, done.stderr
    assert "hyperprior, preset tiny: 0.0" in done.stdout  # millions of parameters
    chosen = "--weights", "runs/hyperprior/best.safetensors"
    assert done.stdout.endswith(f"to use them: python hyperprior.py compress IMAGE {' '.join(chosen)}\n")
    for command in (
        ("compress", "0.png", *chosen),
        ("decompress", "0.png.tfci", *chosen),
        ("evaluate", "0.png", *chosen),
        ("export", "served", *chosen),
    ):
        done = run(folder, *command)
        assert done.returncode == 0, done.stderr
    assert read_image(folder / "0.png.tfci.png").shape == (70, 80, 3)
    assert (folder / "0.png.tfci").stat().st_size < 70 * 80 * 3
    assert (folder / "served" / "1" / "saved_model.pb").exists()


def test_without_weights_and_in_the_table(folder):
    done = run(folder, "compress", "0.png")
    assert done.returncode == 1
    assert done.stderr == "error: no weights for hyperprior ship: name a file with --weights, or train some\n"
    done = run(folder, "presets")
    assert "\n  tiny " in done.stdout and "no weights" in done.stdout


def test_several_lambdas_need_a_quality(folder):
    chosen = "--preset", "tiny", "--lambda", "0.01,0.02", "--train_path", "several"
    size = "--patchsize", "64", "--batchsize", "2", "--calibration", "4"
    done = run(folder, "train", *chosen, "--train_glob", "*.png", *size)
    assert done.returncode == 1
    assert done.stderr == "error: hyperprior: give one λ, not 2: its `analyse` takes no quality\n"
