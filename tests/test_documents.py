"""README.md and the pages of res/: links lead somewhere, commands are ones that the parsers know."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from eval import report
from models.app.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "res").rglob("*.md"))]
#: The logs keep the commands of their day, some with flags that are gone.
LOGS = ROOT / "res" / "doc" / "log"
COMMAND = re.compile(r"python models/(\w+)\.py (.*)")


def name(page):
    return page.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings; those of equal headings are numbered."""
    seen, result = Counter(), set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        result.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return result


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The command lines of a page as (model, arguments), those in text as well as those on lines of their own."""
    text = re.sub(r"\\\n\s*", "", text).replace("…", "")
    spans = [line for line in text.split("\n") if line.startswith("    ")]
    spans += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    found = [match.groups() for match in map(COMMAND.search, spans) if match]
    # A command ends at a pipe, a redirection or a comment.
    return [(model, shlex.split(re.split(r" [|>] ", rest)[0], comments=True)) for model, rest in found]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", [page for page in PAGES if LOGS not in page.parents], ids=name)
def test_commands_parse(page):
    for model, arguments in commands(page.read_text(encoding="utf-8")):
        _parser(model).parse_args(arguments)  # exits where it does not know a flag


def test_commands_are_found():
    found = commands(
        "    cat a | python models/elic.py compress - \\\n        --quality 2 > b   # so\n"
        "and `python\nmodels/sft.py presets`"
    )
    assert found == [("elic", ["compress", "-", "--quality", "2"]), ("sft", ["presets"])]
    assert len(commands(README.read_text(encoding="utf-8"))) > 10


#: Columns of the README's tables, and the names of the codecs in `anchors.json`.
COLUMNS = {"JPEG 4:2:0": "jpeg-420", "WebP": "webp-m6", "JPEG 2000": "jpeg2000", "AVIF": "avif-444-s4"}
COLUMNS["BPG 4:4:4"] = "bpg-444"


def tables() -> dict[str, list[list[str]]]:
    """The rows of the README's tables of results, by weights id; the first row is the heads."""
    found = re.findall(r"\(weights id (\w+), [^)]*\):\n\n((?:\|.*\n)+)", README.read_text(encoding="utf-8"))
    return {
        weights_id: [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in lines.splitlines()]
        for weights_id, lines in found
    }


def test_the_readme_has_the_figures_of_res_eval():
    files = [json.loads(path.read_text()) for path in (ROOT / "res" / "eval").glob("*_kodak.json")]
    anchors = report.load_anchors()
    assert len(tables()) >= 2
    for weights_id, (heads, _, *rows) in tables().items():
        (content,) = [file for file in files if file["weights_id"] == weights_id and "effort" not in file]
        points = {point["quality"]: point for point in content["curve"]}
        curve = report.Curve("", *(tuple(point[key] for point in content["curve"]) for key in report.KEYS))
        for quality, *cells in rows:
            row = dict(zip(heads[1:], (cell.replace("−", "-").removesuffix(" %") for cell in cells)))
            if re.fullmatch(r"[\d.]+", quality):
                point = points[float(quality)]
                expected = {"bpp": point["bpp"], "PSNR": point["psnr"], "MS-SSIM": point["ms_ssim"]}
                for head, name in COLUMNS.items():
                    expected[head] = point["psnr"] - report.interpolate(anchors[name], point["bpp"])
            elif quality == "BD-rate":
                expected = {head: report.bd_rate(anchors[name], curve) for head, name in COLUMNS.items()}
            else:
                continue  # with --effort: of another file
            for head, cell in row.items():
                if cell:
                    digits = len(cell.partition(".")[2])
                    assert float(cell) == pytest.approx(expected[head], abs=0.6 * 10**-digits), (quality, head)
