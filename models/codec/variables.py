"""The variables of a model: their names in a weights file, and how they are made and stored."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def variables_by_path(root) -> dict[str, tf.Variable]:
    """Collects all variables below a tracked object by path, without its optimizers and metrics."""
    found, seen = {}, set()

    def visit(item, path):
        if isinstance(item, tf.Variable):
            if id(item) not in seen:
                found["/".join(path).lstrip("_")] = item
            seen.add(id(item))
            return
        for name, child in tf.train.TrackableView.children(item).items():
            if not path and isinstance(child, (tf.keras.optimizers.Optimizer, tf.keras.metrics.Metric)):
                continue
            visit(child, [*path, name])

    visit(root, [])
    return found


def without_initialisers():
    """Variables made within start at zero: drawing random numbers that are overwritten took a third of loading."""

    def zeros(next_creator, **kwargs):
        shape, dtype = kwargs.get("shape"), kwargs.get("dtype")
        if callable(kwargs.get("initial_value")) and shape is not None:
            kwargs["initial_value"] = lambda: tf.zeros(shape, dtype)
        return next_creator(**kwargs)

    return tf.variable_creator_scope(zeros)


def through_float16(value: np.ndarray) -> np.ndarray:
    """float32 as a weights file stores it: rounded to float16, and clipped to its range."""
    limit = np.finfo(np.float16).max
    return np.clip(value, -limit, limit).astype(np.float16).astype(np.float32)


def pad_with(value: tf.Variable, around: tf.Variable) -> np.ndarray:
    """`around`, in no dimension smaller than `value`, with `value` in its first rows, columns and so on."""
    whole = around.numpy()
    whole[tuple(map(slice, value.shape))] = value.numpy()
    return whole
