"""Weights of the parts of a loss, as `--loss_weights` and the headers of weights files write them."""

from __future__ import annotations

from collections.abc import Mapping

from models.io.errors import UserError


def parse(text: str, defaults: Mapping[str, float]) -> dict[str, float]:
    """Parses `mse=10,adversarial=0.1`: all of `defaults`, those changed. UserError if a part is none of them."""
    weights = dict(defaults)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            number = float(value) if name in weights else -1.0
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise UserError(f"--loss_weights {part}: takes NAME=NUMBER, 0 or above, of {', '.join(defaults)}")
        weights[name] = number
    return weights


def to_text(weights: Mapping[str, float]) -> str:
    """Inverse of `parse`."""
    return ",".join(f"{name}={value:g}" for name, value in weights.items())
