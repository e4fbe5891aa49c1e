"""Weights of the zoo and classical codecs behind one interface, and a cache of what was measured of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from eval import classical, cost
from eval.metrics import ms_ssim, psnr
from eval.perceptual import JUDGE, Judge
from eval.report import ANCHORS
from models.io import files
from models.io.errors import UserError
from models.io.images import write_image

#: Part of every key: another number forgets all results, as when a metric changes.
CACHE_VERSION = 2


@dataclass(frozen=True)
class Codec:
    """A codec and the qualities at which it is measured.

    Attributes:
      name: as the report calls it.
      kind: `weights` or `classical`.
      about: facts for its row of the table, by name.
      settings: what its files depend on besides the image and the quality.
      qualities: one for each point of its curve; None for weights of one rate.
      prepare: does what is slow the first time, so that no measured time has it.
      encode: compresses an image, uint8 `[H, W, 3]`, at a quality.
      fit: compresses an image to the best file that is not above a number of bytes; ValueError if there is none.
      decode: decompresses a file.
    """

    name: str
    kind: str
    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    qualities: Sequence[float | None]
    prepare: Callable[[], None]
    encode: Callable[[np.ndarray, float | None], bytes]
    fit: Callable[[np.ndarray, int], bytes]
    decode: Callable[[bytes], np.ndarray]


def spread(values: Sequence[float], points: int) -> list[float]:
    """Returns so many of the values, evenly spaced, with both ends."""
    return [values[index] for index in np.unique(np.linspace(0, len(values) - 1, points).round().astype(int))]


def classical_codec(name: str, points: int) -> Codec:
    """Returns one of `classical.CODECS`, at qualities of its anchor. UserError if there is none of that name."""
    if name not in classical.CODECS:
        raise UserError(f"--codecs: there is no {name!r}; choose from {', '.join(classical.CODECS)}")
    entry = classical.CODECS[name]
    qualities = json.loads(ANCHORS.read_text(encoding="utf-8"))["codecs"][entry.anchor]["q"]
    save = entry.save(qualities[0])
    return Codec(
        name=name,
        kind="classical",
        about={"settings": f"Pillow {PIL.__version__}, {entry.anchor}"},
        settings={"codec": name, "pillow": PIL.__version__, "save": save},
        qualities=spread(qualities, points),
        prepare=lambda: None,
        encode=functools.partial(classical.encode, name),
        fit=lambda image, limit: classical.at_bytes(name, image, limit)[0],
        decode=classical.decode,
    )


def learned_codec(name: str, points: int, effort: int | None) -> Codec:
    """Loads weights.

    Args:
      name: `MODEL/PRESET` or `MODEL`, for weights that ship, or a weights file.
      points: how many qualities, if the weights have several.
      effort: RDOQ iterations, for weights that have RDOQ; None: the default.

    Raises:
      UserError: as of `models.codec.load`.
    """
    from models.codec import EncoderOptions, load, registry, weights

    model, _, preset = name.partition("/")
    is_preset = model in registry.CARDS and not os.path.isfile(name)
    path = weights.default(model, preset or None) if is_preset else Path(name)
    codec = load(path)
    options = EncoderOptions() if effort is None else EncoderOptions(effort=effort)
    header = weights.read_metadata(path)
    known = codec.entry.card.presets.get(header.get("preset"))

    def encode(image: np.ndarray, quality: float | None) -> bytes:
        return codec.compress(image, options, **({} if quality is None else {"quality": quality}))

    def fit(image: np.ndarray, limit: int) -> bytes:
        if codec.rate_control.qualities.size:
            return codec.compress_to(image, limit, options)
        data = encode(image, None)
        if len(data) > limit:
            raise UserError(f"{name}: its file takes {len(data)} bytes")
        return data

    @functools.cache
    def prepare() -> None:
        codec.trace(options)
        codec.decompress(encode(np.zeros([64, 64, 3], np.uint8), None))

    return Codec(
        name=name,
        kind="weights",
        about={
            "model": codec.entry.card.title,
            "weights id": codec.weights_id.hex(),
            "MB": round(path.stat().st_size / 1e6, 1),
            "M parameters": known and known.parameters,
            "kMAC/pixel": known and known.kmac,
            "precision": codec.precision,
            "effort": options.effort if codec.rdoq else None,
            "trained": header.get("trained"),
            "on": header.get("data"),
        },
        settings={
            "weights": codec.weights_id.hex(),
            "effort": options.effort if codec.rdoq else None,
            "precision": codec.precision,
        },
        qualities=spread(codec.rate_control.qualities.tolist(), points)
        if codec.rate_control.qualities.size
        else [None],
        prepare=prepare,
        encode=encode,
        fit=fit,
        decode=codec.decompress,
    )


class Results:
    """Measures codecs, and keeps what was measured in a folder by what it depends on: codec, quality and pixels.

    So a second run only reads, and an interrupted one goes on where it was.
    """

    def __init__(self, folder: Path, judge: Judge | None = None):
        """folder: of the report; results go into `cache/`, images into `images/` below it.

        judge: looks at the images as well.
        """
        self._folder, self._judge = folder, judge

    def point(self, codec: Codec, image: np.ndarray, quality: float | None) -> dict[str, Any]:
        """Compresses an image at a quality and measures: `num_bytes`, `psnr`, `ms_ssim`, `encode_s` and `decode_s`.

        Where the system tells it, also `encode_mb` and `decode_mb`, see `eval.cost.Cost`. With a judge also
        `ssimulacra2` and `feature_distance`.
        """

        def measure(_) -> dict[str, Any]:
            codec.prepare()
            data, encoding = cost.measure(codec.encode, image, quality)
            decoded, decoding = cost.measure(codec.decode, data)
            figures = self._figures(image, data, decoded)
            for step, found in (("encode", encoding), ("decode", decoding)):
                figures[f"{step}_s"] = found.seconds
                if found.megabytes is not None:
                    figures[f"{step}_mb"] = found.megabytes
            return figures

        return self._get({"quality": quality, **codec.settings}, image, measure)

    def at_bytes(
        self, codec: Codec, image: np.ndarray, limit: int, name: str, quality: float | None = None
    ) -> dict[str, Any]:
        """Compresses an image to at most so many bytes, and keeps what comes back as a PNG.

        Args:
          codec: one that is measured.
          image: uint8 `[H, W, 3]`.
          limit: bytes.
          name: the PNG's, but for the codec and a key.
          quality: the one of that size, if it is known.

        Returns:
          `num_bytes`, `psnr`, `ms_ssim` and `file`, the PNG's path below the folder; nothing if the codec has no file
          of that size. One that is up to a tenth smaller counts.
        """

        def measure(key: str) -> dict[str, Any]:
            codec.prepare()
            try:
                data = codec.fit(image, limit) if quality is None else codec.encode(image, quality)
            except ValueError:
                return {}
            if not 0.9 * limit <= len(data) <= limit:
                return {}
            decoded = codec.decode(data)
            return {**self._figures(image, data, decoded), "file": self.keep(decoded, f"{name}-{codec.name}", key)}

        return self._get({"limit": limit, **codec.settings}, image, measure)

    def keep(self, image: np.ndarray, name: str, key: str) -> str:
        """Writes an image and returns its path below the folder: readable, and its own for each `key`."""
        readable = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "_" for c in name)
        file = f"images/{readable[:80]}-{key[:10]}.png"
        os.makedirs(self._folder / "images", exist_ok=True)
        if not (self._folder / file).is_file():
            write_image(self._folder / file, image)
        return file

    def _get(self, facts: dict[str, Any], image: np.ndarray, make: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        facts = {"version": CACHE_VERSION, "image": digest(image), **facts}
        if self._judge:
            facts["judge"] = JUDGE
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        path = self._folder / "cache" / f"{key[:32]}.json"
        if path.is_file():
            result = json.loads(files.read_bytes(path))
            if "file" not in result or (self._folder / result["file"]).is_file():
                return result
        result = make(key)
        files.write_json(path, result)
        return result

    def _figures(self, image: np.ndarray, data: bytes, decoded: np.ndarray) -> dict[str, Any]:
        seen = self._judge.measure(image, decoded) if self._judge else {}
        return {"num_bytes": len(data), "psnr": psnr(image, decoded), "ms_ssim": ms_ssim(image, decoded), **seen}


def digest(image: np.ndarray) -> str:
    """Returns what tells the pixels of an image from those of others."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
