"""The page of `python -m eval.report` in a real browser, where there is one: pip install playwright, and Chromium."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from eval.report import __main__ as program
from models.codec import base

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory, tiny_weights, crop):
    """The folder of a report on two images and three codecs."""
    folder = tmp_path_factory.mktemp("report")
    for name, place in (("a.png", 0), ("b.png", 90)):
        Image.fromarray(crop(176, 192, place)).save(folder / name)
    options = ["--points", "3", "--effort", "0", "--codecs", "jpeg,webp", "--show", "2", "-o", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.Codec, "trace", lambda *_: None)  # graphs take seconds to make
        assert program.main(["--images", str(folder / "?.png"), "--weights", str(tiny_weights), *options]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, report):
    """The report, opened from its file; what the browser complains about fails the test."""
    opened, complaints = browser.new_page(viewport={"width": 1280, "height": 900}), []
    opened.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto((report / "index.html").as_uri())
    yield opened
    assert complaints == []
    opened.close()


def traces(page):
    """The curves of the chart: (name, whether it is visible, number of points)."""
    return page.evaluate("document.getElementById('chart').data.map(t => [t.name, t.visible, t.x.length])")


def test_every_codec_has_its_curve(page, report):
    content = json.loads((report / "report.json").read_text())
    measured = {curve["name"]: len(curve["bpp"]) for curve in content["curves"] if curve["kind"] != "published"}
    shown = {name: points for name, visible, points in traces(page) if visible}
    assert shown == measured and {"jpeg", "webp"} < set(shown)
    assert page.locator("#chart .scatterlayer .trace").count() == len(measured)
    assert page.locator("#bd tbody tr").count() >= len(measured)


def test_curves_and_axes_change(page):
    page.get_by_role("checkbox", name="jpeg", exact=True).uncheck()
    assert dict((name, visible) for name, visible, _ in traces(page))["jpeg"] is False
    page.check("#log")
    page.select_option("#metric", "ms_ssim_db")
    layout = page.evaluate(
        "(({xaxis, yaxis}) => [xaxis.type, yaxis.title.text])(document.getElementById('chart').layout)"
    )
    assert layout == ["log", "MS-SSIM (dB)"]
    page.click("summary")
    page.locator("#published input").first.check()
    assert sum(visible is True for _, visible, _ in traces(page)) == 3


def test_the_divider_moves(page):
    def place():
        box = page.locator("#stage").bounding_box()
        bar = page.locator("#bar").bounding_box()
        return (bar["x"] + bar["width"] / 2 - box["x"]) / box["width"]

    assert place() == pytest.approx(0.5, abs=0.01)
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 10)
    page.mouse.up()
    assert place() == pytest.approx(0.2, abs=0.02)
    page.focus("#slider")
    page.keyboard.press("End")
    assert place() == pytest.approx(1, abs=0.01)


def test_sides_show_what_was_decoded(page):
    """Left of the divider the pixels are those of the file that the caption names; an error map is another image."""

    def left() -> np.ndarray:
        page.wait_for_timeout(300)
        shot = page.locator("#stage").screenshot()
        return np.frombuffer(shot, np.uint8)

    names = page.locator("#left-codec option").all_text_contents()
    page.select_option("#left-codec", str(names.index("original")))
    page.select_option("#right-codec", str(names.index("jpeg")))
    assert page.locator("#captions span").all_text_contents()[0] == "original"
    assert "bytes" in page.locator("#captions span").all_text_contents()[1]
    assert page.evaluate("document.querySelector('#left .decoded').src").endswith(".png")  # no preview
    before = left()
    page.check("#errors")
    assert before.tobytes() != left().tobytes()


def test_crops_move_together(page):
    def places():
        return page.eval_on_selector_all("#crops .decoded", "all => all.map(img => img.style.transform)")

    before = places()
    assert len(before) >= 3 and len(set(before)) == 1
    page.focus("#stage")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert len(set(places())) == 1 and places()[0] != before[0]


def test_light_and_dark(page):
    colours = []
    for _ in range(2):
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.click("#theme")
    assert len(set(colours)) == 2


def test_it_fits_a_phone(browser, report):
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto((report / "index.html").as_uri())
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .lens, #chart') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == [] and page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
