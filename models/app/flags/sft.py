"""The command line of SFT: quality maps, regions of interest, maps for a classifier."""

from __future__ import annotations

import argparse
import logging

import numpy as np

from models.app.flags import base
from models.io.errors import UserError

logger = logging.getLogger(__name__)


def region(text: str) -> tuple[int, int, int, int, float]:
    """Parses `x,y,w,h` or `x,y,w,h:q`, for argparse: left, top, width, height in pixels, quality 0..1 (default 1)."""
    place, _, quality = text.partition(":")
    try:
        left, top, width, height = map(int, place.split(","))
        q = float(quality) if quality else 1.0
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,w,h or x,y,w,h:q") from None
    if width < 1 or height < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is empty: width and height are at least 1")
    if not 0 <= q <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: quality {q:g} is not within 0 to 1")
    return left, top, width, height, q


class SftFlags(base.Flags):
    """--lambda, --start, --restoration, --freeze; --quality, --quality_map, --roi, --task_model and --task_weight."""

    def __init__(self, card):
        super().__init__(card)
        self._task = None  # the codec and the classifier of --task_model, kept for the next image

    def add_train_flags(self, parser) -> None:
        base.add_lambda_flag(
            parser,
            "λ0,λ1",
            "λ of the loss bpp + λ · squared error (0..255 scale) at qualities 0 and 1, rising exponentially in "
            "between. Default: those of --init_weights, else the paper's.",
        )
        base.add_start_flag(parser)
        base.add_restoration_flag(parser)
        base.add_freeze_flag(parser)

    def check_train_flags(self, args) -> None:
        super().check_train_flags(args)
        if args.lmbda is not None and len(args.lmbda) != 2:
            raise UserError(f"--lambda takes two numbers for SFT, of qualities 0 and 1, not {len(args.lmbda)}")

    def for_training(self, args):
        from transforms import quality_maps

        logger.warning(
            "no segmentation masks: the %.0f %% of quality maps with a level per class fall to the other kinds",
            100 * quality_maps.SHARES["classes"],
        )
        return super().for_training(args)

    def add_compress_flags(self, parser, rate) -> None:
        rate.add_argument(
            "--quality",
            type=float,
            metavar="Q",
            help="Quality of the whole image, 0 (smallest file) to 1; default 0.5. With --roi: outside of the regions, "
            "default 0.",
        )
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "--quality_map",
            metavar="IMAGE",
            help="A grey image of any size that says where quality goes: white is 1, black is 0. --target_bpp and "
            "--target_kb brighten or darken all of it.",
        )
        where.add_argument(
            "--roi",
            action="append",
            type=region,
            metavar="X,Y,W,H[:Q]",
            help="A region of interest: left upper corner and size in pixels, and its quality (default 1). Repeat it "
            "for several; where they overlap, the last one counts.",
        )
        where.add_argument(
            "--task_model",
            metavar="MODEL",
            help="A classifier whose answer the image has to keep at the fewest bits: efficientnet_lite0, which "
            "ships; a Keras SavedModel or .keras file; or the name of a network in keras.applications.",
        )
        parser.add_argument(
            "--task_weight",
            type=float,
            default=0.1,
            metavar="W",
            help="With --task_model: bits per pixel that a nat of its cross-entropy is worth.",
        )

    def compress_controls(self, codec, args, image: np.ndarray) -> dict:
        from models.codec import quality_map

        if args.quality is not None and (args.quality_map or args.task_model):
            raise UserError("--quality: --quality_map and --task_model set it; leave it out")
        if args.task_model:
            return {"quality_map": self._task_map(codec, args, image)}
        if args.quality_map:
            return {"quality_map": quality_map.read_map(args.quality_map)}
        if args.roi:
            codec.rate_control.check_quality(args.quality)
            regions = [quality_map.Region(*place) for place in args.roi]
            return {"quality_map": quality_map.paint(image.shape[:2], args.quality or 0.0, regions)}
        return super().compress_controls(codec, args, image)

    def _task_map(self, codec, args, image: np.ndarray) -> np.ndarray:
        from models.codec import storage
        from models.tasks import task_map

        if self._task is None:
            self._task = storage.training_form(codec), task_map.load_classifier(args.task_model)
        return task_map.find_maps(*self._task, image[None], args.task_weight)


FLAGS = SftFlags
