"""The checkerboard: half of the positions first, the other half given their neighbours.

He et al., "Checkerboard Context Model for Efficient Learned Image Compression", CVPR 2021; used by ELIC (CVPR 2022).

Which parity is the anchor: position (row i, column j) is an **anchor** where i + j is even, so the top left one is.
This is part of the bit stream format.

    columns  0 1 2 3            anchors [2, 2]      non-anchors [2, 2]
    row 0    A n A n     ->     (0,0) (0,2)         (0,1) (0,3)
    row 1    n A n A            (1,1) (1,3)         (1,0) (1,2)

Each half is a dense tensor of half the width, so that networks which a pass needs at one half run at that half only.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

#: The 12 taps (row, column) of a 5x5 kernel that see the other parity: those with an odd distance to the centre.
TAPS = tuple((r, c) for r in range(5) for c in range(5) if (r + c) % 2 == 1)


def _even_rows(height) -> tf.Tensor:
    """True where the row index is even: bool [1, height, 1, 1]."""
    return (tf.range(height) % 2 == 0)[None, :, None, None]


def split(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits [B, H, W, C] (W even) into anchors and non-anchors, [B, H, W / 2, C] each."""
    shape = tf.shape(x)
    pairs = tf.reshape(x, [shape[0], shape[1], shape[2] // 2, 2, x.shape[-1]])
    first, second = pairs[:, :, :, 0], pairs[:, :, :, 1]
    even = _even_rows(shape[1])
    return tf.where(even, first, second), tf.where(even, second, first)


def merge(anchors: tf.Tensor, non_anchors: tf.Tensor) -> tf.Tensor:
    """Inverse of `split`: two [B, H, W / 2, C] become [B, H, W, C]."""
    shape = tf.shape(anchors)
    even = _even_rows(shape[1])
    first = tf.where(even, anchors, non_anchors)
    second = tf.where(even, non_anchors, anchors)
    return tf.reshape(tf.stack([first, second], 3), [shape[0], shape[1], 2 * shape[2], anchors.shape[-1]])


def dense_kernel(taps: tf.Tensor) -> tf.Tensor:
    """The 5x5 kernel [5, 5, C_in, C_out] that `taps` [12, C_in, C_out] stands for, zero where masked."""
    index = tf.constant([5 * r + c for r, c in TAPS])[:, None]
    return tf.reshape(tf.scatter_nd(index, taps, [25, *taps.shape[1:]]), [5, 5, *taps.shape[1:]])


def _half_width_taps(row_parity: int) -> np.ndarray:
    """Places the 12 taps in the 5x3 kernel that acts on the half-width anchors.

    Anchor k of row i lies in column 2k + i % 2, non-anchor k in column 2k + 1 - i % 2. So two columns of the image
    are one of the half tensor, and the kernel of a non-anchor depends on the parity of its row.
    Returns int [5, 3]; -1 where no tap lies.
    """
    table = np.full([5, 3], -1)
    for number, (r, c) in enumerate(TAPS):
        dy, dx = r - 2, c - 2
        column = (1 - row_parity) + dx  # relative to 2k
        anchor_parity = (row_parity + dy) % 2
        table[r, (column - anchor_parity) // 2 + 1] = number
    return table


_HALF_WIDTH_TAPS = tuple(_half_width_taps(parity) for parity in (0, 1))


def half_width_kernels(taps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The two [5, 3, C_in, C_out] kernels (even rows, odd rows) made of `taps` [12, C_in, C_out]."""
    # Not a gather, whose gradient lists taps twice instead of adding them up: that would count wrongly when clipped.
    parts = [*tf.unstack(taps), tf.zeros_like(taps[0])]  # index -1 is a tap of zeros
    kernels = (tf.stack([parts[t] for t in table.ravel()]) for table in _HALF_WIDTH_TAPS)
    return tuple(tf.reshape(kernel, [5, 3, *taps.shape[1:]]) for kernel in kernels)


def from_anchors(anchors: tf.Tensor, taps: tf.Tensor) -> tf.Tensor:
    """The checkerboard-masked 5x5 convolution of the anchors, at the non-anchors.

    Args:
      anchors: [B, H, W / 2, C_in].
      taps: [12, C_in, C_out], in the order of `TAPS`. Masked taps have no variables.

    Returns:
      [B, H, W / 2, C_out]: what a 5x5 convolution ("same", zeros outside) of the full-width image, zero at the
      non-anchors, gives at the non-anchors. A fifth of its multiplications.
    """
    height = tf.shape(anchors)[1]
    odd = height % 2
    # Even and odd rows have kernels of their own: two convolutions of row stride 2. Two rows of zeros above and below.
    x = tf.pad(anchors, [[0, 0], [2, 2 + odd], [1, 1], [0, 0]])
    even_kernel, odd_kernel = half_width_kernels(taps)
    even_rows = tf.nn.conv2d(x[:, :-1], even_kernel, [2, 1], "VALID")
    odd_rows = tf.nn.conv2d(x[:, 1:], odd_kernel, [2, 1], "VALID")
    shape = tf.shape(even_rows)
    rows = tf.reshape(tf.stack([even_rows, odd_rows], 2), [shape[0], 2 * shape[1], shape[2], taps.shape[-1]])
    return rows[:, :height]
