"""Weights files: named tensors in safetensors, with a header that says what they are.

Metadata (strings, as safetensors has them): `format` ("lic-zoo 1"), `model`, `config` (JSON of the model's Config),
`lambda`, `weights_id`, and whatever training and measuring add. Floats are stored as float16, tables and the integer
form of the entropy networks as integers. Reading needs neither TensorFlow nor TFC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.codec import registry
from models.entropy.container import StreamError
from models.io import files
from models.io.errors import UserError

FORMAT = "lic-zoo 1"
#: Trained weights that ship: res/weights/<model>/<preset>.safetensors.
SHIPPED = Path(__file__).resolve().parents[2] / "res" / "weights"


def fingerprint(tensors: Mapping[str, np.ndarray]) -> bytes:
    """4 bytes that name a set of tensors: files written with other weights are told apart by them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.digest()[:4]


def verify(path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The fingerprint of what `read` gave for `path`. UserError if the header names another."""
    weights_id = fingerprint(tensors)
    if weights_id.hex() != metadata.get("weights_id"):
        raise UserError(f"{path}: damaged weights file: its tensors are not those its header names")
    return weights_id


def check_model(path, model: str) -> None:
    """UserError unless a weights file is of that model."""
    name = read_metadata(path).get("model")
    if name != model:
        raise UserError(f"{path}: weights of {name}, not of {model}")


def write(path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], force: bool = True) -> None:
    """Writes a weights file, whole or not at all. UserError if that fails."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    files.atomic_write(path, save(tensors, metadata={"format": FORMAT, **metadata}), force=force)


def read_metadata(path) -> dict[str, str]:
    """The header of a weights file. UserError if it is not of this zoo."""
    return _open(path, lambda file: dict(file.metadata() or {}))


def read(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a weights file. UserError if it is missing, damaged, or not of this zoo."""
    return _open(path, _content)


def _content(file) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    names = file.keys()  # safetensors' file is no mapping
    return {name: file.get_tensor(name) for name in names}, dict(file.metadata())


def _open(path, use):
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise UserError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise UserError(f"{path}: not a weights file of this zoo")
            return use(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable weights file ({error})") from error


def annotate(path, **facts: str) -> None:
    """Adds facts to the header of a weights file; its tensors, and so its `weights_id`, stay the same."""
    tensors, metadata = read(path)
    write(path, tensors, {**metadata, **facts})


#: Fields of a Config in files of earlier versions, with the values that change nothing (None: any value).
_REMOVED = {"patch_widths": (0, 0), "patch_blocks": None}


#: Fields of earlier versions that are called otherwise now, and what their values are called, where that changed too.
_RENAMED = {"classifier_widths": ("classifier", {(): "resnet50"})}


def _up_to_date(fields: dict) -> dict:
    """The fields of a header under today's names, lists as tuples. ValueError if one that is gone had a say."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for old, (name, values) in _RENAMED.items():
        if old in fields:
            value = fields.pop(old)
            fields[name] = values.get(value, value)
    for name in _REMOVED.keys() & fields.keys():
        if _REMOVED[name] not in (None, fields[name]):
            raise ValueError(f"{name}={fields[name]} is no longer supported")
    return {name: value for name, value in fields.items() if name not in _REMOVED}


def config_to_json(config) -> str:
    """A model's Config as JSON."""
    return json.dumps(dataclasses.asdict(config))


def config_from_json(config_class, text: str):
    """Inverse of `config_to_json`: lists become tuples again. UserError if it does not fit the class."""
    try:
        return config_class(**_up_to_date(json.loads(text)))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"the configuration in the weights file does not fit {config_class.__module__}: {error}"
        ) from error


def shipped(model: str) -> list[Path]:
    """The weights files that ship for `model`, sorted by name."""
    return sorted((SHIPPED / model).glob("*.safetensors"))


def of_preset(model: str, preset: str) -> Path | None:
    """The weights that ship for a preset: the file called so, else that of the model's card, else the first.

    Of a preset several sets may ship: files called PRESET-something. None if there is none.
    """
    files_of = [path for path in shipped(model) if path.stem == preset or path.stem.startswith(f"{preset}-")]
    best = (preset, registry.card(model).weights)
    return min(files_of, key=lambda path: best.index(path.stem) if path.stem in best else len(best), default=None)


def of_classifier(name: str) -> Path | None:
    """The file of a classifier of the zoo: a .safetensors file, or one that ships by a name such as efficientnet_lite0.

    None if the name is neither. The file need not exist.
    """
    if str(name).endswith(".safetensors"):
        return Path(name)
    path = SHIPPED / "classifier" / f"{name}.safetensors"
    return path if path.name == f"{name}.safetensors" and path.is_file() else None


def default(model: str, preset: str | None = None) -> Path:
    """The weights to take: of that preset; by default those of the model's card, else of its first preset with some.

    UserError if there are none.
    """
    card = registry.card(model)
    names = [preset] if preset else [card.weights, *card.presets]
    path = next(filter(None, (of_preset(model, name) for name in names if name)), None)
    if path is None:
        what = f"{model} {preset}" if preset else model
        raise UserError(f"no weights for {what} ship: name a file with --weights, or train some")
    return path


def ladder(model: str) -> list[Path]:
    """The weights of one rate each that qualities 1, 2, … of the model are, in rising order of rate."""
    return [SHIPPED / model / f"{stem}.safetensors" for stem in registry.card(model).ladder]


def find(model: str, weights_id: bytes) -> Path:
    """The shipped weights that wrote a file. StreamError if it names none of these."""
    for path in shipped(model):
        if read_metadata(path).get("weights_id") == weights_id.hex():
            return path
    raise StreamError(
        f"written with {model} weights {weights_id.hex()}, which are not among those in {SHIPPED / model}; name their "
        "file with --weights"
    )
