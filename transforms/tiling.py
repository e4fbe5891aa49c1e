"""Transforms of large images in overlapping tiles.

Convolutions are local: what a pixel becomes depends on those within the receptive field. So an image can be worked
through in tiles, each with a margin (its halo) as wide as the receptive field reaches, and the memory that a transform
needs is that of one tile. At the edges of the image a tile ends where the image does, and is padded by the network
as ever. The result is that of the whole image, except for the order in which floats are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

#: Images of more pixels than this are worked through in tiles, unless told otherwise: 2.6 megapixels.
LARGE = 5 << 19
#: Side of a tile without its halo, in pixels, unless told otherwise.
TILE = 1024


@dataclasses.dataclass(frozen=True)
class Reach:
    """Receptive fields of a codec's transforms, in pixels.

    unit: tiles begin at multiples of this, the coarsest cell among the inputs.
    analysis: the farthest pixel, beyond the cells of a tile, that the latents in these cells depend on.
    synthesis: the same of the latents that the pixels of a tile depend on.
    latents: the side of a cell of each latent tensor that the analysis gives.
    decoded: the same of those the synthesis takes.
    """

    unit: int
    analysis: int
    synthesis: int
    latents: tuple[int, ...]
    decoded: tuple[int, ...]


def in_tiles(
    function: Callable[..., object],
    inputs: Sequence[tf.Tensor],
    cells: Sequence[int],
    output_cells: Sequence[int],
    unit: int,
    reach: int,
    tile: int | None = None,
):
    """`function(*inputs)`, computed tile by tile where the inputs are large. In graphs and eagerly; without gradients.

    Args:
      function: local; takes tensors [B, h, w, C], returns a float32 tensor [B, h', w', C'] or a structure of such, and
        of None.
      inputs: [B, H / cell, W / cell, C], rounded up. The first one's cells divide the others': it says how large the
        image is.
      cells: pixels that the side of a cell of each input has.
      output_cells: the same of each output, in the order of tf.nest, without those that are None.
      unit: tiles begin at multiples of this many pixels.
      reach: width of the halo, in pixels.
      tile: side of a tile, in pixels; rounded up to the unit. None: `TILE` for what has more than `LARGE` pixels, all
        at once below. The halo comes on top.

    Returns:
      What `function` does.
    """
    if _is_one_tile(inputs[0].shape, cells[0], tile):
        return function(*inputs)
    batch, rows, columns, _ = tf.unstack(tf.shape(inputs[0]))
    height, width = rows * cells[0], columns * cells[0]
    if tile is None:
        large = tf.cast(batch, tf.int64) * tf.cast(height, tf.int64) * tf.cast(width, tf.int64) > LARGE
        whole = tf.maximum(tf.maximum(height, width), unit)
        side = tf.where(large, -(-TILE // unit) * unit, -(-whole // unit) * unit)
    else:
        side = tf.constant(-(-max(tile, 1) // unit) * unit)
    halo = -(-reach // unit) * unit
    if tf.executing_eagerly() and int(side) < max(int(height), int(width)):
        # For several tiles a graph, with its fused kernels, is worth making.
        specs = [tf.TensorSpec([None, None, None, value.shape[-1]], value.dtype) for value in inputs]
        function = tf.function(function, input_signature=specs, autograph=False)
    form = []  # of what `function` returns: its structure, and the channels of each tensor

    def compute(top, bottom, left, right) -> list[tf.Tensor]:
        """The outputs for the pixels of one tile."""
        above, before = tf.maximum(top - halo, 0), tf.maximum(left - halo, 0)
        below, behind = tf.minimum(bottom + halo, height), tf.minimum(right + halo, width)
        parts = [
            value[:, above // cell : -(-below // cell), before // cell : -(-behind // cell)]
            for value, cell in zip(inputs, cells)
        ]
        result = function(*parts)
        made = [value for value in tf.nest.flatten(result) if value is not None]
        if len(made) != len(output_cells):
            raise ValueError(f"{len(made)} outputs, and cells of {len(output_cells)}")
        form[:] = [result, [value.shape[-1] for value in made]]
        return [
            value[
                :,
                (top - above) // cell : (top - above) // cell + -((top - bottom) // cell),
                (left - before) // cell : (left - before) // cell + -((left - right) // cell),
            ]
            for value, cell in zip(made, output_cells)
        ]

    def strip(top) -> list[tf.Tensor]:
        """A row of tiles, each output [h, B, W', C]: the axis along which strips are joined comes first."""
        bottom = tf.minimum(top + side, height)

        def step(left, *columns):
            tiles = compute(top, bottom, left, tf.minimum(left + side, width))
            return left + side, *(a.write(a.size(), tf.transpose(t, (2, 1, 0, 3))) for a, t in zip(columns, tiles))

        arrays = _loop(step, width, len(output_cells))
        return [tf.transpose(array.concat(), (1, 2, 0, 3)) for array in arrays]

    def step(top, *strips):
        return top + side, *(a.write(a.size(), value) for a, value in zip(strips, strip(top)))

    joined = [tf.transpose(array.concat(), (1, 0, 2, 3)) for array in _loop(step, height, len(output_cells))]
    structure, channels = form
    found = (tf.ensure_shape(value, [None, None, None, c]) for value, c in zip(joined, channels))
    return tf.nest.map_structure(lambda value: None if value is None else next(found), structure)


def _is_one_tile(shape: tf.TensorShape, cell: int, tile: int | None) -> bool:
    """Tells whether it is known, eagerly or in a graph of a fixed size, that there is nothing to cut."""
    if None in shape[:3]:
        return False
    batch, height, width = shape[0], shape[1] * cell, shape[2] * cell
    return batch * height * width <= LARGE if tile is None else max(height, width) <= tile


def _loop(step, end, count: int) -> Sequence[tf.TensorArray]:
    """Runs `step` of a position and `count` arrays, which it adds to, from 0 until the position is at the end."""
    arrays = [tf.TensorArray(tf.float32, 0, dynamic_size=True, infer_shape=False) for _ in range(count)]
    _, *arrays = tf.while_loop(
        lambda position, *_: position < end, step, [tf.constant(0), *arrays], parallel_iterations=1
    )
    return arrays
