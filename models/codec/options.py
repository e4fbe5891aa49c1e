"""`EncoderOptions`: how much an encoder searches. No TensorFlow here: the command line's help names the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """Options of an encoder: how much it searches, and how it works. A decoder need not know them.

    effort: RDOQ iterations before a file is written, for weights with a move penalty (`Codec.rdoq`).
    tile: side of the tiles in which large images are processed, in pixels; None: as `transforms.tiling` chooses.
    progress: wraps the range of RDOQ iterations where they run eagerly; `tqdm` shows how far they have come.
    """

    effort: int = 6
    tile: int | None = None
    progress: Callable[[range], Iterable[int]] = iter


DEFAULTS = EncoderOptions()
