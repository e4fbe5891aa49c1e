"""Messages of a training while it runs: what runs where, how it goes, and when it will end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import tensorflow as tf
from tqdm import tqdm

from models.codec import complexity, registry
from train.options import SAMPLE_GLOB, FitOptions

#: Steps that are timed for the estimate, after the first one, which is traced.
TIMED_STEPS = 5
#: Seconds between lines, where the output is no terminal.
INTERVAL = 30
#: For a run of more than this many hours a shorter alternative is named.
LONG = 12


def say(text: str) -> None:
    """Prints a line at once, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def introduce(codec: tf.keras.Model, options: FitOptions, strategy: tf.distribute.Strategy, counts: str) -> None:
    """Says what is trained, on what, and where.

    codec: a `models.codec.Codec` whose training variables are built. counts: such as "700 images to train on".
    """
    if options.train_glob == SAMPLE_GLOB:
        say(
            "no data named: takes the sample photographs of the zoo, too few for good weights. Name your own with "
            "--train_glob 'photos/**/*.jpg', or a data set with --tfds clic"
        )
    name, known = _preset(codec)
    size = f"{complexity.parameters(codec) / 1e6:.2f} M parameters"
    cost = f", {known.kmac:g} kMAC/pixel" if known and known.kmac else ""
    say(f"{codec.entry.name}, preset {name}: {size}{cost}")
    devices = ", ".join(name.rpartition("device:")[2] for name in _devices(strategy))
    kind = type(strategy).__name__.replace("_DefaultDistributionStrategy", "one device")
    say(
        f"on {devices} ({kind}), mixed precision {options.mixed_precision}: batches of {options.batchsize} patches of "
        f"{options.patchsize}x{options.patchsize}"
    )
    length = f"{options.minutes:g} minutes" if options.minutes else f"{options.total_steps:,} steps"
    say(f"{counts}; {length} in epochs of {options.steps_per_epoch:,}, in {options.train_path}")


def _devices(strategy: tf.distribute.Strategy) -> list[str]:
    if strategy.num_replicas_in_sync > 1:
        return list(strategy.extended.worker_devices)
    return [device.name for device in tf.config.list_logical_devices("GPU")[:1] or tf.config.list_logical_devices()]


def _preset(codec: tf.keras.Model) -> tuple[str, registry.Preset | None]:
    """The preset that a codec is of, as far as its card knows it."""
    for name, config in codec.entry.presets.items():
        if config == codec.config:
            return name, codec.entry.card.presets.get(name)
    return "of its own", None


def cheaper(codec: tf.keras.Model) -> str:
    """Names the cheapest preset of a codec's model and what it costs; "" if it is that."""
    own = _preset(codec)[1]
    costs = {name: preset.kmac for name, preset in codec.entry.card.presets.items() if preset.kmac}
    if own is None or not own.kmac or min(costs.values()) >= own.kmac:
        return ""
    name = min(costs, key=costs.get)
    return f", --preset {name} costs {100 * costs[name] / own.kmac:.0f} % of it"


def duration(seconds: float) -> str:
    """A time span in two of the units s, min, h and days at most."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.0f} days"


class Progress(tf.keras.callbacks.Callback):
    """Shows loss, bpp, PSNR, images/s and the time left: a bar on a terminal, a line now and then in a file.

    Args:
      options: of the run.
      start_step: the step that it begins with.
    """

    def __init__(self, options: FitOptions, start_step: int = 0):
        super().__init__()
        self._options, self._step, self._done = options, start_step, 0
        self._bar = None
        self._estimated = False

    def on_train_begin(self, logs=None) -> None:
        """Says that the first step takes its time."""
        del logs
        self._begin = self._shown = time.monotonic()
        say("traces the training step, a minute or so ...")

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        """Begins a bar, on a terminal."""
        del logs
        self._epoch, self._epoch_begin = epoch, time.monotonic()
        steps = self._options.steps_per_epoch
        done = self._step - epoch * steps  # of this epoch, where a run resumes
        if sys.stderr and sys.stderr.isatty():
            self._bar = tqdm(desc=f"epoch {epoch + 1}", total=steps, initial=done, unit="step", leave=False)

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        """Shows how it goes."""
        self._step += 1
        self._done += 1
        now = time.monotonic()
        if self._done == 1:
            say(f"traced in {duration(now - self._begin)}")
            self._first = self._shown = now
        elif not self._estimated and self._done > TIMED_STEPS:
            self._estimated = True
            self._estimate()
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(self._state(logs), refresh=False)
        elif self._done > 1 and now - self._shown >= INTERVAL:
            self._shown = now
            say(f"epoch {self._epoch + 1}, step {batch + 1}/{self._options.steps_per_epoch}: {self._state(logs)}")

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Sums the epoch up, with its validation."""
        logs = logs or {}
        self._close()
        trained = {name: value for name, value in logs.items() if not name.startswith("val_")}
        validated = {name[4:]: value for name, value in logs.items() if name.startswith("val_")}
        seconds = time.monotonic() - self._epoch_begin
        say(f"epoch {epoch + 1}: {_figures(trained)}; validation {_figures(validated)}; {duration(seconds)}")

    def on_train_end(self, logs=None) -> None:
        """Says that what comes next takes its time, too."""
        del logs
        self._close()
        say("calibrates integers and tables, some minutes (--calibration 32 takes less) ...")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _rate(self) -> float:
        """Steps a second, without the first one."""
        return (self._done - 1) / max(time.monotonic() - self._first, 1e-9)

    def _left(self) -> float:
        """Seconds to the end of the run."""
        if self._options.minutes:
            return max(0.0, 60 * self._options.minutes - (time.monotonic() - self._begin))
        return (self._options.total_steps - self._step) / self._rate()

    def _state(self, logs: Mapping[str, float] | None) -> str:
        if self._done < 2:
            return _figures(logs or {})
        speed = self._rate() * self._options.batchsize
        return f"{_figures(logs or {})}, {speed:.3g} images/s, {duration(self._left())} left"

    def _estimate(self) -> None:
        rate = self._rate()
        if self._options.minutes:
            say(f"{rate:.3g} steps/s: about {rate * self._left():,.0f} steps in the time that is left")
            return
        left = self._left()
        text = f"{self._options.total_steps - self._step:,} steps: about {duration(left)} here"
        if left > LONG * 3600:
            text += f"; --minutes sets the time{cheaper(self.model)}"
        say(text)


def _figures(logs: Mapping[str, float]) -> str:
    """Loss, rate and distortion of Keras' logs, in their units."""
    texts = {"loss": "loss {:.4g}", "bpp": "{:.4g} bpp", "psnr": "{:.2f} dB", "ms_ssim": "MS-SSIM {:.4f}"}
    shown = [text.format(float(logs[name])) for name, text in texts.items() if name in logs]
    return ", ".join(shown) or "nothing measured"
