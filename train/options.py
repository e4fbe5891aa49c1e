"""Settings of a training run: one record, and the command line flags that fill it.

No TensorFlow here, so that `--help` and a mistyped flag do not wait for its import.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.io.errors import UserError

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
SCHEDULES = ("drop", "cosine")
PRECISIONS = ("off", "auto", "float16", "bfloat16")
OPTIMIZERS = ("adam", "soap")
#: Photographs that ship, for a first training; their credits are beside them.
SAMPLE_GLOB = str(Path(__file__).resolve().parent.parent / "res" / "photos" / "*.jpg")


@dataclass(frozen=True)
class FitOptions:
    """Everything `train.fit.fit` needs besides the codec.

    Exactly one of `train_glob`, `tfds` and `labelled` says where the training images are.

    Attributes:
      train_path: folder of the run. It gets `backup/` (what `--resume` continues from), `best/` (a checkpoint
        of the best validation loss), `tensorboard/`, `log.csv`, `options.json`, `spent.json` (with `minutes`), and,
        when the training ends, `best.safetensors` and `final.safetensors`.
      train_glob: images to train on: a glob, or several, as a sequence or with commas between; `**` descends into
        folders. One that matches files as a whole is not split at its commas.
      tfds: name of a TensorFlow Datasets image data set (`clic`).
      labelled: images with labels: a folder with a folder of images for each class, or the name of a TensorFlow
        Datasets data set with labels; see `train.labelled`.
      validation_glob: images to validate on, as `train_glob`. Without it, some of the training images are
        held out (with `train_glob`), or the data set's own validation split is taken (with `tfds`).
      batchsize: patches per step, over all devices and workers together.
      patchsize: side of the square patches, in pixels.
      crops_per_image: patches cut from an image each time it is decoded; they go to successive batches.
        More than one saves decoding time where images are large and do not fit in `cache_gb`.
      cache_gb: decoded images stay in memory if they take at most this many GiB together.
      epochs: number of epochs; validation, checkpoints and logs come at the end of each.
      steps_per_epoch: training steps in an epoch.
      minutes: train for so long instead of `epochs`; the learning rate falls with the time.
      validation_steps: batches to validate on, at most.
      calibration: training patches that the integers and tables of a weights file are fitted to.
      optimizer: `adam`, or `soap`, whose steps take longer and for some trainings bring more: see `train.soap`.
      learning_rate: the optimizer's learning rate, at the start.
      schedule: `drop` (constant, then a tenth for the last `drop_share` of the steps) or `cosine` (down to 0
        along a half cosine).
      drop_share: the last part of the training that `drop` runs at a tenth of the rate, 0..1.
      warmup_steps: the rate rises over this many steps at the beginning; 0 starts at the full rate.
      clipnorm: the gradients' global norm is clipped to this; 0 does not clip.
      ema: momentum of an exponential moving average of the weights, which is then what is validated and
        saved; 0 does not average. 0.999 averages over about the last thousand steps.
      mixed_precision: `off`, `float16` (with loss scaling, for GPUs), `bfloat16`, or `auto`: float16 where
        there is a GPU and bfloat16 where there is none.
      strategy: `one_device`; `mirrored` (all GPUs of this machine); `multi_worker` (the cluster that the
        environment variable TF_CONFIG describes); `auto` picks among them.
      resume: continue the run in `train_path` if there is one.
      seed: makes order and place of the patches, initial weights and random numbers repeatable.
    """

    train_path: str
    train_glob: str | Sequence[str] | None = None
    tfds: str | None = None
    validation_glob: str | Sequence[str] | None = None
    batchsize: int = 8
    patchsize: int = 256
    crops_per_image: int = 1
    cache_gb: float = 2.0
    epochs: int = 1000
    steps_per_epoch: int = 1000
    minutes: float | None = None
    validation_steps: int = 8
    learning_rate: float = 1e-4
    schedule: str = "drop"
    drop_share: float = 0.1
    warmup_steps: int = 0
    clipnorm: float = 1.0
    ema: float = 0.0
    mixed_precision: str = "off"
    strategy: str = "auto"
    resume: bool = False
    seed: int | None = None
    labelled: str | None = None
    calibration: int = 256
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        """Refuses what cannot work.

        Raises:
          UserError: a setting is out of its range, or there are no or two sources of training images.
        """
        if sum(map(bool, (self.train_glob, self.tfds, self.labelled))) != 1:
            raise UserError("give either --train_glob or --tfds (or --labelled) to say what to train on")
        if self.labelled and self.validation_glob is not None:
            raise UserError("--validation_glob: images with labels bring their own to validate on")
        positive = ("batchsize", "patchsize", "crops_per_image", "epochs", "steps_per_epoch")
        for name in (*positive, "validation_steps", "calibration", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} {getattr(self, name)}: must be above 0")
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"--minutes {self.minutes}: must be above 0")
        for name in ("cache_gb", "warmup_steps", "clipnorm"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} {getattr(self, name)}: must not be negative")
        if not 0 <= self.drop_share <= 1:
            raise UserError(f"--drop_share {self.drop_share}: must be between 0 and 1")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema {self.ema}: must be at least 0 and below 1")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: must be at least 0 and below 2**32")
        choices = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "mixed_precision": PRECISIONS,
            "strategy": STRATEGIES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: must be one of {', '.join(known)}")

    @property
    def total_steps(self) -> int:
        """Training steps in all epochs together."""
        return self.epochs * self.steps_per_epoch


#: The groups of `train`'s flags, in the order of `--help`.
GROUPS = ("data", "model", "schedule", "precision", "distribution", "fine-tuning")


def group(parser: argparse.ArgumentParser, title: str):
    """The group of flags of that title, of a parser that `add_train_flags` may have given some."""
    groups = vars(parser).setdefault("groups", {})
    if title not in groups:
        groups[title] = parser.add_argument_group(title)
    return groups[title]


def add_train_flags(parser: argparse.ArgumentParser, train_path: str) -> None:
    """Adds one flag for each field of `FitOptions`, of the same name; TFC's model scripts have most of them.

    Args:
      parser: of the `train` subcommand (absl's argparse_flags or argparse's own).
      train_path: default of `--train_path`, such as `/tmp/train_elic`.
    """
    default = {field.name: field.default for field in dataclasses.fields(FitOptions)}

    def add(title: str, name: str, help: str, **kwargs) -> None:
        kwargs.setdefault("default", default[name])
        group(parser, title).add_argument(f"--{name}", help=help, **kwargs)

    for title in GROUPS:
        group(parser, title)
    add(
        "data",
        "train_glob",
        "Glob of the training images; ** descends into folders. Quote it to keep it from the shell. For several globs, "
        "repeat the flag or write commas between them. Default: sample photographs that ship with the zoo.",
        action="append",
    )
    add("data", "tfds", "Name of a TensorFlow Datasets image data set to train on, such as clic.")
    add(
        "data",
        "labelled",
        "Images with labels to train on: a folder with a folder for each class, or with train and val that have these; "
        "or the name of a TensorFlow Datasets data set, such as oxford_flowers102.",
    )
    add(
        "data",
        "validation_glob",
        "Glob of the validation images, as --train_glob. Default: some training images are held out.",
        action="append",
    )
    add("data", "batchsize", "Patches per training step, over all devices.", type=int)
    add("data", "patchsize", "Side of the square training patches, in pixels. Smaller images are skipped.", type=int)
    add(
        "data",
        "crops_per_image",
        "Patches cut from an image each time it is decoded. More than one helps where decoding is the bottleneck.",
        type=int,
    )
    add("data", "cache_gb", "Keep decoded images in memory if they need at most so many GiB.", type=float)
    add("data", "validation_steps", "Batches to validate on, at most.", type=int)
    add(
        "data",
        "calibration",
        "Training patches that the integers and tables of the weights files are fitted to at the end. What none of "
        "them shows costs bits: take one of each image, if there is time.",
        type=int,
    )
    add("schedule", "train_path", "Folder for checkpoints, logs and the trained weights.", default=train_path)
    add("schedule", "resume", "Continue the run in --train_path, if there is one.", action="store_true")
    add("schedule", "epochs", "Number of epochs; each ends with validation and a checkpoint.", type=int)
    add("schedule", "steps_per_epoch", "Training steps per epoch.", type=int)
    add(
        "schedule",
        "minutes",
        "Train for so long instead of a number of epochs; the learning rate falls with the time, to its end.",
        type=float,
    )
    add(
        "schedule",
        "optimizer",
        "adam, or soap: Adam in the eigenbases of the gradients, whose steps take longer and sometimes bring more.",
        choices=OPTIMIZERS,
    )
    add("schedule", "learning_rate", "Learning rate of the optimizer.", type=float)
    add(
        "schedule",
        "schedule",
        "How the learning rate ends: drop to a tenth for the last steps, or fall along a cosine to 0.",
        choices=SCHEDULES,
    )
    add("schedule", "drop_share", "Part of the training that --schedule drop runs at a tenth of the rate.", type=float)
    add("schedule", "warmup_steps", "Let the learning rate rise over so many steps at the beginning.", type=int)
    add("schedule", "clipnorm", "Clip the global norm of the gradients to this; 0 does not clip.", type=float)
    add(
        "schedule",
        "ema",
        "Momentum of the exponential moving average of the weights, such as 0.999; 0 does not average.",
        type=float,
    )
    add("schedule", "seed", "Makes the run repeatable: order and place of patches, initial weights.", type=int)
    add(
        "precision",
        "mixed_precision",
        "Compute the transforms, and in bfloat16 most of the entropy networks, in 16 bits. Without a value: float16 on "
        "GPUs, bfloat16 elsewhere.",
        nargs="?",
        const="auto",
        choices=PRECISIONS,
    )
    add(
        "distribution",
        "strategy",
        "Where to train: one_device, mirrored (all GPUs of this machine), multi_worker (the cluster that TF_CONFIG "
        "describes); auto picks one of them.",
        choices=STRATEGIES,
    )


def fit_options(args: argparse.Namespace) -> FitOptions:
    """The settings among parsed flags; other attributes of `args` are left alone. Without data: `SAMPLE_GLOB`.

    Raises:
      UserError: as of `FitOptions`.
    """
    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(FitOptions)}
    for name in ("train_glob", "validation_glob"):  # flags that can be repeated
        if isinstance(settings[name], list):
            settings[name] = settings[name][0] if len(settings[name]) == 1 else tuple(settings[name])
    if not any(settings[name] for name in ("train_glob", "tfds", "labelled")):
        settings["train_glob"] = SAMPLE_GLOB
    return FitOptions(**settings)
