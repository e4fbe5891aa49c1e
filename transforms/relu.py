"""A ReLU whose units can come back to life, and what brings back those that are dead already.

A hidden unit that is 0 for every picture has no gradient and stays so: it has died. One large step is enough, above all
behind another ReLU: what comes from there is never negative, so that all weights of a unit are pushed the same way. In
the weights of ELIC that shipped until 2026-11-27 four in five hidden units at 1/8 of the resolution had died, and all
of the last ones in the channel contexts of the three largest groups, which then told nothing. No loss shows that.

In training gradients leak through a unit that is 0 (`leaking`): little beside those of units that speak, but for one
that never does they are all, and Adam makes steps of any gradient. What networks compute is a ReLU always, and so are
the gradients of who optimises latents.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

#: The share of a gradient that passes a unit that is 0, in training.
LEAK = 0.02

_leaks = False
_watched: dict[int, tuple[Unit, list[np.ndarray]]] | None = None


@dataclasses.dataclass(frozen=True)
class Unit:
    """The variables around the hidden units of a layer.

    kernel, bias: of the convolution that makes them; axis: of its kernel that is theirs.
    reader: the kernel that reads them; reader_axis: of it that is theirs.
    """

    kernel: tf.Variable
    bias: tf.Variable
    axis: int
    reader: tf.Variable
    reader_axis: int


@tf.custom_gradient
def _leaking_relu(x: tf.Tensor):
    y = tf.nn.relu(x)
    return y, lambda gradient: tf.raw_ops.LeakyReluGrad(gradients=gradient, features=y, alpha=LEAK)


def relu(x: tf.Tensor, unit: Unit | None = None, leaks: bool = True) -> tf.Tensor:
    """max(x, 0), [..., C].

    unit: what is around it, for those that can begin anew.
    leaks: False where what is read has both signs, so that units hardly die: a leak costs time at high resolutions.
    """
    y = _leaking_relu(x) if _leaks and leaks else tf.nn.relu(x)
    if _watched is not None and unit is not None:
        loudest = tf.reduce_max(y, list(range(len(y.shape) - 1)))
        _watched.setdefault(id(unit.kernel), (unit, []))[1].append(tf.cast(loudest, tf.float32).numpy())
    return y


@contextlib.contextmanager
def leaking() -> Iterator[None]:
    """Within, gradients leak through units that are 0: for what training traces."""
    global _leaks
    before, _leaks = _leaks, True
    try:
        yield
    finally:
        _leaks = before


class Census:
    """Which hidden units are dead, by what they said of pictures within `watching`."""

    def __init__(self, seen: dict[int, tuple[Unit, list[np.ndarray]]]):
        self._layers = [(unit, np.max(loudest, axis=0) <= 0) for unit, loudest in seen.values()]

    @property
    def units(self) -> int:
        """Hidden units that were seen."""
        return sum(dead.size for _, dead in self._layers)

    @property
    def dead(self) -> int:
        """Those that were 0 all the time."""
        return sum(int(dead.sum()) for _, dead in self._layers)

    def revive(self, seed: int = 0) -> None:
        """Lets dead units begin anew, with nobody listening yet: what networks compute stays the same."""
        random = np.random.default_rng(seed)
        for unit, dead in self._layers:
            kernel, bias, reader = (variable.numpy() for variable in (unit.kernel, unit.bias, unit.reader))
            theirs, listening = np.moveaxis(kernel, unit.axis, -1), np.moveaxis(reader, unit.reader_axis, -1)
            fan_in = theirs[..., 0].size
            fresh = random.normal(0, np.sqrt(2 / fan_in), [*theirs.shape[:-1], dead.sum()])
            # What is never negative in the mean would push them all to one side.
            fresh -= fresh.mean(tuple(range(fresh.ndim - 1)))
            theirs[..., dead], bias[dead], listening[..., dead] = fresh, 0, 0
            unit.kernel.assign(kernel)
            unit.bias.assign(bias)
            unit.reader.assign(reader)


@contextlib.contextmanager
def watching() -> Iterator[dict]:
    """Within, what hidden units say of pictures is noted, for a `Census` of what this gives. Not inside of graphs."""
    global _watched
    _watched = {}
    try:
        yield _watched
    finally:
        _watched = None
