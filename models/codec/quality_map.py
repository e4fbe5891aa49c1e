"""Quality maps as users give them: a grey image, regions of interest, an array, an input of a served request."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from models.codec.rate_control import RateControl
from models.entropy.rans import require
from models.io.errors import UserError
from models.io.images import read_image


@dataclasses.dataclass(frozen=True)
class Region:
    """A rectangle of pixels and its quality, 0..1."""

    left: int
    top: int
    width: int
    height: int
    quality: float = 1.0


def paint(size: tuple[int, int], quality: float, regions: Sequence[Region]) -> np.ndarray:
    """The map, float32 [H, W], of an image of `size` (H, W): `quality`, and in the regions theirs; the last one wins.

    Raises:
      UserError: a region is not inside the image.
    """
    height, width = size
    result = np.full(size, quality, np.float32)
    for r in regions:
        if r.left < 0 or r.top < 0 or r.left + r.width > width or r.top + r.height > height:
            raise UserError(
                f"region {r.left},{r.top},{r.width},{r.height} is not inside the image, which is {width}x{height}"
            )
        result[r.top : r.top + r.height, r.left : r.left + r.width] = r.quality
    return result


def read_map(path) -> np.ndarray:
    """An image file as a map, uint8 [H, W]; colours count by their luma. UserError if it cannot be read as an image."""
    return np.asarray(Image.fromarray(read_image(path)).convert("L"))


def as_maps(quality_map, shape) -> tf.Tensor:
    """Maps for images of a shape (B, H, W): float32 [B, H, W, 1] in 0..1.

    quality_map: [h, w], [h, w, 1] or [B, h, w, 1] of any size, uint8 in 0..255 or float in 0..1. Resized bilinearly,
      smoothed where it shrinks.

    Raises:
      UserError: it has another shape, or values outside 0..1.
    """
    maps = np.asarray(quality_map)
    if maps.dtype == np.uint8:
        maps = maps / np.float32(255)
    maps = maps.astype(np.float32)
    if maps.ndim == 2:
        maps = maps[..., None]
    if maps.ndim == 3:
        maps = np.broadcast_to(maps, [shape[0], *maps.shape])
    if maps.ndim != 4 or maps.shape[0] != shape[0] or maps.shape[-1] != 1 or not maps.size:
        raise UserError(f"a quality map must be [H, W] or [B, H, W, 1], not {list(np.shape(quality_map))}")
    if not (maps.min() >= 0 and maps.max() <= 1):
        raise UserError(f"a quality map must be within 0 to 1, not {maps.min():g} to {maps.max():g}")
    if maps.shape[1:3] == tuple(shape[1:]):
        return tf.constant(maps)
    return tf.clip_by_value(tf.image.resize(maps, shape[1:], antialias=True), 0.0, 1.0)


class QualityMaps(RateControl):
    """SFT's rate control: a map that the encoder alone sees. There are no control bytes, since it is not sent.

    "quality_map", float32 [B, H, W, 1] in 0..1.
    """

    #: Uniform qualities that a search for a file size tells apart: steps of λ of 1.7 %.
    qualities = np.linspace(0, 1, 257)
    request_specs = encode_specs = {"quality_map": tf.TensorSpec([None, None, None, 1], tf.float32)}

    def from_args(self, shape, quality: float | None = None, quality_map=None):
        """See `RateControl`.

        Args:
          quality: of all pixels, 0..1; 0.5 by default. With a map, it moves the map: by 2 · quality - 1, clipped to
            0..1. So λ is multiplied by one factor everywhere, and 0.5 leaves the map as it is.
          quality_map: see `as_maps`.
        """
        self.check_quality(quality)
        quality = 0.5 if quality is None else quality
        if quality_map is None:
            return b"", {"quality_map": tf.fill([*tf.unstack(tf.convert_to_tensor(shape)), 1], np.float32(quality))}
        moved = as_maps(quality_map, shape) + np.float32(2 * quality - 1)
        return b"", {"quality_map": tf.clip_by_value(moved, 0.0, 1.0)}

    def graph_from_args(self, shape, quality_map):
        """See `RateControl`. quality_map: float32 [B, h, w, 1] in 0..1 of any size."""
        within = (quality_map >= 0) & (quality_map <= 1)
        (quality_map,) = require(within, "a quality map is not within 0 to 1", quality_map)
        fits = all(isinstance(n, int) for n in shape[1:]) and tuple(quality_map.shape[1:3]) == tuple(shape[1:])
        if not fits:  # TensorFlow Lite, where sizes are fixed, cannot resize like this
            quality_map = tf.clip_by_value(tf.image.resize(quality_map, shape[1:], antialias=True), 0.0, 1.0)
        data, _ = super().graph_from_args(shape)
        return data, {"quality_map": quality_map}

    def for_calibration(self, shape):
        """Uniform maps from 0 to 1."""
        levels = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None, None]
        return {"quality_map": np.broadcast_to(levels, [*shape, 1])}
