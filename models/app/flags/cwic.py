"""The command line of CWIC: two stages of training, and the importance map as an image."""

from __future__ import annotations

import numpy as np

from models.app.flags import base
from models.io import files
from models.io.errors import UserError
from train.options import group


class CwicFlags(base.Flags):
    """--lambda, --stage, --ratio, --joint_rate, --start and --restoration; --show_importance."""

    def add_train_flags(self, parser) -> None:
        model = group(parser, "model")
        base.add_lambda_flag(
            parser,
            "λ",
            "λ of the loss bpp + λ · MSE (0..255 scale): with --joint_rate a larger λ gives better quality and more "
            "bits. Default: that of --init_weights, else 0.01.",
        )
        base.add_stage_flag(
            parser,
            "1 trains without the importance map, all bits are kept. 2 adds the map to weights of stage 1 "
            "(--init_weights), at the rate of --ratio.",
        )
        model.add_argument(
            "--ratio",
            type=float,
            metavar="R",
            help="For stage 2: the mean importance to aim at, above 0 and at most 1; about the share of bits kept.",
        )
        model.add_argument(
            "--joint_rate",
            action="store_true",
            help="Train the transforms towards codes that the context model predicts. Not in the paper; better files.",
        )
        base.add_start_flag(parser)
        base.add_restoration_flag(parser)

    def check_train_flags(self, args) -> None:
        super().check_train_flags(args)
        if args.lmbda is not None and len(args.lmbda) > 1:
            raise UserError("--lambda: a set of weights of CWIC has one λ")
        if args.stage == 1 and args.ratio is not None:
            raise UserError("--ratio: stage 1 keeps all bits; the ratio is that of --stage 2")
        base.check_stage(args)
        if args.stage == 2 and args.ratio is None:
            raise UserError("--stage 2 needs a --ratio, above 0 and at most 1")
        if args.stage == 2 and not 0 < args.ratio <= 1:
            raise UserError(f"--ratio {args.ratio:g}: must be above 0 and at most 1")

    def for_training(self, args):
        """A new codec, one of the weights file's stage that goes on, or one of stage 2 that begins with stage 1's."""
        codec = self._for_stage(args)
        if args.restoration:
            codec.enable_filter()
        return codec

    def _for_stage(self, args):
        from models.codec import storage
        from models.cwic import CWIC

        if not args.init_weights:
            chosen = {} if args.lmbda is None else {"lmbda": args.lmbda[0]}
            codec = CWIC(CWIC.entry.presets[args.preset], joint_rate=args.joint_rate, **chosen)
            if args.start == "pca":
                codec.init_pca()
            return codec
        before = storage.load_checkpoint(self.card.name, args.init_weights, args.lmbda)
        if args.stage == 2:
            return CWIC.second_stage(before, args.ratio, args.joint_rate)
        if before.stage == 2:
            raise UserError(f"{args.init_weights}: weights of stage 2, with which stage 1 cannot go on")
        before.joint_rate = args.joint_rate
        return before

    def add_compress_flags(self, parser, rate) -> None:
        rate.add_argument(
            "--quality",
            type=int,
            metavar="Q",
            help="Which of the weights that ship, from 1 (smallest files) on: each has one rate. `presets` lists them.",
        )
        parser.add_argument(
            "--show_importance",
            metavar="IMAGE",
            help="Also write the importance map as a grey image of the input's size, bright where many bits go; for "
            "one input.",
        )

    def compress_controls(self, codec, args, image: np.ndarray) -> dict:
        from models.io.images import check_writable

        if args.show_importance:
            codec.check_importance()
            if len(files.expand_inputs(args.inputs)) > 1:
                raise UserError("--show_importance is for one input")
            files.check_target(args.show_importance, args.force)
            check_writable(args.show_importance, *image.shape[:2])
        return super().compress_controls(codec, args, image)

    def after_compress(self, codec, args, image: np.ndarray, data: bytes) -> None:
        from models.io.images import write_image

        if args.show_importance:
            write_image(args.show_importance, codec.importance_image(image), args.force)


FLAGS = CwicFlags
