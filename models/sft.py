"""SFT: one model for every rate, steered by a quality map over the image.

Song, Choi, Han: "Variable-Rate Deep Image Compression through Spatially-Adaptive Feature Transform", ICCV 2021,
https://arxiv.org/abs/2108.09551

    quality map ─┬───────────────────┐
                 ▼                   ▼
    images ──► analysis ──► y ──► hyper-analysis ──► z ──► z_hat ──┬──► hyper-synthesis ──► means, scales
                            │                                     │                           │
                            └─────────────────────────────────────│──────► y_hat ◄────────────┘
                                                                  ▼          │
    images ◄── synthesis ◄── condition network ◄── f_c ◄──────────┘          │
                   ▲                   ▲                                     │
                   └───────────────────┴─────────────────────────────────────┘

The map has a quality of 0 to 1 for every pixel. It is the encoder's business alone: the decoder recovers what it needs
of it from z_hat. Uniform maps give one model for all rates; others put the bits where they
matter: into a region, where a drawn map says so, or where a classifier looks (models/tasks/task_map.py).
"""

from __future__ import annotations

if __name__ == "__main__":  # before TensorFlow is imported, for which --help does not wait
    from models.app import main

    main("sft")

import dataclasses
import logging

import numpy as np
import tensorflow as tf

from models.codec import Codec
from models.codec import quality_map as user_maps
from models.codec import training as training_steps
from models.codec.registry import register
from models.entropy.passes import gaussian_net, hyperprior
from models.io.errors import UserError
from transforms import quality_maps
from transforms.exact import Conv, LatentInput
from transforms.networks import sft as transforms
from transforms.resample import pad_to_multiple
from transforms.starts import linear as linear_start
from transforms.tiling import Reach

logger = logging.getLogger(__name__)

#: Latents are the transforms' outputs times this. Those are near 1 at the start of a training, and rounding and its
#: noise would drown them. (Kernels could learn the factor, in thousands of steps.)
LATENT_SCALE = 16.0
#: A batch with a higher loss is skipped: it has no gradient (the authors skip it, too).
SKIPPED_LOSS = 1e4
#: So many qualities from 0 to 1 are validated, each on some of the images.
VALIDATION_QUALITIES = 9


def _ordered_dither(log2_size: int) -> np.ndarray:
    """Bayer's matrix of thresholds (1973): float32 [2^n, 2^n], equally spaced between -0.5 and 0.5, none alike."""
    order = np.zeros([1, 1])
    for _ in range(log2_size):
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    return ((order + 0.5) / order.size - 0.5).astype(np.float32)


#: Dither, added to the quality in the hyper-latent before it is rounded, over 8x8 of its positions.
DITHER = _ordered_dither(3)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the architecture (paper, section 4.1 and appendix).

    widths: channels of the transforms at full, 1/2, 1/4 and 1/8 of the resolution.
    latents: channels of the latent y (M).
    hyper_channels: channels of the hyper-latent z (N), besides one with the quality.
    hyper_widths: hidden channels of the hyper-synthesis.
    recovered: channels of what the decoder recovers of the quality map (f_c).
    condition_features: channels of a condition.
    condition_widths: channels of the condition networks before the first condition, for the hyper-analysis and the
      synthesis, which begin at 1/16 of the resolution.
    pixel_condition_widths: the same for the analysis, which begins at full resolution.
    quality_gain: the logarithm of y's scale rises by this from quality 0 to 1. In theory the best step is
      proportional to 1/√λ, which makes it 4.382 / 2. 0 is as in the paper: then the networks have to learn it.
    sft_width: hidden channels of an SFT layer.
    sft_kernel: kernel size of an SFT layer.
    restoration: files hold a filter for their image; not in the paper. See `models/tools/restoration.py`.
    compensation: step size of the second analysis, which analyses x + compensation · (x − S(A(x))) before a file is
      written; 0, as in the paper, analyses once. See `coding.refine_analysis`.
    rdoq: the move penalty of RDOQ in bits; 0, as in the paper, switches RDOQ off. See `models/tools/rdoq.py`.
    """

    widths: tuple[int, int, int, int] = (48, 96, 192, 192)
    latents: int = 192
    hyper_channels: int = 192
    hyper_widths: tuple[int, int] = (192, 288)
    recovered: int = 48
    condition_features: int = 64
    condition_widths: tuple[int, ...] = (256, 128)
    pixel_condition_widths: tuple[int, ...] = (256, 128)
    sft_width: int = 128
    sft_kernel: int = 3
    quality_gain: float = 2.2
    restoration: bool = False
    compensation: float = 0.0
    rdoq: float = 0.0


# Also on the card in models/codec/registry.py, in the same order, and in the table of res/doc/sft.md.
PRESETS = {
    "base": Config(),
    # Layers at full resolution cost the most: these, and all of a condition's width, are narrow.
    "small": Config(
        widths=(16, 32, 64, 96),
        latents=192,
        hyper_channels=64,
        hyper_widths=(64, 96),
        recovered=24,
        condition_features=16,
        condition_widths=(64, 32),
        pixel_condition_widths=(16,),
        sft_width=16,
        restoration=True,
        compensation=0.7,
        rdoq=12.0,
    ),
}


@register("sft", config=Config, presets=PRESETS)
class SFT(Codec):
    """SFT on the zoo's contract; see `Codec`.

    Args:
      config: the architecture.
      lmbda: λ at qualities 0 and 1 (paper, equation 5: 0.001 · exp(4.382 q)). Between them log λ is a straight line.
    """

    # Latents at 1/16; the hyper-latent's factor 4 is padded inside.
    stride = (16, 16)
    # The synthesis takes z_hat, at 1/64, too, which has the largest receptive field.
    reach = Reach(unit=64, analysis=128, synthesis=256, latents=(16,), decoded=(16, 64))
    searchable = True
    encoder_parts = ("analysis", "hyper_analysis")

    def __init__(self, config: Config = PRESETS["base"], lmbda: tuple[float, float] = (0.001, 0.08)):
        super().__init__(config, lmbda)
        if len(self.lambdas) != 2:
            raise UserError("SFT takes two λ: those of qualities 0 and 1")
        self._task = None
        c = config
        sizes = transforms.Modulation(c.condition_features, c.sft_width, c.sft_kernel)
        self.analysis = transforms.analysis(c.widths, c.latents, sizes, c.pixel_condition_widths)
        self.hyper_analysis = transforms.hyper_analysis(c.latents, c.hyper_channels, sizes, c.condition_widths)
        self.hyper_input = LatentInput(self.prior_channels(), name="hyper_input")
        self.hyper_synthesis = gaussian_net(
            self.prior_channels(),
            [*(Conv(w, 5, up=2) for w in c.hyper_widths), Conv(2 * c.latents, 3)],
            "hyper_synthesis",
        )
        self.synthesis = transforms.Synthesis(
            c.widths, c.latents, self.prior_channels(), c.recovered, sizes, c.condition_widths
        )

    def init_pca(self) -> None:
        """See `Codec`. The step is the best one at quality 1/2."""
        step = linear_start.best_step(float(self.lambda_map(0.5)))
        linear_start.begin(self.analysis, self.synthesis, LATENT_SCALE * step)

    def prior_channels(self) -> int:
        return self.config.hyper_channels + 1  # and the quality

    def make_rate_control(self) -> user_maps.QualityMaps:
        return user_maps.QualityMaps()

    # ---- the codec --------------------------------------------------------------------------------------------------

    def analyse(self, images, quality_map):
        """y before its scale. quality_map: float32 [B, H, W, 1] in 0..1, padded as the images are."""
        return tf.cast(self.analysis(self.normalise(images), quality_map), tf.float32)

    def code(self, coder, y, shape, quality_map=None):
        """Codes z, then y; see `Codec`. Returns (y_hat, z_hat), which the synthesis both needs.

        quality_map: that of `analyse`. Only the encoder has it.
        """
        z = None if y is None else self.with_dithered_quality(self.hyper_latent(y, quality_map))
        size = shape[0], shape[1] // 16, shape[2] // 16
        z_hat, parameters = hyperprior(coder, z, size, self.hyper_input, self.hyper_synthesis)
        scale = self.latent_scale(z_hat, *size[1:])
        y_hat = coder.gaussian("y", None if y is None else scale * y, parameters) / scale
        return y_hat, z_hat

    def hyper_latent(self, y: tf.Tensor, quality_map: tf.Tensor) -> tf.Tensor:
        """z before it is rounded, [B, rows / 4, columns / 4, N + 1], of y and the map of `analyse`."""
        coarse_map = pad_to_multiple(tf.nn.avg_pool2d(quality_map, 16, 16, "VALID"), 4)
        z = tf.cast(self.hyper_analysis(pad_to_multiple(y, 4), coarse_map), tf.float32)
        return LATENT_SCALE * tf.concat([z, tf.nn.avg_pool2d(coarse_map, 4, 4, "VALID") - 0.5], -1)

    def with_dithered_quality(self, z: tf.Tensor) -> tf.Tensor:
        """z whose quality, when it is rounded, is right in the mean of 8x8 of its places; on a step it stays there.

        With the same quality everywhere all of them would round the same way, and files grow in steps of a tenth.
        """
        rows, columns = tf.range(tf.shape(z)[1]) % DITHER.shape[0], tf.range(tf.shape(z)[2]) % DITHER.shape[1]
        offsets = tf.gather(tf.gather(DITHER, rows), columns, axis=1)
        return z + tf.pad(offsets[None, ..., None], [[0, 0], [0, 0], [0, 0], [self.config.hyper_channels, 0]])

    def latent_scale(self, z_hat: tf.Tensor, rows, columns) -> tf.Tensor:
        """Scale of y before it is rounded, [B, rows, columns, 1]: larger, so finer steps, at higher quality.

        Both sides know the mean quality of 64x64 pixels, less 0.5: the last channel of z.
        """
        scale = LATENT_SCALE * tf.exp(self.config.quality_gain / LATENT_SCALE * z_hat[..., -1:])
        return tf.repeat(tf.repeat(scale, 4, 1), 4, 2)[:, :rows, :columns]

    def reconstruct(self, latents: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        y_hat, z_hat = latents
        return self.denormalise(self.synthesis(y_hat, z_hat / LATENT_SCALE))

    # ---- training ---------------------------------------------------------------------------------------------------

    def lambda_map(self, quality_map: tf.Tensor) -> tf.Tensor:
        """Returns λ of each quality, in the shape of the map (paper, equation 5); `_map_weights` integrates it."""
        low, high = self.lambdas
        return low * tf.exp(quality_map * np.log(high / low))

    def losses(self, images, training: bool) -> dict[str, tf.Tensor]:
        """bpp + mean of λ(q) · squared error (paper, equation 4), q a random map; see `Codec.losses`.

        For validation the maps are uniform, one of nine qualities for each image, the same at each time; in training
        images of low qualities count more (`training.level_weights` says why).

        images: [B, H, W, 3]; or [B, H, W, 4] from data with segmentation masks, the last channel being the class of
          each pixel (0..255): some maps have a level per class then.
        """
        masks = tf.cast(images[..., 3], tf.int32) if images.shape[-1] == 4 else None
        images = tf.cast(images[..., :3], tf.float32)
        shape = tf.unstack(tf.shape(images)[:3])
        if training:
            quality_map = quality_maps.training_maps(shape, masks)
        else:
            level = tf.cast(training_steps.validation_draws(images, VALIDATION_QUALITIES), tf.float32) / (
                VALIDATION_QUALITIES - 1
            )
            quality_map = tf.broadcast_to(level[:, None, None, None], [*shape, 1])
        _, reconstruction, bits = training_steps.forward(self, images, {"quality_map": quality_map}, training)
        figures = training_steps.rate_and_distortion(images, reconstruction, bits, training)
        figures["loss"] = self.rate_distortion(images, reconstruction, figures["bpp"], quality_map)
        if training:
            figures["loss"] *= self._map_weights(quality_map)
        figures = {name: tf.reduce_mean(figures[name]) for name in self.metric_names}
        # Four inverse GDNs in a row can blow up in the first hundred steps: such a batch teaches nothing.
        loss = figures["loss"]
        figures["loss"] = tf.where(loss < SKIPPED_LOSS, loss, tf.stop_gradient(loss))
        return figures

    def _map_weights(self, quality_map: tf.Tensor) -> tf.Tensor:
        """Weights the loss of images with these maps in training, [B]: `training.level_weights` of the mean quality."""
        low, high = self.lambdas
        fall = np.log(high / low) / 2  # of log(1 / sqrt(λ)) from quality 0 to 1
        mean_weight = (1 - np.exp(-fall)) / fall
        return tf.exp(-fall * tf.reduce_mean(quality_map, [1, 2, 3])) / mean_weight

    def rate_distortion(self, images, reconstruction, bpp, quality_map):
        weights = self.error_weights(tf.shape(images), quality_map)
        return bpp + tf.reduce_mean(weights * tf.math.squared_difference(reconstruction, images), [1, 2, 3])

    def error_weights(self, shape, quality_map):
        return self.lambda_map(quality_map)[:, : shape[1], : shape[2]]

    def symbol_scale(self, quality_map):
        coarse_map = tf.nn.avg_pool2d(quality_map, 16, 16, "VALID")
        return LATENT_SCALE * tf.exp(self.config.quality_gain * (coarse_map - 0.5))

    def unquantised(self, analysed, quality_map):
        return analysed, self.hyper_latent(analysed, quality_map)
