"""The flags of `train --runtime pjrt`. No TensorFlow here, so that `--help` does not wait for its import."""

from __future__ import annotations

import argparse
import dataclasses
import logging

from models.io.errors import UserError
from train.options import FitOptions, fit_options

logger = logging.getLogger(__name__)

RUNTIMES = ("tf", "pjrt")

#: Settings of TensorFlow's input pipeline and devices: the runner has its own.
IGNORED_OPTIONS = ("crops_per_image", "cache_gb", "strategy")
#: All settings that an export and an import heed.
EXPORT_OPTIONS = (
    *("batchsize", "patchsize", "optimizer", "learning_rate", "clipnorm", "ema"),
    *("mixed_precision", "seed"),
)
IMPORT_OPTIONS = (
    *("train_path", "train_glob", "tfds", "validation_glob", "validation_steps"),
    *("batchsize", "patchsize", "calibration"),
)


def add_pjrt_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where the training steps run to the parser of the `train` subcommand."""
    group = parser.add_argument_group(
        "other runtimes",
        "The training step, compiled by XLA, runs under JAX on accelerators newer than this TensorFlow. "
        "On one machine: --runtime pjrt. On two: --export_only DIR here, pjrt_run.py there, --import_state "
        "DIR here.",
    )
    group.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="tf",
        help="What runs the training steps: TensorFlow, or JAX (pjrt).",
    )
    group.add_argument(
        "--pjrt_python",
        metavar="PYTHON",
        help="Python interpreter that has jax, numpy and pillow (requirements-jax.txt): TensorFlow 2.14 and "
        "a current JAX cannot share one.",
    )
    group.add_argument(
        "--export_only",
        metavar="DIR",
        help="Write the training step to this folder, with pjrt_run.py, which trains it on another machine, and end.",
    )
    group.add_argument(
        "--import_state",
        metavar="DIR",
        help="Turn the state that train/pjrt/run.py has left in this folder into a weights file, and end. It "
        "says itself what architecture it is; the training images calibrate it.",
    )


def uses_pjrt(args: argparse.Namespace) -> bool:
    """Tells whether the flags ask for training outside TensorFlow, or a part of it.

    Raises:
      UserError: they contradict each other.
    """
    wanted = args.runtime == "pjrt" or bool(args.export_only or args.import_state)
    if args.export_only and args.import_state:
        raise UserError("--export_only and --import_state: give one of them")
    if args.pjrt_python is not None and not wanted:
        raise UserError("--pjrt_python: needs --runtime pjrt")
    if wanted and not (args.export_only or args.import_state or args.pjrt_python):
        raise UserError(
            "--runtime pjrt: --pjrt_python must name an interpreter that has jax, such as that of a virtual "
            "environment with requirements-jax.txt"
        )
    return wanted


def pjrt_fit_options(args: argparse.Namespace) -> FitOptions:
    """The settings among parsed flags; an export reads no images, and needs none.

    Raises:
      UserError: as of `FitOptions`, or this runtime does not have a setting.
    """
    if args.labelled:
        raise UserError("--labelled: --runtime pjrt reads image files: name them with --train_glob")
    if args.export_only and not (args.train_glob or args.tfds):
        args = argparse.Namespace(**{**vars(args), "train_glob": "not read"})
    options = fit_options(args)
    if options.mixed_precision == "float16":
        raise UserError("--mixed_precision float16: not under --runtime pjrt, which has bfloat16")
    if options.tfds and not (args.export_only or args.import_state):
        raise UserError("--tfds: --runtime pjrt reads image files: name them with --train_glob")
    return options


def idle(options: FitOptions, args: argparse.Namespace) -> list[str]:
    """The settings that differ from their defaults and have no meaning for what the flags ask for."""
    fields = [f for f in dataclasses.fields(FitOptions) if f.default is not dataclasses.MISSING]
    given = [f.name for f in fields if getattr(options, f.name) != f.default]
    if args.import_state:
        return [name for name in given if name not in IMPORT_OPTIONS]
    if args.export_only:
        # It stands in for the images that are not read.
        return [name for name in given if name not in (*EXPORT_OPTIONS, "train_glob")]
    return [name for name in given if name in IGNORED_OPTIONS]


def warn_of_idle(options: FitOptions, args: argparse.Namespace) -> None:
    """Logs a line that names the settings that are given in vain."""
    names = idle(options, args)
    if names:
        wanted = next((f"--{n}" for n in ("import_state", "export_only") if getattr(args, n)), "--runtime pjrt")
        logger.warning("%s: has no use for %s", wanted, ", ".join(f"--{name}" for name in names))
