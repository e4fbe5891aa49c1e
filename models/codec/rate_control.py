"""Rate control: what a sender can ask of a codec besides the image, and how a file says it.

A quality, say, arrives as an argument in Python, as an input of a served request, or as control bytes of a file. An
object of this module, `Codec.rate_control`, turns each into the same thing: the tensors, by name, that `Codec.transmit`
takes. SFT's, a map over the image, is in `models/codec/quality_map.py`.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models.entropy.container import StreamError
from models.entropy.rans import require
from models.io.errors import UserError
from transforms.gain import STEPS


class RateControl:
    """Rate control of weights of one rate: there is nothing to ask for. Base of the others."""

    #: The qualities that can be told apart, rising; empty where there are none to choose from.
    qualities: np.ndarray = np.array([])
    #: How many control bytes a file has.
    control_bytes = 0
    #: Inputs of a served request for each image besides its pixels: those of `graph_from_args`.
    request_specs: dict[str, tf.TensorSpec] = {}
    #: Dtypes and shapes of the tensors that compressing takes, and of those that decompressing does.
    encode_specs: dict[str, tf.TensorSpec] = {}
    decode_specs: dict[str, tf.TensorSpec] = {}

    def check_quality(self, quality: float | None) -> None:
        """Raises UserError for a quality (not None) that is out of range, or where there is none to choose."""
        if quality is None:
            return
        if not self.qualities.size:
            raise UserError("these weights are of one rate: they take no quality")
        if not self.qualities[0] <= quality <= self.qualities[-1]:
            raise UserError(f"quality {quality:g} is not within {self.qualities[0]:g} to {self.qualities[-1]:g}")

    def from_args(self, shape, quality: float | None = None) -> tuple[bytes, dict[str, tf.Tensor]]:
        """Turns arguments into control bytes and the tensors to compress with, for images of a shape (B, H, W).

        quality: one of `qualities`, the middle by default.

        Raises:
          UserError: the model has no such control, or it is out of range.
        """
        self.check_quality(quality)
        return b"", {}

    def from_header(self, data: bytes, batch: int = 1) -> dict[str, tf.Tensor]:
        """Turns control bytes into the tensors to decompress with. StreamError if they are not of this model."""
        if data:
            raise _not_ours()
        return {}

    def graph_from_args(self, shape) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Does what `from_args` does in a graph, for each image: control bytes uint8 [B, n], and the tensors.

        It takes the inputs of `request_specs` by name; InvalidArgumentError if one is out of range.
        """
        return tf.zeros([shape[0], 0], tf.uint8), {}

    def graph_from_header(self, data: tf.Tensor) -> dict[str, tf.Tensor]:
        """Does what `from_header` does in a graph: uint8 [B, n]. InvalidArgumentError if they are not of this model."""
        return {}

    def for_calibration(self, shape) -> dict[str, np.ndarray]:
        """Makes tensors, each [N, ...], for N calibration images that cover all qualities; shape: (N, H, W)."""
        return {}


class QualityLevels(RateControl):
    """Rate control of weights of several λ: a quality from 1 (the first λ) to their number, in 1/32; one control byte.

    "quality", int32 [B]: in steps of 1/32 from the first λ; see `transforms/gain.py`.
    """

    control_bytes = 1
    request_specs = {"quality": tf.TensorSpec([None], tf.float32)}
    encode_specs = decode_specs = {"quality": tf.TensorSpec([None], tf.int32)}

    def __init__(self, levels: int):
        self.qualities = 1 + np.arange((levels - 1) * STEPS + 1) / STEPS

    def from_args(self, shape, quality: float | None = None):
        self.check_quality(quality)
        step = (self.qualities.size - 1) / 2 if quality is None else (quality - 1) * STEPS
        data = bytes([round(step)])
        return data, self.from_header(data, shape[0])

    def from_header(self, data: bytes, batch: int = 1):
        if len(data) != 1 or data[0] >= self.qualities.size:
            raise _not_ours()
        return {"quality": tf.fill([batch], data[0])}

    def graph_from_args(self, shape, quality):
        low, high = self.qualities[0], self.qualities[-1]
        within = (quality >= low) & (quality <= high)
        (quality,) = require(within, f"quality is not within {low:g} to {high:g}", quality)
        step = tf.cast(tf.round((quality - 1) * STEPS), tf.int32)
        return tf.cast(step[:, None], tf.uint8), {"quality": step}

    def graph_from_header(self, data: tf.Tensor):
        (step,) = require(data < self.qualities.size, "damaged stream (control bytes)", data[:, 0])
        return {"quality": tf.cast(step, tf.int32)}

    def for_calibration(self, shape):
        return {"quality": np.linspace(0, self.qualities.size - 1, shape[0]).round().astype(np.int32)}


def _not_ours() -> StreamError:
    return StreamError("damaged stream: its control bytes are not of these weights")
