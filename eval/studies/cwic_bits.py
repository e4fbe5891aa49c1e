"""What CWIC's context model saves: `python -m eval.studies.cwic_bits 'kodak/*.png' --weights FILE`.

The codes and the importance map of the same images, in bits per pixel, under

    no model   a bit for each bit that is kept, log2 L bits for each position of the map
    static     a fixed probability for each channel of the codes and each level of the map: their frequencies among
               these very images, which no file would have to carry, so rather less than a static coder needs
    context    the context model in integers and the 12-bit tables: what files are written with
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from models.codec import load, weights
from models.entropy.coders import TableRate
from models.io import files, images
from models.io.errors import UserError
from transforms import importance

MODELS = ("no model", "static", "context")


def entropy(counts: np.ndarray) -> np.ndarray:
    """Bits of all symbols together, [...], if the counts [..., symbols] are coded with their own frequencies."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum(-1, keepdims=True)
    return -(counts * np.log2(np.maximum(counts, 1) / np.maximum(total, 1))).sum(-1)


def measure(codec, images: Iterable[np.ndarray]) -> dict[str, dict[str, float]]:
    """Bits per pixel under each of `MODELS`, of "codes" and "map" (stage 2 only).

    Args:
      codec: a CWIC with tables.
      images: uint8 [H, W, 3] each.
    """
    c = codec.config
    bits = np.zeros([c.codes, 2])  # how often each channel is 0 and 1
    levels = np.zeros(c.levels)
    context: dict[str, float] = {}
    pixels = 0
    for image in images:
        padded = codec.pad(tf.cast(image[None], tf.float32))
        codes, p = codec.analyse(padded)
        kept = tf.ones_like(codes)
        if p is not None:
            level = importance.quantise(p, c.levels)
            kept = importance.mask(level, c.codes, c.levels)
            levels += np.bincount(level.numpy().astype(int).ravel(), minlength=c.levels)
        ones = tf.reduce_sum(codes * kept, [0, 1, 2]).numpy()
        bits += np.stack([tf.reduce_sum(kept, [0, 1, 2]).numpy() - ones, ones], -1)
        coder = TableRate(codec.bank)
        codec.transmit(coder, padded)
        for name, value in coder.bits.items():
            context[name] = context.get(name, 0.0) + float(value[0])
        pixels += image.shape[0] * image.shape[1]
    result = {"codes": (bits.sum(), entropy(bits).sum(), context["codes"])}
    if "map" in context:
        result["map"] = (levels.sum() * np.log2(c.levels), float(entropy(levels)), context["map"])
    return {name: {m: float(v) / pixels for m, v in zip(MODELS, values)} for name, values in result.items()}


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures as text, with their sums."""
    lines = ["bits per pixel  " + "".join(f"{name:>10}" for name in (*figures, "both", "saves"))]
    nothing = sum(parts["no model"] for parts in figures.values())
    for model in MODELS:
        values = [parts[model] for parts in figures.values()]
        saved = f"{100 * (1 - sum(values) / nothing):9.1f}%" if nothing else ""
        lines.append(f"{model:16}" + "".join(f"{value:10.4f}" for value in (*values, sum(values))) + saved)
    return "\n".join(lines)


def run(model: str, measure: Callable, program: str, about: str, argv: Sequence[str] | None) -> int:
    """The command line of this program, and of those for other models.

    Args:
      model: whose weights it takes.
      measure: as `measure` here, of a codec and images.
      program: its module, and `about` its docstring.
      argv: arguments, those of the process by default.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about.split("\n")[0])
    parser.add_argument("images", nargs="+", help="images, or globs")
    parser.add_argument("--weights", help=f"weights file; by default those that ship for {model}")
    args = parser.parse_args(argv)
    try:
        codec = load(args.weights or weights.default(model))
        if codec.entry.name != model:
            raise UserError(f"{args.weights}: weights of {codec.entry.name}, not of {model}")
        print(table(measure(codec, map(images.read_image, files.expand_inputs(args.images)))))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run("cwic", measure, "eval.studies.cwic_bits", __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
