"""Order of images and random crops, which all sources of training patches share."""

from __future__ import annotations

import functools

import numpy as np

#: One in this many training images is held out for validation where the user names no others.
HOLD_OUT = 20
#: So many damaged images in a row mean that something else is wrong, such as a disk that is gone.
MAX_DAMAGED = 100


@functools.lru_cache(maxsize=4)
def permutation(seed: int, turn: int, length: int) -> np.ndarray:
    """Orders `length` images for one pass through them: int `[length]`, the same for the same arguments."""
    return np.random.default_rng([seed, turn]).permutation(length)


def corner(height: int, width: int, size: int, random: np.random.Generator) -> tuple[int, int]:
    """Draws top and left of a square of side `size` in an image."""
    return int(random.integers(height - size + 1)), int(random.integers(width - size + 1))


def random_crop(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Cuts a square out of an image, anywhere in it, flipped left to right half of the time.

    Args:
      image: `[H, W, C]`, neither side below `size`.
      size: P, side of the square.
      random: where the numbers come from.

    Returns:
      A view, `[P, P, C]`.
    """
    top, left = corner(*image.shape[:2], size, random)
    patch = image[top : top + size, left : left + size]
    return patch[:, :: -1 if random.integers(2) else 1]


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cuts the middle `[size, size, C]` out of an image `[H, W, C]`."""
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Makes `[H, W, 3]` of grey, grey with alpha, RGB or RGB with alpha; transparency is dropped."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]
