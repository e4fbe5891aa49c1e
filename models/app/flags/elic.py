"""The command line of ELIC."""

from __future__ import annotations

from models.app.flags import base
from models.io.errors import UserError
from train.options import group


class ElicFlags(base.Flags):
    """--lambda, --start, --distortion, --restoration, --freeze and --detail."""

    def add_train_flags(self, parser) -> None:
        super().add_train_flags(parser)
        base.add_start_flag(parser)
        base.add_distortion_flag(parser)
        base.add_restoration_flag(parser)
        base.add_freeze_flag(parser)
        group(parser, "fine-tuning").add_argument(
            "--detail",
            type=int,
            metavar="N",
            help="Add N detail channels (not in the paper) to --init_weights that have none, for better quality at "
            "high rates.",
        )

    def check_train_flags(self, args) -> None:
        super().check_train_flags(args)
        if args.detail is not None and args.detail < 1:
            raise UserError(f"--detail {args.detail}: must be above 0")
        if args.detail is not None and not args.init_weights:
            raise UserError("--detail: name the weights that get detail channels with --init_weights")
        if args.freeze and args.detail:
            raise UserError(
                f"--freeze {args.freeze}: detail channels need both encoder and decoder; leave out --detail"
            )

    def for_training(self, args):
        from models.codec.distortion import MSE, check_side

        codec = super().for_training(args)
        if args.detail:
            codec = codec.with_detail(args.detail)
        if args.distortion:
            codec.set_distortion(args.distortion)
        check_side(codec.distortion, args.patchsize, f"--patchsize {args.patchsize}")
        if args.restoration and codec.distortion != MSE:
            raise UserError(f"--restoration: a filter is for squared errors, and these weights for {codec.distortion}")
        return codec


FLAGS = ElicFlags
