"""Makes a paper's networks a codec: `Codec`, `load`, `load_for_training`, `register`.

The names are imported when they are asked for: most of them need TensorFlow, which `--help` must not wait for.
"""

from __future__ import annotations

import importlib

_HOME = {
    "Codec": "base",
    "EncoderOptions": "options",
    "load": "storage",
    "load_for_training": "storage",
    "register": "registry",
}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
