"""Programs that use codecs: the command line, clients and servers."""

from __future__ import annotations

import os

# Before TensorFlow is imported: the chatter of its libraries when they start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(model: str) -> None:
    """Runs the command line of `model` in a process of its own, and exits. To be called before any slow import."""
    from models.io import terminal

    terminal.prepare()
    from models.app import cli

    cli.main(model)
