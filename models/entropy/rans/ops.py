"""Small TensorFlow ops of the coder, and its errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

CPU = "/cpu:0"  # small kernels in sequence are slow on a GPU, and there a gather out of range is not an error


def in_a_graph_once(function: Callable) -> Callable:
    """Makes of a function that many passes call one function of the graph in which they do; eagerly, plain ops.

    What a pass needs is some 200 ops, which take Python half a second to put into a graph.
    """
    once = tf.function(function, autograph=False)

    @functools.wraps(function)
    def call(*arguments):
        return (function if tf.executing_eagerly() else once)(*arguments)

    return call


def shl(a: Any, n: Any) -> tf.Tensor:
    """Shifts to the left."""
    a = a if tf.is_tensor(a) else tf.constant(a, tf.int64)
    return tf.bitwise.left_shift(a, tf.cast(n, a.dtype))


def shr(a: tf.Tensor, n: Any) -> tf.Tensor:
    """Shifts to the right."""
    return tf.bitwise.right_shift(a, tf.cast(n, a.dtype))


def length_of(t: tf.Tensor) -> tf.Tensor:
    """Counts the elements of a vector: int64 `[]`."""
    return tf.shape(t, out_type=tf.int64)[0]


def sum_before(counts: tf.Tensor) -> tf.Tensor:
    """Sums up what comes before each element."""
    return tf.cumsum(counts, exclusive=True)


def counts_of(image: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    """Counts how often each image occurs in `image` `[K]`: int64 `[B]`."""
    return tf.math.unsorted_segment_sum(tf.ones_like(image), image, batch)


def ranks_of(image: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Numbers each element among those of its own image, for `image` `[K]` in ascending order."""
    return tf.range(length_of(image)) - tf.gather(sum_before(counts), image)


def require(condition: tf.Tensor, message: str, *tensors: tf.Tensor) -> list[tf.Tensor]:
    """Returns `tensors` in a form that exists only if `condition` holds everywhere.

    Whatever determines the size of an allocation or an index must come from here, or in a graph a damaged
    header would do its harm before the check has run.
    """
    message, holds = f"coder: {message}", tf.reduce_all(condition)
    if tf.executing_eagerly():
        if not holds:
            raise tf.errors.InvalidArgumentError(None, None, message)
        return list(tensors)
    with tf.control_dependencies([tf.raw_ops.Assert(condition=holds, data=[message])]):
        return [tf.identity(t) for t in tensors]


def describe(error: tf.errors.OpError) -> str:
    """Extracts the coder's one-line message, `coder: ...`, from an error that a graph has wrapped into more text.

    An error that is not the coder's keeps its own message.
    """
    found = re.search(r"coder: [^\]\n]*", error.message)
    return found.group() if found else error.message
