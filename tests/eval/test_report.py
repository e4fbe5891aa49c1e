"""Tables, JSON and comparisons say what was measured."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from eval import report
from eval.report import Curve, Measurement
from models.io.errors import UserError

ROWS = [
    Measurement("a.png", 1000, 100, 80, 30.0, 0.9),
    Measurement("a-longer-name.png", 3000, 50, 80, 36.0, 0.98),
    Measurement("tiny.png", 300, 20, 30, 33.0, math.nan),
]
ANCHOR = Curve("a", (0.1, 0.2, 0.4, 0.8), (28.0, 30.5, 33.0, 36.0), (0.9, 0.95, 0.975, 0.99))
OTHER = Curve("b", (0.12, 0.25, 0.45, 0.7, 1.0), (29.0, 32.0, 34.0, 36.0, 37.5), (0.91, 0.96, 0.98, 0.99, 0.993))


# --- tables ----------------------------------------------------------------------------------------------


def test_mean_is_of_per_picture_values():
    result = report.mean(ROWS)
    assert result["bpp"] == pytest.approx((1 + 6 + 4) / 3)
    assert result["psnr"] == pytest.approx(33)
    assert result["ms_ssim"] == pytest.approx(0.94)  # of the two that have one
    assert math.isnan(report.mean(ROWS[2:])["ms_ssim"])
    with pytest.raises(ValueError, match="no images"):
        report.mean([])


def test_table_has_a_line_per_picture_and_the_mean():
    lines = report.table(ROWS).split("\n")
    assert lines[0].split() == ["image", "size", "bytes", "bpp", "PSNR", "MS-SSIM"]
    assert lines[1].split() == ["a.png", "80x100", "1000", "1.0000", "30.000", "0.90000"]
    assert lines[2].split() == ["a-longer-name.png", "80x50", "3000", "6.0000", "36.000", "0.98000"]
    assert lines[3].split() == ["tiny.png", "30x20", "300", "4.0000", "33.000", "-"]
    assert lines[4].split() == ["mean", "of", "3", "1433", "3.6667", "33.000", "0.94000"]
    assert len({len(line) for line in lines}) == 1


def test_json_is_json_and_complete(tmp_path):
    path = tmp_path / "r.json"
    lossless = Measurement("same.png", 5, 2, 2, math.inf, math.nan)
    report.write_json(path, [*ROWS, lossless], model="elic", controls={"quality": math.nan})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["model"] == "elic" and content["controls"] == {"quality": None}
    assert content["mean"]["psnr"] is None and content["mean"]["ms_ssim"] == pytest.approx(0.94)
    assert content["pictures"][0] == {
        "name": "a.png",
        "num_bytes": 1000,
        "height": 100,
        "width": 80,
        "psnr": 30.0,
        "ms_ssim": 0.9,
        "bpp": 1.0,
    }
    assert content["pictures"][3]["psnr"] is None
    with pytest.raises(UserError, match="exists already"):
        report.write_json(path, ROWS)
    report.write_json(path, ROWS, force=True)
    assert "model" not in json.loads(path.read_text())


# --- other codecs ----------------------------------------------------------------------------------------


def test_the_anchors_that_ship():
    anchors = report.load_anchors()
    jpeg = anchors["jpeg-420"]
    assert (jpeg.bpp[0], jpeg.psnr[0], jpeg.ms_ssim[0]) == (0.1408, 23.8522, 0.807085)
    assert "4:2:0" in jpeg.setting
    assert {"webp-m6", "avif-444-s4", "jpeg2000", "bpg-444", "vtm", "elic2022", "hific"} <= set(anchors)
    assert anchors["elic2022-msssim"].psnr == () and len(anchors["elic2022-msssim"].ms_ssim) == 6
    for curve in anchors.values():
        assert list(curve.bpp) == sorted(curve.bpp) and curve.setting
        assert {len(curve.psnr), len(curve.ms_ssim)} <= {0, len(curve.bpp)}
        assert all(15 < value < 60 for value in curve.psnr)
        assert all(0.4 < value < 1 for value in curve.ms_ssim)


def test_anchors_as_points_and_as_lists_are_the_same(tmp_path):
    lists = {"codecs": {"x": {"setting": "s", "bpp": [0.2, 0.1], "psnr": [30, 28]}}}
    points = {"x": {"source": "s", "points": [{"bpp": 0.2, "psnr": 30, "enc_s": 1}, {"bpp": 0.1, "psnr": 28}]}}
    for name, content in [("l", lists), ("p", points)]:
        (tmp_path / name).write_text(json.dumps(content))
        assert report.load_anchors(tmp_path / name) == {"x": Curve("x", (0.1, 0.2), (28.0, 30.0), (), "s")}


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"x": 3}', '{"x": {"psnr": [1]}}', '{"x": {"bpp": [1, 2], "psnr": [1]}}', "{"]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="x.json: not a file of rate-distortion curves"):
        report.load_anchors(tmp_path / "x.json")
    with pytest.raises(UserError, match="no such file"):
        report.load_anchors(tmp_path / "none.json")


def test_interpolation_goes_through_the_points_and_not_beyond():
    for rate, quality in zip(ANCHOR.bpp, ANCHOR.psnr):
        assert report.interpolate(ANCHOR, rate) == pytest.approx(quality)
    between = [report.interpolate(ANCHOR, rate) for rate in (0.2, 0.25, 0.3, 0.35, 0.4)]
    assert between == sorted(between)
    # Over the logarithm of the rate, a straight line there is found exactly.
    line = Curve("l", (0.1, 0.2, 0.4), (20.0, 23.0, 26.0))
    assert report.interpolate(line, 0.1 * math.sqrt(2)) == pytest.approx(21.5)
    assert math.isnan(report.interpolate(ANCHOR, 0.0999)) and math.isnan(report.interpolate(ANCHOR, 0.81))
    assert math.isnan(report.interpolate(Curve("one", (0.3,), (30.0,)), 0.3))
    assert report.interpolate(ANCHOR, 0.1, "ms_ssim") == pytest.approx(10)
    with pytest.raises(ValueError, match="l has no ms_ssim"):
        report.interpolate(line, 0.2, "ms_ssim")


def test_bd_rate_of_shifted_curves():
    dearer = Curve("d", tuple(1.25 * rate for rate in ANCHOR.bpp), ANCHOR.psnr)
    assert report.bd_rate(ANCHOR, ANCHOR) == pytest.approx(0)
    assert report.bd_rate(ANCHOR, dearer) == pytest.approx(25)
    assert report.bd_rate(dearer, ANCHOR) == pytest.approx(-20)


def test_bd_rate_is_that_of_the_bjontegaard_package():
    # bjontegaard 1.3.0: bd_rate(..., method="pchip", require_matching_points=False, min_overlap=0)
    assert report.bd_rate(ANCHOR, OTHER) == pytest.approx(-14.327499933, abs=1e-8)
    anchors = report.load_anchors()
    for name, expected in [("bpg-444", 21.986136759), ("elic2022", -7.025370426), ("webp-m6", 82.892959929)]:
        assert report.bd_rate(anchors["vtm"], anchors[name]) == pytest.approx(expected, abs=1e-8)


def test_bd_rate_without_common_ground_or_with_odd_points():
    far = Curve("f", (1.0, 2.0), (40.0, 45.0))
    assert math.isnan(report.bd_rate(ANCHOR, far)) and math.isnan(report.bd_rate(far, ANCHOR))
    assert math.isnan(report.bd_rate(ANCHOR, Curve("one", (0.3,), (30.0,))))
    useless = Curve("u", (0.1, 0.15, 0.2, 0.4, 0.8), (28.0, 27.0, 30.5, 33.0, 36.0))
    assert report.bd_rate(ANCHOR, useless) == pytest.approx(0)


def test_bd_rate_in_ms_ssim_is_over_its_decibels():
    # A tenth of the distance to 1 is 10 dB more: these two straight lines lie a factor of two apart.
    low = Curve("l", (0.1, 1.0), ms_ssim=(0.9, 0.99))
    high = Curve("h", (0.2, 2.0), ms_ssim=(0.9, 0.99))
    assert report.bd_rate(low, high, "ms_ssim") == pytest.approx(100)
    steeper = Curve("s", (0.1, 0.4), ms_ssim=(0.9, 0.99))
    assert report.bd_rate(low, steeper, "ms_ssim") == pytest.approx(100 * (10**-0.19897 - 1), abs=1e-3)


def test_standing_says_by_how_much():
    lines = report.standing({"bpp": 0.2, "psnr": 31.0}, [ANCHOR, Curve("far", (1.0, 2.0), (40.0, 45.0))]).split("\n")
    assert lines[0] == "at 0.2000 bpp: 31.00 dB"
    assert lines[1].split() == ["a", "30.50", "dB", "+0.50", "dB"]
    assert lines[2].split() == ["far", "not", "at", "this", "rate", "(1.000", "to", "2.000", "bpp)"]


def test_standing_in_ms_ssim_is_in_decibels():
    lines = report.standing({"bpp": 0.2, "psnr": 31.0, "ms_ssim": 0.975}, [ANCHOR], "ms_ssim").split("\n")
    assert lines[0] == "at 0.2000 bpp: 16.02 dB (MS-SSIM)"
    assert lines[1].split() == ["a", "13.01", "dB", "+3.01", "dB"]
    rates = report.bd_rates(Curve("b", (0.05, 0.1, 0.2, 0.4), ms_ssim=ANCHOR.ms_ssim), [ANCHOR], "ms_ssim").split("\n")
    assert rates[0].startswith("BD-rate (MS-SSIM) of b") and rates[1].split() == ["a", "-50.0", "%"]


def test_what_is_comparable_has_the_metric_and_was_made_for_it():
    only_psnr, tuned = Curve("p", (0.1, 0.2), (30.0, 31.0)), Curve("x-msssim", (0.1,), (29.0,), (0.9,))
    assert report.comparable([ANCHOR, only_psnr, tuned], "psnr") == [ANCHOR, only_psnr]
    assert report.comparable([ANCHOR, only_psnr, tuned], "ms_ssim") == [ANCHOR, tuned]


# --- plots -----------------------------------------------------------------------------------------------


def test_a_plot_shows_every_curve_that_has_the_metric(tmp_path):
    no_similarity = Curve("psnr only", (0.1, 0.2), (30.0, 31.0))
    report.plot(tmp_path / "a.svg", [OTHER], [ANCHOR, no_similarity], title="Kodak")
    report.plot(tmp_path / "m.svg", [OTHER], [ANCHOR, no_similarity], metric="ms_ssim")
    both, similarity = (tmp_path / "a.svg").read_text(), (tmp_path / "m.svg").read_text()
    assert "psnr only" in both and "Kodak" in both and "PSNR, dB" in both
    assert "psnr only" not in similarity and "MS-SSIM, dB" in similarity


def test_plots_of_one_point_of_nothing_and_of_no_kind(tmp_path):
    report.plot(tmp_path / "one.png", [Curve("one", (0.3,), (30.0,))], [ANCHOR])
    report.plot(tmp_path / "none.png", [], [])
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "none.png") as none:
        assert one.size == none.size and np.asarray(one).std() > np.asarray(none).std() > 0
    with pytest.raises(UserError, match=r"a plot is \.png"):
        report.plot(tmp_path / "a.txt", [OTHER])
    with pytest.raises(UserError, match="exists already"):
        report.plot(tmp_path / "one.png", [OTHER])


def test_a_plot_is_of_the_rates_of_the_curves(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.plot(ANCHOR.bpp, ANCHOR.psnr)
    report._zoom(axes, 0.15, 0.5)
    assert axes.get_xlim() == (0.15, 0.5) and axes.get_ylim() == (30.0, 33.5)

    shown = []
    monkeypatch.setattr(report, "_zoom", lambda _, left, right: shown.append((left, right)))
    report.plot(tmp_path / "a.png", [Curve("one", (0.3,), (30.0,)), Curve("two", (0.1,), (28.0,))], [ANCHOR])
    report.plot(tmp_path / "b.png", [], [ANCHOR])  # all of the anchor
    assert shown == [(0.0, pytest.approx(0.55))]


def test_bd_quality_of_shifted_curves():
    better = Curve("b", ANCHOR.bpp, tuple(value + 1.5 for value in ANCHOR.psnr))
    assert report.bd_quality(ANCHOR, better) == pytest.approx(1.5)
    assert report.bd_quality(better, ANCHOR) == pytest.approx(-1.5)
    assert math.isnan(report.bd_quality(ANCHOR, Curve("f", (1.0, 2.0), (40.0, 45.0))))


def test_bd_rates_of_a_measured_curve():
    """Half the bytes at the same quality is -50 %, and a curve through means is rising whatever the order."""

    def measured(name, size, quality):
        return [
            report.Measurement(name, size, 100, 80, quality - 1, 0.9),
            report.Measurement(name, size, 100, 80, quality + 1, 0.8),
        ]

    points = [measured("a", 800, 33.0), measured("a", 200, 27.0), measured("a", 400, 30.0)]
    curve = report.curve_of("ours", points)
    assert curve.bpp == (0.2, 0.4, 0.8) and curve.psnr == (27.0, 30.0, 33.0)
    np.testing.assert_allclose(curve.ms_ssim, 0.85)
    twice = report.Curve("twice", (0.4, 0.8, 1.6), curve.psnr)
    above = report.Curve("above", (0.4, 0.8), (50.0, 60.0))
    lines = report.bd_rates(curve, [twice, above]).splitlines()
    assert lines[0] == "BD-rate of ours, 0.200 to 0.800 bpp, against"
    assert lines[1].split() == ["twice", "-50.0", "%"] and lines[2].endswith("no common qualities")
    unknown = [report.Measurement("a", 100, 8, 8, 30.0, float("nan"))]
    assert report.curve_of("small", [unknown]).ms_ssim == ()
