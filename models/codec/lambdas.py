"""λ of the loss `bpp + λ · MSE`: one, or several for one set of weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from models.io.errors import UserError
from transforms.gain import MAX_LEVELS, interpolate


def check_lambdas(lmbda: float | Sequence[float]) -> tuple[float, ...]:
    """Returns one or several λ as a tuple. UserError unless they are positive, rising and at most `MAX_LEVELS`."""
    lambdas = tuple(float(value) for value in np.atleast_1d(lmbda))
    text = ", ".join(f"{value:g}" for value in lambdas)
    if not lambdas or not all(0 < value < np.inf for value in lambdas):
        raise UserError(f"λ must be positive, not {text or 'missing'}")
    if any(a >= b for a, b in zip(lambdas, lambdas[1:])):
        raise UserError(f"several λ must be different and in rising order, not {text}")
    if len(lambdas) > MAX_LEVELS:
        raise UserError(f"at most {MAX_LEVELS} λ fit into one set of weights, not {len(lambdas)}")
    return lambdas


def at_quality(lambdas: Sequence[float], quality: tf.Tensor) -> tf.Tensor:
    """Interpolates λ, float32 [B], at qualities, int32 [B] in steps from the first level: log λ is linear between.

    Gains follow the same rule (`transforms/gain.py`), and so do SFT's λ (`SFT.lambda_map`). Training weights levels by
    1/√λ (`training.level_weights`), and the gains of ELIC start at √λ.
    """
    return interpolate(tf.constant(np.log(lambdas)[:, None], tf.float32), quality)[:, 0]
