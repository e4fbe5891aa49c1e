"""The command line of SAE-SPN: variants, two stages of training, the perceptual loss."""

from __future__ import annotations

import logging
import os

from models.app.flags import base
from models.codec import loss_weights, weights
from models.io.errors import UserError, one_line
from train.options import group

logger = logging.getLogger(__name__)

#: Of `--variant`, the default first: those of `models/sae_spn.py`.
VARIANTS = ("sae_spn", "sae", "swwae")
#: Of `--loss_weights`: those of `models/sae_spn.py`.
LOSS_WEIGHTS = {"mse": 1.0, "perceptual": 5.0, "intermediate": 1.0, "switches": 1.0, "adversarial": 1.0}


class SaeSpnFlags(base.Flags):
    """--variant, --start, --stage, --perceptual_model and --loss_weights."""

    def add_train_flags(self, parser) -> None:
        model = group(parser, "model")
        model.add_argument(
            "--variant",
            choices=VARIANTS,
            help="How the decoder upsamples: sae_spn by switches that it predicts (the default), sae by pixel shuffles "
            "alone, swwae by the switches of the encoder, which its files carry.",
        )
        base.add_start_flag(parser)
        base.add_stage_flag(
            parser,
            "1 trains the autoencoder; 2 goes on from its weights (--init_weights) against a discriminator.",
        )
        model.add_argument(
            "--perceptual_model",
            metavar="NAME|FILE",
            help="Adds a perceptual loss: efficientnet_lite0, which ships; vgg16, with the weights of "
            "keras.applications; or a file of those (vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5).",
        )
        base.add_loss_weights_flag(parser, "mse, perceptual, intermediate, switches and adversarial")

    def check_train_flags(self, args) -> None:
        base.check_stage(args)
        name = args.perceptual_model
        if name not in (None, "vgg16") and not os.path.isfile(weights.of_classifier(name) or name):
            raise UserError(f"--perceptual_model {name}: neither efficientnet_lite0, nor vgg16, nor a file")
        loss_weights.parse(args.loss_weights, LOSS_WEIGHTS)

    def for_training(self, args):
        """A new codec of stage 1, or one of the stage that is asked for with the weights of another."""
        from models.codec import storage, training
        from models.sae_spn import SAESPN

        config, variant, before = SAESPN.entry.presets[args.preset], args.variant or VARIANTS[0], None
        if args.init_weights:
            before = storage.load_checkpoint(self.card.name, args.init_weights)
            if args.variant not in (None, before.variant):
                raise UserError(f"{args.init_weights}: weights of the variant {before.variant}, not {args.variant}")
            config, variant = before.config, before.variant
        features = load_features(args.perceptual_model)
        codec = SAESPN(config, variant, args.stage, loss_weights.parse(args.loss_weights, LOSS_WEIGHTS), features)
        if before:
            return training.warm_start(codec, before)
        if args.start == "pca" and config.linear:
            codec.init_pca()
        return codec

    def add_compress_flags(self, parser, rate) -> None:
        """Adds no flags: weights of SAE-SPN have one rate."""

    def compress_controls(self, codec, args, image) -> dict:
        return {}


def load_features(name: str | None):
    """Loads what --perceptual_model names, as `deep_features.vgg16` gives it; None, and a line in the log, without.

    Raises:
      UserError: it is a file, and not one of VGG-16's weights.
    """
    from transforms.losses import deep_features

    if name and weights.of_classifier(name):
        from models.tasks import classifier

        return classifier.load(name).features
    if name is None:
        logger.warning("no --perceptual_model: training without the perceptual loss")
        return None
    try:
        return deep_features.vgg16("imagenet" if name == "vgg16" else name, deep_features.JOHNSON)
    except Exception as error:  # Keras raises what the network or the format's library happens to raise
        reason = one_line(error)[:200]
        if name != "vgg16":
            raise UserError(f"--perceptual_model {name}: not a file of VGG-16's weights ({reason})") from error
        logger.warning("no weights of vgg16 to be had (%s): training without the perceptual loss", reason)
        return None


FLAGS = SaeSpnFlags
