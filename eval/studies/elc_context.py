"""What a parallel context costs: `python -m eval.studies.elc_context TRAIN… --test TEST… --weights FILE`.

The authors of ELC predict each latent from those decoded before it, in raster order, one network evaluation for each
position. The zoo decodes half of the positions at once, then the other half: the checkerboard. This program measures
what that does to the rate: on the frozen latents of a trained ELC it trains three networks that predict them, equal but
for what they see of each other's positions, for the same number of steps on the same batches:

    none           the hyper-latents only
    checkerboard   non-anchors see their 12 neighbours among the anchors
    serial         each position sees the 12 before it of the 5x5 around it

and prints the bits per pixel of y on other images.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from models.codec import load_for_training, weights
from models.entropy.coders import EntropyModels, rows_of
from models.io import files, images
from models.io.errors import UserError
from transforms.resample import Upsample, pad_to_multiple

KINDS = ("none", "checkerboard", "serial")
LATENT_PIXELS = 16


def anchors(shape) -> tf.Tensor:
    """1 where row + column is even, 0 elsewhere: float32 [1, H, W, 1]."""
    rows, columns = tf.range(shape[1])[:, None], tf.range(shape[2])[None]
    return tf.cast((rows + columns) % 2 == 0, tf.float32)[None, :, :, None]


def causal_mask(size: int = 5) -> np.ndarray:
    """The taps before the middle one in raster order: float32 [size, size, 1, 1]."""
    before = np.arange(size * size).reshape(size, size) < size * size // 2
    return before.astype(np.float32)[:, :, None, None]


class Predictor(tf.keras.Model):
    """Means and table rows of y from z_hat and a context of y_hat.

    Args:
      config: of the ELC, whose layers these are.
      kind: one of `KINDS`.
    """

    def __init__(self, config, kind: str):
        super().__init__()
        n, conv = config.width, tf.keras.layers.Conv2D
        self.kind = kind
        self.hyper = tf.keras.Sequential(
            [
                *(Upsample(width, activation="relu") for width in config.hyper_widths),
                conv(config.hyper_features, 3, padding="same"),
            ]
        )
        self.context_width = 2 * n
        self.context = conv(2 * n, 5, padding="same") if kind != "none" else None
        self.parameters = tf.keras.Sequential(
            [*(conv(width, 1, activation="relu") for width in config.parameter_widths), conv(2 * n, 1)]
        )

    def call(self, inputs):
        """(y_hat [B, H, W, N], z_hat [B, H / 4, W / 4, N]) -> (means, rows), [B, H, W, N] each."""
        y_hat, z_hat = inputs
        shape = tf.shape(y_hat)
        if self.context is not None and not self.context.built:
            self.context.build(y_hat.shape)
        if self.kind == "none":
            context = tf.zeros([*tf.unstack(shape[:3]), self.context_width])
        elif self.kind == "checkerboard":
            even = anchors(shape)
            context = self.context(y_hat * even) * (1 - even)
        else:
            kernel = self.context.kernel * causal_mask()
            context = tf.nn.conv2d(y_hat, kernel, 1, "SAME") + self.context.bias
        hyper = self.hyper(z_hat)[:, : shape[1], : shape[2]]
        means, log_scales = tf.split(self.parameters(tf.concat([hyper, context], -1)), 2, -1)
        return means, rows_of(log_scales)


def latents(codec, images: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """y and the rounded z of images, uint8 [N, H, W, 3]: float32 [N, H / 16, W / 16, C], and at 1/64."""
    y = tf.concat([codec.analyse(codec.pad(tf.cast(p[None], tf.float32))) for p in images], 0)
    return y, tf.round(codec.hyper_analysis(pad_to_multiple(y, 4)))


def train(predictor: Predictor, density, y: tf.Tensor, z_hat: tf.Tensor, steps: int, batch: int, rate: float) -> None:
    """Lowers the bits of y; every predictor sees the same batches."""
    optimizer = tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(rate, steps), global_clipnorm=1.0)

    @tf.function(autograph=False)
    def step(y, z_hat):
        with tf.GradientTape() as tape:
            means, rows = predictor((tf.round(y), z_hat))
            _, bits = density(y, rows, loc=means, training=True)
            loss = tf.reduce_mean(bits)
        optimizer.minimize(loss, predictor.trainable_variables, tape=tape)

    data = tf.data.Dataset.from_tensor_slices((y, z_hat)).shuffle(len(y), 0).repeat().batch(batch).take(steps)
    for parts in data:
        step(*parts)


def measure(codec, training: np.ndarray, test: Sequence[np.ndarray], steps: int, batch: int, rate: float):
    """Bits per pixel of y on the images of `test`, by kind.

    Args:
      codec: an ELC with its training variables.
      training: uint8 [N, H, W, 3].
      test: uint8 [H, W, 3] each.
    """
    density = EntropyModels(codec.config.width).latent
    y, z_hat = latents(codec, training)
    result = {}
    for kind in KINDS:
        tf.keras.utils.set_random_seed(0)
        predictor = Predictor(codec.config, kind)
        train(predictor, density, y, z_hat, steps, batch, rate)
        bits = pixels = 0.0
        for image in test:
            own, own_z = latents(codec, image[None])
            means, rows = predictor((tf.round(own), own_z))
            bits += float(tf.reduce_sum(density(own, rows, loc=means, training=False)[1]))
            pixels += image.shape[0] * image.shape[1]
        result[kind] = bits / pixels
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.elc_context", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="To train on, of one size; globs.")
    parser.add_argument("--test", nargs="+", required=True, metavar="IMAGE", help="To measure on; globs.")
    parser.add_argument("--weights", help="Weights file; by default the first that ship for elc.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batchsize", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--json", metavar="FILE", help="Also write the figures there.")
    args = parser.parse_args(argv)
    try:
        codec = load_for_training(args.weights or weights.default("elc"))
        if codec.entry.name != "elc":
            raise UserError(f"{args.weights}: not weights of elc")
        training, test = (
            [images.read_image(path) for path in files.expand_inputs(paths)] for paths in (args.images, args.test)
        )
        if len({p.shape for p in training}) > 1:
            raise UserError("the images to train on must be of one size")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    figures = measure(codec, np.stack(training), test, args.steps, args.batchsize, args.learning_rate)
    print(f"bits per pixel of y, {len(test)} images, {args.steps} steps on {len(training)}")
    for kind, value in figures.items():
        print(f"{kind:14} {value:.4f}  {100 * (value / figures['serial'] - 1):+.1f} % against serial")
    if args.json:
        files.atomic_write(args.json, json.dumps(figures, indent=1).encode(), force=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
