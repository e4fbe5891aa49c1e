"""Trains with JAX what `train/pjrt/export.py` exported: on any accelerator that JAX supports, without TensorFlow.

    python pjrt_run.py DIR --images 'photos/**/*.jpg' --minutes 60
    python pjrt_run.py DIR --images 'photos/**/*.jpg' --minutes 60 --resume

Needs this file, jax, numpy and pillow, and nothing else of the zoo. DIR is the exported folder:

    step.hlo    one training step, compiled by XLA: (batch, variables...) -> (metrics..., new variables...)
    step.json   which input is which variable, which output replaces it, and what model this is
    start/      the variables at the beginning

It gets (or the folder that --out names gets)

    checkpoint-00001200/state.json        what it is: model, configuration, step, seconds spent
                        weights-00.npz... trained weights (their moving average, if there is one), float16
                        weights.npz       all weights, float32     } for --resume; not needed to bring the
                        optimizer.npz     all else that changes    } weights home
    log.csv                               a row for each line of progress

and `train --import_state DIR` on the machine with TensorFlow turns that into a weights file.

--minutes, like --steps, are those of the whole run: --resume goes on with the clock where the state was saved, and with
the learning rate there. Of a finished run it says so; more --minutes or --steps than before continue it.

Exit codes: 0 done, or done before; 1 an error, in one line; 2 wrong usage; 143, 130 stopped by SIGTERM, SIGINT,
state saved.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import glob
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

FORMAT = "lic-zoo step 1"
JAX_VERSIONS = "0.10.2 to 0.11.2"
# The device has no more work ahead than this: a clock, a signal or a loss that diverged may have to wait.
SECONDS_AHEAD = 1.0
STEPS_AHEAD = 64
# Most batches that wait, ready, for the device; fewer where they are large.
BATCHES_AHEAD, BYTES_AHEAD = 32, 256e6
PART_BYTES = 15e6
DISK_BYTES_PER_SECOND = 50e6
MAX_FLOAT16 = float(np.finfo(np.float16).max)


class Failure(Exception):
    """Ends the run with one line and exit code 1."""


def say(text: str) -> None:
    print(text, flush=True)


# --- the device: all that touches JAX ----------------------------------------------------------------------


class Device:
    """The first device of JAX's default platform, and the step compiled for it.

    JAX has no public way to run HLO that it has not traced itself, so this leans on its inner parts:
    `JAX_VERSIONS` are those that have them in this form.

    Raises:
      Failure: JAX is missing, of another version, or finds no device.
    """

    def __init__(self):
        # Keras counts its steps in 64 bits.
        os.environ["JAX_ENABLE_X64"] = "1"
        try:
            import jax
        except ImportError as error:
            raise Failure(f"jax is missing ({error}): install jax {JAX_VERSIONS}") from error
        self._jax = jax
        with self._right_version():
            from jax._src import compiler, xla_bridge
            from jaxlib import _jax

            self._to_stablehlo = _jax.mlir.hlo_to_stablehlo
            self._device_list = _jax.DeviceList
            self._options = compiler.get_compile_options
            self._client = xla_bridge.get_backend()
            self._device = self._client.local_devices()[0]
        self.description = f"{self._device.device_kind}, jax {jax.__version__}"

    @contextlib.contextmanager
    def _right_version(self) -> Iterator[None]:
        version = self._jax.__version__
        try:
            yield
        except (ImportError, AttributeError, TypeError) as error:
            raise Failure(
                f"jax {version} does not have what this needs ({error}): install jax {JAX_VERSIONS}"
            ) from error
        except RuntimeError as error:
            raise Failure(f"jax {version}: {first_line(error)}") from error

    def compile(self, hlo: bytes) -> Callable[[list], list]:
        """A serialised HloModuleProto as a function of device arrays, which returns before they are there."""
        with self._right_version():
            options = self._options(num_replicas=1, num_partitions=1)
            devices = self._device_list((self._device,))
            execute = self._client.compile_and_load(self._to_stablehlo(hlo), devices, options).execute_sharded

        def run(inputs: list) -> list:
            with self._right_version():
                return [a[0] for a in execute(inputs).disassemble_into_single_device_arrays()]

        return run

    def put(self, value: np.ndarray):
        """A numpy array on the device."""
        return self._jax.device_put(value, self._device)

    def get(self, values):
        """Device arrays, in any nesting, as numpy arrays; waits for them."""
        with self._right_version():
            return self._jax.device_get(values)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- batches -----------------------------------------------------------------------------------------------


def expand(patterns: str) -> list[str]:
    """The files of a comma-separated list of globs; @FILE stands for the paths in a file, one a line.

    Raises:
      Failure: there is no such list.
    """
    paths: list[str] = []
    for pattern in patterns.split(","):
        if pattern.startswith("@"):
            try:
                with open(pattern[1:], encoding="utf-8") as file:
                    paths += file.read().splitlines()
            except OSError as error:
                raise Failure(f"{pattern[1:]}: cannot be read: {error.strerror}") from error
        else:
            paths += sorted(glob.glob(pattern.strip(), recursive=True))
    return [path for path in paths if not os.path.isdir(path)]


def load_images(paths: list[str], side: int, threads: int) -> list[np.ndarray]:
    """Loads images as uint8 [H, W, 3]; those that are broken or smaller than `side` are skipped and counted.

    Raises:
      Failure: none is left.
    """
    from PIL import Image

    # A photograph of any size is welcome: the paths are the user's own.
    Image.MAX_IMAGE_PIXELS = None

    def load(path: str) -> np.ndarray | None:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except MemoryError:
            raise
        # Pillow's decoders raise whatever they please.
        except Exception:
            return None

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            loaded = list(pool.map(load, paths))
        except MemoryError as error:
            raise Failure(f"{len(paths)} images do not fit into memory: name fewer") from error
    images = [p for p in loaded if p is not None and min(p.shape[:2]) >= side]
    broken = sum(p is None for p in loaded)
    small = len(loaded) - broken - len(images)
    counts = f"{broken} broken files skipped, {small} smaller than {side}x{side}"
    if not images:
        raise Failure(f"--images: no image to train on among {len(paths)} files: {counts}")
    say(f"{len(images)} images, {sum(p.size for p in images) / 3e6:.1f} Mpx; {counts}")
    return images


def random_batch(images: list[np.ndarray], shape: tuple[int, ...], seed: int, step: int) -> np.ndarray:
    """Random crops, half of them flipped: uint8 [B, P, P, 3], a function of seed and step alone."""
    random = np.random.default_rng([seed, step])
    batch = np.empty(shape, np.uint8)
    height, width = shape[1:3]
    for row in batch:
        image = images[random.integers(len(images))]
        top = random.integers(image.shape[0] - height + 1)
        left = random.integers(image.shape[1] - width + 1)
        row[:] = image[top : top + height, left : left + width][:, :: -1 if random.integers(2) else 1]
    return batch


def stored_batches(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [N, B, P, P, 3] of a .npy file, not read yet. Failure if it is not valid."""
    try:
        batches = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: not readable batches: {first_line(error)}") from error
    if batches.dtype != np.uint8 or batches.shape[1:] != shape or not len(batches):
        raise Failure(f"{path}: {batches.dtype} {list(batches.shape)}, but the step takes uint8 {list(shape)}")
    return batches


class Feeder:
    """Threads that have the next batches ready on the device.

    Args:
      make: the batch of a step, uint8 [B, P, P, 3].
      put: takes it to the device.
      first: the first step.
      size: bytes of a batch.
      threads: how many work.
    """

    def __init__(self, make: Callable[[int], np.ndarray], put: Callable, first: int, size: int, threads: int):
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._make = lambda step: put(make(step))
        ahead = max(2, min(BATCHES_AHEAD, int(BYTES_AHEAD / size)))
        self._next = first
        self._queue: collections.deque = collections.deque()
        for _ in range(ahead):
            self._submit()

    def _submit(self) -> None:
        self._queue.append(self._pool.submit(self._make, self._next))
        self._next += 1

    def next(self):
        """The batch of the next step."""
        self._submit()
        return self._queue.popleft().result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


# --- the step and its state --------------------------------------------------------------------------------


def read_json(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: cannot be read: {first_line(error)}") from error


def read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return dict(file)
    # A cut-off zip file has its own exception type.
    except Exception as error:
        raise Failure(f"{path}: cannot be read: {first_line(error)}") from error


class Step:
    """`step.json`: the exported step's inputs and outputs.

    Attributes:
      meta: the file's content.
      shape: (B, P, P, 3) of a batch.
      metrics: names of the first outputs.
      variables: entries of step.json for what is state, by name: weights, and what the optimizer keeps.

    Raises:
      Failure: it is not an exported step, or one of another version.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.meta = read_json(os.path.join(folder, "step.json"))
        if self.meta.get("format") != FORMAT:
            raise Failure(f"{folder}: format {self.meta.get('format')!r}, but this reads {FORMAT!r}")
        self.shape = tuple(self.meta["batch"])
        self.metrics: list[str] = self.meta["metrics"]
        self.variables = {e["name"]: e for e in self.meta["inputs"] if e["kind"] in ("weight", "optimizer")}
        self._alias = {int(output): number for output, number in self.meta["alias"].items()}

    def hlo(self) -> bytes:
        try:
            with open(os.path.join(self.folder, "step.hlo"), "rb") as file:
                return file.read()
        except OSError as error:
            raise Failure(f"{self.folder}: step.hlo cannot be read: {error.strerror}") from error

    def start(self) -> dict[str, np.ndarray]:
        """Reads the initial value of every input, by name."""
        files: dict[str, dict[str, np.ndarray]] = {}
        values = {}
        for entry in self.meta["inputs"]:
            if entry["start"] is None:  # all zeros are not stored
                values[entry["name"]] = np.zeros(entry["shape"], entry["dtype"])
                continue
            name, key = entry["start"]
            if name not in files:
                files[name] = read_npz(os.path.join(self.folder, "start", f"{name}.npz"))
            if key not in files[name]:
                raise Failure(f"{self.folder}: start/{name}.npz has no {key}")
            values[entry["name"]] = files[name][key].astype(entry["dtype"]).reshape(entry["shape"])
        return values


class Training:
    """The variables on the device, and the step that changes them."""

    def __init__(self, step: Step, device: Device, run: Callable[[list], list], values: dict[str, np.ndarray]):
        self._step, self._device, self._run = step, device, run
        self._numbers = {e["name"]: e["input"] for e in step.meta["inputs"] if e["input"] is not None}
        # Weights that the step does not touch travel along unchanged.
        self._bystanders = {name: v for name, v in values.items() if name not in self._numbers}
        self._inputs: list = [None] * (1 + len(self._numbers))
        for name, number in self._numbers.items():
            self._inputs[number] = device.put(values[name])
        self._rate = math.nan

    def step(self, batch, rate: float) -> list:
        """Starts a step, and returns its metrics, which are perhaps not there yet."""
        if rate != self._rate:
            self._rate = rate
            for name in self._step.meta["learning_rates"]:
                self._inputs[self._numbers[name]] = self._device.put(np.float32(rate))
        self._inputs[0] = batch
        outputs = self._run(self._inputs)
        for output, number in self._step._alias.items():
            self._inputs[number] = outputs[output]
        return outputs[: len(self._step.metrics)]

    def values(self) -> dict[str, np.ndarray]:
        """Fetches all variables that are state, by name."""
        names = [name for name in self._step.variables if name in self._numbers]
        fetched = self._device.get([self._inputs[self._numbers[name]] for name in names])
        return {
            **{n: v for n, v in self._bystanders.items() if n in self._step.variables},
            **dict(zip(names, fetched)),
        }


# --- checkpoints -------------------------------------------------------------------------------------------


class Checkpoints:
    """The saved states in a folder: `checkpoint-<step>`, whole or not there; the newest one is kept."""

    def __init__(self, folder: str, size: float = 0.0):
        """size: bytes of a state, for a first guess at how long it takes to save."""
        self.folder = folder
        self.seconds = size / DISK_BYTES_PER_SECOND  # that the last one took

    def newest(self) -> str | None:
        """The path of the last state, if there is one."""
        found = glob.glob(os.path.join(glob.escape(self.folder), "checkpoint-" + "[0-9]" * 8))
        return max(found, default=None)

    def describe(self) -> str:
        """Says where the last good state is, for messages."""
        return f"the last good state is {self.newest()}" if self.newest() else "no state was saved before"

    def read(self, step: Step) -> tuple[dict, dict[str, np.ndarray]]:
        """The newest state: its state.json and the variables by name.

        Raises:
          Failure: there is none, or it is not of this model and configuration.
        """
        path = self.newest()
        if path is None:
            raise Failure(f"{self.folder}: has no state to resume from")
        state = read_json(os.path.join(path, "state.json"))
        for what in ("format", "model", "config"):
            if state.get(what) != step.meta[what]:
                raise Failure(f"{path}: a state of {what} {state.get(what)}, but {step.folder} is of {step.meta[what]}")
        values = {
            **read_npz(os.path.join(path, "weights.npz")),
            **read_npz(os.path.join(path, "optimizer.npz")),
        }
        for name, entry in step.variables.items():
            value = values.get(name)
            if value is None or list(value.shape) != entry["shape"] or value.dtype != entry["dtype"]:
                raise Failure(f"{path}: does not fit the step in {step.folder} (at {name})")
        if state["settings"] != step.meta["settings"]:
            say(f"note: {path} was trained with {state['settings']}, and goes on with {step.meta['settings']}")
        return state, values

    def write(self, step: Step, values: dict[str, np.ndarray], state: dict) -> str:
        """Saves a state, and removes older ones once it is complete. OSError leaves them as they were."""
        begin = time.monotonic()
        path = os.path.join(self.folder, f"checkpoint-{state['step']:08d}")
        temporary = os.path.join(self.folder, ".checkpoint.tmp")
        older = self.newest()
        if older == path:  # nothing has happened since
            return path
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            os.makedirs(temporary)
            weights = [name for name, entry in step.variables.items() if entry["kind"] == "weight"]
            self._savez(temporary, "weights", {name: values[name] for name in weights})
            self._savez(temporary, "optimizer", {n: v for n, v in values.items() if n not in set(weights)})
            averages = step.meta["averages"]
            final = {name: to_float16(values[averages.get(name, name)]) for name in weights}
            parts = split(final)
            for number, part in enumerate(parts):
                self._savez(temporary, f"weights-{number:02d}", part)
            with synced(os.path.join(temporary, "state.json")) as file:
                file.write(json.dumps({**state, "parts": len(parts)}, indent=1).encode())
            os.rename(temporary, path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if older:
            shutil.rmtree(older, ignore_errors=True)
        self.seconds = time.monotonic() - begin
        return path

    @staticmethod
    def _savez(folder: str, name: str, arrays: dict[str, np.ndarray]) -> None:
        with synced(os.path.join(folder, f"{name}.npz")) as file:
            np.savez(file, **arrays)


@contextlib.contextmanager
def synced(path: str):
    """A file for writing that is on the disk, not only on its way there, when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def to_float16(value: np.ndarray) -> np.ndarray:
    """Floats as float16, clipped to its range; other numbers as they are."""
    if not np.issubdtype(value.dtype, np.floating):
        return value
    return np.clip(value, -MAX_FLOAT16, MAX_FLOAT16).astype(np.float16)


def split(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Splits arrays, in order, into parts of at most `PART_BYTES` (or a single array)."""
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, value in arrays.items():
        # A member of the file has its name twice and some 300 bytes of headers besides.
        needed = value.nbytes + 2 * len(name) + 400
        if parts[-1] and size + needed > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = value
        size += needed
    return parts


# --- the run -----------------------------------------------------------------------------------------------


class Schedule:
    """Progress of the run, by steps or by the clock, whichever is further; and the learning rate there.

    Args:
      args: steps and minutes (in all, those before a resume included), rate, end_rate, decay_from, decay,
        warmup.
      begin: `time.monotonic()` at the start of the process.
      spent: seconds before it.
    """

    def __init__(self, args: argparse.Namespace, begin: float, spent: float = 0.0):
        self._args, self._begin = args, begin - spent

    def spent(self) -> float:
        """Seconds of the run so far."""
        return time.monotonic() - self._begin

    def progress(self, step: int, reserve: float = 0.0) -> float:
        """0..1, or more when it is over.

        reserve: seconds of the time budget that saving the result will take.
        """
        done = step / self._args.steps if self._args.steps else 0.0
        if self._args.minutes:
            budget = self._args.minutes * 60
            done = max(done, self.spent() / (budget - min(reserve, 0.2 * budget)))
        return done

    def rate(self, progress: float, step: int) -> float:
        """Returns the learning rate of a step: warm-up, constant up to `decay_from`, then half a cosine or a drop.

        step: those done before it.
        """
        return self._decayed(progress) * min(1.0, (step + 1) / max(1, self._args.warmup))

    def _decayed(self, progress: float) -> float:
        args = self._args
        if progress < args.decay_from or args.decay_from >= 1:
            return args.rate
        if args.decay == "drop":
            return args.end_rate
        tail = min(1.0, (progress - args.decay_from) / (1 - args.decay_from))
        return args.end_rate + (args.rate - args.end_rate) * 0.5 * (1 + math.cos(math.pi * tail))

    def seconds_left(self, step: int, seconds_per_step: float) -> float:
        left = []
        if self._args.steps:
            left.append((self._args.steps - step) * seconds_per_step)
        if self._args.minutes:
            left.append(self._args.minutes * 60 - self.spent())
        return max(0.0, min(left))


class Progress:
    """A line every few seconds on standard output and a row in log.csv."""

    def __init__(self, path: str, names: list[str], every: float, batch: int):
        self._path, self._names, self._every, self._batch = path, names, every, batch
        self._seen: list[list[float]] = []
        self._last = time.monotonic()
        self.means: dict[str, float] = {}
        self.seconds_per_step = math.inf

    def add(self, step: int, metrics: list[float], rate: float, schedule: Schedule, flush: bool = False) -> None:
        """Notes the metrics of a finished step."""
        self._seen.append(metrics)
        elapsed = time.monotonic() - self._last
        if elapsed < self._every and not flush:
            return
        self.means = dict(zip(self._names, np.mean(self._seen, 0, dtype=np.float64).tolist()))
        self.seconds_per_step = elapsed / len(self._seen)
        speed = self._batch / max(self.seconds_per_step, 1e-9)
        left = schedule.seconds_left(step, self.seconds_per_step)
        values = "  ".join(f"{name} {value:.4f}" for name, value in self.means.items())
        clock = f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d}"
        say(f"step {step}  {values}  {speed:.1f} images/s  rate {rate:.2e}  {clock} left")
        self._row(step, rate, speed)
        self._seen, self._last = [], time.monotonic()

    def _row(self, step: int, rate: float, speed: float) -> None:
        # A log that cannot be written, as on a full disk, is no reason to stop.
        with contextlib.suppress(OSError):
            new = not os.path.exists(self._path)
            with open(self._path, "a", encoding="utf-8") as file:
                if new:
                    file.write(",".join(["step", *self._names, "rate", "images_per_second"]) + "\n")
                numbers = [*self.means.values(), rate, speed]
                file.write(",".join([str(step), *(f"{n:.9g}" for n in numbers)]) + "\n")


class Signals:
    """Notes SIGTERM and SIGINT; a second one kills."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, frame) -> None:
        del frame
        self.received = number
        signal.signal(number, signal.SIG_DFL)


class Run:
    """The loop: start steps, look at what has finished, save now and then."""

    def __init__(self, args, step: Step, training: Training, checkpoints: Checkpoints, schedule: Schedule, state: dict):
        self._args, self._step, self._training = args, step, training
        self._checkpoints, self._schedule, self._state = checkpoints, schedule, state
        self.done = state["step"]
        self._flight: collections.deque = collections.deque()  # (step, metrics, rate) of those not looked at yet
        self._step_seconds = math.inf
        self._finished_at = time.monotonic()
        self._progress = Progress(
            os.path.join(checkpoints.folder, "log.csv"), step.metrics, args.progress_seconds, step.shape[0]
        )

    def loop(self, feeder: Feeder, signals: Signals) -> None:
        """Runs until the steps, the time or the user's patience are over, and saves the state.

        Raises:
          Failure: the loss is not finite, or the last state cannot be saved.
        """
        begin, first = time.monotonic(), self.done
        saved = begin
        while not signals.received:
            progress = self._schedule.progress(self.done, self._reserve())
            if progress >= 1:
                break
            rate = self._schedule.rate(progress, self.done)
            metrics = self._training.step(feeder.next(), rate)
            self.done += 1
            self._flight.append((self.done, metrics, rate))
            while len(self._flight) > max(1, min(STEPS_AHEAD, SECONDS_AHEAD / self._step_seconds)):
                self._finish_one()
            if time.monotonic() - saved > 60 * self._args.checkpoint_minutes:
                self._save_if_possible()
                saved = time.monotonic()
        if self.done == first and signals.received:
            say("stopped before the first step")
            return
        if self.done == first and self._checkpoints.newest():
            # Resumed when there was time for no more than saving, which is done.
            say(nothing_left(self._checkpoints, self.done))
            return
        if self.done == first:
            raise Failure("there was no time for a step; no state was saved before")
        self._drain()
        speed = (self.done - first) * self._step.shape[0] / (time.monotonic() - begin)
        if not signals.received:
            self._state["finished"] = limits(self._args)
        try:
            path = self._save()
        except OSError as error:
            raise Failure(f"cannot save the state: {error.strerror}; {self._checkpoints.describe()}") from error
        verb = "stopped" if signals.received else "done"
        say(f"{verb} at step {self.done}, {speed:.1f} images/s, state in {path}")

    def _reserve(self) -> float:
        """Seconds that the steps on their way, and saving after them, will take."""
        step = 0.0 if math.isinf(self._step_seconds) else self._step_seconds
        return max(SECONDS_AHEAD, 2 * step) + 1.5 * self._checkpoints.seconds

    def _finish_one(self, flush: bool = False) -> None:
        step, metrics, rate = self._flight.popleft()
        metrics = [float(m) for m in self._training._device.get(metrics)]
        now = time.monotonic()
        seconds = max(now - self._finished_at, 1e-6)
        # The average forgets quickly: the first steps are slower than the others.
        self._step_seconds = seconds if math.isinf(self._step_seconds) else 0.8 * self._step_seconds + 0.2 * seconds
        self._finished_at = now
        if not np.all(np.isfinite(metrics)):
            self._diverged(f"the loss of step {step}")
        self._progress.add(step, metrics, rate, self._schedule, flush)

    def _drain(self) -> None:
        while self._flight:
            self._finish_one(flush=len(self._flight) == 1)

    def _diverged(self, what: str) -> None:
        raise Failure(f"training diverged: {what} is not finite; {self._checkpoints.describe()}")

    def _save(self) -> str:
        self._drain()
        values = self._training.values()
        # The weights after the last step have not met a loss yet.
        for name, value in values.items():
            if not np.all(np.isfinite(value)):
                self._diverged(f"{name} after step {self.done}")
        state = {**self._state, "step": self.done, "seconds": self._schedule.spent(), "metrics": self._progress.means}
        return self._checkpoints.write(self._step, values, state)

    def _save_if_possible(self) -> None:
        try:
            say(f"saved {self._save()}")
        except OSError as error:
            say(f"warning: cannot save the state: {error.strerror}; {self._checkpoints.describe()}")
        self._finished_at = time.monotonic()


def limits(args: argparse.Namespace) -> dict:
    """Tells when the run is over; in the state of a finished run, why it ended.

    Told by the clock alone a run would not be: it stops ahead of its time, to save.
    """
    return {"steps": args.steps, "minutes": args.minutes}


def nothing_left(checkpoints: Checkpoints, step: int) -> str:
    return f"nothing is left to do: done at step {step}, state in {checkpoints.newest()}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", metavar="DIR", help="What `train --runtime pjrt --export_only DIR` wrote.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", help="Globs of the training images, separated by commas; @FILE for a list of paths."
    )
    source.add_argument(
        "--batches", metavar="FILE", help="Ready batches instead: uint8 [N, B, P, P, 3] in a .npy file."
    )
    parser.add_argument("--out", metavar="DIR", help="Folder for the states and the log; DIR by default.")
    parser.add_argument("--resume", action="store_true", help="Continue from the newest state there.")
    parser.add_argument(
        "--minutes",
        type=float,
        help="Time for all of it, from starting to the saved result; that before a --resume included.",
    )
    parser.add_argument("--steps", type=int, help="Steps of the whole run, those before a --resume included.")
    parser.add_argument("--rate", type=float, help="Learning rate; by default the one that was exported.")
    parser.add_argument("--end_rate", type=float, help="Learning rate at the end; a hundredth of --rate by default.")
    parser.add_argument(
        "--decay_from",
        type=float,
        default=0.6,
        help="Share of the run after which the rate decays; 1 for never.",
    )
    parser.add_argument(
        "--decay",
        choices=("cosine", "drop"),
        default="cosine",
        help="Decay along a half cosine, or all at once.",
    )
    parser.add_argument("--warmup", type=int, default=0, help="Steps over which the rate rises at the beginning.")
    parser.add_argument("--seed", type=int, help="Makes the batches repeatable; by default each run has its own.")
    parser.add_argument("--checkpoint_minutes", type=float, default=3.0, help="Save the state so often.")
    parser.add_argument("--progress_seconds", type=float, default=20.0, help="A line of progress so often.")
    parser.add_argument("--threads", type=int, help="Threads that prepare batches.")
    args = parser.parse_args(argv)
    if not args.minutes and not args.steps:
        parser.error("say when to stop: --minutes or --steps")
    for name in ("minutes", "steps", "rate", "checkpoint_minutes", "threads"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} {value}: must be above 0")
    if not 0 <= args.decay_from <= 1:
        parser.error(f"--decay_from {args.decay_from}: must be between 0 and 1")
    for name in ("warmup", "seed"):
        value = getattr(args, name)
        if value is not None and value < 0:
            parser.error(f"--{name} {value}: must not be negative")
    return args


def train(args: argparse.Namespace, begin: float) -> int:
    """Does what the command line says. Returns the exit code; raises Failure."""
    signals = Signals()
    step = Step(args.directory)
    out = args.out or args.directory
    values = step.start()
    checkpoints = Checkpoints(out, sum(values[name].nbytes for name in step.variables))
    state = {key: step.meta[key] for key in ("format", "model", "config", "settings", "batch", "options")}
    state |= {"step": 0, "averaged": bool(step.meta["averages"]), "seed": args.seed}
    spent, finished = 0.0, False
    if args.resume:
        before, saved = checkpoints.read(step)
        values |= saved
        state |= {"step": before["step"], "seed": before["seed"] if args.seed is None else args.seed}
        spent = before.get("seconds", 0.0)  # states of earlier versions do not tell
        finished = before.get("finished") == limits(args)
    elif checkpoints.newest():
        raise Failure(f"{out}: holds a run: --resume continues it, another --out begins a new one")
    if state["seed"] is None:
        state["seed"] = int.from_bytes(os.urandom(4), "little")
    if args.rate is None:
        args.rate = step.meta["learning_rate"]
    if args.end_rate is None:
        args.end_rate = args.rate / 100
    schedule = Schedule(args, begin, spent)
    if args.resume:
        if finished or schedule.progress(state["step"]) >= 1:
            say(nothing_left(checkpoints, state["step"]))
            return 0
        say(f"resuming at step {state['step']}")
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise Failure(f"{out}: cannot be written to: {error.strerror}") from error

    threads = args.threads or max(1, min(16, (os.cpu_count() or 2) - 1))
    if args.batches:
        batches = stored_batches(args.batches, step.shape)
        make = lambda k: np.array(batches[k % len(batches)])  # noqa: E731
    else:
        images = load_images(expand(args.images), max(step.shape[1:3]), threads)
        make = lambda k: random_batch(images, step.shape, state["seed"], k)  # noqa: E731

    device = Device()
    state["device"] = device.description
    before = time.monotonic()
    run = device.compile(step.hlo())
    say(f"compiled in {time.monotonic() - before:.0f} s for {device.description}")
    training = Training(step, device, run, values)
    feeder = Feeder(make, device.put, state["step"], math.prod(step.shape), threads)
    try:
        Run(args, step, training, checkpoints, schedule, state).loop(feeder, signals)
    finally:
        feeder.close()
    return 128 + signals.received if signals.received else 0


def main(argv: list[str] | None = None) -> int:
    begin = time.monotonic()
    try:
        return train(parse(argv), begin)
    except Failure as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
