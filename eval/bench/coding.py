"""What a codec costs: `python -m eval.bench`.

Prints, for one image (768x512 by default): seconds to compress and to decompress, split into analysis, entropy
networks, coding, synthesis and, where files hold one, the filter of the image; the rate that the synthesis reaches;
peak memory; and the coder's overhead against the ideal entropy. With `--compressai_python`, the same image through
CompressAI 1.2.8's ELIC, in turns. Training is `python -m eval.bench.train`'s.

A preset without trained weights gets random ones. An ELIC also gets latents that are typical in size and number, in
place of its own (`typical_latents`): all layers run, and the coder has as much to do as with a trained model. Other
models code what random weights make of the image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from models.io.errors import UserError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

#: What is timed apart; the rest is the entropy networks, padding and moving bytes.
STAGES = ("analysis", "coding", "filter", "synthesis")
REST = "entropy networks"
#: What each direction is made of, in this order.
PARTS = {"compress": ("analysis", REST, "coding", "filter"), "decompress": (REST, "coding", "synthesis", "filter")}


class Stopwatch:
    """Adds up seconds by name. What is timed within something else that is timed counts for the inner name alone."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self._within = [0.0]  # of each that runs now, and of none: the seconds of what was timed within it

    def timed(self, name, function):
        """`function`, with the seconds it takes added to `name`."""

        def run(*args, **kwargs):
            self._within.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - begin
                self.seconds[name] += seconds - self._within.pop()
                self._within[-1] += seconds

        return run


@contextlib.contextmanager
def stages_timed(codec, watch: Stopwatch):
    """Within, `codec` tells `watch` the seconds of its `STAGES`."""
    from models.codec import coding
    from models.entropy import rans
    from models.tools import restoration

    with contextlib.ExitStack() as stack:

        def patch(owner, attribute, name):
            original = getattr(owner, attribute)
            setattr(owner, attribute, watch.timed(name, original))
            stack.callback(setattr, owner, attribute, original)

        patch(codec, "analyse", "analysis")
        if hasattr(codec, "hyper_analysis"):
            patch(codec, "hyper_analysis", "analysis")
        patch(codec, "reconstruct", "synthesis")
        patch(coding, "fit_filter", "filter")
        patch(restoration, "apply", "filter")
        for owner in (rans.RansEncoder, rans.RansDecoder):
            for method in ("__init__", "code", "finish", "fingerprint"):
                patch(owner, method, "coding")
        yield


def sample_image() -> np.ndarray:
    """The sample that ships, 512x384, reflected to 768x512."""
    from models.io.images import read_image

    sample = read_image(Path(__file__).resolve().parents[2] / "res" / "eval" / "kodim23_512x384.png")
    return np.pad(sample, [(0, 512 - sample.shape[0]), (0, 768 - sample.shape[1]), (0, 0)], "reflect")


def channel_sigmas(channels: int) -> np.ndarray:
    """Standard deviations of typical latents: strong energy compaction, 6 down to 0.00004. float32 [channels]."""
    return np.exp(np.linspace(np.log(6.0), np.log(4e-5), channels)).astype(np.float32)


def typical_latents(codec) -> None:
    """Gives an ELIC of random weights latents like a trained one's: Gaussian noise, one sigma per channel.

    The parameter networks' last layer is set to predict exactly these sigmas and zero means; everything still runs.
    """
    import tensorflow as tf

    from models.entropy.coders import nearest_rows

    sigmas = channel_sigmas(codec.config.latents)
    analyse = codec.analyse

    def noisy(images, **controls):
        y = analyse(images, **controls)
        return y * 0 + tf.random.stateless_normal(tf.shape(y), [1, 2]) * sigmas

    codec.analyse = noisy
    rows = nearest_rows(np.log(sigmas)).numpy()
    for net, group_rows in zip(codec.parameters, np.split(rows, np.cumsum(codec.config.groups)[:-1])):
        last = net.integer_convs[-1]
        last.kernel.assign(tf.zeros_like(last.kernel))
        last.bias.assign(np.concatenate([0 * group_rows, group_rows]).astype(np.int32))
        last.multiplier.assign(tf.ones_like(last.multiplier))


def random_codec(entry, preset: str):
    """A codec of random weights, prepared for coding; an ELIC for coding typical latents.

    Raises:
      UserError: the model has no such preset.
    """
    import tensorflow as tf

    from models.codec import weights

    if preset not in entry.presets:
        names = dict.fromkeys([*entry.presets, *(path.stem for path in weights.shipped(entry.name))])
        raise UserError(f"{entry.name} has no preset {preset!r}; there are: {', '.join(names)}")
    tf.keras.utils.set_random_seed(0)
    codec = entry.codec(entry.presets[preset])
    codec.build_variables(training=True)
    codec.calibrate(np.random.default_rng(0).integers(0, 256, [2, 128, 128, 3], np.uint8))
    if entry.name == "elic":
        typical_latents(codec)
    return codec


def chosen_codec(model: str, preset: str | None = None, path=None):
    """The codec that flags ask for, and which it is in words.

    preset: by default the model's first. path: of a weights file; by default that of the preset, or random weights.

    Raises:
      UserError: no such model or preset, or not its weights.
    """
    from models.codec import load, registry, weights

    entry = registry.get(model)
    preset = preset or next(iter(entry.presets))
    path = path or weights.of_preset(model, preset)
    if not path:
        what = "random weights, typical latents" if model == "elic" else "random weights"
        return random_codec(entry, preset), f"{model} {preset} ({what})"
    weights.check_model(path, model)
    return load(path), f"{model} (weights {Path(path).name})"


def measure_round_trip(codec, image: np.ndarray) -> dict[str, float]:
    """One compress and one decompress: seconds by stage, CPU seconds, bytes. Graphs (`Codec.trace`) have no stages."""
    figures = {}
    data = None
    for direction in ("compress", "decompress"):
        watch = Stopwatch()
        with stages_timed(codec, watch):
            begin, cpu = time.perf_counter(), time.process_time()
            if direction == "compress":
                data = codec.compress(image)
            else:
                codec.decompress(data)
            total = time.perf_counter() - begin
        figures[direction] = total
        figures[f"{direction} cpu"] = time.process_time() - cpu
        if direction == "compress":  # a sender makes the image only to fit the filter to it
            watch.seconds["filter"] += watch.seconds.pop("synthesis", 0.0)
        figures[f"{direction} {REST}"] = total - sum(watch.seconds.values())
        for stage in STAGES:
            figures[f"{direction} {stage}"] = watch.seconds[stage]
    figures["bytes"] = len(data)
    return figures


class Peer:
    """Another interpreter, that makes a round trip for each line it is sent and answers with its figures as JSON.

    Args:
      name: of what runs there, for the message if it ends.
      command: what starts it. It answers a first time when it is ready.
    """

    def __init__(self, name: str, command: list[str]):
        self._name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._read()

    def _read(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self._name} ended; its message is above")
        return json.loads(line)

    def round_trip(self) -> dict[str, float]:
        """Seconds of "compress" and of "decompress", and what else it measures."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compressai(python: str, image: np.ndarray, threads: int) -> Peer:
    """CompressAI's Elic2022Official in an interpreter that has it."""
    from models.io.images import write_image

    script = Path(__file__).with_name("compressai_peer.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        write_image(path, image)
        return Peer("CompressAI's side", [python, str(script), str(path), str(threads)])  # it has read the image


def median(rounds: list[dict[str, float]], name: str) -> float:
    return float(np.median([r[name] for r in rounds]))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="elic")
    parser.add_argument("--preset", help="by default the first of the model's: of ELIC, base")
    parser.add_argument("--weights", help="weights file; by default those of the preset that ship, or random ones")
    parser.add_argument("--image", default=None, help="image to compress; by default the sample in res/eval")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compressai_python", help="interpreter with torch and compressai to compare with, in turns")
    args = parser.parse_args(argv)

    import tensorflow as tf

    from models.io import images

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    try:
        codec, what = chosen_codec(args.model, args.preset, args.weights)
        image = images.read_image(args.image) if args.image else sample_image()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    height, width = image.shape[:2]
    print(f"{what}, {width}x{height}, {args.threads} threads")

    other = compressai(args.compressai_python, image, args.threads) if args.compressai_python else None
    measure_round_trip(codec, image)  # warm up
    stages = [measure_round_trip(codec, image) for _ in range(args.rounds)]
    codec.trace()
    begin = time.perf_counter()
    codec.decompress(codec.compress(image))
    print(f"tracing, and the first image there and back: {time.perf_counter() - begin:.1f} s")
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(measure_round_trip(codec, image))
        if other:
            theirs.append(other.round_trip())
    if other:
        other.close()
    print_round_trip(codec, image, stages)
    print_traced(ours)
    if theirs:
        print_comparison(ours, theirs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux tells KiB
    print(f"peak memory of this process: {peak:.2f} GiB")


def print_round_trip(codec, image: np.ndarray, rounds: list[dict[str, float]]) -> None:
    """Seconds by stage, the synthesis' speed, the file's size against the ideal."""
    height, width = image.shape[:2]
    for direction, parts in PARTS.items():
        # The stages are those of one round, the median one: so they add up.
        middle = sorted(rounds, key=lambda figures: figures[direction])[len(rounds) // 2]
        total = middle[direction]
        shown = {part: middle[f"{direction} {part}"] for part in parts if part != "filter" or codec.has_filter}
        print(
            f"{direction:10} {total:.3f} s (fastest {min(r[direction] for r in rounds):.3f}, "
            f"CPU {middle[direction + ' cpu']:.2f}): "
            + ", ".join(f"{part} {seconds:.3f} ({100 * seconds / total:.1f} %)" for part, seconds in shown.items())
        )
    from models.codec.complexity import multiply_adds

    work = multiply_adds(codec.reconstruct, codec.latents(codec.compress(image)))
    seconds = median(rounds, "decompress synthesis")
    pixels = np.prod(codec.padded_size(height, width))
    print(
        f"synthesis: {work / pixels / 1e3:.0f} kMAC/pixel, {2 * work / 1e9:.0f} GFLOP at "
        f"{2 * work / seconds / 1e9:.0f} GFLOP/s"
    )
    _, bits = codec(image[None])
    ideal = sum(float(b[0]) for b in bits.values()) / 8
    size = rounds[0]["bytes"]
    print(
        f"file: {size} bytes, {8 * size / (height * width):.4f} bpp; ideal under the tables {ideal:.0f} bytes: "
        f"{100 * (size / ideal - 1):+.2f} %"
    )


def print_traced(rounds: list[dict[str, float]]) -> None:
    """Seconds of the same as graphs (`Codec.trace`), which have no stages to time."""
    for direction in ("compress", "decompress"):
        print(
            f"traced: {direction} {median(rounds, direction):.3f} s (fastest "
            f"{min(r[direction] for r in rounds):.3f}, CPU {median(rounds, direction + ' cpu'):.2f})"
        )


def print_comparison(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """Ratio of the round trips, round by round."""
    for direction in ("compress", "decompress"):
        print(f"CompressAI 1.2.8 Elic2022Official {direction}: {median(theirs, direction):.3f} s")
    ratios = [(a["compress"] + a["decompress"]) / (b["compress"] + b["decompress"]) for a, b in zip(ours, theirs)]
    cpu = [(a["compress cpu"] + a["decompress cpu"]) / b["cpu"] for a, b in zip(ours, theirs)]
    print(
        f"ours / CompressAI's, compress + decompress: {np.median(ratios):.2f} of the time (rounds {min(ratios):.2f} to "
        f"{max(ratios):.2f}), {np.median(cpu):.2f} of the CPU seconds; its file {theirs[0]['bytes']:.0f} bytes"
    )


if __name__ == "__main__":
    sys.exit(main())
