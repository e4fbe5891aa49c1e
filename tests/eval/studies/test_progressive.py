"""What each group of ELIC's latent brings."""

import numpy as np
from PIL import Image

from eval import metrics
from eval.studies import progressive


def test_passes_are_those_of_the_file(tiny, crop):
    image = crop(64, 96)
    passes = progressive.bits_of_passes(tiny, image)
    assert [name for name, _ in passes] == ["z"] + ["y"] * 2 * len(tiny.config.groups)
    file_bits = 8 * len(tiny.compress(image))
    assert 0 < file_bits - sum(bits for _, bits in passes) < 300  # header, states, checksum


def test_each_group_shows_more(tiny, photograph):
    steps = progressive.progress(tiny, photograph[:128, :192])
    shares, images = zip(*steps)
    assert len(steps) == len(tiny.config.groups) and shares[-1] == 1 and np.all(np.diff(shares) > 0)
    quality = [metrics.psnr(photograph[:128, :192], image) for image in images]
    assert quality == sorted(quality) and quality[-1] > quality[0] + 1


def test_the_program(crop, tmp_path, capsys):
    Image.fromarray(crop(64, 96)).save(tmp_path / "a.png")
    assert progressive.main([str(tmp_path / "a.png"), "--preset", "small", "-o", str(tmp_path / "strip.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].split()[1] == "100.0%"
    assert Image.open(tmp_path / "strip.png").width == 5 * 96
    assert progressive.main([str(tmp_path / "none.png")]) == 1
    assert "error:" in capsys.readouterr().err
