"""ELC: extremely low bitrates for people and for machines, one file for both.

Sha et al.: "Extremely Low Bitrate Image Compression with Decoder-Side Enhancement for Human and Machine"

    images ──► analysis ──► y ──► hyper-analysis ──► z ──► z_hat ──► hyper-synthesis ──► hyper features
                            │                                                                │
                            ├──► anchors     ◄── parameters(hyper, 0) ◄──────────────────────┤
                            └──► non-anchors ◄── parameters(hyper, context(anchors)) ◄───────┘
                                                     │
                                                   y_hat
                                                     │
          ┌─────────────────────────┬────────────────┴────────────┐
          ▼ stage 1                 ▼ stage 2                     ▼ stages 3 and 4
      synthesis            feature transform (FETM)        synthesis stages ──► enhancement
          │                         │                                              │      ◄── discriminator (stage 4)
        images         classifier behind its cut ──► labels                      images

Four stages of training, each from the weights of the one before:

    base            the codec: rate and distortion
    classification  the codec and the feature transform: the cross-entropy of a frozen classifier as well. Without
                    labels, what the classifier makes of the original is to be matched: features and logits
    decoder         the enhanced decoder, from the decoder: distortion; the bits stay as they are from here on
    adversarial     its enhancement alone: distortion, a perceptual distance, and a discriminator that knows y_hat
"""

from __future__ import annotations

if __name__ == "__main__":  # before TensorFlow is imported, for which --help does not wait
    from models.app import main

    main("elc")

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from models.codec import Codec, adversarial, loss_weights
from models.codec import training as training_steps
from models.codec.registry import register
from models.entropy.passes import checkerboard_pair, gaussian_net, hyperprior
from models.io.errors import UserError
from models.tasks import classifier as classifiers
from transforms import checkerboard
from transforms.exact import Conv, EntropyNet, LatentInput, spatially
from transforms.losses import deep_features
from transforms.networks import cheng, enhance, hific
from transforms.resample import pad_to_multiple
from transforms.starts import linear as linear_start
from transforms.tiling import Reach

logger = logging.getLogger(__name__)

STAGES = ("base", "classification", "decoder", "adversarial")

#: λ of the squared error on the 0..255 scale (the paper's times 255² is that of the 0..1 scale).
LAMBDA = {"base": 0.0018, "classification": 0.001, "decoder": 0.0018, "adversarial": 250 / 255**2}
#: λ of the cross-entropy. The paper's pairs, λ of the squared error first: (0.0002, 0.08), (0.0003, 0.15),
#: (0.00058, 0.32), (0.001, 0.64); the last is its point of 0.09 bpp.
LAMBDA_CLASS = 0.64
#: Weights of the adversarial stage beside λ of the squared error. The paper's, for LPIPS of VGG-16; a distance of
#: EfficientNet-Lite0 is some ten times as large.
LOSS_WEIGHTS = {"perceptual": 20.0, "adversarial": 20.0}
#: The discriminator's learning rate, in parts of the generator's. With equal ones it lags so far behind that the
#: generator learns nothing from it (res/doc/log/elc.md).
DISCRIMINATOR_RATE = 10.0

#: The parts whose variables each stage trains.
_BASE = (
    "analysis",
    "synthesis",
    "hyper_analysis",
    "hyper_synthesis",
    "spatial_context",
    "parameters",
    "entropy_models",
)
TRAINED = {
    "base": _BASE,
    "classification": (*_BASE, "feature_transform"),
    "decoder": ("synthesis_stages", "enhancement"),
    "adversarial": ("enhancement",),
}

_FIGURES = ("loss", "bpp", "mse", "psnr")
METRICS = {
    "base": _FIGURES,
    "classification": (*_FIGURES, "cross_entropy", "top1", "features"),
    "decoder": _FIGURES,
    "adversarial": (*_FIGURES, "perceptual", "generator", "discriminator", "told_apart"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the architecture.

    width: N, channels of the transforms, of y and of z.
    hyper_widths: hidden channels of the hyper-synthesis.
    hyper_features: channels that the hyper-synthesis gives to the parameter network.
    parameter_widths: hidden channels of the parameter network.
    transform_width: channels of the second half of the feature transform.
    classifier: its architecture, as of `models.tasks.classifier.Classifier`.
    enhanced_width, growth, dense_blocks: channels of the enhancement blocks, growth and number of their RRDBs.
    discriminator_width: channels of the discriminator at 1/2.
    """

    width: int = 192
    hyper_widths: tuple[int, int] = (192, 288)
    hyper_features: int = 384
    parameter_widths: tuple[int, int] = (640, 512)
    transform_width: int = 256
    classifier: classifiers.Architecture = classifiers.RESNET50
    enhanced_width: int = 64
    growth: int = 32
    dense_blocks: int = 3
    discriminator_width: int = 64


PRESETS = {
    "base": Config(),
    "small": Config(
        width=64,
        hyper_widths=(64, 96),
        hyper_features=128,
        parameter_widths=(192, 160),
        transform_width=96,
        classifier=classifiers.SMALL_WIDTHS,
        enhanced_width=32,
        growth=16,
        dense_blocks=1,
        discriminator_width=32,
    ),
}
"""`base` is the paper's network, `small` one that a CPU can train.

Where they depart from the paper:

* The context is the checkerboard's, two passes, instead of a 5x5 one that runs once a position: decoding is parallel.
* The networks that predict the latents have ReLU, not leaky ReLU, and run in integers: files decode everywhere.
* Latents are rounded around their predicted means in training, in estimates and in files alike. (The authors' release
  rounds to whole numbers and measures with a density around the mean; it writes no files.)
* The enhanced decoder begins as the decoder: see `transforms.networks.enhance.Enhancement`.
* The discriminator's step has its own gradient only. (In the release that of the generator's loss is added to it.)
* The perceptual distance takes 0..255 as its network expects. (In the release LPIPS is given 0..1 instead of -1..1.)
* Labelled images keep their aspect ratio: the shorter side is scaled to the patch, and a square is cut out.
"""


@register("elc", config=Config, presets=PRESETS)
class ELC(Codec):
    """ELC on the zoo's contract; see `Codec`.

    Args:
      config: the architecture.
      stage: one of `STAGES`: what is trained. From "classification" on there is a classifier, from "decoder" on the
        enhanced decoder, and that is what reconstructs.
      lmbda: λ of the squared error; that of the stage by default.
      lambda_class: λ of the cross-entropy.
      labels: names of the classes; not for "base".
      weights: of parts of the loss of stage "adversarial"; those of `LOSS_WEIGHTS` by default.

    Raises:
      UserError: no such stage, no labels, or a λ is not positive.
    """

    # Latents at 1/16; an even number of columns for the checkerboard. The hyper-latent's factor 4 is padded inside.
    stride = (16, 32)
    reach = Reach(unit=16, analysis=128, synthesis=176, latents=(16,), decoded=(16,))
    decoder_parts = ("synthesis", "feature_transform", "classifier", "synthesis_stages", "enhancement")

    def __init__(
        self,
        config: Config = PRESETS["base"],
        stage: str = "base",
        lmbda: float | None = None,
        lambda_class: float = LAMBDA_CLASS,
        labels: Sequence[str] = (),
        weights: dict[str, float] | None = None,
    ):
        if stage not in STAGES:
            raise UserError(f"stage {stage}: there are {', '.join(STAGES)}")
        if stage != "base" and not labels:
            raise UserError(f"stage {stage} needs a classifier: there are no labels")
        if not 0 < lambda_class < np.inf:
            raise UserError(f"λ of the cross-entropy must be positive, not {lambda_class:g}")
        super().__init__(config, LAMBDA[stage] if lmbda is None else lmbda)
        if self.variable_rate:
            raise UserError("elc has one λ: its weights are of one rate")
        self.stage, self.lambda_class, self.labels = stage, lambda_class, tuple(labels)
        self.loss_weights = {**LOSS_WEIGHTS, **(weights or {})}
        self.track(METRICS[stage])
        #: What the classifier makes of images at its cut, for stage "classification" without labels: images in 0..255
        #: -> features at 1/8. None: there are labels.
        self.features_at_cut: Callable[[tf.Tensor], tf.Tensor] | None = None
        #: Features that the adversarial stage compares images by, see `transforms.losses.deep_features`; None: not at
        #: all.
        self.perceptual_features: deep_features.Features | None = None
        c, n = config, config.width
        self.analysis = cheng.analysis(n)
        self.synthesis = cheng.synthesis(n)
        self.hyper_analysis = cheng.hyper_analysis(n)
        self.hyper_synthesis = EntropyNet(
            n, [*(Conv(w, 5, up=2) for w in c.hyper_widths), Conv(c.hyper_features, 3)], name="hyper_synthesis"
        )
        self.hyper_input = LatentInput(n, name="hyper_input")
        self.latent_input = LatentInput(n, name="latent_input")
        self.spatial_context = EntropyNet(n, [Conv(2 * n, masked=True)], name="spatial_context")
        self.parameters = gaussian_net(
            c.hyper_features + 2 * n, [*(Conv(w) for w in c.parameter_widths), Conv(2 * n)], "parameters"
        )
        if stage != "base":
            features = classifiers.cut_channels(c.classifier)
            self.feature_transform = enhance.feature_transform(n, c.transform_width, features)
            self.classifier: classifiers.Tail | None = None  # made with the other variables
        if self.enhances:
            # An RRDB reaches 15 positions, at 1/8 and again at 1/4.
            self.reach = dataclasses.replace(self.reach, synthesis=156 + 15 * (8 + 4) * c.dense_blocks)
            self.synthesis_stages = cheng.SynthesisStages(n)
            self.enhancement = enhance.Enhancement(n, c.enhanced_width, c.growth, c.dense_blocks)

    @property
    def enhances(self) -> bool:
        """Tells whether there is an enhanced decoder."""
        return self.stage in ("decoder", "adversarial")

    def init_pca(self) -> None:
        """See `Codec`."""
        linear_start.begin(self.analysis, self.synthesis, linear_start.best_step(self.lmbda))

    def prior_channels(self) -> int:
        return self.config.width

    # ---- latents and what becomes of them -------------------------------------------------------------------------

    def analyse(self, images):
        return tf.cast(self.analysis(self.normalise(images)), tf.float32)

    def code(self, coder, y, shape):
        """Walks z, the anchors and the non-anchors of y; see `Codec`. Returns y_hat [B, H / 16, W / 16, N]."""
        z, sent = None, (None, None)
        if y is not None:
            z, sent = self.hyper_analysis(pad_to_multiple(y, 4)), checkerboard.split(y)
        size = shape[0], shape[1] // 16, shape[2] // 16
        _, hyper = hyperprior(coder, z, size, self.hyper_input, self.hyper_synthesis)

        def code(half, parameters):
            return coder.gaussian("y", sent[half], parameters)

        def as_input(anchors):
            return self.latent_input.run(anchors, coder.exact)

        features = [[half] for half in spatially(checkerboard.split, hyper)]
        return checkerboard_pair(code, features, self.parameters, self.spatial_context, as_input)

    def reconstruct(self, latents: tf.Tensor) -> tf.Tensor:
        """The enhanced decoder's image where there is one, else the decoder's."""
        if not self.enhances:
            return self.reconstruct_plainly(latents)
        return self.denormalise(self.enhancement(self.synthesis_stages(latents)))

    def reconstruct_plainly(self, latents: tf.Tensor) -> tf.Tensor:
        """The decoder's image, without enhancement: float32 [B, H, W, 3] in 0..255."""
        return self.denormalise(self.synthesis(latents))

    def logits(self, latents: tf.Tensor) -> tf.Tensor:
        """y_hat [B, H, W, N] -> logits of the classes, float32 [B, K]; it sees the padding of an image, too."""
        return self.classifier(self.feature_transform(latents))

    def classify(self, data: bytes) -> np.ndarray:
        """The probability of each of the `labels` for a file, float32 [K]. No image is made.

        Raises:
          UserError: weights of the base stage. StreamError: as `decompress` does.
        """
        if self.stage == "base":
            raise UserError("these weights are of stage base: they do not classify")
        return tf.nn.softmax(self.logits(self.latents(data)))[0].numpy()

    def latent_outputs(self):
        """`classify`, of weights that do."""
        if self.stage == "base":
            return {}
        return {"classify": lambda latents: {"probabilities": tf.nn.softmax(self.logits(latents))}}

    # ---- variables ------------------------------------------------------------------------------------------------

    @property
    def trainable_weights(self):
        """The variables of the parts that the stage trains; the others are frozen."""
        parts = (getattr(self, name, None) for name in TRAINED[self.stage])
        return [variable for part in parts if part is not None for variable in part.trainable_variables]

    def build_variables(self, training: bool = False, synthesis: bool = True) -> None:
        """See `Codec.build_variables`. All parts are made, also those that the stage does not run."""
        super().build_variables(training, synthesis)
        if not (training or synthesis):
            return
        if self.stage != "base" and self.classifier is None:
            self.classifier = classifiers.Tail(self.config.classifier, len(self.labels), name="classifier")
        for name in self.decoder_parts:
            part = getattr(self, name, None)
            if part is not None and not part.built:
                part.build(None)

    def settings(self) -> dict[str, str]:
        """Stage, λ and labels, which its weights file tells."""
        facts = {"stage": self.stage, **super().settings()}
        if self.stage != "base":
            facts |= {"lambda_class": str(self.lambda_class), "labels": json.dumps(self.labels)}
        if self.stage == "adversarial":
            facts["loss_weights"] = loss_weights.to_text(self.loss_weights)
        return facts

    @classmethod
    def from_settings(cls, config, settings) -> ELC:
        """Inverse of `settings`."""
        return cls(
            config,
            settings.get("stage", ""),
            float(settings.get("lambda", "")),
            float(settings.get("lambda_class", LAMBDA_CLASS)),
            json.loads(settings.get("labels", "[]")),
            loss_weights.parse(settings.get("loss_weights", ""), LOSS_WEIGHTS),
        )

    # ---- training -------------------------------------------------------------------------------------------------

    @staticmethod
    def batch(data):
        """(images, labels), labels None where there are none."""
        return tf.keras.utils.unpack_x_y_sample_weight(data)[:2]

    def check_classes(self, classes: Sequence[str]) -> None:
        """UserError unless they are the classifier's, in stage "classification"."""
        if self.stage == "classification" and tuple(classes) != self.labels:
            raise UserError(
                f"the classifier's {len(self.labels)} labels ({_some(self.labels)}) are not the {len(classes)} classes "
                f"of the images ({_some(classes)}); without --labelled its own answers are matched"
            )

    def losses(self, batch, training: bool) -> dict[str, tf.Tensor]:
        """The figures of the stage, see `METRICS`, for a `batch`: scalars, "loss" the one to minimise."""
        return self._forward(batch, training)[0]

    def _forward(self, batch, training: bool):
        """`losses`, and what the discriminator compares: images and reconstruction, padded, 0..255; y_hat."""
        images, labels = batch
        images = tf.cast(images, tf.float32)
        padded = self.pad(images)
        _, latents, bits, _ = self.quantise(padded, {}, training)
        if self.enhances:  # the codec is frozen
            latents = tf.stop_gradient(latents)
        reconstruction = self.reconstruct(latents)
        cropped = self.crop(reconstruction, images)
        figures = training_steps.rate_and_distortion(images, cropped, bits, training)
        rate = tf.stop_gradient(figures["bpp"]) if self.enhances else figures["bpp"]
        figures["loss"] = rate + self.lmbda * figures["mse"]
        if self.stage == "classification":
            figures |= self._classification(padded, labels, latents)
            figures["loss"] += self.lambda_class * (figures["cross_entropy"] + figures["features"])
        if self.stage == "adversarial":
            figures["perceptual"] = tf.zeros_like(figures["mse"])
            if self.perceptual_features is not None:
                figures["perceptual"] = deep_features.distance(self.perceptual_features, images, cropped)
            score = self.discriminator(self.normalise(reconstruction), latents, training=False)
            figures["generator"] = hific.lsgan_generator_loss(score)
            figures["loss"] += self.loss_weights["perceptual"] * figures["perceptual"]
            if training:
                figures["loss"] += self.loss_weights["adversarial"] * figures["generator"]
            else:  # without the discriminator, which moves: losses of different epochs would not compare
                figures |= self.verdict((padded, reconstruction, latents), training=False)
        figures = {name: tf.reduce_mean(value) for name, value in figures.items()}
        return figures, (padded, reconstruction, latents)

    def _classification(self, images, labels, latents) -> dict[str, tf.Tensor]:
        """What stage "classification" adds for padded images and their y_hat, by name.

        cross_entropy: in nats, of the labels; without those of the classifier's answer to the original, above the
          entropy of that answer itself: 0 where both are alike.
        top1: how often the label, or the original's answer, comes first.
        features: the squared error of the features at the cut, in parts of their own variance; 0 with labels.
        """
        features = self.feature_transform(latents)
        logits = self.classifier(features)
        if self.features_at_cut is None:
            return {
                "cross_entropy": tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True),
                "top1": tf.keras.metrics.sparse_categorical_accuracy(labels, logits),
                "features": tf.zeros_like(logits[:, 0]),
            }
        expected = tf.cast(self.features_at_cut(images), tf.float32)
        answer = tf.stop_gradient(tf.nn.softmax(self.classifier(expected)))
        error = tf.reduce_mean(tf.math.squared_difference(features, expected), [1, 2, 3])
        return {
            "cross_entropy": tf.keras.losses.kl_divergence(answer, tf.nn.softmax(logits)),
            "top1": tf.cast(tf.argmax(logits, -1) == tf.argmax(answer, -1), tf.float32),
            "features": error / tf.math.reduce_variance(expected),
        }

    def compile(self, optimizer="adam", **kwargs) -> None:
        """Compiles as Keras does; the adversarial stage also makes the discriminator and an optimizer of the same kind.

        Raises:
          UserError: the adversarial stage is to run on several devices: spectral normalisation assigns to its variables
            in each step, for which TensorFlow Addons' has no rule there.
        """
        super().compile(optimizer, **kwargs)
        if self.stage != "adversarial":
            return
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise UserError("--stage adversarial runs on one device: --strategy one_device")
        discriminator = hific.ConditionalDiscriminator(self.config.width, self.config.discriminator_width)
        adversarial.make_players(self, discriminator, DISCRIMINATOR_RATE)

    def generator(self, data):
        """The generator's figures of a batch and what the discriminator compares; see `models/codec/adversarial.py`."""
        return self._forward(self.batch(data), training=True)

    def verdict(self, shown, training: bool = True) -> dict[str, tf.Tensor]:
        """The discriminator's loss for images and reconstructions, padded, 0..255, and their y_hat; and `told_apart`,
        how often it gives the image a higher score than its reconstruction: 0.5 is chance."""
        images, reconstruction, latents = shown
        both = self.normalise(tf.concat([images, reconstruction], 0))
        scores = self.discriminator(both, tf.concat([latents, latents], 0), training=training)
        real, decoded = tf.split(scores, 2)
        higher = tf.reduce_mean(real, [1, 2, 3]) > tf.reduce_mean(decoded, [1, 2, 3])
        return {
            "discriminator": hific.lsgan_discriminator_loss(real, decoded),
            "told_apart": tf.reduce_mean(tf.cast(higher, tf.float32)),
        }

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data):
        """One step of `losses`; in the adversarial stage one of the discriminator's after it."""
        if self.stage != "adversarial":
            return super().train_step(data)
        return self.update_metrics(adversarial.train_step(self, data))


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
