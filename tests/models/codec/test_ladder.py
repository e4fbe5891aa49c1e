"""Several weights of one rate each, as one codec of several qualities, in Python and on the command line."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.app import cli
from models.codec import load, load_for_training, registry, weights
from models.codec.ladder import Ladder
from models.io.errors import UserError


@pytest.fixture(scope="module")
def steps(tiny_cwic_weights, crop, tmp_path_factory):
    """Two weights files that stand for shipped ones: the second keeps more bits."""
    folder = tmp_path_factory.mktemp("shipped") / "cwic"
    folder.mkdir()
    shutil.copy(tiny_cwic_weights, folder / "tiny-a.safetensors")
    more = load_for_training(tiny_cwic_weights)
    more.importance_net.layers[-1].bias.assign_add([6.0])
    more.calibrate(np.stack([crop(64, 64), crop(64, 64, 200)]))
    more.save(folder / "tiny-b.safetensors")
    return [folder / "tiny-a.safetensors", folder / "tiny-b.safetensors"]


@pytest.fixture
def ladder(steps):
    return Ladder([lambda path=path: load(path) for path in steps], default=2)


def test_a_quality_is_a_set_of_weights(ladder, steps, crop):
    image = crop(96, 128)
    small, large = (ladder.compress(image, quality=quality) for quality in (1, 2))
    assert len(small) < len(large) and ladder.compress(image) == large
    for data, path in ((small, steps[0]), (large, steps[1])):
        assert data == load(path).compress(image)
        np.testing.assert_array_equal(ladder.decompress(data), load(path).decompress(data))


def test_sizes_that_are_asked_for(ladder, crop):
    image = crop(96, 128)
    small, large = (ladder.compress(image, quality=quality) for quality in (1, 2))
    assert ladder.compress_to(image, len(large)) == large
    assert ladder.compress_to(image, len(large) - 1) == small
    with pytest.raises(UserError, match="smallest file"):
        ladder.compress_to(image, len(small) - 1)


@pytest.mark.parametrize("quality", [0, 3, 1.5])
def test_qualities_that_there_are_not(ladder, crop, quality):
    with pytest.raises(UserError, match=f"quality {quality:g}"):
        ladder.compress(crop(16, 16), quality=quality)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, steps, crop):
    """Calls CWIC's command line as if the two were what ships; `run.err` is what it said."""
    card = dataclasses.replace(registry.card("cwic"), weights="tiny-a", ladder=("tiny-a", "tiny-b"))
    monkeypatch.setitem(registry.CARDS, "cwic", card)
    monkeypatch.setattr(weights, "SHIPPED", steps[0].parents[1])
    monkeypatch.chdir(tmp_path)
    Image.fromarray(crop(96, 128)).save("a.png")

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main("cwic", [str(argument) for argument in arguments])
        run.err = capsys.readouterr().err
        return end.value.code

    return run


def test_command_line_chooses_weights(run, steps, crop):
    first, second = (load(path).compress(crop(96, 128)) for path in steps)
    wishes = {(): first, ("--quality", 2): second, ("--target_kb", len(second) / 1000): second}
    wishes |= {("--target_kb", (len(second) - 1) / 1000): first}
    for wish, expected in wishes.items():
        assert run("compress", "a.png", "--force", "--show_importance", "map.png", *wish) == 0
        assert Path("a.png.tfci").read_bytes() == expected
        shown = np.asarray(Image.open("map.png"))
        np.testing.assert_array_equal(shown, load(steps[expected == second]).importance_image(crop(96, 128)))
    assert run("decompress", "a.png.tfci") == 0


def test_command_line_measures_several(run, steps):
    assert run("evaluate", "a.png", "--quality", "1,2", "--json", "e.json") == 0
    facts = json.loads(Path("e.json").read_text())
    assert facts["weights"] == [path.name for path in steps] and len(facts["curve"]) == 2
    assert facts["curve"][0]["bpp"] < facts["curve"][1]["bpp"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("compress", "--quality", "3"), "quality 3"),
        (("compress", "--quality", "2", "--preset", "tiny-b"), "of one rate"),
        (("compress", "--target_bpp", "0.001"), "smallest file"),
        (("evaluate", "--quality", "1,2", "--record", "kodak"), "--record"),
    ],
)
def test_command_line_says_what_cannot_be(run, arguments, message):
    assert run(arguments[0], "a.png", *arguments[1:]) == 1
    assert message in run.err and len(run.err.strip().splitlines()) == 1
    assert not Path("a.png.tfci").exists()
