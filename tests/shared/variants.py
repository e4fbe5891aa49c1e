"""Weights files that differ from another in their configuration alone."""

import dataclasses

from models import weights
from models.codec import load


def with_config(path, folder, **changes):
    """The codec of a weights file with some numbers of its configuration changed; its file goes into `folder`."""
    values, metadata = weights.read(path)
    config = dataclasses.replace(load(path).config, **changes)
    weights.write(folder / "weights.safetensors", values, {**metadata, "config": weights.config_to_json(config)})
    return load(folder / "weights.safetensors")
