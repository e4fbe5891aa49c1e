"""What a SavedModel costs: `python -m eval.bench.serving`.

Exports a codec; prints the seconds that exporting and loading take, the size on disk, the number of graph nodes, the
peak memory, and the latency of one image through the `compress` and `decompress` signatures against the command
line's model and the same traced (`Codec.trace`), in turns. The SavedModel runs in a process of its own, as in a server.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from eval.bench.coding import Peer, median, random_codec, sample_image

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

#: Loads the SavedModel of argv[1]; for each line on its standard input, runs the inputs in argv[2] there and back.
SERVED = """
import json, resource, sys, time
import numpy as np, tensorflow as tf
begin = time.perf_counter()
model = tf.saved_model.load(sys.argv[1])
print(json.dumps({"load": time.perf_counter() - begin}), flush=True)
inputs = {name: tf.constant(value) for name, value in np.load(sys.argv[2]).items()}
for _ in sys.stdin:
    times = [time.perf_counter()]
    stream = model.signatures["compress"](**inputs)
    stream["bitstream_bytes"].numpy()
    times.append(time.perf_counter())
    model.signatures["decompress"](**stream)["image"].numpy()
    times.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"compress": times[1] - times[0], "decompress": times[2] - times[1], "peak": peak}), flush=True)
"""


def round_trip(codec, image: np.ndarray, **controls) -> dict[str, float]:
    """Seconds of "compress" and of "decompress" of a codec in this process."""
    times = [time.perf_counter()]
    data = codec.compress(image, **controls)
    times.append(time.perf_counter())
    codec.decompress(data)
    times.append(time.perf_counter())
    return {"compress": times[1] - times[0], "decompress": times[2] - times[1]}


def nodes(folder: Path) -> int:
    """Nodes of the graph of a SavedModel, those of its functions included."""
    from tensorflow.python.saved_model import loader_impl

    graph = loader_impl.parse_saved_model(str(folder)).meta_graphs[0].graph_def
    return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.bench.serving", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="elic")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--weights", help="weights file; by default those of the preset that ship, or random ones")
    parser.add_argument("--image", help="image; by default the sample in res/eval, reflected to 768x512")
    parser.add_argument("--rounds", type=int, default=5, help="0: only export, load and run one image, for its memory")
    args = parser.parse_args(argv)

    from models.app import serving
    from models.codec import load, registry, weights
    from models.io import images

    entry = registry.get(args.model)
    path = args.weights or weights.of_preset(args.model, args.preset)
    codec = load(path) if path else random_codec(entry, args.preset)
    image = images.read_image(args.image) if args.image else sample_image()
    what = f"weights {Path(path).name}" if path else "random weights"
    print(f"{args.model} {args.preset} ({what}), {image.shape[1]}x{image.shape[0]}")

    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        folder = serving.export(codec, Path(scratch) / "model")
        seconds = time.perf_counter() - begin
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        graph = (folder / "saved_model.pb").stat().st_size
        inputs = Path(scratch) / "inputs.npz"
        np.savez(inputs, image=image[None], **serving.middle_controls(codec))
        served = Peer("the SavedModel's process", [sys.executable, "-c", SERVED, str(folder), str(inputs)])
        print(
            f"export {seconds:.1f} s, load {served.ready['load']:.1f} s; {size / 1e6:.1f} MB, of which the graph "
            f"{graph / 1e6:.1f}; {nodes(folder)} nodes"
        )
        begin = time.perf_counter()
        peak = served.round_trip()["peak"]
        print(
            f"first image there and back {time.perf_counter() - begin:.1f} s (a server's warm-up takes that); "
            f"peak memory {peak:.2f} GiB"
        )
        rounds: dict[str, list] = {"command line": [], "traced": [], "SavedModel": []}
        for number in range(args.rounds + 1 if args.rounds else 0):
            # Eagerly, as the command line runs, then as graphs.
            codec.graphs, graphs = None, codec.graphs
            eager = round_trip(codec, image)
            if graphs:
                codec.graphs = graphs
            else:
                codec.trace()
            traced, other = round_trip(codec, image), served.round_trip()
            if number:  # the first one traces
                for name, figures in zip(rounds, (eager, traced, other)):
                    rounds[name].append(figures)
        served.close()
    for direction in ("compress", "decompress") if args.rounds else ():
        texts = [f"{name} {median(figures, direction):.3f} s" for name, figures in rounds.items()]
        ratio = np.median([s[direction] / e[direction] for s, e in zip(rounds["SavedModel"], rounds["command line"])])
        print(f"{direction:10} {', '.join(texts)}; SavedModel / command line {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
