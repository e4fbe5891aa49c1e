"""What ships: every weights file works, and the figures that ship with it are of that file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from models.codec import load, registry, weights
from models.io.images import read_image
from models.tasks import classifier

EVAL = weights.SHIPPED.parent / "eval"
SHIPPED = [path for model in registry.MODEL_IDS.values() for path in weights.shipped(model)]
#: Of SAE-SPN, whose weights are those of minutes, at 0.04 bpp; the others are above 20 dB.
LEAST_PSNR = 14.0


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_compresses_and_decompresses(path):
    picture = read_image(EVAL / "kodim23_512x384.png")[100:228, 200:360]
    codec = load(path)
    data = codec.compress(picture)
    decoded = codec.decompress(data)
    assert decoded.shape == picture.shape
    psnr = 10 * np.log10(255**2 / np.mean((decoded.astype(float) - picture) ** 2))
    assert psnr > LEAST_PSNR and len(data) < picture.size / 2


def test_the_classifier_is_the_one_of_elc():
    shipped, elc = (
        classifier.load(weights.SHIPPED / "classifier" / "small.safetensors"),
        load(weights.default("elc", "small")),
    )
    assert shipped.labels == elc.labels and shipped.architecture == elc.config.classifier
    kernels = [net.predictions.kernel.numpy() for net in (shipped.tail, elc.classifier)]
    np.testing.assert_array_equal(*kernels)


def measured() -> list[Path]:
    return [path for path in sorted(EVAL.glob("*.json")) if "weights_id" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", measured(), ids=lambda path: path.stem)
def test_figures_are_of_weights_that_ship(path):
    figures = json.loads(path.read_text())
    ids = {weights.read_metadata(file)["weights_id"]: file for file in SHIPPED}
    assert figures["weights_id"] in ids
    if "mean" not in figures or "refine" in figures or "effort" in figures:
        return
    # The header of the weights file says the same.
    recorded = weights.read_metadata(ids[figures["weights_id"]])["kodak"]
    found = [tuple(map(float, point)) for point in re.findall(r"([\d.]+) bpp, ([\d.]+) dB, MS-SSIM ([\d.]+)", recorded)]
    points = figures.get("curve") or [figures["mean"]]
    expected = [tuple(round(point[key], n) for key, n in (("bpp", 4), ("psnr", 3), ("ms_ssim", 5))) for point in points]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_every_weights_file_has_figures():
    ids = {json.loads(path.read_text())["weights_id"] for path in measured()}
    assert [name(path) for path in SHIPPED if weights.read_metadata(path)["weights_id"] not in ids] == []
