"""The program that writes a page: what is on it, what is measured again, what a user's mistake does."""

import csv
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import classical, report
from eval.report import __main__ as program
from eval.report import codecs
from models.codec import base

POINTS = 2


@pytest.fixture
def arguments(tmp_path, monkeypatch, crop, tiny_weights):
    monkeypatch.chdir(tmp_path)
    for name, place in (("a.png", 0), ("b.png", 90)):
        Image.fromarray(crop(176, 192, place)).save(name)
    shutil.copy(tiny_weights, "tiny.safetensors")
    options = ["--points", str(POINTS), "--effort", "0", "--codecs", "jpeg,webp", "--show", "1"]
    return ["--images", "?.png", "--weights", "tiny.safetensors", "-o", "out", *options]


@pytest.fixture
def encodes(monkeypatch):
    """What was compressed, by codec; a test may name the call that is interrupted."""
    calls = {"tiny": 0, "classical": 0, "interrupt": None}

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            if calls["tiny"] + calls["classical"] == calls["interrupt"]:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(base.Codec, "compress", counted("tiny", base.Codec.compress))
    monkeypatch.setattr(base.Codec, "trace", lambda *_: None)  # graphs take seconds to make
    monkeypatch.setattr(classical, "encode", counted("classical", classical.encode))
    return calls


class _Page(HTMLParser):
    """Finds the data of a page, and that each element is closed where it should be."""

    VOID = {"meta", "img", "input", "link", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.fetched, self.data = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.fetched += [attrs[key] for key in ("src", "href") if key in attrs]
        if tag not in self.VOID:
            self.open.append((tag, attrs.get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == ("script", "data"):
            self.data += data


def page_of(folder):
    page = _Page(Path(folder, "index.html").read_text(encoding="utf-8"))
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert page.fetched == []  # nothing but what the page holds, and images/, which it can do without
    return page


def test_a_page_of_all_curves_then_nothing_is_measured_again(arguments, encodes, capsys):
    assert program.main(arguments) == 0
    first = dict(encodes)
    # These weights are of one rate: two images, a warm-up, and the first image to show.
    assert first["tiny"] == 4 and first["classical"] > 4 * POINTS

    data = json.loads(page_of("out").data)
    curves = {curve["name"]: curve for curve in data["curves"]}
    assert set(curves) == {"tiny.safetensors", "jpeg", "webp"} | set(report.load_anchors())
    assert len(curves["jpeg"]["bpp"]) == POINTS and data["comparable"] is False
    assert set(data["bd"]) == {"psnr", "ms_ssim"}
    assert [row["anchor"] for row in data["bd"]["psnr"]["rows"]] == data["bd"]["psnr"]["tests"]

    (shown,) = data["shown"]
    original = np.asarray(Image.open("a.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(Path("out", shown["original"]["file"]))), original)
    compared = [entry for rate in shown["rates"] for entry in rate["codecs"]]
    assert {"tiny.safetensors", "jpeg"} <= {entry["name"] for entry in compared}
    for rate in shown["rates"]:
        limit = rate["codecs"][0]["num_bytes"]
        assert rate["codecs"][0]["name"] == "tiny.safetensors"
        assert all(0.9 * limit <= entry["num_bytes"] <= limit for entry in rate["codecs"])
    assert all(entry["preview"].startswith("data:image/webp;base64,") for entry in compared)

    with open("out/report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads(Path("out/report.json").read_text())
    assert (
        len(rows) == len(content["measurements"]) == 2 * sum(len(curves[name]["bpp"]) for name in curves_measured(data))
    )
    of_jpeg = [float(row["psnr"]) for row in rows if row["codec"] == "jpeg" and float(row["quality"]) == 5]
    assert curves["jpeg"]["psnr"][0] == pytest.approx(np.mean(of_jpeg))
    for key in ("encode_mb", "decode_mb"):  # only Linux tells
        known = [len(curves[name].get(key, ())) == len(curves[name]["bpp"]) for name in curves_measured(data)]
        assert all(known) if sys.platform == "linux" else not any(known)
    errors = [10 ** (-psnr / 10) for psnr in of_jpeg]
    assert curves["jpeg"]["psnr_of_mean"][0] == pytest.approx(-10 * np.log10(np.mean(errors)))
    assert Path("out/psnr.png").read_bytes()[:4] == Path("out/ms_ssim.png").read_bytes()[:4] == b"\x89PNG"

    assert program.main(arguments) == 1
    assert "exists already (--force replaces it)" in capsys.readouterr().err
    assert program.main([*arguments, "--force"]) == 0
    assert encodes == first
    again = json.loads(page_of("out").data)
    assert again["curves"] == data["curves"] and again["shown"] == data["shown"]


def curves_measured(data):
    return [curve["name"] for curve in data["curves"] if curve["kind"] != "published"]


def test_an_interrupted_run_goes_on_where_it_was(arguments, encodes):
    assert program.main([*arguments[:-1], "0"]) == 0
    uninterrupted = encodes["tiny"] + encodes["classical"]
    shutil.rmtree("out")
    encodes.update(tiny=0, classical=0, interrupt=uninterrupted - 2)
    with pytest.raises(KeyboardInterrupt):
        program.main([*arguments[:-1], "0"])
    assert not Path("out/index.html").exists()
    encodes["interrupt"] = None
    assert program.main([*arguments[:-1], "0"]) == 0
    # The one that was interrupted, and none else, is done twice.
    assert encodes["tiny"] + encodes["classical"] == uninterrupted + 1
    assert json.loads(page_of("out").data)["shown"] == []


def test_an_image_that_is_none_is_left_out(arguments, encodes, capsys):
    Path("c.png").write_text("no image")
    assert program.main([*arguments[:-1], "0"]) == 1
    error = capsys.readouterr().err
    assert "error: c.png: is not an image" in error and len(error.strip().splitlines()) == 1
    assert json.loads(page_of("out").data)["images"] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "change, message",
    [
        (["--codecs", "jpeg,bpg"], "there is no 'bpg'"),
        (["--weights", "elic/huge"], "no weights for elic huge"),
        (["--weights", "none.safetensors"], "none.safetensors: no such weights file"),
        (["--images", "none/*.png"], "none/*.png: matches no file"),
        (["--points", "0"], "--points 0"),
        (["-o", "a.png"], "a.png"),
    ],
)
def test_a_mistake_is_one_line(arguments, capsys, change, message):
    assert program.main([*arguments, *change]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
    assert not Path("out/index.html").exists()


def test_weights_of_several_rates_are_measured_at_both_ends_and_between(golden_weights, encodes, crop):
    codec = codecs.learned_codec(str(golden_weights("sft")), 3, 0)
    assert codec.qualities == [0, 0.5, 1] and codec.settings["weights"] == codec.about["weights id"]
    image = crop(64, 80)
    low, high = (len(codec.encode(image, quality)) for quality in (0, 1))
    assert low < high
    assert low <= len(codec.fit(image, high - 1)) < high
    with pytest.raises(ValueError):
        codec.fit(image, 10)


def test_how_images_look(arguments, encodes):
    """Curves and rows have what the judge says; what was measured without it is measured again."""
    assert program.main([*arguments, "--show", "0"]) == 0
    without = json.loads(Path("out/report.json").read_text())
    assert "ssimulacra2" not in without["curves"][0]
    before = encodes["tiny"]
    assert program.main([*arguments, "--show", "0", "--perceptual", "-f"]) == 0
    assert encodes["tiny"] == 2 * before
    data = json.loads(Path("out/report.json").read_text())
    for name in report.PERCEPTUAL:
        assert all(np.isfinite(row[name]) for row in data["measurements"])
        assert len(data["curves"][0][name]) == len(data["curves"][0]["bpp"]) > 0
    assert next(csv.DictReader(Path("out/report.csv").read_text().splitlines()))["feature_distance"]


def test_names_cannot_end_the_data(arguments):
    text = program.page({"title": "</script><b>"}, "")
    assert json.loads(_Page(text).data) == {"title": "</script><b>"}
    assert re.search(r"{{\w+}}", text) is None


def test_a_quality_without_loss_is_no_point():
    row = {"codec": "c", "bpp": 1.0, "encode_s": 0.1, "decode_s": 0.1}
    rows = [{**row, "quality": 1, "psnr": 30.0, "ms_ssim": 0.9}, {**row, "quality": 2, "psnr": np.inf, "ms_ssim": 1.0}]
    codec = codecs.Codec("c", "classical", {}, {}, [1, 2], *[None] * 4)
    columns = program.means(codec, rows)
    assert columns["quality"] == [1] and columns["psnr_of_mean"] == [pytest.approx(30)]
