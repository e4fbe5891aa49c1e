"""`Flags`: what a model may add to the commands that all have (`models/app/cli.py`).

Flags of `train` and `compress` and what they mean, and subcommands that read files. `Codec` inherits it; a model's file
overrides what it has of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from models.codec.distortion import KINDS
from models.codec.lambdas import check_lambdas, numbers
from models.io.errors import UserError
from train.pjrt.options import uses_pjrt

if TYPE_CHECKING:
    from models.codec import Codec


@dataclasses.dataclass(frozen=True)
class StreamCommand:
    """A subcommand that says something of files without making pictures of them.

    help: one sentence. add_flags: given the parser, adds the command's own flags to --weights. run: given the codec,
    the parsed flags and the bytes of a file, returns the text to print; raises as `Codec.decompress` does.
    """

    help: str
    add_flags: Callable
    run: Callable[[Codec, argparse.Namespace, bytes], str]


class Flags:
    """The part of `Codec` that the command line asks.

    stream_commands: the model's own subcommands that read files, by name.
    """

    stream_commands: dict[str, StreamCommand] = {}

    @classmethod
    def add_train_flags(cls, parser) -> None:
        """Adds the model's own flags to the parser of `train`."""
        cls.add_lambda_flag(
            parser,
            "λ[,λ…]",
            "λ of the loss bpp + λ · MSE (MSE on the 0..255 scale): larger is better quality and more bits. "
            "Several, with commas between, train one set of weights for all rates from the first to the last. By "
            "default what the --init_weights were trained with, and 0.01 without them.",
        )

    @staticmethod
    def add_lambda_flag(parser, metavar: str, help: str) -> None:
        """Adds --lambda: numbers with commas between."""
        parser.add_argument("--lambda", dest="lmbda", type=numbers, metavar=metavar, help=help)

    @staticmethod
    def add_start_flag(parser) -> None:
        """Adds --start, for models with a `init_pca`."""
        parser.add_argument(
            "--start",
            choices=("linear", "random"),
            default="linear",
            help="How the transforms begin: linear, as a block transform that already works, from which they learn "
            "the rest much sooner, or random, as in the paper. Without a meaning if there are --init_weights.",
        )

    @staticmethod
    def add_distortion_flag(parser) -> None:
        """Adds --distortion, for models whose `losses` are of `rate_distortion` alone."""
        parser.add_argument(
            "--distortion",
            choices=KINDS,
            help="What the loss weighs against bits: squared errors (mse, as in the papers), or 1 - MS-SSIM, brought "
            "to their scale, so that λ are the same numbers; best from --init_weights trained by mse. By default what "
            "the --init_weights were trained with, and mse without them.",
        )

    @staticmethod
    def add_restoration_flag(parser) -> None:
        """Adds --restoration, for models whose configuration has it."""
        parser.add_argument(
            "--restoration",
            action="store_true",
            help="Let files hold a filter for their picture, which is not in the paper and not trained: better pictures"
            " for some 45 bytes, and a synthesis more when compressing. Some presets have it anyhow.",
        )

    @staticmethod
    def add_fix_flag(parser) -> None:
        """Adds --fix, for models with `encoder_parts`."""
        parser.add_argument(
            "--fix",
            choices=("encoder", "decoder", "latents"),
            help="Go on from --init_weights with a part fixed, and teach the others what they cannot learn in training "
            "all: a decoder, latents rounded as in files, not noisy ones; an encoder, where rounding takes latents; "
            "with all fixed up to the latents the synthesis, files with chosen symbols (slow: each step chooses them). "
            "Short last parts of a training.",
        )

    @classmethod
    def check_train_flags(cls, args) -> None:
        """UserError if the model's own flags make no sense; before anything is loaded."""
        if args.lmbda is not None:
            check_lambdas(args.lmbda)
        fixed = getattr(args, "fix", None)
        if fixed and not args.init_weights:
            raise UserError(f"--fix {fixed}: name the weights whose {fixed} is to stay with --init_weights")
        if fixed == "latents" and uses_pjrt(args):
            raise UserError("--fix latents: chooses symbols in TensorFlow; leave out --runtime pjrt")

    @classmethod
    def for_training(cls, args) -> Codec:
        """The codec that the flags of `train` ask for: --preset or --init_weights, and the model's own."""
        from models.codec import storage, training

        if args.init_weights:
            codec = storage.load_checkpoint(cls.entry.name, args.init_weights, args.lmbda)
            if getattr(args, "fix", None) == "latents":
                training.distil(codec, args.init_weights)
            else:
                training.freeze(codec, getattr(args, "fix", None))
            return codec
        codec = cls(cls.entry.presets[args.preset], **({} if args.lmbda is None else {"lmbda": args.lmbda}))
        if getattr(args, "start", None) == "linear":
            codec.init_pca()
        return codec

    @classmethod
    def add_compress_flags(cls, parser, rate) -> None:
        """Adds the model's own flags to the parser of `compress`; those that set the rate to the group `rate`."""
        rate.add_argument(
            "--quality",
            type=float,
            metavar="Q",
            help="For weights of several λ: any number from 1 (smallest files) to the number of λ; the middle by "
            "default.",
        )

    def compress_controls(self, args, image: np.ndarray) -> dict:
        """What the flags of `compress` mean for a picture, uint8 [H, W, 3]: controls of `compress` or `compress_to`."""
        return {} if getattr(args, "quality", None) is None else {"quality": args.quality}

    def after_compress(self, args, image: np.ndarray, data: bytes) -> None:
        """Writes what the flags of `compress` ask for besides the file's bytes `data`."""
