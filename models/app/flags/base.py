"""`Flags`: what a model may add to the commands that all have (`models/app/cli.py`).

Flags of `train` and `compress` and what they mean, and subcommands that read files.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from models.codec.registry import Card
from models.io.errors import UserError
from train.options import group

if TYPE_CHECKING:
    from models.codec import Codec

#: The choices of `--distortion`: those of `models/codec/distortion.py`.
DISTORTIONS = ("mse", "ms-ssim")


@dataclasses.dataclass(frozen=True)
class StreamCommand:
    """A subcommand that reports on files without decoding images from them.

    help: one sentence. add_flags: given the parser, adds the command's own flags to --weights. run: given the codec,
    the parsed flags and the bytes of a file, returns the text to print; raises as `Codec.decompress` does.
    """

    help: str
    add_flags: Callable
    run: Callable[[Codec, argparse.Namespace, bytes], str]


class Flags:
    """A model's part of the command line. A subclass overrides what the model has of its own.

    It can extend `train` and `compress` and add subcommands; decompress, evaluate and export have no hook.

    card: of the model. stream_commands: the model's own subcommands that read files, by name.
    """

    stream_commands: dict[str, StreamCommand] = {}

    def __init__(self, card: Card):
        self.card = card

    # ---- train ------------------------------------------------------------------------------------------------------

    def add_train_flags(self, parser) -> None:
        """Adds the model's own flags to the parser of `train`."""
        add_lambda_flag(
            parser,
            "λ[,λ…]",
            "λ of the loss bpp + λ · MSE (0..255 scale): a larger λ gives better quality and more bits. Several train "
            "one set of weights for all rates between them. Default: that of --init_weights, else 0.01.",
        )

    def check_train_flags(self, args) -> None:
        """Refuses flags of the model that make no sense, before anything is loaded.

        Raises:
          UserError: they contradict each other, or are out of range.
        """
        if isinstance(args.lmbda, tuple):
            check_rising(args.lmbda)
        frozen = getattr(args, "freeze", None)
        if frozen and not args.init_weights:
            raise UserError(f"--freeze {frozen}: name the weights whose {frozen} is to stay with --init_weights")
        if frozen == "latents" and (getattr(args, "runtime", "tf") == "pjrt" or getattr(args, "export_only", None)):
            raise UserError("--freeze latents: runs RDOQ in TensorFlow; leave out --runtime pjrt")

    def for_training(self, args) -> Codec:
        """Builds the codec that the flags of `train` ask for: --preset or --init_weights, and the model's own."""
        from models.codec import registry, storage, training

        if args.init_weights:
            codec = storage.load_checkpoint(self.card.name, args.init_weights, args.lmbda)
            if getattr(args, "freeze", None) == "latents":
                training.distil(codec, args.init_weights)
            else:
                training.freeze(codec, getattr(args, "freeze", None))
        else:
            entry = registry.get(self.card.name)
            chosen = {} if args.lmbda is None else {"lmbda": args.lmbda}
            codec = entry.codec(entry.presets[args.preset], **chosen)
            if getattr(args, "start", None) == "pca":
                codec.init_pca()
        if getattr(args, "restoration", False):
            codec.enable_filter()
        return codec

    # ---- compress ---------------------------------------------------------------------------------------------------

    def add_compress_flags(self, parser, rate) -> None:
        """Adds the model's own flags to the parser of `compress`; those that set the rate to the group `rate`."""
        rate.add_argument(
            "--quality",
            type=float,
            metavar="Q",
            help="For weights of several λ: a number from 1 (smallest files) to the number of λ. Default: the middle.",
        )

    def compress_controls(self, codec: Codec, args, image: np.ndarray) -> dict:
        """Turns the flags of `compress` into the controls of `Codec.compress`, for an image uint8 [H, W, 3]."""
        return {} if getattr(args, "quality", None) is None else {"quality": args.quality}

    def after_compress(self, codec: Codec, args, image: np.ndarray, data: bytes) -> None:
        """Writes what the flags of `compress` ask for besides the file's bytes `data`."""


# --- flags that several models have -----------------------------------------------------------------------------


def numbers(text: str) -> tuple[float, ...]:
    """Parses numbers with commas between, for argparse."""
    return tuple(float(part) for part in text.split(","))


numbers.__name__ = "number"  # what argparse calls it in its messages


def check_rising(lambdas: tuple[float, ...]) -> None:
    """UserError unless λ are positive and rising; `models.codec.lambdas` checks the rest."""
    text = ", ".join(f"{value:g}" for value in lambdas)
    if not all(0 < value < np.inf for value in lambdas):
        raise UserError(f"λ must be positive, not {text or 'missing'}")
    if any(a >= b for a, b in zip(lambdas, lambdas[1:])):
        raise UserError(f"several λ must be different and in rising order, not {text}")


def add_lambda_flag(parser, metavar: str, help: str) -> None:
    """Adds --lambda: numbers with commas between."""
    group(parser, "model").add_argument("--lambda", dest="lmbda", type=numbers, metavar=metavar, help=help)


def add_stage_flag(parser, help: str) -> None:
    """Adds --stage, for models whose training has two."""
    group(parser, "model").add_argument("--stage", type=int, choices=(1, 2), default=1, help=help)


def check_stage(args) -> None:
    """UserError for a second stage without the weights of the first."""
    if args.stage == 2 and not args.init_weights:
        raise UserError("--stage 2 goes on from the weights of stage 1: name their file with --init_weights")


def add_loss_weights_flag(parser, names: str) -> None:
    """Adds --loss_weights; names: of the parts of the loss, for the help text."""
    group(parser, "model").add_argument(
        "--loss_weights",
        default="",
        metavar="NAME=W[,…]",
        help=f"Weights of parts of the loss that differ from the paper's: of {names}.",
    )


def add_start_flag(parser) -> None:
    """Adds --start, for models with an `init_pca`."""
    group(parser, "model").add_argument(
        "--start",
        type=lambda text: {"linear": "pca"}.get(text, text),  # its name in earlier versions
        choices=("pca", "random"),
        default="pca",
        help="Initialisation of the transforms: pca begins as a block transform that works, random is the paper's. "
        "--init_weights override it.",
    )


def add_distortion_flag(parser) -> None:
    """Adds --distortion, for models whose `losses` are of `rate_distortion` alone."""
    group(parser, "fine-tuning").add_argument(
        "--distortion",
        choices=DISTORTIONS,
        help="Distortion in the loss: mse, or ms-ssim (1 - MS-SSIM on the scale of mse, so that λ are the same "
        "numbers). Default: that of --init_weights, else mse.",
    )


def add_restoration_flag(parser) -> None:
    """Adds --restoration, for models whose configuration has it."""
    group(parser, "fine-tuning").add_argument(
        "--restoration",
        action="store_true",
        help="Let files carry a restoration filter for their image (some 45 bytes; not in the paper, not trained).",
    )


def add_freeze_flag(parser) -> None:
    """Adds --freeze, for models with `encoder_parts`."""
    group(parser, "fine-tuning").add_argument(
        "--freeze",
        "--fix",
        choices=("encoder", "decoder", "latents"),
        help="Go on from --init_weights with a part frozen: the encoder (latents are then rounded, not noisy), the "
        "decoder, or all up to the latents (which RDOQ then chooses in each step; slow).",
    )
