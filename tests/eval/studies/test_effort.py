"""What iterations of RDOQ bring."""

import json

import pytest
from PIL import Image

from eval.studies import effort
from models.codec import base


@pytest.fixture
def image(tmp_path, crop):
    Image.fromarray(crop(96, 128)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_points_and_picture(image, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base.Codec, "trace", lambda *_: None)  # graphs take seconds to make
    monkeypatch.setattr(effort, "DEFAULT", 2)
    flags = ["--efforts", "0", "--qualities", "1,3", "-o", str(tmp_path / "effort.png")]
    assert effort.main([str(image), *flags]) == 0
    content = json.loads((tmp_path / "effort.json").read_text())
    none, default = content["points"]
    assert (none["effort"], default["effort"]) == (0, 2) and default["bd_rate"] == 0 < none["bd_rate"]
    assert none["seconds"] < default["seconds"]
    assert "--effort  2" in capsys.readouterr().out
    assert (tmp_path / "effort.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--qualities", "1"], "two qualities at least"),
        (["-o", "x.bmp"], "a plot is .png"),
        (["--weights", "tiny"], "weights of one rate"),
    ],
)
def test_bad_input_is_one_line(image, flags, says, tiny_weights, capsys):
    flags = [str(tiny_weights) if flag == "tiny" else flag for flag in flags]
    assert effort.main([str(image), *flags]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and says in error and "\n" not in error
