"""README.md and the pages of res/: links lead somewhere, commands are ones that the parsers know."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

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
