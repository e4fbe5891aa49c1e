"""The other side of `eval/bench/train.py`: times an exported training step under JAX. Needs jax, numpy and pillow only.

    python eval/bench/train_run.py DIR [STEPS]

With STEPS: prints seconds per step and images/s of five rounds. Without: prints the device when it is ready, then, for
each line on standard input, a number of steps, the seconds they took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

# Not installed where this runs; the runner is a file beside it in the tree.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "train" / "pjrt"))

import run as pjrt_run  # noqa: E402


def main() -> int:
    step, device = pjrt_run.Step(sys.argv[1]), pjrt_run.Device()
    training = pjrt_run.Training(step, device, device.compile(step.hlo()), step.start())
    batch = device.put(np.random.default_rng(0).integers(0, 256, step.shape, np.uint8))

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            metrics = training.step(batch, step.meta["learning_rate"])
        device.get(metrics)
        return time.perf_counter() - begin

    if len(sys.argv) > 2:
        count = int(sys.argv[2])
        seconds(2)
        for _ in range(5):
            each = seconds(count) / count
            print(f"{device.description}: {each:.4f} s a step, {step.shape[0] / each:.1f} images/s", flush=True)
        return 0
    print(device.description, flush=True)
    for line in sys.stdin:
        print(seconds(int(line)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
