"""The command line of ELC: four stages of training, and `classify`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from models.app.flags import base
from models.codec import loss_weights
from models.io.errors import UserError, one_line
from train.options import group

logger = logging.getLogger(__name__)

#: Of `--stage`, in their order: those of `models/elc.py`.
STAGES = ("base", "classification", "decoder", "adversarial")
#: Of `--loss_weights`: those of `models/elc.py`.
LOSS_WEIGHTS = {"perceptual": 20.0, "adversarial": 20.0}


class ElcFlags(base.Flags):
    """--start, --stage, --lambda, --lambda_class, --classifier, --perceptual and --loss_weights; `classify`."""

    @property
    def stream_commands(self):
        return {
            "classify": base.StreamCommand(
                "Names the five most probable classes of images from their files; no image is decoded.",
                add_classify_flags,
                classify,
            )
        }

    def add_train_flags(self, parser) -> None:
        base.add_start_flag(parser)
        model = group(parser, "model")
        model.add_argument(
            "--stage",
            choices=STAGES,
            default="base",
            help="What to train. Each goes on from the weights of the stage before, or of its own (--init_weights).",
        )
        model.add_argument(
            "--lambda",
            dest="lmbda",
            type=float,
            metavar="λ",
            help="λ of the squared error (0..255 scale): a larger λ gives better quality and more bits. Default: the "
            "stage's.",
        )
        model.add_argument(
            "--lambda_class",
            type=float,
            metavar="λ",
            help="λ of the cross-entropy in stage classification. Default: the paper's.",
        )
        model.add_argument(
            "--classifier",
            metavar="NAME|FILE",
            help="For stage classification: the classifier, which stays as it is: efficientnet_lite0, which ships, or "
            "a file of `python -m train.classifier`.",
        )
        model.add_argument(
            "--perceptual",
            metavar="WEIGHTS",
            help="For stage adversarial: the network of the perceptual distance: efficientnet_lite0, which ships; "
            "another classifier of ours (.safetensors); imagenet (Keras downloads VGG16); or a file of Keras' for "
            "VGG16 without its top (.h5).",
        )
        base.add_loss_weights_flag(parser, "perceptual and adversarial, in stage adversarial")

    def check_train_flags(self, args) -> None:
        before = STAGES[max(0, STAGES.index(args.stage) - 1)]
        if args.stage != "base" and not args.init_weights:
            raise UserError(
                f"--stage {args.stage} goes on from the weights of stage {before}: name their file with --init_weights"
            )
        if args.stage == "classification" and not (args.labelled or args.classifier):
            raise UserError(
                "--stage classification needs images with labels (--labelled), or the --classifier whose answers to "
                "images without labels are to be kept"
            )
        if args.classifier and args.stage != "classification":
            raise UserError("--classifier is for --stage classification; later stages keep it")
        if args.stage == "adversarial" and (args.runtime == "pjrt" or args.export_only or args.import_state):
            raise UserError("--stage adversarial: not under --runtime pjrt, which knows no discriminator")
        if args.perceptual and args.stage != "adversarial":
            raise UserError("--perceptual is for --stage adversarial")
        loss_weights.parse(args.loss_weights, LOSS_WEIGHTS)
        if args.loss_weights and args.stage != "adversarial":
            raise UserError("--loss_weights is for --stage adversarial")
        for name, value in (("--lambda", args.lmbda), ("--lambda_class", args.lambda_class)):
            if value is not None and not 0 < value < np.inf:
                raise UserError(f"{name} {value:g}: must be positive")

    def for_training(self, args):
        """A new codec of stage "base", or one of any stage that begins with the weights of --init_weights."""
        if not args.init_weights:
            return super().for_training(args)
        from models.codec import storage
        from models.elc import LAMBDA_CLASS
        from models.tasks import classifier
        from train.elc_stages import following

        path, before = args.init_weights, storage.load_checkpoint(self.card.name, args.init_weights)
        place = STAGES.index(args.stage)
        allowed = STAGES[max(0, place - 1) : place + 1]
        if before.stage not in allowed:
            raise UserError(
                f"{path}: weights of stage {before.stage}; --stage {args.stage} goes on from {' or '.join(allowed)}"
            )
        tail = classifier.load(args.classifier) if args.classifier else None
        if args.stage == "classification" and before.stage == "base" and tail is None:
            raise UserError("--stage classification needs a --classifier: `python -m train.classifier` trains one")
        lambda_class = LAMBDA_CLASS if args.lambda_class is None else args.lambda_class
        chosen = loss_weights.parse(args.loss_weights, before.loss_weights)
        codec = following(before, args.stage, tail, lmbda=args.lmbda, lambda_class=lambda_class, weights=chosen)
        if args.stage == "classification" and not args.labelled:
            codec.features_at_cut = tail.features_at_cut
        if args.stage == "adversarial":
            codec.perceptual_features = perceptual_features(args.perceptual)
        return codec

    def add_compress_flags(self, parser, rate) -> None:
        """Adds no flags: weights of ELC have one rate."""

    def compress_controls(self, codec, args, image) -> dict:
        return {}


def add_classify_flags(parser) -> None:
    """Adds the flags of `classify`."""
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="Names of the classes, one a line; by default those of the weights.",
    )
    parser.add_argument(
        "--classes",
        metavar="NAME[,…]",
        help="Chooses among these classes alone; their probabilities add up to 1.",
    )


def classify(codec, args, data: bytes) -> str:
    """The five most probable classes of a file, a line each; --labels FILE names them anew, --classes chooses some."""
    probabilities = codec.classify(data)
    labels = codec.labels if args.labels is None else read_labels(args.labels, len(probabilities))
    if args.classes is not None:
        chosen = numbers_of(args.classes.split(","), labels)
        labels, probabilities = [labels[k] for k in chosen], probabilities[chosen] / np.sum(probabilities[chosen])
    best = np.argsort(-probabilities, kind="stable")[:5]
    return "\n".join(f"{100 * probabilities[k]:7.2f} %  {labels[k]}" for k in best)


def numbers_of(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """The numbers of classes by name, whatever the case of its letters; spaces may stand for underscores.

    UserError if there is no class of a name.
    """

    from models.tasks.classifier import class_key as key

    known = [key(label) for label in labels]
    for name in names:
        if key(name) not in known:
            raise UserError(f"--classes {name}: no class is called so")
    wanted = {key(name) for name in names}
    return [number for number, label in enumerate(known) if label in wanted]


def read_labels(path, count: int) -> list[str]:
    """Reads the lines of a text file. UserError if it cannot be read, or they are not `count`."""
    try:
        with open(path, encoding="utf-8") as file:
            labels = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'no UTF-8 text'}") from error
    if len(labels) != count:
        raise UserError(f"{path}: {len(labels)} labels, but the classifier has {count} classes")
    return labels


def perceptual_features(source: str | None):
    """Loads what --perceptual names; None, and a line in the log, without. UserError if it is another network."""
    from models.codec import weights
    from models.tasks import classifier
    from transforms.losses import deep_features

    if source is None:
        logger.warning("no --perceptual: the adversarial stage trains without a perceptual distance")
        return None
    if weights.of_classifier(source):
        return classifier.load(source).features
    try:
        return deep_features.vgg16(source)
    except Exception as error:  # of h5py, of the download, of shapes: an exception type for each
        raise UserError(f"--perceptual {source}: no weights of VGG16: {one_line(error)[:200]}") from error


FLAGS = ElcFlags
