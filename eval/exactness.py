"""Shows that the entropy networks give the same integers wherever they run: `python -m eval.exactness`.

Records the symbols of an image, then computes from them all means and table rows of all passes in many ways: eagerly,
as a graph, compiled by XLA, on one thread and two, with oneDNN and without, in a batch, and under JAX's PJRT from the
lowered HLO (`--jax_python`, on whatever device JAX finds there). The integer form must agree bit for bit; the float
form is run beside it to show that these ways do differ.

For a machine without TensorFlow, `--export DIR` writes what `eval/exactness_run.py DIR` needs there (jax and numpy
only).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

#: Environments for the ways that have to be chosen before TensorFlow starts.
PROCESSES = {
    "without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "one thread": {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"},
}


def recorded_symbols(codec, image: np.ndarray) -> list[np.ndarray]:
    """The symbols of all passes of an image, uint8 [H, W, 3]: int32 arrays [1, N]."""
    import tensorflow as tf

    from eval.replay import Recorder

    coder = Recorder()
    padded = codec.pad(tf.cast(image[None], tf.float32))
    codec.transmit(coder, padded, **_controls(codec, padded.shape[:3]))
    return [symbols.numpy() for symbols in coder.symbols]


def _controls(codec, shape) -> dict:
    """What `transmit` takes for padded images of a shape (B, H, W) where nothing is asked for: a middle quality."""
    return codec.rate_control.from_args(shape)[1]


def entropy_path(codec, shape: tuple[int, int, int], exact: bool) -> Callable[[Sequence], list]:
    """A function of all passes' symbols that gives the mean and the table row of every Gaussian symbol.

    Args:
      shape: (B, H, W) of the padded images.
      exact: the integer form; else the float form.
    """
    from eval.replay import Replay

    def run(*symbols):
        coder = Replay(symbols, exact)
        codec.transmit(coder, shape=shape, **_controls(codec, shape))
        return coder.predictions

    return run


def in_this_process(codec, symbols: Sequence[np.ndarray], shape, exact: bool) -> dict[str, list[np.ndarray]]:
    """Means and rows by way of running."""
    import tensorflow as tf

    path = entropy_path(codec, shape, exact)
    ways = {
        "eager": path,
        "graph": tf.function(path, autograph=False),
        "XLA": tf.function(path, autograph=False, jit_compile=True),
    }
    results = {name: [p.numpy() for p in way(*map(tf.constant, symbols))] for name, way in ways.items()}
    batch = entropy_path(codec, (4, *shape[1:]), exact)(*(tf.constant(np.repeat(s, 4, 0)) for s in symbols))
    results["batch of 4"] = [p.numpy()[2:3] for p in batch]
    return results


def in_other_processes(weights: str, symbols, shape, exact: bool) -> dict[str, list[np.ndarray]]:
    """As `in_this_process`, for what an environment variable decides."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "symbols.npz", *symbols)
        for name, variables in PROCESSES.items():
            out = Path(folder) / "out.npz"
            job = {"weights": str(weights), "shape": list(shape), "exact": exact, "out": str(out)}
            command = [sys.executable, "-m", "eval.exactness", "--job", json.dumps(job | {"symbols": folder})]
            subprocess.run(command, env={**os.environ, **variables}, check=True)
            results[name] = _load_list(out)
    return results


def _load_list(path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[f"arr_{n}"] for n in range(len(file.files))]


def _do_job(job: dict) -> None:
    """The other side of `in_other_processes`."""
    import tensorflow as tf

    from models.codec import load

    codec = load(job["weights"])
    if not job["exact"]:
        _load_floats(codec, job["weights"])
    symbols = _load_list(Path(job["symbols"]) / "symbols.npz")
    path = tf.function(entropy_path(codec, tuple(job["shape"]), job["exact"]), autograph=False)
    np.savez(job["out"], *[p.numpy() for p in path(*map(tf.constant, symbols))])


def _load_floats(codec, weights_path) -> None:
    """Gives a codec loaded for coding the float form of its entropy networks as well."""
    from models.codec import storage, weights
    from transforms.exact import EntropyNet

    for layer in codec.submodules:
        if isinstance(layer, EntropyNet) and not layer.built:
            layer.build()
    storage.assign(codec, weights.read(weights_path)[0], str(weights_path))


def export(codec, symbols, shape, exact: bool, directory) -> None:
    """Lowers the entropy path to HLO, with its inputs and what it gave here, for `eval/exactness_run.py`."""
    import tensorflow as tf

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    function = tf.function(entropy_path(codec, shape, exact), autograph=False, jit_compile=True)
    inputs = [tf.constant(s) for s in symbols]
    concrete = function.get_concrete_function(*inputs)
    hlo = function.experimental_get_compiler_ir(*inputs)(stage="hlo_serialized")
    (directory / "path.hlo").write_bytes(hlo)
    variables = {id(v.handle): v for v in concrete.graph.variables}
    captured = [variables[id(c)].numpy() if id(c) in variables else c.numpy() for c in concrete.captured_inputs]
    np.savez(directory / "inputs.npz", *symbols, *captured)
    np.savez(directory / "expected.npz", *[p.numpy() for p in function(*inputs)])


def under_jax(python: str, directory, **environment: str) -> str:
    """Runs an exported folder in another interpreter; returns its verdict, one line."""
    script = Path(__file__).with_name("exactness_run.py")
    done = subprocess.run(
        [python, str(script), str(directory)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.stdout.strip().split("\n")[-1] if done.returncode in (0, 1) else done.stderr.strip()[-300:]


def cost(weights_path, images: Sequence) -> str:
    """What the integer form costs against the float form: rate, PSNR and seconds, means over images, as text.

    The rate of the integer networks is given twice: under Gaussians of the rows' scales, which leaves the networks as
    the only difference, and under the 12-bit tables that files are written with.
    """
    import tensorflow as tf

    from eval.metrics import psnr
    from eval.replay import Replay
    from models.codec import load, load_for_training
    from models.codec.coding import to_uint8
    from models.entropy.coders import FloatRate, TableRate
    from models.io.images import read_image

    integer, floating = load(weights_path), load_for_training(weights_path)
    figures = []
    for source in images:
        image = read_image(source)
        height, width = image.shape[:2]
        padded = integer.pad(tf.cast(image[None], tf.float32))
        shape, controls = padded.shape[:3], _controls(integer, padded.shape[:3])
        row = []
        for codec, coder in ((floating, FloatRate(floating.entropy_models)), (integer, TableRate(integer.bank))):
            decoded = codec.reconstruct(codec.transmit(coder, padded, **controls))[0, :height, :width]
            bits = float(sum(b[0] for b in coder.bits.values()))
            row += [bits / (height * width), psnr(image, to_uint8(decoded))]
        symbols = recorded_symbols(integer, image)
        tables = _float_networks_with_tables(integer.bank)
        floating.transmit(tables, padded, **controls)
        row.append(float(sum(b[0] for b in tables.bits.values())) / (height * width))
        ideal = gaussian_bits(integer, symbols, shape) + float(coder.bits["z"][0])
        row.append(ideal / (height * width))
        for codec, exact in ((floating, False), (integer, True)):
            codec.transmit(Replay(symbols, exact), shape=shape, **controls)
            begin = time.perf_counter()
            codec.transmit(Replay(symbols, exact), shape=shape, **controls)
            row.append(time.perf_counter() - begin)
        figures.append(row)
    float_bpp, float_db, table_bpp, integer_db, float_table_bpp, ideal_bpp, float_s, integer_s = np.mean(figures, 0)
    return (
        f"{len(figures)} images: estimated rates, PSNR of rounded images, seconds of the entropy networks alone\n"
        f"float networks                       {float_bpp:.5f} bpp  {float_db:.4f} dB  {float_s:.3f} s\n"
        f"float networks and 12-bit tables     {float_table_bpp:.5f} bpp\n"
        f"integer networks                     {ideal_bpp:.5f} bpp ({100 * (ideal_bpp / float_bpp - 1):+.2f} %)  "
        f"{integer_db:.4f} dB ({integer_db - float_db:+.4f})  {integer_s:.3f} s\n"
        f"integer networks and 12-bit tables   {table_bpp:.5f} bpp ({100 * (table_bpp / float_table_bpp - 1):+.2f} %)"
    )


def _float_networks_with_tables(bank):
    """A latent coder: rows and means of the float networks, bits of the tables."""
    import tensorflow as tf

    from models.entropy.coders import TableRate, nearest_rows
    from transforms.exact import Fixed

    class FloatNetworks(TableRate):
        exact = False

        def gaussian(self, name, latent, parameters):
            mean, log_scale = tf.split(parameters, 2, -1)
            rows = nearest_rows(log_scale)
            return super().gaussian(name, latent, Fixed(tf.concat([mean, rows], -1)))

    return FloatNetworks(bank)


def gaussian_bits(codec, symbols: Sequence[np.ndarray], shape) -> float:
    """Bits of the Gaussian passes if each symbol were coded with its row's exact probabilities."""
    from scipy.special import log_ndtr

    from models.entropy.tables import scale_table

    rows = entropy_path(codec, tuple(shape), exact=True)(*symbols)[1::2]
    magnitude = np.abs(np.concatenate([s.ravel() for s in symbols[1:]]).astype(np.float64))
    scale = scale_table()[np.concatenate([r.numpy().ravel() for r in rows]).astype(int)]
    upper, lower = log_ndtr((0.5 - magnitude) / scale), log_ndtr((-0.5 - magnitude) / scale)
    return float(-np.sum(upper + np.log1p(-np.exp(lower - upper))) / np.log(2))


def differences(reference: list[np.ndarray], other: list[np.ndarray]) -> str:
    """How two lists of (mean, row, mean, row, …) differ, in words."""
    rows = sum(int(np.sum(a != b)) for a, b in zip(reference[1::2], other[1::2]))
    means = sum(int(np.sum(a != b)) for a, b in zip(reference[::2], other[::2]))
    total = sum(a.size for a in reference[::2])
    if not rows and not means:
        return "identical"
    return f"{means} of {total} means and {rows} rows differ"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.exactness", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="*", help="by default the sample in res/eval")
    parser.add_argument("--weights", help="weights file; by default ELIC's that ship")
    parser.add_argument("--jax_python", help="an interpreter that has jax")
    parser.add_argument("--export", metavar="DIR", help="only write what eval/exactness_run.py needs, and stop")
    parser.add_argument(
        "--cost", action="store_true", help="measure what the integer form costs in rate and PSNR instead"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        _do_job(json.loads(args.job))
        return 0

    from models.codec import load, weights
    from models.io import files, images

    path = args.weights or weights.default("elic")
    root = Path(__file__).resolve().parent.parent
    sources = files.expand_inputs(args.images) or sorted((root / "res" / "eval").glob("*.png"))
    if args.cost:
        print(cost(path, sources))
        return 0
    codec = load(path)
    _load_floats(codec, path)
    wrong = 0
    for source in sources:
        image = images.read_image(source)
        symbols = recorded_symbols(codec, image)
        shape = (1, *codec.padded_size(*image.shape[:2]))
        if args.export:
            export(codec, symbols, shape, True, args.export)
            return 0
        for exact in (True, False):
            print(f"{Path(source).name}, {'integer' if exact else 'float'} form, against eager:")
            results = in_this_process(codec, symbols, shape, exact)
            results |= in_other_processes(path, symbols, shape, exact)
            for name, result in results.items():
                verdict = differences(results["eager"], result)
                wrong += exact and verdict != "identical"
                print(f"  {name:16} {verdict}")
            if args.jax_python:
                with tempfile.TemporaryDirectory() as folder:
                    export(codec, symbols, shape, exact, folder)
                    np.savez(Path(folder) / "expected.npz", *results["eager"])
                    for label, environment in (("JAX", {}), ("JAX, no TF32", {"NVIDIA_TF32_OVERRIDE": "0"})):
                        verdict = under_jax(args.jax_python, folder, **environment)
                        wrong += exact and not verdict.startswith("identical")
                        print(f"  {label:16} {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
