"""Rate-distortion curves on a page: `python -m eval.report --images 'kodak/*.png' --weights elic/medium -o report`.

Measures weights of the zoo and classical codecs on real files and writes `index.html`: curves, BD-rates, and images
side by side at equal bytes. Beside it lie `report.json`, `report.csv`, plots, and the decoded images in `images/`. What
was measured is kept in `cache/`: a second run (with `--force`), or one after an interruption, measures only what is
missing.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import math
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import PIL
from PIL import Image

from eval import classical, perceptual, report
from eval.report.codecs import Codec, Results, classical_codec, digest, learned_codec, spread
from models.io import files, formats, terminal
from models.io.errors import UserError, one_line, reason
from models.io.images import read_image

TEMPLATE = Path(__file__).with_name("page.html")
#: The previews in the page take no more bytes than this, before base64; the images themselves lie beside the page.
PREVIEW_BYTES = 15_000_000
PREVIEW_SIDES = (1024, 768, 512, 384, 256, 128)
#: Figures that not every run has: memory only on some systems, the others only with `--perceptual`.
WHERE_KNOWN = ("encode_mb", "decode_mb", *report.PERCEPTUAL)
COLUMNS = (
    "codec",
    "quality",
    "image",
    "width",
    "height",
    "num_bytes",
    "bpp",
    "psnr",
    "ms_ssim",
    "encode_s",
    "decode_s",
    *WHERE_KNOWN,
)
#: At so many sizes of file images are shown side by side.
SIZES = 3
METRICS = ("psnr", "ms_ssim")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        return run(args)
    except UserError as error:
        return terminal.report_error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.report", description=__doc__.split("\n")[0])
    parser.add_argument("--images", nargs="+", required=True, metavar="IMAGE", help="Images, globs or folders.")
    parser.add_argument(
        "--weights", nargs="+", required=True, metavar="WEIGHTS", help="MODEL/PRESET, such as elic/medium, or a file."
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="Where the report goes.")
    parser.add_argument(
        "--codecs",
        default=",".join(name for name in classical.CODECS if name != "avif-psnr"),
        metavar="NAME[,NAME…]",
        help=f"Classical codecs, of {', '.join(classical.CODECS)}; '' for none. Default: %(default)s.",
    )
    parser.add_argument(
        "--points", type=int, default=6, metavar="N", help="Qualities of each curve. Default: %(default)s."
    )
    parser.add_argument("--effort", type=int, metavar="N", help="RDOQ iterations, for weights that have RDOQ.")
    parser.add_argument(
        "--show", type=int, default=4, metavar="N", help="How many images are shown side by side. Default: %(default)s."
    )
    parser.add_argument(
        "--perceptual",
        action="store_true",
        help="Also SSIMULACRA2 and a distance of deep features (pip install ssimulacra2==0.3.0).",
    )
    parser.add_argument("--anchors", metavar="FILE", help="Published curves; by default those that ship, of Kodak.")
    parser.add_argument("-f", "--force", action="store_true", help="Replace the report that is there.")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measures and writes the report; returns the exit code: 1 if an image could not be measured.

    Raises:
      UserError: weights or a codec cannot be found, the report cannot be written, or no image could be measured.
    """
    for name, least in (("points", 1), ("show", 0), ("effort", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    chart_library = _chart_library()
    inputs = files.find_inputs(args.images, formats.extensions())
    names = {path: str(name) for path, name in files.distinct_names(inputs).items()}
    anchors = report.load_anchors(args.anchors or report.ANCHORS)
    targets = {
        name: args.output / name for name in ("index.html", "report.json", "report.csv", "psnr.png", "ms_ssim.png")
    }
    try:
        os.makedirs(args.output, exist_ok=True)
    except OSError as error:
        raise UserError(f"{args.output}: cannot be made: {reason(error)}") from error
    for target in targets.values():
        files.check_target(target, args.force)
    judge = perceptual.Judge(remember=False) if args.perceptual else None
    wanted = [name for name in dict.fromkeys(args.codecs.split(",")) if name]
    codecs = [classical_codec(name, args.points) for name in wanted]
    codecs = [learned_codec(name, args.points, args.effort) for name in dict.fromkeys(args.weights)] + codecs

    rows, shown, code = measure(codecs, names, args.show, Results(args.output, judge))
    if not rows:
        raise UserError("no image could be measured")
    measured = {row["image"] for row in rows}
    comparable = bool(args.anchors) or report.is_kodak(path for path in names if names[path] in measured)
    data = summary(codecs, rows, anchors, comparable)
    json_text = json.dumps(report.finite({**data, "shown": shown, "measurements": rows}), indent=1)
    data = report.finite({**data, "shown": with_previews(shown, args.output)})

    files.atomic_write(targets["report.json"], json_text.encode(), args.force)
    files.atomic_write(targets["report.csv"], as_csv(rows), args.force)
    curves = [curve_of(entry) for entry in data["curves"] if entry["kind"] != "published"]
    published = list(anchors.values()) if comparable else []
    for metric in METRICS:
        report.plot(
            targets[f"{metric}.png"], curves, report.comparable(published, metric), metric, data["title"], args.force
        )
    # The page last: where there is one, the rest is there too.
    files.atomic_write(targets["index.html"], page(data, chart_library).encode(), args.force)
    print(f"{len(measured)} images, {len(codecs)} codecs -> {targets['index.html']}")
    return code


def _chart_library() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("the page needs the chart library Plotly: pip install plotly") from error
    return get_plotlyjs()


# --- measuring -------------------------------------------------------------------------------------------


def measure(
    codecs: Sequence[Codec], names: dict[Path, str], show: int, results: Results
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Measures codecs on images.

    An image that cannot be read, or that a codec cannot take, is reported and left out: all means are over the same
    images.

    Args:
      codecs: at their qualities.
      names: of the images, by path.
      show: how many images are also compressed to equal bytes, see `compare`.
      results: the cache.

    Returns:
      Rows with `COLUMNS` for each image, codec and quality; images to compare, each with its `rates`, and of these the
      `codecs`; the exit code.
    """
    from tqdm import tqdm

    rows, shown, code = [], [], 0
    points, compared = sum(len(codec.qualities) for codec in codecs), SIZES * len(codecs)
    total = points * len(names) + compared * min(show, len(names))
    with tqdm(total=total, unit="file", leave=False, disable=None) as bar:
        for path, name in names.items():
            of_image, images = [], []
            try:
                image = read_image(path)
                height, width = image.shape[:2]
                facts = {"image": name, "width": width, "height": height}
                for codec in codecs:
                    for quality in codec.qualities:
                        point = results.point(codec, image, quality)
                        rate = report.bits_per_pixel(point["num_bytes"], height, width)
                        of_image.append({"codec": codec.name, "quality": quality, **facts, "bpp": rate, **point})
                        bar.update()
                if len(shown) < show:
                    images = [compare(codecs, image, facts, results, bar.update)]
            except (ValueError, OSError, MemoryError) as error:
                with bar.external_write_mode(file=sys.stderr):
                    text = one_line(error)
                    code = terminal.report_error(text if text.startswith(str(path)) else f"{path}: {text}")
                continue
            rows += of_image
            shown += images
    return rows, shown, code


def compare(codecs: Sequence[Codec], image: np.ndarray, facts: dict[str, Any], results: Results, step) -> dict:
    """Compresses an image with all codecs to equal bytes, at `SIZES` sizes, and keeps what comes back.

    The sizes are those of the first codec's files at its lowest, its highest and a middle quality. `step` is called
    after each file.
    """
    pixels, stem = facts["width"] * facts["height"], Path(facts["image"]).stem
    rates = []
    for quality in spread(codecs[0].qualities, SIZES):
        limit = results.point(codecs[0], image, quality)["num_bytes"]
        bpp = 8 * limit / pixels
        entries = []
        for codec in codecs:
            known = quality if codec is codecs[0] else None
            result = results.at_bytes(codec, image, limit, f"{stem}-{bpp:.3f}bpp", known)
            if result:
                entries.append({"name": codec.name, **result, "bpp": 8 * result["num_bytes"] / pixels})
            step()
        rates.append({"bpp": bpp, "codecs": entries})
    return {**facts, "original": {"file": results.keep(image, stem, digest(image))}, "rates": rates}


# --- figures ---------------------------------------------------------------------------------------------


def summary(
    codecs: Sequence[Codec], rows: Sequence[dict[str, Any]], anchors: dict[str, report.Curve], comparable: bool
) -> dict[str, Any]:
    """Means, curves and BD figures, as the page and `report.json` have them.

    comparable: whether the published curves are of these images; else they are no anchors of BD figures.
    """
    curves = [{"name": codec.name, "kind": codec.kind, "about": codec.about, **means(codec, rows)} for codec in codecs]
    measured = [curve_of(entry) for entry in curves]
    for anchor in anchors.values():
        columns = {key: list(getattr(anchor, key)) for key in report.KEYS}
        curves.append({"name": anchor.name, "kind": "published", "about": {"source": anchor.setting}, **columns})
    bd = {}
    for metric in METRICS:
        tests = [curve for curve in measured if getattr(curve, metric)]
        others = report.comparable(anchors.values(), metric) if comparable else []
        bd[metric] = {
            "tests": [test.name for test in tests],
            "rows": [
                {
                    "anchor": anchor.name,
                    "rate": [report.bd_rate(anchor, test, metric) for test in tests],
                    "quality": [report.bd_quality(anchor, test, metric) for test in tests],
                }
                for anchor in [*tests, *others]
            ],
        }
    images = list(dict.fromkeys(row["image"] for row in rows))
    return {
        "title": f"Rate and distortion of {len(images)} image{'s' * (len(images) > 1)}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "images": images,
        "comparable": comparable,
        "curves": curves,
        "bd": bd,
    }


def means(codec: Codec, rows: Sequence[dict[str, Any]]) -> dict[str, list]:
    """Means over images at each quality, in columns of rising rate.

    `psnr` is the mean of the images' PSNRs and `psnr_of_mean` the PSNR of the mean of their squared errors. A quality
    without loss, whose PSNR in dB is infinite, is no point of a curve.
    """
    points = []
    for quality in codec.qualities:
        own = [row for row in rows if row["codec"] == codec.name and row["quality"] == quality]
        mean = {key: float(np.mean([row[key] for row in own])) for key in ("bpp", "psnr", "encode_s", "decode_s")}
        similar = [row["ms_ssim"] for row in own if not math.isnan(row["ms_ssim"])]
        mean["psnr_of_mean"] = -10 * math.log10(np.mean([10 ** (-row["psnr"] / 10) for row in own]) or math.nan)
        mean["ms_ssim"] = float(np.mean(similar)) if similar else math.nan
        seen = [key for key in WHERE_KNOWN if all(key in row for row in own)]
        mean |= {key: float(np.mean([row[key] for row in own])) for key in seen}
        if math.isfinite(mean["psnr"]) and not mean["ms_ssim"] >= 1:
            points.append({"quality": quality, **mean})
    points.sort(key=lambda point: point["bpp"])
    keys = ("quality", "bpp", "psnr", "psnr_of_mean", "ms_ssim", "encode_s", "decode_s", *WHERE_KNOWN)
    columns = {key: [point[key] for point in points] for key in keys if all(key in point for point in points)}
    if any(map(math.isnan, columns["ms_ssim"])):
        columns["ms_ssim"] = []
    return columns


def curve_of(entry: dict[str, Any]) -> report.Curve:
    """Returns the curve of an entry of `summary`."""
    return report.Curve(entry["name"], **{key: tuple(entry[key]) for key in report.KEYS})


def machine() -> str:
    """Describes what the times were measured on."""
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))[1]
    except (OSError, TypeError):
        name = platform.machine()
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}, Pillow {PIL.__version__}"


# --- files -----------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Returns the rows as CSV, with a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def with_previews(shown: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Adds a `preview`, a data URL, to each image that is shown: as large as `PREVIEW_BYTES` allow for all of them."""
    paths = [entry["file"] for image in shown for entry in _pictures(image)]
    for side in PREVIEW_SIDES:
        previews = {path: _preview(folder / path, side) for path in paths}
        if sum(map(len, previews.values())) <= PREVIEW_BYTES:
            break
    shown = json.loads(json.dumps(shown))  # a copy: report.json has no previews
    for image in shown:
        for entry in _pictures(image):
            entry["preview"] = "data:image/webp;base64," + base64.b64encode(previews[entry["file"]]).decode()
    return shown


def _pictures(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [image["original"], *(entry for rate in image["rates"] for entry in rate["codecs"])]


def _preview(path: Path, side: int) -> bytes:
    with Image.open(path) as image:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def page(data: dict[str, Any], chart_library: str) -> str:
    """Returns the page: the template with the data and the chart library in it, and nothing to be fetched."""
    # In a script element, `<` could end it.
    parts = {"DATA": json.dumps(data).replace("<", "\\u003c"), "CHARTS": chart_library}
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.finish(main()))
