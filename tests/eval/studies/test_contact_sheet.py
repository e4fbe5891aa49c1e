"""A contact sheet: every codec's image, and figures of real files."""

import numpy as np
import pytest

from eval import classical, metrics
from eval.studies import contact_sheet
from models.io.images import read_image, write_image


@pytest.fixture
def pictures(tmp_path, crop):
    paths = []
    for n, image in enumerate((crop(180, 200), crop(190, 210, 150, 250))):
        paths.append(tmp_path / f"picture{n}.png")
        write_image(paths[-1], image)
    return paths


def test_sheet_and_figures(pictures, tiny_weights, tiny, tiny_cwic_weights, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = [str(tmp_path / "picture*.png"), "--weights", str(tiny_weights), str(tiny_cwic_weights)]
    assert contact_sheet.main([*arguments, "--width", "200", "-o", str(sheet)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["means", "elic_tiny", "cwic_tiny", "jpeg", "webp", "avif"]
    images = [read_image(path) for path in pictures]
    expected = [
        (metrics.bpp(len(data), *image.shape[:2]), metrics.psnr(image, tiny.decompress(data)))
        for image in images
        for data in [tiny.compress(image)]
    ]
    np.testing.assert_allclose([float(x) for x in lines[1][1:3]], np.mean(expected, 0), atol=0.006)
    sizes = [len(classical.within_bytes("jpeg", image, len(tiny.compress(image)))[0]) for image in images]
    rate = np.mean([metrics.bpp(size, *image.shape[:2]) for size, image in zip(sizes, images)])
    assert float(lines[3][1]) == pytest.approx(rate, abs=6e-5)
    assert read_image(sheet).shape == (2 * (150 + 28), 6 * 200, 3)


def test_errors_are_one_line(pictures, tiny_weights, tmp_path, capsys):
    for arguments in (["none.png", "--weights", str(tiny_weights)], [str(pictures[0]), "--weights", "none"]):
        assert contact_sheet.main([*arguments, "-o", str(tmp_path / "sheet.png")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
