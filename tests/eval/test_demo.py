"""The demo shows what the command line does; here with a stand-in for ELIC, so that no weights are needed."""

import numpy as np
import pytest
from PIL import Image

from eval import demo, metrics
from models.io.images import read_image

STAND_IN = """
import sys
from PIL import Image
command, source, flag, target, *rest = sys.argv[1:]
assert flag == "-o" and rest == (["--force"] if command == "compress" else [])
if command == "compress":
    Image.open(source).save(target, "JPEG", quality={quality})
else:
    Image.open(source).save(target, "PNG")
print(f"{{command}} was here")
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with a small sample, and with JPEG in the place of ELIC."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "elic.py").write_text(STAND_IN.format(quality=50))
    (tmp_path / "res" / "eval").mkdir(parents=True)
    sample = read_image(demo.ROOT / "res" / "eval" / "kodim23_512x384.png")[40:240, 200:400]
    Image.fromarray(sample).save(tmp_path / "res" / "eval" / "bird.png")
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    assert demo.OPPONENTS == ("jpeg", "webp", "avif")
    monkeypatch.setattr(demo, "OPPONENTS", ("jpeg", "webp"))  # AVIF takes seconds
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_sample_that_ships_is_there():
    for name in ("kodim23_512x384.png", "README.md", "anchors.json"):
        assert (demo.ROOT / "res" / "eval" / name).is_file()


def test_demo_prints_the_figures_and_leaves_the_pictures(root, capfd):
    assert demo.main(["-o", "demo"]) == 0
    out = capfd.readouterr().out
    assert "$ python models/elic.py compress res/eval/bird.png -o demo/bird.tfci --force" in out
    assert "compress was here" in out and "decompress was here" in out

    stream = root / "demo" / "bird.tfci"
    before, after = read_image(root / "res" / "eval" / "bird.png"), np.asarray(Image.open(stream))
    size = stream.stat().st_size
    rows = {line.split()[0]: line.split()[1:] for line in out.split("\n") if len(line.split()) == 5}
    elic = rows["elic"]
    assert elic[0] == str(size) and elic[1] == f"{size * 8 / 40000:.4f}"
    assert elic[2] == f"{metrics.psnr(before, after):.2f}" and elic[3] == f"{metrics.ms_ssim(before, after):.4f}"
    for codec in ("jpeg", "webp"):
        assert int(rows[codec][0]) <= size
    assert float(rows["webp"][2]) > float(elic[2])

    sheet = read_image(root / "demo" / "bird.png")
    assert sheet.shape == (200 + demo.CAPTION_HEIGHT, 3 * 200, 3)
    panels = sheet[demo.CAPTION_HEIGHT :]
    np.testing.assert_array_equal(panels[:, :200], before)
    np.testing.assert_array_equal(panels[:, 200:400], after)
    assert metrics.psnr(panels[:, 400:].copy(), before) == pytest.approx(float(rows["jpeg"][2]), abs=0.006)
    assert (sheet[: demo.CAPTION_HEIGHT, :200] < 128).any(), "no caption"
    assert sorted(p.name for p in (root / "demo").iterdir()) == ["bird.png", "bird.tfci"]


def test_demo_can_be_run_again_and_on_pictures_of_ones_own(root):
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (180, 1))).save("mine.png")
    for _ in range(2):
        assert demo.main(["mine.png", "-o", "demo"]) == 0
    assert sorted(p.name for p in (root / "demo").iterdir()) == ["mine.png", "mine.tfci"]


def test_an_opponent_that_cannot_do_it_is_named(root, capfd):
    tiny = STAND_IN.format(quality=0).replace('"JPEG", quality=0', '"JPEG2000", quality_layers=[400]')
    (root / "models" / "elic.py").write_text(tiny)
    assert demo.main(["-o", "demo"]) == 0
    assert "\njpeg cannot do it in" in capfd.readouterr().out
    assert read_image(root / "demo" / "bird.png").shape[1] == 400  # no third panel


def test_failures_are_passed_on(root, capfd):
    assert demo.main(["none.png", "-o", "demo"]) == 1
    assert capfd.readouterr().err == "error: none.png: no such file or directory\n"
    (root / "models" / "elic.py").write_text("import sys; print('error: no weights', file=sys.stderr); sys.exit(3)")
    assert demo.main(["-o", "demo"]) == 3
    assert "error: no weights" in capfd.readouterr().err
