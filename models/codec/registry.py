"""Names of the zoo: what a user can ask for, and what a file's model byte means."""

from __future__ import annotations

import dataclasses
import importlib

from models.io.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """name: as in `models/<name>.py`. model_id: the format byte of its files. codec, config: classes.

    progressive: whether `decompress` takes `groups`.
    """

    name: str
    model_id: int
    codec: type
    config: type
    presets: dict
    progressive: bool = False


#: Model id -> name, for all models whether imported or not; part of the bit stream format.
MODEL_IDS = {1: "elic", 2: "sft", 3: "cwic", 4: "sae_spn", 5: "elc"}
_ENTRIES: dict[str, Entry] = {}


def register(name: str, model_id: int, config: type, presets: dict, progressive: bool = False):
    """Class decorator: makes a codec known under `name`."""
    if MODEL_IDS.get(model_id) != name:
        raise ValueError(f"model id {model_id} is not {name}'s")

    def decorate(codec: type) -> type:
        codec.entry = Entry(name, model_id, codec, config, presets, progressive)
        # A file run as a script is registered once as __main__ and once under its own name: the latter stays.
        if name not in _ENTRIES or codec.__module__ != "__main__":
            _ENTRIES[name] = codec.entry
        return codec

    return decorate


def get(name: str) -> Entry:
    """The model called `name`; UserError for a name that is none."""
    if name not in MODEL_IDS.values():
        raise UserError(f"no model is called {name!r}; there are: {', '.join(MODEL_IDS.values())}")
    if name not in _ENTRIES:
        importlib.import_module(f"models.{name}")
    return _ENTRIES[name]
