"""Flags that single models add to the command line that all share: `of(name)` returns the `Flags` of a model.

The zoo's models have a module each here; a model outside the zoo may give a `flags` to its codec class.
No module imports TensorFlow before it builds or runs a codec.
"""

from __future__ import annotations

import importlib

from models.app.flags.base import Flags, StreamCommand
from models.codec import registry

__all__ = ["Flags", "StreamCommand", "of"]


def of(model: str) -> Flags:
    """Returns the flags of a model; UserError if there is no such model."""
    card = registry.card(model)
    if model in registry.MODEL_IDS.values():
        return importlib.import_module(f"models.app.flags.{model}").FLAGS(card)
    return getattr(registry.get(model).codec, "flags", Flags)(card)
