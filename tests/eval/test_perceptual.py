"""How images look: SSIMULACRA2, distances of deep features, and what cannot be judged."""

import sys

import numpy as np
import pytest
from PIL import Image

from eval import perceptual
from models.io.errors import UserError


@pytest.fixture(scope="module")
def judge():
    return perceptual.Judge()


def test_worse_images_look_worse(judge, crop):
    image = crop(160, 192)
    noise = np.random.default_rng(0).normal(size=image.shape)
    found = []
    for amount in (0, 4, 16, 64):
        figures = judge.measure(image, np.clip(image + amount * noise, 0, 255).astype(np.uint8))
        found.append((-figures["ssimulacra2"], figures["feature_distance"], judge.frechet().distance))
    assert found[0] == (-100, 0, pytest.approx(0, abs=1e-2))
    assert all(a < b for worse, better in zip(found[1:], found) for a, b in zip(better, worse))


def test_patches_are_counted_once(judge, crop):
    for height, width in ((64, 64), (96, 128)):
        judge.measure(crop(height, width), crop(height, width, 30))
    assert judge.frechet().patches == 1 + 2 * 3


def test_frechet_distance_of_normal_distributions():
    """Of distributions along the axes there is a formula without a root of matrices."""
    random = np.random.default_rng(1)
    means, scales = np.array([3.0, 0, 0, 1]), np.array([2.0, 1, 0.5, 4])
    a = random.normal(size=(200_000, 4))
    b = means + scales * random.normal(size=(200_000, 4))
    expected = np.sum(means**2) + np.sum((1 - scales) ** 2)
    assert perceptual.frechet_distance(a, b) == pytest.approx(expected, rel=0.01)
    assert perceptual.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_too_small(judge, crop):
    with pytest.raises(ValueError, match="80x63: too small"):
        judge.measure(crop(63, 80), crop(63, 80))


def test_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    with pytest.raises(UserError, match="pip install ssimulacra2"):
        perceptual.Judge()


def test_evaluate(tiny_weights, crop, tmp_path, capsys, monkeypatch):
    import json

    from models.app import cli

    monkeypatch.chdir(tmp_path)
    Image.fromarray(crop(64, 80)).save("a.png")
    Image.fromarray(crop(96, 64)).save("b.png")
    Image.fromarray(crop(40, 64)).save("small.png")
    with pytest.raises(SystemExit) as end:
        cli.main("elic", ["evaluate", "*.png", "--weights", str(tiny_weights), "--perceptual", "--json", "f.json"])
    said = capsys.readouterr()
    assert end.value.code == 1 and said.err.strip().startswith("error: small.png: 64x40, and --perceptual")
    head, first, *_, last = said.out.splitlines()
    assert head.split()[-3:] == ["ssimulacra2", "feature", "distance"] and first.startswith("a.png")
    figures = json.loads((tmp_path / "f.json").read_text())
    assert last == (
        f"Fréchet distance {figures['frechet_distance']:.4f} of 3 patches, "
        f"{float(last.split()[-5]):.4f} of every other one"
    )
    assert figures["mean"]["feature_distance"] == pytest.approx(
        np.mean([p["feature_distance"] for p in figures["pictures"]])
    )
