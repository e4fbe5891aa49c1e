"""The study of task-aware maps: rates of real files, two judges, a table and a plot."""

import json

import pytest
from PIL import Image

from eval.studies import task_aware


def test_table_and_plot(golden_weights, crop, tmp_path, capsys):
    for name, column in (("macaw", 200), ("Tench", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(crop(64, 64, 100, column)).save(tmp_path / "data" / name / "1.png")
    target = tmp_path / "figure.png"
    arguments = ["--weights", str(golden_weights("sft")), "--qualities", "0.5", "--task_weights", "0.1", "--steps", "1"]
    assert task_aware.main([str(tmp_path / "data"), *arguments, "-o", str(target)]) == 0
    result = json.loads(target.with_suffix(".json").read_text())
    assert result["images"] == 2 and set(result["originals"]) == {task_aware.FINDER, task_aware.JUDGE}
    (uniform,), (found,) = result["uniform"], result["task-aware"]
    assert uniform["quality"] == 0.5 and found["weight"] == 0.1 and uniform["bpp"] > 0
    assert f"{uniform['bpp']:.4g} bpp".split()[0] in capsys.readouterr().out
    assert Image.open(target).size[0] > 900


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert task_aware.main([str(tmp_path / "empty")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("sizes", [((64, 64), (64, 80))])
def test_images_of_two_sizes(tmp_path, crop, sizes, capsys):
    for n, size in enumerate(sizes):
        (tmp_path / f"class{n}").mkdir()
        Image.fromarray(crop(*size)).save(tmp_path / f"class{n}" / "a.png")
    assert task_aware.main([str(tmp_path)]) == 1
    assert "not all of one size" in capsys.readouterr().err
