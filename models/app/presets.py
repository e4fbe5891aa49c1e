"""A table of what a user can name: presets, and the weights that ship."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.codec import weights
from models.codec.registry import Card

LICENCE = (
    "* taken by default. Kodak: real files of 24 images, bpp and the mean of their PSNRs.\n"
    "The weights have the licence of the zoo. They learnt from photographs of various licences, for some of which only "
    "research use is certain: see res/weights/README.md."
)


def table(cards: Iterable[Card]) -> str:
    """Lists models, their presets and the weights that ship, as text of several lines. Reads headers of files only."""
    return "\n\n".join(["\n".join(_rows(card)) for card in cards] + [LICENCE])


def _rows(card: Card) -> Iterator[str]:
    yield card.title
    yield f"  {'preset':10} {'parameters':>10} {'kMAC/pixel':>10}  about"
    for name, preset in card.presets.items():
        parameters = "" if preset.parameters is None else f"{preset.parameters:.2f} M"
        kmac = "" if preset.kmac is None else f"{preset.kmac:.4g}"
        none = "" if weights.of_preset(card.name, name) else "; no weights"
        yield f"  {name:10} {parameters:>10} {kmac:>10}  {preset.about}{none}"
    files = weights.shipped(card.name)
    if files:
        yield f"  {'weights':17} {'size':>7} {'rates':15} Kodak"
        taken = weights.default(card.name)
        yield from (_weights_row(card, path, path == taken) for path in files)


def _weights_row(card: Card, path: Path, taken: bool) -> str:
    header = weights.read_metadata(path)
    name, megabytes = f"{path.stem}{' *' if taken else ''}", path.stat().st_size / 1e6
    rates = f"quality {1 + card.ladder.index(path.stem)}" if path.stem in card.ladder else _rates(card, header)
    return f"  {name:17} {megabytes:4.1f} MB {rates:15} {_kodak(header)}"


def _rates(card: Card, header: dict[str, str]) -> str:
    """Says which rates a user can ask for."""
    lambdas = header.get("lambda", "").split(",")
    if card.quality:
        return f"quality {card.quality}"
    return f"quality 1..{len(lambdas)}" if len(lambdas) > 1 else "one"


def _kodak(header: dict[str, str]) -> str:
    """The first and the last of the measured points."""
    points = re.findall(r"([\d.]+) bpp, ([\d.]+) dB", header.get("kodak", ""))
    ends = points if len(points) < 2 else (points[0], points[-1])
    return " to ".join(f"{float(psnr):.2f} dB at {float(bpp):.3f} bpp" for bpp, psnr in ends) or "not measured"
