"""What a training step costs, by runtime and precision: `python -m eval.bench.train`.

Runs the step that `train` runs under TensorFlow (on a CPU: oneDNN), the same under TensorFlow's XLA (`jit_compile`),
and, with `--pjrt_python`, that which `train --runtime pjrt` exports, under JAX's PJRT client; each in float32 and with
the transforms in bfloat16. The runtimes take turns, so that what else the machine does falls on all of them. The flags
that a model adds to `train`, such as `--lambda`, are those of this program, too.

On a machine without TensorFlow: `train --export_only DIR` elsewhere, and `python eval/bench/train_run.py DIR` there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.io.errors import UserError
from train.options import FitOptions

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RUNTIMES = ("tf", "xla", "pjrt")
PRECISIONS = ("off", "bfloat16")
RUNNER = Path(__file__).with_name("train_run.py")


def train_options(batchsize: int, patchsize: int, precision_name: str) -> FitOptions:
    """The settings of a `train` without other flags."""
    return FitOptions(
        train_path="", train_glob="not read", batchsize=batchsize, patchsize=patchsize, mixed_precision=precision_name
    )


def compiled_codec(build: Callable, options: FitOptions, jit_compile: bool = False):
    """A codec as `train` makes it, with its variables and optimizer.

    build: makes the codec, as of `train.fit.fit`. jit_compile: its step is compiled by XLA, which `train` does not do.
    """
    from train.devices import precision
    from train.optimizer import make_optimizer

    with precision(options.mixed_precision):
        codec = build()
    codec.compile(optimizer=make_optimizer(options), jit_compile=jit_compile)
    codec.build_variables(training=True)
    codec.optimizer.build(codec.trainable_variables)
    return codec


def tensorflow_steps(codec, images: np.ndarray) -> Callable[[int], float]:
    """A function that does so many of the steps of `Model.fit`, and returns the seconds they took."""
    import tensorflow as tf

    step = codec.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(images).repeat())

    def run(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            metrics = step(batches)
        metrics["loss"].numpy()
        return time.perf_counter() - begin

    return run


def export(build: Callable, options: FitOptions, folder: str) -> None:
    """Writes the step that `train --runtime pjrt` would run."""
    from train.pjrt import export as pjrt

    pjrt._export(folder, build, options)  # not a copy of it: what is timed must not differ from what trains


class PjrtSteps:
    """The same for an exported step, in another interpreter, which has JAX; see `eval/bench/train_run.py`."""

    def __init__(self, python: str, folder: str):
        command = [python, str(RUNNER), folder]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.device = self._answer()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("error: the JAX side ended; its message is above")
        return line.strip()

    def __call__(self, count: int) -> float:
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def parsed(argv=None):
    """The flags, those of `train` that are the model's own among them, and the model's `Flags`.

    Raises:
      UserError: no such model or preset, or the model's flags make no sense.
    """
    from models.app import flags
    from models.codec import registry

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default="elic")
    entry = registry.get(parser.parse_known_args(argv)[0].model)
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m eval.bench.train", description=about, parents=[parser])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--init_weights", help="the codec is that of these weights, as with `train`")
    own = flags.of(entry.name)
    own.add_train_flags(parser)
    parser.add_argument("--batchsize", type=int, default=8)
    parser.add_argument("--patchsize", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--pjrt_python", help="interpreter that has jax; without one, pjrt is left out")
    args = parser.parse_args(argv)
    if args.preset not in entry.presets:
        raise UserError(f"{entry.name} has no preset {args.preset!r}; there are: {', '.join(entry.presets)}")
    own.check_train_flags(args)
    return args, own


def main(argv=None) -> None:
    try:
        run(*parsed(argv))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def run(args: argparse.Namespace, own) -> None:
    """Times what the flags ask for, and prints it."""
    images = np.random.default_rng(0).integers(0, 256, [args.batchsize, args.patchsize, args.patchsize, 3], np.uint8)
    contenders: dict[str, Callable[[int], float]] = {}

    def build():
        return own.for_training(args)

    with tempfile.TemporaryDirectory() as folder:
        for runtime in args.runtimes:
            for precision in args.precisions:
                if runtime == "pjrt" and not args.pjrt_python:
                    continue
                options = train_options(args.batchsize, args.patchsize, precision)
                name = f"{runtime} {'float32' if precision == 'off' else precision}"
                begin = time.perf_counter()
                if runtime == "pjrt":
                    step = os.path.join(folder, precision)
                    export(build, options, step)
                    steps = PjrtSteps(args.pjrt_python, step)
                    name += f" ({steps.device})"
                else:
                    steps = tensorflow_steps(compiled_codec(build, options, runtime == "xla"), images)
                steps(2)
                print(f"{name}: first two steps after {time.perf_counter() - begin:.0f} s", flush=True)
                contenders[name] = steps
        rounds = [{name: steps(args.steps) for name, steps in contenders.items()} for _ in range(args.rounds)]
        for steps in contenders.values():
            if isinstance(steps, PjrtSteps):
                steps.close()
    what = f"{args.model} {args.init_weights or args.preset}"
    print(f"{what}, {args.batchsize} patches of {args.patchsize}², {args.rounds} rounds in turns")
    for name in contenders:
        seconds = np.array([r[name] for r in rounds]) / args.steps
        print(
            f"{name:40} {args.batchsize / np.median(seconds):7.1f} images/s, {np.median(seconds):.3f} s a step "
            f"({seconds.min():.3f} to {seconds.max():.3f})"
        )


if __name__ == "__main__":
    sys.exit(main())
