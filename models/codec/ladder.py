"""Several weights of one rate each as one codec of several qualities, where a paper trains a network for each rate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.codec import coding
from models.codec.options import DEFAULTS
from models.codec.rate_control import RateControl
from models.entropy import container
from models.io.errors import UserError

if TYPE_CHECKING:
    from models.codec.base import Codec


class Steps(RateControl):
    """Of a ladder: qualities 1, 2, … without any between. Files do not say theirs, but which weights wrote them."""

    def __init__(self, count: int):
        self.qualities = np.arange(1, count + 1)

    def check_quality(self, quality: float | None) -> None:
        super().check_quality(quality)
        if quality is not None and quality not in self.qualities:
            raise UserError(f"quality {quality:g}: there are 1 to {self.qualities.size}, none between")


class Ladder:
    """Codecs of one rate each, in rising order of rate; each is loaded when it is needed.

    Args:
      loaders: functions that load the codecs.
      default: the quality to compress in by default.
    """

    def __init__(self, loaders: Sequence[Callable[[], Codec]], default: int):
        self._loaders, self._default = [functools.cache(load) for load in loaders], default
        self.rate_control = Steps(len(loaders))

    @property
    def entry(self):
        """Of the model."""
        return self.codec().entry

    @property
    def distortion(self) -> str:
        """Of the loss."""
        return self.codec().distortion

    @property
    def precision(self) -> str:
        """Of the transforms."""
        return self.codec().precision

    def facts(self) -> dict[str, object]:
        """What a measurement says of the weights: their files and ids, in rising order of rate."""
        codecs = [load() for load in self._loaders]
        return {
            "weights": [Path(codec.path).name for codec in codecs],
            "weights_id": [codec.weights_id.hex() for codec in codecs],
        }

    def trace(self, options) -> None:
        """Lets all codecs work with graphs, see `Codec.trace`."""
        for load in self._loaders:
            load().trace(options)

    def codec(self, quality: float | None = None) -> Codec:
        """The codec of a quality. UserError if there is no such quality."""
        self.rate_control.check_quality(quality)
        return self._loaders[int(self._default if quality is None else quality) - 1]()

    def writer(self, data: bytes) -> Codec:
        """The codec that wrote a file, of those that have been used."""
        weights_id = container.unpack(data)[0].weights_id
        used = (load() for load in self._loaders if load.cache_info().currsize)
        return next(codec for codec in used if codec.weights_id == weights_id)

    def compress(self, image: np.ndarray, *options, quality: float | None = None, **controls) -> bytes:
        """Compresses with the codec of a quality, see `Codec.compress`."""
        return self.codec(quality).compress(image, *options, **controls)

    def compress_to(self, image: np.ndarray, target_bytes: int, options=DEFAULTS, **controls) -> bytes:
        """Compresses in the best quality whose file is not above a size, see `Codec.compress_to`."""
        return coding.compress_to(self, image, target_bytes, options, controls)

    def decompress(self, data: bytes) -> np.ndarray:
        """Decompresses a file that this ladder wrote."""
        return self.writer(data).decompress(data)
