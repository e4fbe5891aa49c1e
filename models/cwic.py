"""CWIC: content-weighted image compression with an importance map.

Li, Zuo, Gu, Zhao, Zhang: "Learning Convolutional Networks for Content-weighted Image Compression", CVPR 2018,
https://arxiv.org/abs/1703.10553

    images ──► encoder ──► features ──► code head ──► sigmoid ──► binarise ──► n bits a position
                               │                                                  │
                               └──► importance net ──► p ──► level Q(p) ──► mask ─┤ keeps the first n / L · Q(p) bits
                                                               │                  ▼
                              file:  levels in bit planes ◄────┘            trimmed codes
                                         │                                        │
                                         ▼                                        ▼
                                     context ──► the kept bits, in channel groups ──► decoder ──► images

Where the picture is busy the map is high and many bits are kept, where it is smooth few are. All is at 1/8 of the
resolution: n = 64 bits a position, none of them trimmed, are 1 bit per pixel.
"""

from __future__ import annotations

if __name__ == "__main__":  # before TensorFlow is imported, for which --help does not wait
    from models.app import main

    main("cwic")

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from models.codec import Codec, coding
from models.codec import training as training_steps
from models.codec.registry import register
from models.entropy import tables
from models.entropy.bit_context import ContextModel
from models.io.errors import UserError
from models.tools import bit_rdoq
from transforms import importance
from transforms.networks import cwic as transforms
from transforms.starts import binary as binary_start
from transforms.tiling import Reach

#: λ by default.
LAMBDA = 0.01

#: γ: what the mean importance costs above the ratio that is asked for, in squared errors on the 0..255 scale. On the
#: scale of the authors' release (squared error of pixels in -1..1, halved and summed; importance summed) it would be
#: RATE_WEIGHT * 192 / (2 * 127.5²) = 11.8; theirs is 0.03 to 0.3. Here it is to bind: it must outweigh what more bits
#: save in distortion.
RATE_WEIGHT = 2000.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the architecture (paper, section 3 and Fig. 2 and 3; widths as in the authors' release).

    encoder_widths: channels of the encoder at 1/4 and 1/8 of the resolution.
    decoder_widths: channels of the decoder at 1/8, 1/4 and the full resolution.
    hidden: inner channels of the residual blocks and of the importance net.
    levels: L, of the importance map; divides the number of bits of a position.
    code_groups: bits that are predicted together; their sum is n, the bits of a position. Small ones first, as the
      mask keeps the first ones: at low rates there are few others.
    context_width: channels of the networks that predict the bits of the codes.
    map_context_width: the same for the bits of the importance map.
    restoration: files hold a filter for their picture; not in the paper. See `models/tools/restoration.py`.
    rdoq: λ by which bits of a file flip where rate and distortion together are less; 0, and none flips, in the paper.
      It is not that of the loss: straight-through gradients weigh rate too much. See `models/tools/bit_rdoq.py`.
    """

    encoder_widths: tuple[int, int] = (128, 256)
    decoder_widths: tuple[int, int, int] = (512, 256, 32)
    hidden: int = 128
    levels: int = 16
    code_groups: tuple[int, ...] = (4, 4, 8, 16, 32)
    context_width: int = 96
    map_context_width: int = 32
    restoration: bool = False
    rdoq: float = 0.0

    @property
    def codes(self) -> int:
        """n, the bits of a position."""
        return sum(self.code_groups)

    @property
    def planes(self) -> int:
        """Bits of a level of the map."""
        return (self.levels - 1).bit_length()


_SMALL = {"encoder_widths": (64, 128), "decoder_widths": (192, 96, 32), "restoration": True}
PRESETS = {
    "low": Config(),
    "high": Config(levels=32, code_groups=(8, 8, 16, 32, 64)),
    "small": Config(**_SMALL, hidden=64, code_groups=(2, 4, 8, 16, 40, 14, 44), context_width=48),
    "small-high": Config(**_SMALL, hidden=48, levels=32, code_groups=(2, 4, 8, 16, 32, 70, 26, 98), context_width=32),
}
"""`low` is the paper's network for its four lower rates, `high` that for its highest; `small` and `small-high` are a
fifth of the work, with twice the bits, in groups that suit the initialisation (`transforms/starts/binary.py`).

Where they depart from the paper, besides what the entropy coder is:

* A residual block is ReLU(x + branch), without the release's second ReLU at the end of the branch (see there).
* The gradient of the bits that the context model measures does not reach the transforms, as the paper trains its
  entropy coder apart; but both are trained in one run, and share the clipping of the gradients' norm. With `joint_rate`
  it does: rate and distortion are weighed against each other, as in the other models of the zoo.
* The rate loss holds the mean importance of a batch, not of each picture, so that pictures share bits as positions do.
* The map is trained together with everything else, from weights that were trained without one, as in the paper; it
  starts at the ratio asked for.

The entropy coder: the paper predicts each bit from a 5x5x4 window of decoded bits with a network that runs once a bit,
in raster order, a hundred thousand times and more for a picture. Here bits are predicted in groups of channels, half of
the positions at a time: 2 passes a group and 18 in all. A bit sees all channels of the groups before and, in the second
half, its neighbours on all sides, but never another bit of its own group and half. What that gains over no model, and
over a fixed probability for each channel, is measured by `eval/studies/cwic_bits.py`. The networks run in integers, so
that files decode everywhere.
"""


@register("cwic", config=Config, presets=PRESETS)
class CWIC(Codec):
    """CWIC on the zoo's contract; see `Codec`.

    Args:
      config: the architecture.
      stage: 1 trains without an importance map, all bits are kept; 2 with it, from weights of stage 1. Weights of both
        stages compress.
      ratio: r, for stage 2: the mean importance to aim at, in (0, 1], about the share of the bits that are kept.
      joint_rate: whether the bits that the context model measures train the transforms too, towards codes that it can
        predict. Not in the paper, where the entropy coder comes afterwards.
      lmbda: λ of the loss `bpp + λ · MSE`, which sets the rate where `joint_rate` is on.

    Raises:
      UserError: L does not divide n, there is no such stage, or the ratio is out of its range.
    """

    stride = (8, 16)  # codes at 1/8; an even number of columns for the checkerboard
    # Codes, and in stage 2 the importance map.
    reach = Reach(unit=8, analysis=72, synthesis=64, latents=(8, 8), decoded=(8,))
    metric_names = ("loss", "bpp", "mse", "psnr", "importance")
    gaussian_rows = tables.NUM_LOGITS + 1  # behind the rows for bits

    def __init__(
        self,
        config: Config = PRESETS["low"],
        stage: int = 1,
        ratio: float = 1.0,
        joint_rate: bool = False,
        lmbda: float = LAMBDA,
    ):
        c = config
        if c.levels < 2 or c.codes % c.levels:
            raise UserError(f"{c.codes} codes cannot be kept in {c.levels} levels: L must be at least 2 and divide n")
        if stage not in (1, 2):
            raise UserError(f"stage {stage}: there are stages 1 and 2")
        if not 0 < ratio <= 1:
            raise UserError(f"ratio {ratio:g} is not within (0, 1]")
        super().__init__(config, lmbda)
        if stage == 1:
            self.reach = dataclasses.replace(self.reach, latents=(8,))
        self.stage, self.ratio, self.joint_rate = stage, ratio, joint_rate
        features = c.encoder_widths[-1]
        self.encoder = transforms.encoder(c.encoder_widths, c.hidden)
        self.code_head = transforms.code_head(features, c.codes)
        self.synthesis = transforms.decoder(c.codes, c.decoder_widths, c.hidden)
        self.code_context = ContextModel(c.planes, c.code_groups, c.context_width, name="code_context")
        if stage == 2:
            self.importance_net = transforms.importance_net(features, c.hidden, start=min(ratio, 0.99))
            self.map_context = ContextModel(1, [1] * c.planes, c.map_context_width, name="map_context")

    def init_pca(self) -> None:
        """See `Codec` and `transforms/starts/binary.py`."""
        self.build_variables(training=True)
        try:
            bits = binary_start.begin(self.encoder, self.code_head, self.synthesis)
        except ValueError as error:
            raise UserError(str(error)) from error
        shares = np.clip([bit.share for bit in bits], 1e-3, 1 - 1e-3)
        logits = np.split(np.log(shares / (1 - shares)), np.cumsum(self.config.code_groups)[:-1])
        for net, group in zip(self.code_context.logits, logits):
            net.biases[-1].assign(group)

    def analyse(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Images [B, H, W, 3], padded -> codes, 0 or 1, [B, H / 8, W / 8, n], and the importance p in 0..1,
        [B, H / 8, W / 8, 1] (None in stage 1); float32, both with gradients."""
        features = self.encoder(self.normalise(images))
        codes = importance.binarise(self.code_head(features))
        return codes, self.importance_net(features) if self.stage == 2 else None

    def code(self, coder, analysed, shape) -> tf.Tensor:
        """Walks the importance map and the codes in coding order; see `Codec`. Returns the trimmed codes."""
        c = self.config
        codes, p = (None, None) if analysed is None else analysed
        level, planes = self._transmit_map(coder, p, [shape[0], shape[1] // 8, shape[2] // 8])
        mask = importance.mask(level, c.codes, c.levels, p)
        trimmed = None if codes is None else codes * mask
        # Unless told otherwise, the context model is to predict the codes, not to change them.
        sent = codes if codes is None or self.joint_rate else tf.stop_gradient(codes)
        decoded = self.code_context.transmit(coder, "codes", 2 * planes - 1, sent, tf.stop_gradient(mask))
        # In training: the values that were decoded, with the gradients of those that were sent.
        return decoded if trimmed is None else tf.stop_gradient(decoded - trimmed) + trimmed

    def _transmit_map(self, coder, p, shape) -> tuple[tf.Tensor, tf.Tensor]:
        """The level of each position, [B, H, W, 1], and its bit planes, [B, H, W, planes]. shape: (B, H, W)."""
        c = self.config
        ones = tf.ones([*shape, 1])
        if self.stage == 1:  # all bits are kept, and nothing needs to be said
            return c.levels * ones, tf.repeat(ones, c.planes, -1)
        sent = None if p is None else importance.bit_planes(importance.quantise(p, c.levels), c.planes)
        # The first pass of the map knows nothing but where the picture ends.
        planes = self.map_context.transmit(coder, "map", ones, sent, tf.repeat(ones, c.planes, -1))
        return importance.from_bit_planes(planes), planes

    def optimise(self, images, analysed, controls, iterations: int, progress):
        """Flips bits, see `models/tools/bit_rdoq.py`."""
        return bit_rdoq.optimise_bits(self, images, analysed, controls, iterations, progress)

    @functools.cached_property
    def bit_turn(self):
        """A turn of `optimise`, as a graph for images of any size."""
        return tf.function(functools.partial(bit_rdoq.turn, self), autograph=False, reduce_retracing=True)

    @functools.cached_property
    def bit_energies(self) -> np.ndarray:
        """What each bit changes in an image, see `bit_rdoq.energies`."""
        with tf.init_scope():
            return bit_rdoq.energies(self, self.config.codes)

    def reconstruct(self, latents: tf.Tensor) -> tf.Tensor:
        return self.denormalise(self.synthesis(latents))

    def make_entropy_models(self) -> None:
        """None: networks predict the probability of each bit."""

    def table_rows(self) -> list[tables.Row]:
        """The rows of the CDF bank before they are fitted: for bits, and for the coefficients of filters."""
        return tables.bernoulli_rows() + (tables.gaussian_rows() if self.has_filter else [])

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(self, images, training: bool) -> dict[str, tf.Tensor]:
        """Distortion and the rate loss γ · max(0, mean p - r) train the transforms, bits the context model.

        Section 3.4; see `RATE_WEIGHT` for the units. "importance" is the mean of p.
        """
        images = tf.cast(images, tf.float32)
        sent = self.quantise(self.pad(images), {}, training)
        reconstruction = self.crop(self.reconstruct(sent.latents), images)
        figures = training_steps.rate_and_distortion(images, reconstruction, sent.bits, training)
        _, p = sent.analysed
        figures = {name: tf.reduce_mean(figure) for name, figure in figures.items()}
        figures["importance"] = tf.constant(1.0) if p is None else tf.reduce_mean(p)
        excess = RATE_WEIGHT * tf.maximum(figures["importance"] - self.ratio, 0.0)
        figures["loss"] = self.lmbda * (figures["mse"] + excess) + figures["bpp"]
        return {name: figures[name] for name in self.metric_names}

    def settings(self) -> dict[str, str]:
        """Stage, ratio and λ, which its weights file tells."""
        own = {"stage": str(self.stage), "ratio": str(self.ratio), "joint_rate": str(int(self.joint_rate))}
        return {**own, **super().settings()}

    @classmethod
    def from_settings(cls, config, settings) -> CWIC:
        """Inverse of `settings`; files of earlier versions do not tell their λ."""
        joint_rate = bool(int(settings.get("joint_rate", "0")))
        lmbda = float(settings.get("lambda", LAMBDA))
        return cls(config, int(settings.get("stage", "")), float(settings.get("ratio", "")), joint_rate, lmbda)

    @classmethod
    def second_stage(cls, before: CWIC, ratio: float, joint_rate: bool = False) -> CWIC:
        """A codec of stage 2, to be trained, with the weights of one of stage 1 or 2 that has its training variables.

        After stage 1 the importance net is new, and so is the context model of the map.
        """
        codec = cls(before.config, stage=2, ratio=ratio, joint_rate=joint_rate, lmbda=before.lmbda)
        return training_steps.warm_start(codec, before)

    # ---- the importance map as an image --------------------------------------------------------------------------

    def importance_image(self, image: np.ndarray) -> np.ndarray:
        """Where the bits go: a picture, uint8 [H, W, 3], as grey levels [H, W, 3], white where all bits are kept.

        Raises:
          UserError: weights of stage 1, which keep all bits everywhere.
        """
        self.check_importance()
        _, p = coding.analyse_in_tiles(self, self.pad(tf.constant(image[None])), {})
        levels = self.config.levels
        grey = tf.round(importance.quantise(p, levels) * (255 / (levels - 1)))
        grey = np.repeat(np.repeat(grey[0].numpy().astype(np.uint8), 8, 0), 8, 1)
        return np.repeat(grey[: image.shape[0], : image.shape[1]], 3, -1)

    def check_importance(self) -> None:
        """UserError for weights of stage 1, which have no importance map."""
        if self.stage == 1:
            raise UserError("these weights are of stage 1, without an importance map")
