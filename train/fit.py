"""Trains a codec: builds and compiles it, and calls Keras' `Model.fit` with what keeps a long run safe.

    build() ─ compile ─┐
                       ├─ Model.fit ─┬─ options.json  spent.json   settings, to compare on --resume; minutes so far
                       │             ├─ backup/            state of the run, for --resume
    train.data ────────┘             ├─ best/              checkpoint of the best validation loss
                                     ├─ tensorboard/  log.csv
                                     └─ best.safetensors  final.safetensors   at the end

A codec's `train_step` runs once on each device, on that device's share of the batch, and the optimizer adds
the gradients of all devices up. So `train_step` must divide its loss, the mean over its share, by
`tf.distribute.get_strategy().num_replicas_in_sync`, and hand it to `optimizer.minimize(loss, variables,
tape=tape)`, which also scales it where float16 needs that. Whatever it logs must go through Keras metrics.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from models.codec import weights
from models.io import files
from models.io.errors import UserError, one_line
from train import progress
from train.callbacks import AveragedWeights, Backup, StopOnNaN, TimeBudget
from train.data import Source, images_of, open_data, training_dataset, validation_dataset, validation_steps
from train.devices import data_seed, is_chief, make_strategy, precision, several_workers, worker_index
from train.optimizer import make_optimizer
from train.options import FitOptions

if TYPE_CHECKING:
    from models.codec import Codec

logger = logging.getLogger(__name__)

# Options that must stay the same on --resume: others would change the meaning of the step count or the optimizer's
# state. `identity` has what must stay the same of the codec.
FIXED_ON_RESUME = ("steps_per_epoch", "batchsize", "optimizer", "ema", "mixed_precision")

BEST, FINAL = "best.safetensors", "final.safetensors"


@dataclass(frozen=True)
class Trained:
    """The result of `fit`.

    Attributes:
      codec: the model, holding the best weights.
      history: one list per metric, one entry per epoch that this call ran.
      best: file of the weights with the lowest validation loss.
      final: file of the weights after the last step.
    """

    codec: Codec
    history: dict[str, list[float]]
    best: str
    final: str


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns TensorFlow's errors about images, memory or disk into a UserError of one line.

    Raises:
      UserError: memory or the disk is full; or the data pipeline raised a UserError, which TensorFlow wraps in an
        InvalidArgumentError with a traceback in its text.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        # TensorFlow reports a full disk so, too.
        if re.search("OOM|[Oo]ut of memory|allocat", str(error)):
            raise UserError("out of memory: a smaller --batchsize or --patchsize needs less") from error
        raise UserError(one_line(error)) from error
    except tf.errors.InvalidArgumentError as error:
        inner = re.search(rf"\b{UserError.__name__}: (.+)", str(error))
        if not inner:
            raise
        raise UserError(inner[1]) from error


@user_errors()
def fit(build: Callable[[], Codec], options: FitOptions) -> Trained:
    """Trains a codec from the beginning, or from where an earlier run stopped.

    Call it before anything else has run a TensorFlow operation: MultiWorkerMirroredStrategy can only be made then.

    Args:
      build: makes the codec, a `models.codec.Codec`; called once, under the strategy's scope and the
        precision asked for.
      options: all settings.

    Returns:
      The trained codec and where its files are. With several workers, only the first one writes them.

    Raises:
      UserError: there are no usable images, or they became unreadable during training; `train_path` holds a run and
        `resume` is not set, or the run there does not fit these settings or this codec; memory or the disk is full; or
        the loss is not finite any more. In the last case the state of the last good epoch is kept.
      TrainingInterrupted: SIGTERM or SIGINT arrived. The state of a single process is saved as it is then;
        of several workers, that of the last full epoch is kept.
    """
    strategy = make_strategy(options.strategy)
    if options.batchsize % strategy.num_replicas_in_sync:
        devices = strategy.num_replicas_in_sync
        raise UserError(f"--batchsize {options.batchsize}: cannot be shared among {devices} devices")
    if options.minutes and several_workers(strategy):
        raise UserError("--minutes: several workers would not stop at the same step; give --epochs")
    run = Run(options)
    start_step = run.begin(is_chief(strategy))
    source, held_out = open_data(options)
    calibration = calibration_patches(source, options)
    held_out_count = len(images_of(held_out))
    seed = data_seed(options, strategy)
    # Quantisation noise should not repeat from the first step on after a resume.
    tf.keras.utils.set_random_seed((seed + start_step) % 2**32)

    with strategy.scope(), precision(options.mixed_precision):
        codec = build()
    run.check_codec(codec, is_chief(strategy))
    if hasattr(source, "classes"):
        codec.check_classes(source.classes)
    with strategy.scope():
        codec.compile(optimizer=make_optimizer(options))
        _make_variables(codec, min(64, options.patchsize))
        # `build` copies the weights as they are now into the moving averages.
        codec.optimizer.build(codec.trainable_variables)
    if several_workers(strategy):
        # All workers have the same weights now. From here on each draws its own noise and levels, by its own seed.
        tf.keras.utils.set_random_seed((seed + start_step + worker_index()) % 2**32)

    def training(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return training_dataset(
            source,
            options.batchsize,
            options.patchsize,
            seed=seed,
            start_step=start_step,
            crops_per_image=options.crops_per_image,
            context=context,
        )

    def validation(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return validation_dataset(held_out, options.batchsize, context=context)

    if is_chief(strategy):
        counts = f"{len(source)} images to train on, " if hasattr(source, "__len__") else ""
        progress.introduce(codec, options, strategy, f"{counts}{held_out_count} held out for validation")
    backup = Backup(run.path("backup"))
    with backup.on_signals(save=not several_workers(strategy)):
        history = codec.fit(
            strategy.distribute_datasets_from_function(training),
            epochs=options.epochs,
            steps_per_epoch=options.steps_per_epoch,
            validation_data=strategy.distribute_datasets_from_function(validation),
            validation_steps=validation_steps(held_out_count, options.batchsize),
            callbacks=run.callbacks(backup, is_chief(strategy)),
            verbose=0,  # the Progress callback prints
        )
    run.finish(codec, calibration, strategy)
    return Trained(codec, history.history, run.path(BEST), run.path(FINAL))


def _make_variables(codec: Codec, patchsize: int) -> None:
    """Makes all variables of a codec now: what a checkpoint holds, and what an optimizer keeps, must exist.

    With `training=True`, since a codec makes its trainable densities only when it is trained.
    """
    codec(tf.zeros([1, patchsize, patchsize, 3]), training=True)


# --- the folder of a run -----------------------------------------------------------------------------------


class Run:
    """The files of a run, in `options.train_path`."""

    def __init__(self, options: FitOptions):
        self.options = options
        self.start_step = 0
        self._codec_before: dict[str, str] = {}

    def path(self, *names: str) -> str:
        """A file or folder of the run."""
        return os.path.join(self.options.train_path, *names)

    def begin(self, chief: bool) -> int:
        """Prepares the folder. Returns the step to start at.

        Raises:
          UserError: as of `fit`.
        """
        backup = self.has_backup()
        if backup and not self.options.resume:
            raise UserError(
                f"{self.options.train_path}: holds a training run: --resume continues it, another "
                "--train_path begins a new one"
            )
        if backup:
            self._check_same()
            self.start_step = _saved_step(self._whole_backup(chief), self.options.steps_per_epoch)
        elif chief:
            self._write_options()
        return self.start_step

    def has_backup(self) -> bool:
        """Returns whether there is a state to resume from."""
        return bool(_checkpoints(self.path("backup", "chief")))

    def _whole_backup(self, chief: bool) -> str:
        """Finds the newest state of the run that is whole; returns its path. UserError if none is."""
        found = _checkpoints(self.path("backup", "chief"))
        whole = next(filter(is_whole, found), None)
        if whole is None:
            raise UserError(
                f"{found[0]}: is cut short or damaged, and so are older states: another --train_path begins a new run"
            )
        if whole != found[0]:
            logger.warning("%s: is cut short or damaged; the run continues from %s", found[0], whole)
        if chief:  # where Keras looks for it
            known = found[found.index(whole) :]
            tf.compat.v1.train.update_checkpoint_state(os.path.dirname(whole), whole, known[::-1])
        return whole

    def _check_same(self) -> None:
        try:
            with open(self.path("options.json"), encoding="utf-8") as file:
                before = json.load(file)
        except (OSError, ValueError):
            return
        for name in FIXED_ON_RESUME:
            self._compare(f"--{name}", before.get(name), getattr(self.options, name))
        self._codec_before = before.get("codec", {})

    def check_codec(self, codec: Codec, chief: bool) -> None:
        """Refuses a codec other than the one that the run was begun with, before anything is restored.

        Args:
          codec: a `models.codec.Codec`; its variables need not exist.
          chief: whether to write its description to options.json.

        Raises:
          UserError: it is another one. A run without such a description continues with any codec.
        """
        now = identity(codec)
        for name, value in now.items():
            self._compare(name, self._codec_before.get(name), value)
        if chief:
            self._write_options(codec=now)

    def _compare(self, name: str, before, now) -> None:
        # Runs of earlier versions know nothing of some settings.
        if before is not None and before != now:
            raise resume_mismatch(self.options.train_path, name, before, now)

    def _write_options(self, **facts) -> None:
        files.write_json(self.path("options.json"), {**dataclasses.asdict(self.options), **facts})

    def callbacks(self, backup: Backup, chief: bool) -> list[tf.keras.callbacks.Callback]:
        """Makes Keras' callbacks. Their order matters at the end of an epoch:

        1. StopOnNaN, before anything is saved.
        2. ModelCheckpoint saves the best weights, while the averaged ones are in place.
        3. AveragedWeights puts the trained weights back.
        4. Backup saves these.
        """
        resumed = self.start_step > 0
        best = self.path("best", "weights")
        best_loss = _best_loss(self.path("log.csv")) if resumed else None
        if best_loss is not None and not is_whole(best):
            logger.warning("%s: is missing, cut short or damaged; the best epoch is sought among those to come", best)
            best_loss = None
        callbacks = [
            StopOnNaN(self.has_backup),
            tf.keras.callbacks.ModelCheckpoint(
                best,
                monitor="val_loss",
                mode="min",
                save_best_only=True,
                save_weights_only=True,
                initial_value_threshold=best_loss,
            ),
            tf.keras.callbacks.TensorBoard(self.path("tensorboard"), write_graph=False),
        ]
        if chief:  # every worker would write to the same file
            callbacks.append(tf.keras.callbacks.CSVLogger(self.path("log.csv"), append=resumed))
        if self.options.ema:
            callbacks.append(AveragedWeights())
        if self.options.minutes:
            budget = TimeBudget(self.options, self.path("spent.json"), resumed)
            backup.before_each = budget.note
            callbacks.append(budget)
        if chief:
            callbacks.append(progress.Progress(self.options, self.start_step))
        return [*callbacks, backup]

    def finish(self, codec: Codec, calibration: np.ndarray, strategy: tf.distribute.Strategy) -> None:
        """Writes the two weights files, and leaves the best weights in the codec."""
        chief = is_chief(strategy)
        with strategy.scope():
            # The weights of the last step, or their average: Model.fit has put it in place when it ended.
            self._save(codec, FINAL, calibration, chief)
            best = self.path("best", "weights")
            if not is_whole(best):
                raise UserError(f"{best}: is missing, cut short or damaged; {self.path(FINAL)} is written")
            # The optimizer comes back with the weights, and with it the number of steps for their header. The rest of
            # the checkpoint is not needed.
            codec.load_weights(best).expect_partial()
            self._save(codec, BEST, calibration, chief)

    def _save(self, codec: Codec, name: str, calibration: np.ndarray, chief: bool) -> None:
        codec.calibrate(calibration)
        if chief:
            codec.save(self.path(name), metadata=self._metadata(codec))

    def _metadata(self, codec: Codec) -> dict[str, str]:
        """Collects how the weights were trained, for the header of the weights file: numbers, but no paths."""
        sizes, rates = ("batchsize", "patchsize"), ("learning_rate", "schedule", "drop_share", "warmup_steps")
        names = (*sizes, "optimizer", *rates, "clipnorm", "ema", "mixed_precision", "seed")
        kept = {name: str(getattr(self.options, name)) for name in names}
        return {"steps": str(int(codec.optimizer.iterations.numpy())), **kept}


def resume_mismatch(path: str, name: str, before, now) -> UserError:
    """Makes the error for a run that was begun with another setting."""
    # The labels of many classes would be more than a line.
    return UserError(f"{path}: was begun with {name} {before!s:.200}, and cannot resume with {now!s:.200}")


def identity(codec: Codec) -> dict[str, str]:
    """Describes a `models.codec.Codec` without its weights: {setting: value}, the most telling first.

    It is compared on --resume, and the first mismatch names the cause.
    """
    config = json.loads(weights.config_to_json(codec.config))
    return {
        "model": codec.entry.name,
        **codec.settings(),
        "freeze": codec.frozen or "nothing",
        **{f"config.{name}": json.dumps(value) for name, value in config.items()},
    }


def calibration_patches(source: Source, options: FitOptions) -> np.ndarray:
    """Draws the training patches, uint8 `[N, P, P, 3]`, for `Codec.calibrate`."""
    batches = training_dataset(source, options.calibration, options.patchsize, seed=0)
    return images_of(next(batches.as_numpy_iterator()))


def _checkpoints(folder: str) -> list[str]:
    """Lists the TensorFlow checkpoints in a folder, newest first, even where its own list of them is damaged."""
    found = [re.fullmatch(r"(ckpt-(\d+))\.index", name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
    numbered = sorted(((int(match[2]), match[1]) for match in found if match), reverse=True)
    return [os.path.join(folder, name) for _, name in numbered]


def is_whole(checkpoint: str) -> bool:
    """Returns whether all of a TensorFlow checkpoint can be read."""
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception:  # TensorFlow's errors, and IndexError, RuntimeError or ValueError in place of some
        return False
    return True


def _saved_step(backup: str, steps_per_epoch: int) -> int:
    """Returns the step to resume from."""

    def saved(name: str) -> int:
        return int(tf.train.load_variable(backup, f"{name}/.ATTRIBUTES/VARIABLE_VALUE"))

    return saved("ckpt_saved_epoch") * steps_per_epoch + saved("ckpt_saved_batch") + 1


def _best_loss(log: str) -> float | None:
    """Reads the lowest validation loss from a `CSVLogger`'s file; None if it has none."""
    try:
        with open(log, newline="", encoding="utf-8") as file:
            texts = [row.get("val_loss") for row in csv.DictReader(file)]
    except (OSError, ValueError):
        return None
    losses = []
    for text in texts:
        with contextlib.suppress(ValueError, TypeError):  # a line that is cut short
            losses.append(float(text))
    return min(losses, default=None)
