"""What coding SAE-SPN's latents saves: `python -m eval.studies.sae_bits 'kodak/*.png' --weights FILE`.

The five-level latents of the same images (and the switches of the variant swwae), in bits per pixel, under

    no model   log2(5) bits for each latent, as the paper counts; 2 bits for each switch
    static     a fixed probability of each level (or pixel of the cell) for each channel: their frequencies among these
               very images, which no file would have to carry, so rather less than a static coder needs
    context    the networks in integers and the 12-bit tables: what files are written with. (Those of the switches
               are static too, from the training.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from eval.studies.cwic_bits import MODELS, entropy, run
from models.entropy.coders import TableRate
from transforms.quantizers import LIMIT
from transforms.switches import CELL


def counts(symbols: np.ndarray, values: int) -> np.ndarray:
    """How often each channel of int [..., C] has each of the values 0 .. values - 1: int [C, values]."""
    return np.stack([np.bincount(c, minlength=values) for c in np.reshape(symbols, [-1, symbols.shape[-1]]).T])


def measure(codec, images: Iterable[np.ndarray]) -> dict[str, dict[str, float]]:
    """Bits per pixel under each of `MODELS`, of "latents" and "switches" (swwae only).

    Args:
      codec: an SAE-SPN with tables.
      images: uint8 [H, W, 3] each.
    """
    seen: dict[str, list[np.ndarray]] = {}  # of the latents, and of each scale of the switches: [C, values]
    context: dict[str, float] = {}
    pixels = 0
    for image in images:
        coder = TableRate(codec.bank)
        levels, found = codec.transmit(coder, codec.pad(tf.cast(image[None], tf.float32)))
        here = {"latents": [counts(levels.numpy().astype(int) + LIMIT, 2 * LIMIT + 1)]}
        if found:
            here["switches"] = [counts(switch.numpy(), CELL) for switch in found]
        for name, parts in here.items():
            seen[name] = [a + b for a, b in zip(seen[name], parts)] if name in seen else parts
            context[name] = context.get(name, 0.0) + float(coder.bits[name][0])
        pixels += image.shape[0] * image.shape[1]
    result = {}
    for name, parts in seen.items():
        nothing = sum(part.sum() * np.log2(part.shape[-1]) for part in parts)
        values = (nothing, sum(entropy(part).sum() for part in parts), context[name])
        result[name] = {model: float(value) / pixels for model, value in zip(MODELS, values)}
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run("sae_spn", measure, "eval.studies.sae_bits", __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
