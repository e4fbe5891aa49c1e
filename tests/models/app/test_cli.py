"""The command line: what it makes, and what it says of what it cannot make.

Most cases call `main` in this process, as starting TensorFlow takes seconds; those of a whole process come last.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from variants import with_config

from models.app import cli, commands
from models.codec import Codec, registry, storage
from models.entropy import container
from models.io import images

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, tiny_weights):
    """Calls the command line in a folder of its own: run(*arguments) -> exit code; `run.out`, `run.err` are the texts.

    `{weights}` in an argument stands for the tiny weights.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        arguments = [str(a).replace("{weights}", str(tiny_weights)) for a in arguments]
        with pytest.raises(SystemExit) as end:
            cli.main("elic", arguments)
        run.out, run.err = capsys.readouterr()
        assert "Traceback" not in run.err
        return end.value.code

    return run


W = ("--weights", "{weights}")


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def files(folder="."):
    """All that is in a folder, and the bytes of it."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))}


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


# --- there and back ----------------------------------------------------------------------------------------------


def test_there_and_back_with_default_names(run, tiny, crop):
    save("a.png", crop(40, 50))
    assert run("compress", "a.png", *W) == 0
    assert run.err == ""
    data = Path("a.png.tfci").read_bytes()
    assert data == tiny.compress(crop(40, 50))
    assert lines(run.out) == [f"a.png -> a.png.tfci: 50x40, {len(data)} bytes, {8 * len(data) / 2000:.4f} bpp"]
    assert run("decompress", "a.png.tfci", *W) == 0
    assert lines(run.out) == ["a.png.tfci -> a.png.tfci.png: 50x40"]
    np.testing.assert_array_equal(images.read_image("a.png.tfci.png"), tiny.decompress(data))
    assert set(files()) == {"a.png", "a.png.tfci", "a.png.tfci.png"}


def test_output_file_and_folder(run, tiny, crop):
    save("a.png", crop(20, 30))
    save("b.png", crop(20, 30, top=200))
    assert run("compress", "a.png", "-o", "x.bin", *W) == 0
    assert run("compress", "?.png", "-o", "made/streams", *W) == 0
    streams = Path("made/streams")
    assert sorted(p.name for p in streams.iterdir()) == ["a.png.tfci", "b.png.tfci"]
    assert Path("x.bin").read_bytes() == (streams / "a.png.tfci").read_bytes()
    assert run("decompress", streams / "a.png.tfci", "--output", "a.bmp", *W) == 0
    assert run("decompress", streams / "a.png.tfci", streams / "b.png.tfci", "-o", "shown/", *W) == 0
    expected = tiny.decompress(Path("x.bin").read_bytes())
    assert Image.open("a.bmp").format == "BMP"
    np.testing.assert_array_equal(images.read_image("a.bmp"), expected)
    np.testing.assert_array_equal(images.read_image("shown/a.png.tfci.png"), expected)
    assert Path("shown/b.png.tfci.png").exists()


def test_existing_files_are_kept_without_force(run, tiny, crop):
    save("a.png", crop(20, 30))
    Path("a.png.tfci").write_bytes(b"precious")
    Path("a.out").write_bytes(b"precious")
    assert run("compress", "a.png", *W) == 1
    assert lines(run.err) == ["error: a.png.tfci: exists already (--force replaces it)"]
    assert run("compress", "a.png", "-o", "a.out", *W) == 1
    assert Path("a.png.tfci").read_bytes() == Path("a.out").read_bytes() == b"precious"
    assert run("compress", "a.png", "--force", *W) == 0
    assert Path("a.png.tfci").read_bytes() == tiny.compress(crop(20, 30))
    Path("a.png.tfci.png").write_bytes(b"precious")
    assert run("decompress", "a.png.tfci", *W) == 1
    assert Path("a.png.tfci.png").read_bytes() == b"precious"
    assert run("decompress", "a.png.tfci", "-f", *W) == 0


def test_one_bad_input_does_not_stop_the_others(run, crop):
    save("a.png", crop(20, 30))
    Path("b.png").write_text("no picture")
    save("c.png", crop(20, 30))
    assert run("compress", "a.png", "b.png", "missing.png", "c.png", *W) == 1
    assert Path("a.png.tfci").exists() and Path("c.png.tfci").exists()
    assert not Path("b.png.tfci").exists()
    assert len(lines(run.out)) == 2
    first, second = (line for line in lines(run.err) if line.startswith("error"))
    assert first == "error: b.png: is not an image, or of an unknown format"
    assert second == "error: missing.png: no such file or directory"
    Path("b.png.tfci").write_bytes(Path("a.png.tfci").read_bytes()[:-3])
    assert run("decompress", "a.png.tfci", "b.png.tfci", "c.png.tfci", *W) == 1
    assert Path("a.png.tfci.png").exists() and Path("c.png.tfci.png").exists()
    assert not Path("b.png.tfci.png").exists()


def test_groups_and_partial(run, tiny, crop):
    save("a.png", crop(60, 70))
    run("compress", "a.png", *W)
    data = Path("a.png.tfci").read_bytes()
    assert run("decompress", "a.png.tfci", "--groups", "1", "-o", "one.png", *W) == 0
    np.testing.assert_array_equal(images.read_image("one.png"), tiny.decompress(data, groups=1))
    Path("cut.tfci").write_bytes(data[: len(data) // 2])
    assert run("decompress", "cut.tfci", *W) == 1
    assert "truncated" in run.err
    assert run("decompress", "cut.tfci", "--partial", *W) == 0
    shown = images.read_image("cut.tfci.png")
    np.testing.assert_array_equal(shown, tiny.decompress(data[: len(data) // 2], partial=True))
    for groups in ("4", "-1"):
        assert run("decompress", "a.png.tfci", f"--groups={groups}", *W) == 1
        assert len(lines(run.err)) == 1 and "0 to 3" in run.err
    assert not Path("a.png.tfci.png").exists()


def test_folders_are_mirrored(run, tiny, crop):
    arrays = {"tree/a.png": crop(20, 30), "tree/x/a.png": crop(20, 30, top=200), "tree/x/y/b.png": crop(8, 8)}
    for name, array in arrays.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        save(name, array)
    assert run("compress", "tree/**/*.png", "-o", "out", *W) == 0
    assert run("decompress", "out", "-o", "back", *W) == 0
    for name, array in arrays.items():
        below = Path(name).relative_to("tree")
        stream = Path("out", f"{below}.tfci").read_bytes()
        assert stream == tiny.compress(array)
        np.testing.assert_array_equal(images.read_image(f"back/{below}.tfci.png"), tiny.decompress(stream))
    before = files("out")
    assert run("compress", "tree", "--recursive", "-o", "again", *W) == 0
    assert list(files("again").values()) == list(before.values())
    assert run("compress", "tree", "--no-recursive", "-o", "flat", *W) == 0
    assert set(files("flat")) == {"flat/a.png.tfci"}
    # Equal names are told apart, others are short.
    assert run("evaluate", "tree", "--json", "figures.json", *W) == 0
    names = [picture["name"] for picture in json.loads(Path("figures.json").read_text())["pictures"]]
    assert names == ["a.png", "x/a.png", "x/y/b.png"]


def test_an_argument_that_names_nothing_does_not_stop_the_others(run, crop):
    save("a.png", crop(20, 30))
    for command, result in (("compress", "a.png.tfci"), ("decompress", "a.png.tfci.png")):
        source = result.rsplit(".", 1)[0]
        assert run(command, "*.gif", source, *W) == 1
        assert lines(run.err) == ["error: *.gif: matches no file"] and Path(result).exists()
    assert run("evaluate", "*.gif", "a.png", *W) == 1
    assert "error: *.gif: matches no file" in run.err and "mean of 1" in run.out


# --- pictures of every kind --------------------------------------------------------------------------------------


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


KINDS = {
    "16-bit.png": lambda p, x: save(p, x[..., 0].astype(np.uint16) * 257),
    "grey.png": lambda p, x: save(p, x[..., 1]),
    "palette.png": lambda p, x: Image.fromarray(x).quantize(16).save(p),
    "bilevel.png": lambda p, x: Image.fromarray(x).convert("1").save(p),
    "cmyk.jpg": lambda p, x: Image.fromarray(x).convert("CMYK").save(p),
    "alpha.png": lambda p, x: save(p, np.concatenate([x, x[..., :1]], -1)),
    "exif.jpg": lambda p, x: save(p, x, exif=_exif(6)),
    "one pixel.png": lambda p, x: save(p, x[:1, :1]),
    "lossless.webp": lambda p, x: save(p, x, lossless=True),
}


def test_pictures_of_every_kind(run, tiny, crop):
    for name, make in KINDS.items():
        make(name, crop(20, 36))
    assert run("compress", *KINDS, *W) == 0
    assert lines(run.err) == ["warning: alpha.png: transparency is dropped"]
    assert run("decompress", *(f"{name}.tfci" for name in KINDS), *W) == 0
    for name in KINDS:
        shown, expected = images.read_image(f"{name}.tfci.png"), images.read_image(name)
        np.testing.assert_array_equal(shown, tiny.decompress(tiny.compress(expected)))
    assert images.read_image("exif.jpg.tfci.png").shape == (36, 20, 3)
    assert images.read_image("one pixel.png.tfci.png").shape == (1, 1, 3)


# --- what cannot be done -----------------------------------------------------------------------------------------


def make_bad_pictures(crop):
    """Name -> what is said of it."""
    Path("text.png").write_text("hello")
    Path("empty.png").write_bytes(b"")
    Path("folder.png").mkdir()
    save("whole.png", crop(40, 40))
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:900])
    Image.fromarray(crop(8, 8)[..., 0].astype(np.float32)).save("float.tif")
    return {
        "text.png": "is not an image",
        "empty.png": "is empty",
        "folder.png": "is a directory",
        "cut.png": "truncated",
        "float.tif": "32-bit",
        "missing.png": "no such file",
    }


def test_bad_pictures(run, crop):
    bad = make_bad_pictures(crop)
    before = files()
    for command in ("compress", "evaluate"):
        for name, message in bad.items():
            assert run(command, name, *W) == 1
            assert len(lines(run.err)) == 1 and run.out == ""
            assert run.err.startswith(f"error: {name}: ") and message in run.err
    for pattern in ("*.gif", "nowhere/*", "**/*.x"):
        assert run("compress", pattern, *W) == 1
        assert lines(run.err) == [f"error: {pattern}: matches no file"]
    assert files() == before


def make_bad_streams(tiny, crop):
    """Name -> what is said of it."""
    data = tiny.compress(crop(40, 40))
    header, payload, mark = container.unpack(data)
    Path("text.tfci").write_text("hello")
    Path("empty.tfci").write_bytes(b"")
    Path("folder.tfci").mkdir()
    Path("cut.tfci").write_bytes(data[:-10])
    Path("short.tfci").write_bytes(data[:7])
    Path("newer.tfci").write_bytes(data[:2] + b"\x07" + data[3:])
    Path("model.tfci").write_bytes(data[:3] + b"\xc8" + data[4:])
    Path("weights.tfci").write_bytes(data[:4] + b"abcd" + data[8:])
    Path("damaged.tfci").write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    Path("symbols.tfci").write_bytes(container.pack(header, payload, mark ^ 1))
    save("picture.tfci", crop(8, 8), format="PNG")
    return {
        "text.tfci": "not a stream of this zoo",
        "empty.tfci": "empty",
        "folder.tfci": "is a directory",
        "cut.tfci": "truncated",
        "short.tfci": "truncated",
        "newer.tfci": "version 7, newer than",
        "model.tfci": "a stream of an unknown model",
        "weights.tfci": "other weights (61626364)",
        "damaged.tfci": "damaged",
        "symbols.tfci": "symbols",
        "picture.tfci": "not a stream of this zoo",
        "missing.tfci": "no such file",
    }


def test_bad_streams(run, tiny, crop):
    bad = make_bad_streams(tiny, crop)
    before = files()
    for name, message in bad.items():
        assert run("decompress", name, *W) == 1, name
        assert len(lines(run.err)) == 1 and run.out == ""
        assert run.err.startswith(f"error: {name}: ") and message in run.err, run.err
        assert run.err.count(name) == 1
    assert files() == before


def test_streams_whose_weights_do_not_ship(run, tiny, crop):
    Path("a.tfci").write_bytes(tiny.compress(crop(8, 8)))
    assert run("decompress", "a.tfci") == 1
    (line,) = lines(run.err)
    assert line.startswith("error: a.tfci: ") and tiny.weights_id.hex() in line and "--weights" in line


def test_bad_outputs(run, tiny, crop):
    save("a.png", crop(8, 8))
    save("b.png", crop(8, 8))
    Path("a.tfci").write_bytes(tiny.compress(crop(8, 8)))
    Path("wide.tfci").write_bytes(tiny.compress(np.zeros([1, 66_000, 3], np.uint8)))
    Path("file").write_text("in the way")
    Path("folder").mkdir()
    before = files()
    for arguments, message in (
        (("compress", "a.png", "-o", "file/x.tfci"), "file/x.tfci: its folder"),
        (("compress", "a.png", "-o", "nowhere/x.tfci"), "nowhere/x.tfci: its folder does not exist"),
        (("compress", "a.png", "-o", "/proc/x.tfci"), "/proc/x.tfci: "),
        (("compress", "a.png", "b.png", "-o", "file"), "file: is a file"),
        (("compress", "a.png", "-o", "a.png"), "a.png: is an input"),
        (("decompress", "a.tfci", "-o", "x.xyz"), "x.xyz: cannot write images as .xyz"),
        (("decompress", "wide.tfci", "-o", "x.webp"), "x.webp: .webp files hold at most 16383 pixels a side"),
        (("decompress", "wide.tfci", "-o", "x.jpg"), "x.jpg: .jpg files hold at most 65500 pixels a side"),
        (("decompress", "a.tfci", "-o", "file/x.png"), "file/x.png: its folder"),
        (("decompress", "a.tfci", "-o", "/proc/x.png"), "/proc/x.png: "),
        (("evaluate", "a.png", "--json", "nowhere/x.json"), "nowhere/x.json: its folder"),
        (("evaluate", "a.png", "--json", "file"), "file: exists already"),
        (("evaluate", "a.png", "--json", "folder"), "folder: is a directory"),
        (("evaluate", "a.png", "--plot", "x.gif"), "x.gif: a plot is"),
        (("compress", "a.png", "-o", "n" * 300), "n" * 300 + ": cannot be written: file name too long"),
        (("decompress", "a.tfci", "-o", "n" * 300), "n" * 300 + ": cannot be written: file name too long"),
    ):
        assert run(*arguments, *W) == 1, arguments
        (line,) = lines(run.err)
        assert line.startswith(f"error: {message}"), line
        assert files() == before, arguments


@pytest.mark.parametrize(
    "arguments", [("--target_bpp", "nan"), ("--target_kb", "inf"), ("--target_kb", "0"), ("--target_bpp=-1",)]
)
def test_sizes_that_are_none(run, crop, arguments):
    save("a.png", crop(8, 8))
    assert run("compress", "a.png", *arguments, *W) == 1
    (line,) = lines(run.err)
    assert line.startswith(f"error: {arguments[0].split('=')[0]} ") and line.endswith("must be a number above 0")


def test_a_tile_may_be_larger_than_any_picture(run, tiny, crop):
    save("a.png", crop(8, 8))
    assert run("compress", "a.png", "--tile", 10**11, *W) == 0
    assert Path("a.png.tfci").read_bytes() == tiny.compress(crop(8, 8))


def test_bad_weights(run, tiny_weights, crop):
    save("a.png", crop(8, 8))
    Path("text.safetensors").write_text("hello, this is no weights file")
    Path("empty.safetensors").write_bytes(b"")
    data = tiny_weights.read_bytes()
    Path("cut.safetensors").write_bytes(data[:-100])
    Path("flipped.safetensors").write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    Path("folder.safetensors").mkdir()
    before = files()
    for name in ("text", "empty", "cut", "flipped", "folder", "missing"):
        path = f"{name}.safetensors"
        for command in ("compress", "evaluate"):
            assert run(command, "a.png", "--weights", path) == 1, name
            (line,) = lines(run.err)
            assert line.startswith(f"error: {path}: ") and "weights" in line, line
    assert files() == before


def test_weights_that_do_not_ship(run, crop, monkeypatch, tmp_path):
    monkeypatch.setattr("models.codec.weights.SHIPPED", tmp_path / "none")
    save("a.png", crop(8, 8))
    assert run("compress", "a.png", "--preset", "base") == 1
    assert lines(run.err) == ["error: no weights for elic base ship: name a file with --weights, or train some"]
    assert run("compress", "a.png") == 1


def test_weights_that_ship_are_found(run, crop, monkeypatch, tmp_path, tiny_weights):
    """By default the first preset's; to decompress, those that wrote the file."""
    shipped = tmp_path / "shipped"
    (shipped / "elic").mkdir(parents=True)
    shutil.copy(tiny_weights, shipped / "elic" / "small.safetensors")
    monkeypatch.setattr("models.codec.weights.SHIPPED", shipped)
    save("a.png", crop(8, 8))
    assert run("compress", "a.png") == 0
    assert run("compress", "a.png", "--preset", "small", "-f") == 0
    assert run("decompress", "a.png.tfci") == 0
    assert run("compress", "a.png", "--preset", "base", "-f") == 1


def test_a_preset_may_ship_with_several_weights(run, crop, monkeypatch, tmp_path, tiny_weights):
    shipped = tmp_path / "shipped" / "elic"
    shipped.mkdir(parents=True)
    monkeypatch.setattr("models.codec.weights.SHIPPED", shipped.parent)
    for name in ("small-b", "small-a", "smaller"):
        shutil.copy(tiny_weights, shipped / f"{name}.safetensors")
    save("a.png", crop(8, 8))
    for chosen in ((), ("--preset", "small"), ("--preset", "small-b")):
        assert run("evaluate", "a.png", "--json", "a.json", "-f", *chosen) == 0
        expected = "small-b" if chosen[1:] == ("small-b",) else "small-a"
        assert json.loads(Path("a.json").read_text())["weights"] == f"{expected}.safetensors"
    shutil.copy(tiny_weights, shipped / "small.safetensors")
    for chosen, expected in (((), "small"), (("--preset", "small"), "small"), (("--preset", "small-a"), "small-a")):
        assert run("evaluate", "a.png", "--json", "a.json", "-f", *chosen) == 0
        assert json.loads(Path("a.json").read_text())["weights"] == f"{expected}.safetensors"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("expand", "a.png"),
        ("compress",),
        ("decompress",),
        ("evaluate",),
        ("compress", "a.png", "--quality", "3", "--target_kb", "5"),
        ("compress", "a.png", "--crf", "3"),
        ("compress", "a.png", "--preset", "huge"),
        ("compress", "a.png", "--preset", "small", "--weights", "x"),
        ("decompress", "a.tfci", "--groups", "many"),
        ("train", "--lambda", "much"),
        ("train", "--epochs", "1.5"),
        ("train", "stray.png"),
    ],
)
def test_usage_errors(run, arguments):
    assert run(*arguments) == 2
    assert run.err.startswith("usage: elic.py") and run.out == ""
    assert lines(run.err)[-1].startswith("elic.py") and ": error: " in lines(run.err)[-1]
    assert not files()


@pytest.mark.parametrize("command", ["train", "compress", "decompress", "evaluate"])
def test_help(run, command):
    assert run(command, "--help") == 0
    assert run.out.startswith(f"usage: elic.py {command}") and run.err == ""
    for flag in re.findall(r"^  (?:-\w(?: \w+)?, )?(--\w+)", run.out, re.MULTILINE):
        assert flag != "--" and not flag.startswith("--help_"), flag


def test_help_says_what_groups_and_partial_are_for(run):
    assert run("decompress", "--help") == 0
    text = " ".join(run.out.split())
    assert "preview" in text and "progressive" in text and "cut off" in text


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_effort(run, tiny, crop, tmp_path):
    choosing = ["--weights", with_config(tiny.path, tmp_path, rdoq=1.0).path]
    save("a.png", crop(70, 90))
    sizes = {}
    for effort in (0, 1, 6):
        assert run("compress", "a.png", "-f", "--effort", effort, *choosing) == 0
        sizes[effort] = Path("a.png.tfci").read_bytes()
        assert run("evaluate", "a.png", "-f", "--effort", effort, "--json", "figures.json", *choosing) == 0
        figures = json.loads(Path("figures.json").read_text())
        assert figures["effort"] == effort and figures["pictures"][0]["num_bytes"] == len(sizes[effort])
    assert run("compress", "a.png", "-f", *choosing) == 0
    assert Path("a.png.tfci").read_bytes() == sizes[6] != sizes[0] == tiny.compress(crop(70, 90))
    assert run("compress", "a.png", "-f", "--effort", "0", *W) == 0
    with mock.patch("models.app.serving.export") as export:
        assert run("export", "served", "--effort", "2", *choosing) == 0
    assert export.call_args.args[-1].effort == 2
    for command in ("compress", "evaluate"):
        assert run(command, "a.png", "-f", "--effort", "-1", *choosing) == 1
        assert run.err == "error: --effort -1: must not be negative\n"
        assert run(command, "a.png", "-f", "--effort", "2", *W) == 1
        assert run.err == "error: --effort 2: files of these elic weights take the nearest symbols\n"


def test_evaluate_prints_a_table_and_writes_json(run, tiny, crop):
    save("a.png", crop(180, 200))
    save("b.png", crop(20, 30))
    Path("c.png").write_text("no picture")
    assert run("evaluate", "?.png", "--json", "figures.json", *W) == 1
    assert [line for line in lines(run.err) if line.startswith("error")] == [
        "error: c.png: is not an image, or of an unknown format"
    ]
    table = lines(run.out)
    assert len(table) == 4 and table[0].split()[0] == "image" and table[-1].startswith("mean of 2")
    figures = json.loads(Path("figures.json").read_text())
    assert figures["model"] == "elic" and figures["weights_id"] == tiny.weights_id.hex()
    assert figures["lambda"] == tiny.settings()["lambda"]
    assert os.sep not in figures["weights"]
    first, second = figures["pictures"]
    assert (first["name"], second["name"]) == ("a.png", "b.png")
    data = tiny.compress(crop(180, 200))
    assert first["num_bytes"] == len(data)
    assert first["bpp"] == pytest.approx(8 * len(data) / (180 * 200))
    mse = np.mean((tiny.decompress(data).astype(float) - crop(180, 200)) ** 2)
    assert first["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
    assert 0 < first["ms_ssim"] <= 1 and second["ms_ssim"] is None
    assert figures["mean"]["bpp"] == pytest.approx((first["bpp"] + second["bpp"]) / 2)
    assert f"{first['psnr']:.3f}" in table[1] and f"{first['bpp']:.4f}" in table[1]
    assert run("evaluate", "a.png", "--json", "figures.json", "--force", *W) == 0
    assert len(json.loads(Path("figures.json").read_text())["pictures"]) == 1


def test_evaluate_makes_graphs_for_many_files(run, crop, monkeypatch):
    for size, name in (((180, 200), "a.png"), ((200, 180), "b.png"), ((190, 190), "c.png")):
        save(name, crop(*size))
    trace = mock.Mock(side_effect=Codec.trace)
    monkeypatch.setattr(Codec, "trace", lambda codec, options: trace(codec))
    figures = []
    for first in (4, 3):
        monkeypatch.setattr(commands, "TRACE_FROM", first)
        assert not trace.called
        assert run("evaluate", "?.png", "-f", "--json", "figures.json", *W) == 0
        figures.append(json.loads(Path("figures.json").read_text())["pictures"])
    assert trace.called
    for one, other in zip(*figures):
        assert one["name"] == other["name"]
        assert one["num_bytes"] == pytest.approx(other["num_bytes"], abs=0)
        assert one["psnr"] == pytest.approx(other["psnr"], abs=0.001)


def test_many_files_are_worked_through_with_graphs(run, crop, monkeypatch):
    for n in range(3):
        save(f"{n}.png", crop(40 + n, 60))
    trace = mock.Mock(side_effect=Codec.trace)
    monkeypatch.setattr(Codec, "trace", lambda codec, options: trace(codec, options))
    for first, calls in ((4, 0), (3, 2)):
        monkeypatch.setattr(commands, "TRACE_FROM", first)
        assert run("compress", "?.png", "-o", "packed", "-f", *W) == 0
        assert run("decompress", "packed/*.tfci", "-o", "back", "-f", *W) == 0
        assert trace.call_count == calls
        sizes = [images.read_image(f"back/{n}.png.tfci.png").shape for n in range(3)]
        assert sizes == [(40 + n, 60, 3) for n in range(3)]


# --- train -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(crop):
    def pictures(count, size=40):
        Path("photos").mkdir()
        for n in range(count):
            save(f"photos/{n}.png", crop(size, size, top=30 * n, left=40 * n))
        return "photos/*.png"

    return pictures


def test_bad_training_runs(run, pictures, tiny_weights):
    Path("empty").mkdir()
    Path("text.safetensors").write_text("hello, this is no weights file")
    source = ("--train_glob", pictures(3))
    before = files()
    for arguments, message in (
        ((*source, "--lambda", "0"), "λ must be positive, not 0"),
        ((*source, "--lambda=-1"), "λ must be positive, not -1"),
        ((*source, "--lambda", "nan"), "λ must be positive, not nan"),
        ((*source, "--lambda", "0.1,0.01"), "several λ must be different and in rising order"),
        ((*source, "--batchsize", "0"), "--batchsize 0: must be above 0"),
        ((*source, "--tfds", "clic"), "give either --train_glob or --tfds"),
        (("--train_glob", "empty/*.png"), "empty/*.png"),
        ((*source, "--patchsize", "512"), ""),
        ((*source, "--patchsize", "32", "--init_weights", "missing.safetensors"), "missing.safetensors: no such"),
        ((*source, "--patchsize", "32", "--init_weights", "text.safetensors"), "text.safetensors: not a"),
    ):
        assert run("train", "--train_path", "out", *arguments) == 1, arguments
        line = lines(run.err)[-1]
        assert line.startswith(f"error: {message}"), line
        shutil.rmtree("out", ignore_errors=True)  # a run that has begun may leave its settings
        assert files() == before, arguments


def test_training_goes_on_from_weights_of_its_own_model_and_lambda(run, pictures, tiny_weights, tiny, monkeypatch):
    import train.fit
    from models.codec.registry import get
    from models.io.errors import UserError

    def fit(build, options):
        begun.append(build())
        return SimpleNamespace(best="", final="")

    begun = []
    monkeypatch.setattr(train.fit, "fit", fit)
    source = ("--train_glob", pictures(1), "--init_weights", "{weights}")
    assert run("train", *source) == 0 and begun[-1].lambdas == tiny.lambdas
    assert run("train", *source, "--lambda", "0.5") == 0 and begun[-1].lambdas == (0.5,)
    for model in ("sft", "cwic", "sae_spn", "elc"):
        entry = get(model)
        with pytest.raises(UserError, match=f"weights of elic, not of {model}"):
            storage.load_checkpoint(entry.name, tiny_weights)


def test_train_compress_decompress(run, pictures, monkeypatch, tiny):
    """The three commands together, on pictures that train nothing, with a preset of the tiny model's size."""
    from models.elic import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", tiny.config)
    monkeypatch.setitem(registry.card("elic").presets, "tiny", registry.Preset("for this test"))
    flags = ("--patchsize", "32", "--batchsize", "2", "--epochs", "1", "--steps_per_epoch", "2")
    source = ("--train_glob", pictures(6), "--train_path", "out", "--preset", "tiny", "--lambda", "0.02")
    assert run("train", *source, *flags, "--validation_steps", "1", "--calibration", "16", "--seed", "1") == 0
    assert lines(run.out)[-2:] == [
        "trained weights: out/best.safetensors (lowest validation loss), out/final.safetensors (last step)",
        "to use them: python models/elic.py compress IMAGE --weights out/best.safetensors",
    ]
    for name in ("best", "final"):
        weights = ("--weights", f"out/{name}.safetensors")
        assert run("compress", "photos/0.png", "-f", *weights) == 0
        assert run("decompress", "photos/0.png.tfci", "-f", *weights) == 0
        assert images.read_image("photos/0.png.tfci.png").shape == (40, 40, 3)
    assert run("train", *source, *flags) == 1
    assert lines(run.err)[-1].startswith("error: out: holds a training run")


# --- as a process ------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path, tiny_weights):
    def process(*arguments):
        command = [sys.executable, str(ROOT / "models" / "elic.py"), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return process


def test_as_a_process(process, tmp_path, tiny, tiny_weights, crop):
    """`python models/elic.py` from any folder: TensorFlow is silent, exit codes are right."""
    for n in range(2):
        save(tmp_path / f"{n}.png", crop(20, 30, top=100 * n))
    (tmp_path / "bad.png").write_text("no picture")
    done = process("compress", "0.png", "bad.png", "1.png", "--weights", tiny_weights)
    assert done.returncode == 1
    assert len(lines(done.stdout)) == 2
    errors = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip() and "file" not in line.split("|")[-1]]
    assert errors == ["error: bad.png: is not an image, or of an unknown format"], done.stderr
    for n in range(2):
        data = (tmp_path / f"{n}.png.tfci").read_bytes()
        assert data == tiny.compress(crop(20, 30, top=100 * n))
    done = process("decompress", "0.png.tfci", "--weights", tiny_weights)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(
        images.read_image(tmp_path / "0.png.tfci.png"), tiny.decompress((tmp_path / "0.png.tfci").read_bytes())
    )


def test_names_that_are_no_text_and_results_to_a_pipe(tmp_path, tiny, tiny_weights, crop):
    """As in a terminal with UTF-8, whose output refuses other bytes."""
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / name, crop(20, 30))
    command = [sys.executable, str(ROOT / "models" / "elic.py"), "compress", name, "--weights", str(tiny_weights)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}

    def process(*flags):
        done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return done

    assert process().stdout.startswith(b"caf\\udce9.png -> ")
    assert (tmp_path / (name + ".tfci")).read_bytes() == tiny.compress(crop(20, 30))
    done = process("-o", "/dev/stdout")
    assert done.stdout == tiny.compress(crop(20, 30)) and b" -> /dev/stdout: 30x20" in done.stderr


def test_help_as_a_process(process):
    done = process("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: elic.py")
    for command in ("train", "compress", "decompress", "evaluate"):
        assert command in done.stdout
