"""Restoration: a filter for one image, which its sender fits and the file holds.

A synthesis is made for all images; for this one a small correction brings it closer to the original, and only who
has that knows which. Video codecs send such filters (the Wiener filter of AV1's loop restoration, VVC's adaptive loop
filter); here it is one for the image, of 3x3 pixels and all three colours, by least squares. Not in the papers.

A restored pixel is the decoded one plus, in each colour, the weighted sum of `FEATURES` numbers: of the four pairs of
opposite neighbours what their sums differ from twice the pixel by, the pixel itself, and a constant. Beyond its edges
an image repeats its edge pixels.
"""

from __future__ import annotations

import tensorflow as tf

from models.entropy.coders import row_of_scale

#: Opposite neighbours: (rows, columns) from the pixel to one of them.
PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1))
FEATURES = 3 * len(PAIRS) + 4
COEFFICIENTS = 3 * FEATURES
#: Step of a coefficient in a file. The feature of the pixel itself is a quarter of its difference from mid-grey.
STEP = 1 / 256
GREY, GREY_SCALE, CONSTANT = 128.0, 0.25, 4.0
#: Largest coefficient, in steps: least squares on a tiny image could give any.
LIMIT = 4096
#: Gaussian rows of the tables: for the flag of a filter (0 or 1), and for its coefficients, of some 50 steps. Without
#: a filter the coefficients are coded with the first row, in which a 0 costs next to nothing.
SOME, NONE, WORTH = row_of_scale(0.5), 0, row_of_scale(50.0)
#: Rows of an image whose features are made together when a filter is fitted: those of all rows take a lot of memory.
STRIP = 64


def _features(padded: tf.Tensor) -> tf.Tensor:
    """[B, H + 2, W + 2, 3] -> [B, H * W, FEATURES]."""
    shape = tf.shape(padded)
    height, width = shape[1] - 2, shape[2] - 2

    def moved(row, column):
        return padded[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width]

    centre = moved(0, 0)
    parts = [moved(i, j) + moved(-i, -j) - 2 * centre for i, j in PAIRS]
    parts += [(centre - GREY) * GREY_SCALE, tf.fill([shape[0], height, width, 1], CONSTANT)]
    return tf.reshape(tf.concat(parts, -1), [shape[0], height * width, FEATURES])


def fit(images: tf.Tensor, decoded: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Fits the best filter to each image. Returns its coefficients and the reduction of squared error.

    Args:
      images: originals, [B, H, W, 3] in 0..255.
      decoded: what the synthesis made of them, float32 of the same shape.
      weights: what the squared error counts at each pixel, such as λ: float32 [B, H, W, 1], positive.

    Returns:
      Coefficients, int32 [B, COEFFICIENTS], in steps of `STEP`; and by how much they lower the mean over pixels and
      colours of weight times squared error, float32 [B].
    """
    largest = tf.reduce_max(weights, [1, 2, 3])
    weights = weights / largest[:, None, None, None]  # equal ones are 1, and what follows does not depend on them
    shape = tf.shape(images)
    batch, height, width = shape[0], shape[1], shape[2]

    def add(start, squares, products):
        stop = tf.minimum(start + STRIP, height)
        rows = tf.clip_by_value(tf.range(start - 1, stop + 1), 0, height - 1)
        around = tf.pad(tf.gather(decoded, rows, axis=1), [[0, 0], [0, 0], [1, 1], [0, 0]], "SYMMETRIC")
        x = _features(around)
        error = tf.reshape(tf.cast(images[:, start:stop], tf.float32) - decoded[:, start:stop], [batch, -1, 3])
        weighted = x * tf.reshape(weights[:, start:stop], [batch, -1, 1])
        squares += tf.cast(tf.matmul(weighted, x, transpose_a=True), tf.float64)
        products += tf.cast(tf.matmul(weighted, error, transpose_a=True), tf.float64)
        return stop, squares, products

    sums = [tf.zeros([batch, FEATURES, n], tf.float64) for n in (FEATURES, 3)]
    shapes = (tf.TensorShape([]), *(tf.TensorShape([None, *x.shape[1:]]) for x in sums))
    _, squares, products = tf.while_loop(lambda start, *_: start < height, add, (0, *sums), shape_invariants=shapes)
    # An image of one colour leaves coefficients open: the least are taken.
    exact = _solve(squares + tf.eye(FEATURES, dtype=tf.float64), products)
    coefficients = tf.clip_by_value(tf.round(exact / STEP), -LIMIT, LIMIT)
    sent = STEP * coefficients
    lower = sent * (2 * products - tf.matmul(squares, sent))
    lower = tf.reduce_sum(tf.reshape(lower, [batch, COEFFICIENTS]), 1)  # a batch that TensorFlow Lite knows stays known
    lower = tf.cast(lower / tf.cast(3 * height * width, tf.float64), tf.float32)
    return tf.cast(tf.reshape(coefficients, [batch, COEFFICIENTS]), tf.int32), largest * lower


def _solve(squares: tf.Tensor, products: tf.Tensor) -> tf.Tensor:
    """x of squares x = products, positive definite [B, N, N], by elimination: TensorFlow Lite has no solver."""
    count = squares.shape[-1]
    rows = tf.concat([squares, products], -1)
    for k in range(count):
        pivot = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        rows -= (rows[:, :, k : k + 1] - tf.one_hot([k], count, axis=0, dtype=rows.dtype)) * pivot
    return rows[:, :, count:]


def apply(decoded: tf.Tensor, coefficients: tf.Tensor) -> tf.Tensor:
    """Restored images.

    Args:
      decoded: float32 [B, H, W, 3] in 0..255.
      coefficients: int32 [B, COEFFICIENTS], of `fit`; zeros change nothing.
    """

    def one(arguments):
        image, weights = arguments
        kernel, bias = _kernel(weights)
        padded = tf.pad(image[None], [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        return tf.nn.conv2d(padded, kernel, 1, "VALID")[0] + bias

    weights = tf.reshape(tf.cast(coefficients, tf.float32) * STEP, [-1, FEATURES, 3])
    return tf.map_fn(one, (decoded, weights), fn_output_signature=tf.float32)


def _kernel(weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The convolution, [3, 3, 3, 3] and [3], of weights [FEATURES, 3]."""
    *pairs, own, constant = tf.split(weights, [3] * (len(PAIRS) + 1) + [1])
    taps = {(0, 0): tf.eye(3) + GREY_SCALE * own - 2 * tf.add_n(pairs)}
    for (i, j), pair in zip(PAIRS, pairs):
        taps[i, j] = taps[-i, -j] = pair
    kernel = tf.stack([tf.stack([taps[i, j] for j in (-1, 0, 1)]) for i in (-1, 0, 1)])
    return kernel, CONSTANT * constant[0] - GREY * GREY_SCALE * tf.reduce_sum(own, 0)


def code(coder, coefficients: tf.Tensor | None, batch: tf.Tensor, gaussians: int = 0) -> tf.Tensor:
    """Codes the coefficients of a batch of images: whether there are any, then these. Returns them decoded.

    Args:
      coder: a latent coder (`models/entropy/coders.py`).
      coefficients: int32 [B, COEFFICIENTS]; None when decoding.
      batch: B.
      gaussians: the row of the coder's tables from which the Gaussians are.
    """
    some = None
    if coefficients is not None:
        some = tf.cast(tf.reduce_any(coefficients != 0, 1, keepdims=True), tf.int32)
    some = coder.integers("restoration", some, tf.fill([batch, 1], gaussians + SOME))
    rows = gaussians + tf.where(some != 0, WORTH, NONE)
    return coder.integers("restoration", coefficients, tf.broadcast_to(rows, [batch, COEFFICIENTS]))
