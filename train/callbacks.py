"""Callbacks of Keras' `Model.fit` that keep a long training safe.

Backups and signals, losses that are not finite, a budget of time, averaged weights. `train.fit.Run` puts them in order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from models.io import files
from models.io.errors import UserError
from train.options import FitOptions

logger = logging.getLogger(__name__)

# Advice about a loss that is not finite, with a state of the run to go back to and without one.
RESUME_ADVICE = (
    "The state of the last good epoch is kept: --resume continues from there, perhaps with a lower --learning_rate"
)
RESTART_ADVICE = "Nothing is kept: try a lower --learning_rate"

# Number of states kept: one more than needed, in case a full disk or a copy cuts the last one short.
KEPT_BACKUPS = 2


class TrainingInterrupted(SystemExit):
    """Training was stopped by a signal, with its state saved; `code` is what a shell expects (143, 130)."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)


class Backup(tf.keras.callbacks.BackupAndRestore):
    """Saves the state of the run at the end of each epoch, and in the middle of one when a signal arrives.

    Keras' own does the one or the other, as `save_freq` says at the time, and can restore a step within an
    epoch only if it has begun with a number there.

    Attributes:
      before_each: called before each save, for what belongs to the state and is not the model's.
    """

    def __init__(self, backup_dir: str):
        super().__init__(backup_dir, save_freq=sys.maxsize, delete_checkpoint=False)
        self.before_each: Callable[[], None] = lambda: None
        self._signal = 0
        self._save_on_signal = True

    def on_train_begin(self, logs=None) -> None:
        """Restores."""
        super().on_train_begin(logs)
        self._training_state.write_checkpoint_manager._max_to_keep = KEPT_BACKUPS  # Keras has no option for it
        self.save_freq = "epoch"

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        """Saves and raises `TrainingInterrupted`, if a signal has arrived in the middle of an epoch."""
        # After the last step comes the end of the epoch, with a validation that would be missed otherwise.
        stop = self._signal and batch + 1 < self.params["steps"]
        if stop and self._save_on_signal:
            self.save_freq = 1
        super().on_train_batch_end(batch, logs)
        if stop:
            self._stop()

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Saves, and raises `TrainingInterrupted` if a signal has arrived."""
        super().on_epoch_end(epoch, logs)
        if self._signal:
            self._stop()

    def _backup(self, epoch: int, batch: int = 0) -> None:
        self.before_each()
        super()._backup(epoch, batch)

    def _stop(self) -> None:
        logger.warning("%s: training stopped; --resume continues", signal.Signals(self._signal).name)
        raise TrainingInterrupted(self._signal)

    @contextlib.contextmanager
    def on_signals(self, save: bool) -> Iterator[None]:
        """Stops training at the end of the step in which SIGTERM or SIGINT arrives; a second one kills.

        Args:
          save: whether to save the state then. Several workers save together or not at all, and need not all
            get the signal, or in the same step.
        """
        self._save_on_signal = save
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals in the main thread only
            return

        def note(signum: int, frame) -> None:
            del frame
            self._signal = signum
            signal.signal(signum, before[signum])

        before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


class StopOnNaN(tf.keras.callbacks.TerminateOnNaN):
    """Ends training with an error, before anything is saved, when a loss is not finite.

    Keras' own would go on to validate and to save what is not a number over the last good state.

    Args:
      has_backup: whether there is a state to resume from; asked when the training ends.
    """

    def __init__(self, has_backup: Callable[[], object] = lambda: False):
        super().__init__()
        self._has_backup = has_backup

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        """Notes the epoch for the message."""
        del logs
        self._epoch = epoch

    def on_batch_end(self, batch: int, logs=None) -> None:
        """Checks the loss.

        Raises:
          UserError: it is not finite.
        """
        super().on_batch_end(batch, logs)
        if self.model.stop_training:
            self._give_up(f"the loss at step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Checks the validation loss, which tells of the weights that the last step has left.

        Raises:
          UserError: it is not finite.
        """
        del epoch
        if not np.isfinite((logs or {}).get("val_loss", 0.0)):
            self._give_up("the validation loss")

    def _give_up(self, what: str) -> None:
        advice = RESUME_ADVICE if self._has_backup() else RESTART_ADVICE
        raise UserError(f"training diverged: {what} of epoch {self._epoch + 1} is not finite. {advice}")


class TimeBudget(tf.keras.callbacks.Callback):
    """Lets the learning rate fall with the time, and ends the training when `options.minutes` are over.

    Args:
      options: of the run.
      path: file that keeps the time spent, see `note`.
      resumed: whether that counts.
    """

    def __init__(self, options: FitOptions, path: str, resumed: bool):
        super().__init__()
        self._options, self._path, self._resumed = options, path, resumed

    def on_train_begin(self, logs=None) -> None:
        """Starts the clock, or continues it."""
        del logs
        spent = 0.0
        if self._resumed:
            with contextlib.suppress(OSError, ValueError), open(self._path, encoding="utf-8") as file:
                spent = float(json.load(file))
        self._begin = time.monotonic() - spent

    def _progress(self) -> float:
        return min(1.0, (time.monotonic() - self._begin) / (60 * self._options.minutes))

    def on_train_batch_begin(self, batch: int, logs=None) -> None:
        """Sets the learning rate."""
        del batch, logs
        progress, rate = self._progress(), self._options.learning_rate
        if self._options.schedule == "cosine":
            rate *= (1 + np.cos(np.pi * progress)) / 2
        elif progress >= 1 - self._options.drop_share:
            rate /= 10
        if self._options.warmup_steps:
            rate *= min(1.0, (int(self.model.optimizer.iterations) + 1) / self._options.warmup_steps)
        self.model.optimizer.learning_rate = rate

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        """Ends the training when the time is up; validation and the end of the epoch still come."""
        del batch, logs
        if self._progress() >= 1:
            self.model.stop_training = True

    def note(self) -> None:
        """Notes the time spent. To be called whenever the state is saved, in the middle of an epoch as at its end."""
        files.write_json(self._path, time.monotonic() - self._begin)


class AveragedWeights(tf.keras.callbacks.Callback):
    """Puts the optimizer's moving average of the weights in place from validation to the end of the epoch.

    So the average is what is validated, and what a `ModelCheckpoint` before this one saves; training goes on
    with the weights themselves. At the end of training `Model.fit` puts the average in place for good.
    """

    def on_train_begin(self, logs=None) -> None:
        """Forgets weights put aside in an earlier training."""
        del logs
        self._weights = None

    def on_test_begin(self, logs=None) -> None:
        """Puts the weights aside and the average in their place."""
        del logs
        variables = self.model.trainable_variables
        self._weights = [variable.numpy() for variable in variables]
        self.model.optimizer.finalize_variable_values(variables)

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Puts the weights back."""
        del epoch, logs
        for variable, value in zip(self.model.trainable_variables, self._weights):
            variable.assign(value)
