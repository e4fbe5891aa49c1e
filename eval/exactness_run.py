"""The other side of `eval/exactness.py`: runs an exported entropy path under JAX. Needs jax and numpy only.

    python exactness_run.py DIR

Prints `identical (device)`, exit code 0, or how much differs, exit code 1.
"""

import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("JAX_ENABLE_X64", "1")


def main():
    folder = Path(sys.argv[1])
    import jax
    from jax._src import compiler, xla_bridge
    from jaxlib import _jax

    client = xla_bridge.get_backend()
    module = _jax.mlir.hlo_to_stablehlo((folder / "path.hlo").read_bytes())
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    devices = _jax.DeviceList(tuple(client.local_devices()[:1]))
    executable = client.compile_and_load(module, devices, options)
    arguments = [jax.device_put(value) for value in load(folder / "inputs.npz")]
    outputs = executable.execute_sharded(arguments).disassemble_into_single_device_arrays()
    results = [np.asarray(output[0]) for output in outputs]
    expected = load(folder / "expected.npz")
    means = sum(int(np.sum(a != b)) for a, b in zip(expected[::2], results[::2]))
    rows = sum(int(np.sum(a != b)) for a, b in zip(expected[1::2], results[1::2]))
    device = jax.devices()[0].device_kind
    if not means and not rows and len(expected) == len(results):
        print(f"identical ({device}, JAX {jax.__version__})")
        return 0
    total = sum(a.size for a in expected[::2])
    print(f"{means} of {total} means and {rows} rows differ ({device}, JAX {jax.__version__})")
    return 1


def load(path):
    with np.load(path) as file:
        return [file[f"arr_{n}"] for n in range(len(file.files))]


if __name__ == "__main__":
    sys.exit(main())
