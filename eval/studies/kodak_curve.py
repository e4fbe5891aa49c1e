"""Draws the README's curve from the figures in res/eval: `python -m eval.studies.kodak_curve -o res/doc/kodak.png`.

Nothing is measured here: the zoo's points are of `evaluate --json`, the other codecs' of `res/eval/anchors.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from eval import report
from models.io import terminal
from models.io.errors import UserError

FIGURES = Path(report.ANCHORS).parent
#: Codecs of `anchors.json` to draw, by name, and what to call them.
ANCHORS = {
    "jpeg-420": "JPEG 4:2:0",
    "webp-m6": "WebP",
    "jpeg2000": "JPEG 2000",
    "avif-444-s4": "AVIF 4:4:4",
    "bpg-444": "BPG 4:4:4",
    "vtm": "VTM",
}


def curve_of(path: Path, name: str) -> report.Curve:
    """Reads the points of a file of `evaluate --json`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    points = sorted(content.get("curve") or [content["mean"]], key=lambda point: point["bpp"])
    return report.Curve(name, *(tuple(point[key] for point in points) for key in report.KEYS))


def curves() -> list[report.Curve]:
    """The models whose weights are for squared error."""
    names = {"elic_medium_kodak": "ELIC medium", "sft_small_kodak": "SFT small", "elc_small_kodak": "ELC small"}
    return [curve_of(FIGURES / f"{file}.json", name) for file, name in names.items()]


def main(arguments=None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.kodak_curve", description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", default="kodak.png", help="A .png, .svg or .pdf file; it is replaced.")
    args = parser.parse_args(arguments)
    known = report.load_anchors()
    anchors = [dataclasses.replace(known[key], name=name) for key, name in ANCHORS.items()]
    try:
        report.plot(args.output, curves(), anchors, title="24 Kodak images, mean of their PSNRs", force=True)
    except UserError as error:
        return terminal.report_error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
