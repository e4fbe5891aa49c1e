"""SAE-SPN (CompressNet): generative compression below 0.1 bit per pixel, with predicted unpooling switches.

Raman et al.: "CompressNet: Generative Compression at Extremely Low Bitrates", WACV 2020

    images ──► encoder: 4 x [conv, max-pool] ──► latents at 1/16 ──► quantise to -2 .. 2 ──► file
                    │                                                                         │
                    │ maps before the pooling                                                 ▼
                    │                                       shared residual block, 9 times ◄──┘
                    │                                                  │
                    ├──► intermediate loss ──────────────► 4 x upsample: 1/8, 1/4, 1/2, 1
                    │                                                  │
                    └──► switches: which pixel of a                    ├──► images ──► discriminator
                         2x2 cell was the largest                      │               (training only)
                                                                       │
    variant    how the decoder upsamples                               │
    sae        pixel shuffles                                          │
    swwae      unpooling by the encoder's switches, which the file has to carry
    sae_spn    pixel shuffles; at the full resolution unpooling by switches that are predicted from the map itself
"""

from __future__ import annotations

if __name__ == "__main__":  # before TensorFlow is imported, for which --help does not wait
    from models.app import main

    main("sae_spn")

import dataclasses
import logging
import warnings

import numpy as np
import tensorflow as tf

from models.codec import Codec, adversarial, loss_weights
from models.codec import training as training_steps
from models.codec.registry import register
from models.entropy import tables
from models.entropy.bit_context import ContextModel
from models.entropy.passes import bernoulli_net
from models.io.errors import UserError
from models.io.images import ImageWarning
from transforms import quantizers, switches
from transforms.exact import Conv, Fixed
from transforms.losses import deep_features
from transforms.networks import adversarial as networks
from transforms.networks import sae
from transforms.starts import levels as levels_start
from transforms.tiling import Reach

logger = logging.getLogger(__name__)

VARIANTS = ("sae_spn", "sae", "swwae")

#: Weights of the parts of the generator's loss, images in -1..1 (paper, section 3; `switches` is ours).
LOSS_WEIGHTS = {"mse": 1.0, "perceptual": 5.0, "intermediate": 1.0, "switches": 1.0, "adversarial": 1.0}

#: Images with more pixels than this are far from what an instance normalisation saw in training: four of the
#: paper's 512x512.
LARGE = 4 * 512 * 512


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the architecture (paper, section 3; widths as in the authors' release).

    widths: channels at the full resolution, 1/2, 1/4, 1/8 and 1/16; all but the first divisible by 4.
    latent_groups: channels of the latents that are predicted together; their sum is C, the channels of the latents.
    blocks: how often the one residual block is applied.
    norm: "instance" (paper), or "channel" or "none", which know no size of the image; see
    `transforms.networks.sae.make_norm`. sigma: hardness of the soft quantiser.
    context_width: channels of the networks that predict the latents' bits.
    discriminator_widths: channels of the discriminator at 1/2, 1/4, 1/8 and 1/16.
    linear: whether a 16x16 convolution by-passes each of the transforms (not in the paper).
    """

    widths: tuple[int, int, int, int, int] = (60, 120, 240, 480, 960)
    latent_groups: tuple[int, ...] = (2, 2, 4)
    blocks: int = 9
    norm: str = "instance"
    sigma: float = 1.0
    context_width: int = 32
    discriminator_widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    linear: bool = False

    @property
    def latents(self) -> int:
        """C."""
        return sum(self.latent_groups)


PRESETS = {
    "base": Config(),
    "small": Config(
        widths=(8, 16, 48, 96, 192),
        latent_groups=(2, 2, 4, 5),
        blocks=6,
        norm="none",
        discriminator_widths=(32, 64, 128, 256),
        linear=True,
    ),
}
"""`base` is the paper's network, `small` a thirtieth of the work. Where they depart from the paper:

* Normalisation. The authors have instance normalisation in the encoder and batch normalisation in the decoder. One
  residual block applied nine times has nine statistics, which a single moving average cannot hold, so that in
  inference the decoder would be another one than was trained: here the decoder has the encoder's kind. Instance
  normalisation computes with statistics of the whole image: an image much larger than the training crops is
  normalised differently from them (a warning says so), and its mean brightness can only survive in what the
  normalisation does not see. `small`, with few channels, has none: it learns several times faster so.
* The switch predictor is a classifier of the four pixels, trained with everything else by its cross-entropy, whose
  gradient reaches the decoder. (The authors' code rounds a sigmoid down: its prediction is always the first pixel.)
* The intermediate loss compares maps before the decoder's ReLU: the encoder's, normalised after theirs, have negative
  values too. The encoder gets no gradient of it.
* One update of the generator for each of the discriminator, at the same learning rate, instead of five. The gradient
  penalty is that of the mean verdict of an image's patches.
* No CLAHE and no squashing to 512x512: images are what they are, padded to the stride.
* The latents are entropy coded, where the paper counts log2(5) bits for each. The rate is no part of what trains
  the transforms, as there.
"""


class SwitchCoder(tf.Module):
    """Codes switches, two bits each, with fixed probabilities for each channel: the row, then the column given the row.

    Args:
      channels: of the switches.
    """

    def __init__(self, channels: int, name: str):
        super().__init__(name=name)
        # Of: lower row; right column in the upper row; right column in the lower row.
        self.logits = bernoulli_net(1, [Conv(3 * channels)], "logits")

    def transmit(self, coder, name: str, switch: tf.Tensor | None, shape) -> tf.Tensor:
        """Codes switches, int32 [B, H, W, C] of that shape; None when decoding. Returns them decoded."""
        one = tf.ones([shape[0], 1, 1, 1])
        logits = self.logits.run(Fixed(one, np.ones(1)) if coder.exact else one)
        wrap = Fixed if coder.exact else tf.identity
        value = tf.split(logits.value if coder.exact else logits, 3, -1)
        lower, upper_right, lower_right = (tf.broadcast_to(v, shape) for v in value)
        sent = (None, None)
        if switch is not None:
            sent = (tf.cast(switch // 2, tf.float32), tf.cast(switch % 2, tf.float32))
        kept = tf.ones(shape)
        row = coder.bernoulli(name, sent[0], wrap(lower), kept)
        column = coder.bernoulli(name, sent[1], wrap(tf.where(row > 0, lower_right, upper_right)), kept)
        return tf.cast(2 * row + column, tf.int32)


@register("sae_spn", config=Config, presets=PRESETS)
class SAESPN(Codec):
    """SAE-SPN and the two autoencoders it is compared with, on the zoo's contract; see `Codec`.

    What instance normalisation means for large images is said beside the presets. Encoder and decoder compute in
    floating point, what chooses the probabilities of bits in integers: files decode on every device.

    Args:
      config: the architecture.
      variant: "sae_spn", "sae" or "swwae", as the head of this file says.
      stage: 1 trains the autoencoder; 2 adds the discriminator. Weights of both stages compress.
      weights: of the parts of the loss; those of `LOSS_WEIGHTS` by default.
      perceptual_features: as of `transforms.losses.deep_features.vgg16`; without them there is no perceptual loss.

    Raises:
      UserError: there is no such variant or stage, or the configuration cannot be built.
    """

    stride = (16, 32)  # latents at 1/16; an even number of columns for the checkerboard
    # Without "instance" normalisation. For swwae the maps and the switches, too.
    reach = Reach(unit=16, analysis=64, synthesis=48, latents=(16, 1, 2, 4, 8), decoded=(16, 16, 8, 4, 2))

    def __init__(
        self,
        config: Config = PRESETS["base"],
        variant: str = "sae_spn",
        stage: int = 1,
        weights: dict[str, float] | None = None,
        perceptual_features: deep_features.Features | None = None,
    ):
        c = config
        if variant not in VARIANTS:
            raise UserError(f"variant {variant!r}: there are {', '.join(VARIANTS)}")
        if stage not in (1, 2):
            raise UserError(f"stage {stage}: there are stages 1 and 2")
        if len(c.widths) != 5 or any(width % 4 for width in c.widths[1:]):
            raise UserError(f"widths {c.widths}: must be five, all but the first divisible by 4 for the pixel shuffles")
        if c.norm not in sae.NORMS:
            raise UserError(f"norm {c.norm!r}: there are {', '.join(sae.NORMS)}")
        super().__init__(config, lmbda=1.0)
        self.variant, self.stage = variant, stage
        # A residual block reaches two positions at 1/16.
        self.reach = dataclasses.replace(self.reach, synthesis=48 + 32 * c.blocks) if c.norm != "instance" else None
        if self.reach and variant != "swwae":
            self.reach = dataclasses.replace(self.reach, latents=(16,), decoded=(16,))
        self.loss_weights = {**LOSS_WEIGHTS, **(weights or {})}
        self._features = perceptual_features
        names = ["loss", "bpp", "mse", "psnr", "intermediate"]
        names += ["perceptual"] * (perceptual_features is not None) + ["switches"] * (variant == "sae_spn")
        names += ["adversarial", "discriminator"] * (stage == 2)
        self.track(names)

        self.encoder = sae.Encoder(c.widths, c.latents, c.norm, c.linear)
        switching = {"sae": ["none"] * 4, "swwae": ["true"] * 4, "sae_spn": ["none"] * 3 + ["predicted"]}[variant]
        self.synthesis = sae.Decoder(c.widths, c.latents, c.blocks, c.norm, switching, c.linear)
        # The bits of the latents: which are not 0; then sign and size of those. See `transforms.quantizers`.
        self.zero_context = ContextModel(1, c.latent_groups, c.context_width, name="zero_context")
        self.value_context = ContextModel(c.latents, [2 * c.latents], c.context_width, name="value_context")
        if variant == "swwae":
            self.switch_coders = [SwitchCoder(w, f"switches{k}") for k, w in enumerate(reversed(c.widths[:-1]))]
        self.discriminator = None  # part of a training, not of the codec: `compile` makes it

    def analyse(self, images: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Images [B, H, W, 3], padded -> latents before they are quantised, float32 [B, H / 16, W / 16, C], and for
        swwae the maps before each max-pooling, fine to coarse."""
        latents, maps = self._encode_maps(images)
        return latents, [tf.cast(m, tf.float32) for m in maps] if self.variant == "swwae" else []

    def _encode_maps(self, images: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Runs the encoder: latents and the maps before each max-pooling, for every variant."""
        return self.encoder(2 * self.normalise(images))

    def code(self, coder, analysed, shape) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Walks the latents and, for swwae, the switches in coding order; see `Codec`.

        Returns the levels of the latents, float32 [B, H / 16, W / 16, C], and the switches, coarse to fine, if any.
        """
        latents, maps = (None, None) if analysed is None else analysed
        batch, rows, columns = shape[0], shape[1] // 16, shape[2] // 16
        levels = None if latents is None else quantizers.quantise(latents, self.config.sigma)
        # The context model is to predict the levels, not to change them.
        decoded = self._transmit_levels(
            coder, None if levels is None else tf.stop_gradient(levels), tf.ones([batch, rows, columns, 1])
        )
        if levels is not None:  # the values that were decoded, with the gradients of those that were sent
            decoded += levels - tf.stop_gradient(levels)
        found = []
        if self.variant == "swwae":
            for k, switch_coder in enumerate(self.switch_coders):
                switch = None if maps is None else switches.find(maps[-1 - k])
                size = [batch, 2**k * rows, 2**k * columns, self.config.widths[-2 - k]]
                found.append(switch_coder.transmit(coder, "switches", switch, size))
        return decoded, found

    def _transmit_levels(self, coder, levels: tf.Tensor | None, ones: tf.Tensor) -> tf.Tensor:
        """Levels [B, H, W, C] as bits. ones: [B, H, W, 1], all that is known at first: where the image ends."""
        sent = pair = None
        if levels is not None:
            sent, *pair = quantizers.to_bits(levels)
            pair = tf.concat(pair, -1)
        nonzero = self.zero_context.transmit(coder, "latents", ones, sent, tf.repeat(ones, self.config.latents, -1))
        kept = tf.concat([nonzero, nonzero], -1)
        pair = self.value_context.transmit(coder, "latents", 2 * nonzero - 1, pair, kept)
        return quantizers.from_bits(nonzero, *tf.split(pair, 2, -1))

    def reconstruct(self, latents: tuple[tf.Tensor, list[tf.Tensor]]) -> tf.Tensor:
        return self.denormalise(self.synthesis(*latents)[0] / 2)

    def init_pca(self) -> None:
        """See `Codec` and `transforms/starts/levels.py`. UserError if the configuration has no linear by-pass."""
        if not self.config.linear:
            raise UserError("--start pca: this preset has no linear by-pass to start as a block transform")
        for chain in (self.encoder, self.synthesis):
            chain.build()
            last = chain.layers[-1].conv  # what the networks add is nothing at first
            last.kernel.assign(tf.zeros_like(last.kernel))
        levels_start.begin(self.encoder.linear, self.synthesis.linear, self.config.latent_groups)

    def make_entropy_models(self) -> None:
        """Makes no densities: networks predict the probability of each bit."""

    def table_rows(self) -> list[tables.Row]:
        """The rows of the CDF bank before they are fitted."""
        return tables.bernoulli_rows()

    def compress_batch(self, images: np.ndarray, *options, **controls) -> list[bytes]:
        """See `Codec`. Warns of images that instance normalisation makes something else of than of crops."""
        if (
            self.config.norm == "instance"
            and np.ndim(images) == 4
            and np.shape(images)[1] * np.shape(images)[2] > LARGE
        ):
            height, width = np.shape(images)[1:3]
            warnings.warn(
                f"{width}x{height}: these weights normalise over the whole image, and were trained on small ones: "
                "colours and contrast may be off",
                ImageWarning,
                stacklevel=2,
            )
        return super().compress_batch(images, *options, **controls)

    # ---- training -------------------------------------------------------------------------------------------------

    def compile(self, optimizer="rmsprop", **kwargs) -> None:
        """Keras' own; in stage 2 it makes the discriminator, and an optimizer of the same kind for it."""
        super().compile(optimizer=optimizer, **kwargs)
        if self.stage == 2:
            discriminator = networks.discriminator(self.config.discriminator_widths)
            adversarial.make_players(self, discriminator)

    def losses(self, images, training: bool) -> dict[str, tf.Tensor]:
        """Scalars of a batch [B, H, W, 3] in 0..255: "loss" is the generator's, "discriminator" that of the other.

        "bpp" trains the context model only. "switches" is the share of right predictions; chance is 0.25.
        """
        figures, shown = self._forward(images, training)
        if self.discriminator:  # the gradient penalty has no say in how well it tells images apart
            figures |= self.verdict(shown, penalty=float(training))
        return figures

    def generator(self, data):
        """The generator's figures of a batch and what the discriminator compares; see `models/codec/adversarial.py`."""
        return self._forward(self.batch(data), training=True)

    def _forward(self, images, training: bool):
        images = tf.cast(images, tf.float32)
        padded, weights = self.pad(images), self.loss_weights
        sent = self.quantise(padded, {}, training, analyse=self._encode_maps)
        _, maps = sent.analysed
        fakes, made, logits = self.synthesis(*sent.latents)
        reconstruction = self.denormalise(fakes / 2)
        figures = training_steps.rate_and_distortion(images, self.crop(reconstruction, images), sent.bits, training)
        figures = {name: tf.reduce_mean(figure) for name, figure in figures.items()}
        figures["intermediate"] = tf.add_n(
            [
                tf.reduce_mean(tf.math.squared_difference(tf.cast(m, tf.float32), tf.stop_gradient(of_encoder)))
                for m, of_encoder in zip(reversed(made), maps)
            ]
        )
        loss = figures["bpp"] + weights["mse"] * figures["mse"] / 127.5**2
        loss += weights["intermediate"] * figures["intermediate"]
        if self._features is not None:
            figures["perceptual"] = deep_features.loss(self._features, padded, reconstruction)
            loss += weights["perceptual"] * figures["perceptual"]
        if self.variant == "sae_spn":
            entropy, figures["switches"] = switches.prediction(logits[-1], maps[0])
            loss += weights["switches"] * entropy
        if self.discriminator:
            figures["adversarial"] = networks.generator_loss(self.discriminator, fakes)
            loss += weights["adversarial"] * figures["adversarial"]
        return {**figures, "loss": loss}, (2 * self.normalise(padded), fakes)

    def verdict(self, shown, penalty: float = 1.0) -> dict[str, tf.Tensor]:
        """The discriminator's loss for photographs and reconstructions in -1..1; see `models/codec/adversarial.py`."""
        return {"discriminator": networks.discriminator_loss(self.discriminator, *shown, penalty)}

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data):
        """One step of both players on a batch [B, P, P, 3]; in stage 1 of the autoencoder alone."""
        if self.stage == 1:
            return super().train_step(data)
        return self.update_metrics(adversarial.train_step(self, data))

    def settings(self) -> dict[str, str]:
        """Variant, stage and weights of the losses, which its weights file tells."""
        weights = loss_weights.to_text(self.loss_weights)
        return {"variant": self.variant, "stage": str(self.stage), "loss_weights": weights}

    @classmethod
    def from_settings(cls, config, settings) -> SAESPN:
        """Inverse of `settings`."""
        weights = loss_weights.parse(settings.get("loss_weights", ""), LOSS_WEIGHTS)
        return cls(config, settings.get("variant", ""), int(settings.get("stage", "")), weights)
