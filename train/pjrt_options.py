"""The flags of `train --runtime pjrt`. No TensorFlow here, so that `--help` does not wait for its import."""

from __future__ import annotations

import argparse

from models.errors import UserError
from train.options import FitOptions, fit_options

RUNTIMES = ("tf", "pjrt")


def add_pjrt_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where the training steps run to the parser of the `train` subcommand."""
    group = parser.add_argument_group(
        "training outside TensorFlow",
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
        help="Write the training step to this folder, for train/pjrt_run.py on another machine, and end.",
    )
    group.add_argument(
        "--import_state",
        metavar="DIR",
        help="Turn the state that train/pjrt_run.py has left in this folder into a weights file, and end. It "
        "says itself what architecture it is; the training pictures calibrate it.",
    )


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether the flags ask for training outside TensorFlow, or a part of it.

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
    """The settings among parsed flags; an export reads no pictures, and needs none.

    Raises:
      UserError: as of `FitOptions`, or a setting is none that this runtime has.
    """
    if args.labelled:
        raise UserError("--labelled: --runtime pjrt reads picture files: name them with --train_glob")
    if args.export_only and not (args.train_glob or args.tfds):
        args = argparse.Namespace(**{**vars(args), "train_glob": "not read"})
    options = fit_options(args)
    if options.mixed_precision == "float16":
        raise UserError("--mixed_precision float16: not under --runtime pjrt, which has bfloat16")
    if options.tfds and not (args.export_only or args.import_state):
        raise UserError("--tfds: --runtime pjrt reads picture files: name them with --train_glob")
    return options
