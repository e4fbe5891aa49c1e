"""What a training step costs, by runtime and precision: `python -m eval.bench_train`.

Runs the same step of a codec under TensorFlow (on a CPU: oneDNN), under TensorFlow's XLA (`jit_compile`), and, with
`--pjrt_python`, under JAX's PJRT client as `train --runtime pjrt` does; each in float32 and with the transforms in
bfloat16. The runtimes take turns, so that what else the machine does falls on all of them.

On a machine without TensorFlow: `train --export_only DIR` elsewhere, and `python eval/bench_train_run.py DIR` there.
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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RUNTIMES = ("tf", "xla", "pjrt")
PRECISIONS = ("off", "bfloat16")
RUNNER = Path(__file__).with_name("bench_train_run.py")


def compiled_codec(entry, preset: str, lmbda, precision_name: str):
    """A codec as `train` makes it, with its variables and optimizer."""
    import tensorflow as tf

    from train.fit import precision

    with precision(precision_name):
        codec = entry.codec(entry.presets[preset], lmbda=lmbda)
    codec.compile(optimizer=tf.keras.optimizers.Adam(1e-4, global_clipnorm=1.0))
    codec.build_variables(training=True)
    codec.optimizer.build(codec.trainable_variables)
    return codec


def tensorflow_steps(codec, images: np.ndarray, jit_compile: bool) -> Callable[[int], float]:
    """A function that does so many steps and returns the seconds they took."""
    import tensorflow as tf

    from train.pjrt import training_step

    step = tf.function(training_step(codec), jit_compile=jit_compile)
    batch = tf.constant(images)

    def run(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            metrics = step(batch)
        metrics[0].numpy()
        return time.perf_counter() - begin

    return run


class PjrtSteps:
    """The same in another interpreter, which has JAX; see `eval/bench_train_run.py`."""

    def __init__(self, python: str, codec, shape: tuple[int, ...], folder: str):
        from train.pjrt import export

        export(codec, shape, folder)
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


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.bench_train", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="elic")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--lambda", dest="lmbda", type=float, default=0.01)
    parser.add_argument("--batchsize", type=int, default=8)
    parser.add_argument("--patchsize", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--pjrt_python", help="interpreter that has jax; without one, pjrt is left out")
    args = parser.parse_args(argv)

    from models import registry

    entry = registry.get(args.model)
    shape = (args.batchsize, args.patchsize, args.patchsize, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    contenders: dict[str, Callable[[int], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for runtime in args.runtimes:
            for precision in args.precisions:
                if runtime == "pjrt" and not args.pjrt_python:
                    continue
                codec = compiled_codec(entry, args.preset, args.lmbda, precision)
                name = f"{runtime} {'float32' if precision == 'off' else precision}"
                begin = time.perf_counter()
                if runtime == "pjrt":
                    steps = PjrtSteps(args.pjrt_python, codec, shape, os.path.join(folder, precision))
                    name += f" ({steps.device})"
                else:
                    steps = tensorflow_steps(codec, images, jit_compile=runtime == "xla")
                steps(2)
                print(f"{name}: first two steps after {time.perf_counter() - begin:.0f} s", flush=True)
                contenders[name] = steps
        rounds = [{name: steps(args.steps) for name, steps in contenders.items()} for _ in range(args.rounds)]
        for steps in contenders.values():
            if isinstance(steps, PjrtSteps):
                steps.close()
    print(f"{args.model} {args.preset}, {args.batchsize} patches of {args.patchsize}², {args.rounds} rounds in turns")
    for name in contenders:
        seconds = np.array([r[name] for r in rounds]) / args.steps
        print(
            f"{name:40} {args.batchsize / np.median(seconds):7.1f} images/s, {np.median(seconds):.3f} s a step "
            f"({seconds.min():.3f} to {seconds.max():.3f})"
        )


if __name__ == "__main__":
    sys.exit(main())
