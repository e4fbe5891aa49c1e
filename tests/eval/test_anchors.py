"""Curves of the classical codecs on images of the user's."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import anchors, classical, metrics, report
from models.app import cli


@pytest.fixture
def folder(tmp_path, monkeypatch, crop):
    monkeypatch.chdir(tmp_path)
    for name, place in (("a.png", 0), ("b.png", 90)):
        Image.fromarray(crop(180, 200, place)).save(name)
    return tmp_path


def test_curves_are_means_of_real_files(folder):
    assert anchors.main(["?.png", "-o", "own.json", "--codecs", "jpeg,webp"]) == 0
    curves = report.load_anchors("own.json")
    assert list(curves) == ["jpeg-420", "webp-m6"]
    pictures = [np.asarray(Image.open(name)) for name in ("a.png", "b.png")]
    shipped = report.load_anchors()
    for codec in ("jpeg", "webp"):
        curve = curves[classical.CODECS[codec].anchor]
        assert len(curve.bpp) == len(shipped[curve.name].bpp) > 10
        quality = anchors.qualities(codec)[7]
        encoded = [classical.encode(codec, picture, quality) for picture in pictures]
        decoded = [classical.decode(data) for data in encoded]
        at = curve.bpp.index(pytest.approx(np.mean([8 * len(data) / 36000 for data in encoded]), abs=1e-5))
        assert curve.psnr[at] == pytest.approx(np.mean(list(map(metrics.psnr, pictures, decoded))), abs=1e-4)
        assert curve.ms_ssim[at] == pytest.approx(np.mean(list(map(metrics.ms_ssim, pictures, decoded))), abs=1e-4)
    assert json.loads(Path("own.json").read_text())["data"].endswith("a.png, b.png")


def test_all_codecs_and_pictures_too_small_for_ms_ssim(folder, crop):
    Image.fromarray(crop(24, 32)).save("small.png")
    assert anchors.main(["small.png", "-o", "own.json"]) == 0
    curves = report.load_anchors("own.json")
    assert set(curves) == {codec.anchor for codec in classical.CODECS.values()}
    assert all(curve.psnr and not curve.ms_ssim for curve in curves.values())


def test_bad_input_is_one_line(folder):
    Path("c.png").write_text("no picture")
    Image.new("RGB", (16, 16), (128, 128, 128)).save("grey.png")
    for arguments, message in (
        (["a.png", "-o", "own.json", "--codecs", "jpeg,bpg"], "--codecs: there is no 'bpg'"),
        (["c.png", "-o", "own.json", "--codecs", "jpeg"], "c.png: is not an image"),
        (["grey.png", "-o", "own.json", "--codecs", "jpeg"], "grey.png: jpeg keeps it without loss"),
        (["nowhere/*.png", "-o", "own.json"], "nowhere/*.png"),
        (["a.png", "-o", "a.png"], "a.png: exists already"),
    ):
        with pytest.raises(SystemExit) as stopped:
            anchors.main(arguments)
        error = stopped.value.code
        assert error.startswith("error: ") and message in error and "\n" not in error
    assert not Path("own.json").exists()


def test_evaluate_compares_with_them_and_says_when_anchors_are_of_other_pictures(folder, tiny_weights, capsys):
    assert anchors.main(["?.png", "-o", "own.json", "--codecs", "jpeg"]) == 0

    def evaluate(*flags):
        with pytest.raises(SystemExit) as stopped:
            cli.main("elic", ["evaluate", "a.png", "b.png", "--weights", str(tiny_weights), *flags])
        assert not stopped.value.code
        return capsys.readouterr()

    own = evaluate("--anchors", "own.json")
    assert "jpeg-420" in own.out and "vtm" not in own.out and own.err == ""
    kodak = evaluate("--anchors")
    assert "vtm" in kodak.out and kodak.err.startswith("note: these anchors are of kodim01 to kodim24")
