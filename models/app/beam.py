"""Folders that outgrow a machine: compress, decompress and evaluate as an Apache Beam pipeline.

    python -m models.app.beam compress '/photos/**/*.jpg' -o /packed --model elic --direct_num_workers 8

    match inputs ──┐                                                            ┌─► records, every few files
                   ├─► join by name ─► read, work, write (a process a worker) ──┼─► failed.jsonl: dead letters
    earlier records┘                                                            └─► summary.json: sums of all

Where it runs is up to Beam's own flags, such as --runner; requirements-beam.txt installs it. Each worker works in a
child process: if a file kills that, the file becomes a dead letter, and the next file gets a new process.

A record says of which content and with which settings a result was made. So a second run does what is missing, new or
changed, whether the first one has finished or was killed. Tables lie in the folder `_beam` below the output.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import io
import json
import logging
import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

logging.basicConfig(level=logging.ERROR)  # before Beam logs what its extras would bring

try:
    import apache_beam as beam
    from apache_beam.io import fileio
    from apache_beam.io.filesystem import BeamIOError, CompressionTypes
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.metrics import Metrics
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise SystemExit(f"error: {error}: pip install -r requirements-beam.txt") from error

from models.app import commands, flags
from models.codec import registry, weights
from models.codec.options import DEFAULTS
from models.codec.precision import AUTO, PRECISIONS
from models.entropy import container
from models.io import files, formats, images, terminal
from models.io.errors import UserError, one_line, reason

RAW = CompressionTypes.UNCOMPRESSED  # else Beam unpacks files whose names look compressed
#: Results between two records: what a killed worker may have to do again.
RECORD_EVERY = 16
FIGURES = ("bpp", "psnr", "ms_ssim")
SUFFIX = {"compress": files.STREAM_SUFFIX, "decompress": files.PICTURE_SUFFIX, "evaluate": None}
#: What decides about a result's bytes, besides the weights.
SETTINGS = ("command", "model", "quality", "effort", "tile", "precision")


# --- files, wherever Beam finds them -------------------------------------------------------------------------


def _read(path: str) -> bytes:
    try:
        with FileSystems.open(path, compression_type=RAW) as file:
            return file.read()
    except (OSError, BeamIOError) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error


def _write(path: str, data: bytes) -> None:
    """Writes a file that appears whole: by renaming on a disk; an object store shows an object when it is complete."""
    try:
        if FileSystems.get_scheme(path) is None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            files.atomic_write(path, data, force=True)
        else:
            with FileSystems.create(path, compression_type=RAW) as file:
                file.write(data)
    except (OSError, BeamIOError) as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error


def _on_disk(path: str) -> str:
    """A path that `open` takes: a copy of what does not lie on this machine."""
    if FileSystems.get_scheme(path) is None:
        return path
    copy = os.path.join(tempfile.mkdtemp(), FileSystems.split(path)[1])
    _write(copy, _read(path))
    return copy


# --- work, in a child process of each worker -------------------------------------------------------------------

Result = tuple[bytes, dict]  # of a file: what to write, and what to record


def _checked(height: int, width: int, args: argparse.Namespace) -> None:
    if height * width > args.max_megapixels * 1e6:
        raise UserError(f"{width}x{height} pixels are more than --max_megapixels {args.max_megapixels:g}")


def _image(data: bytes, source: str, args: argparse.Namespace):
    with formats.open_image(io.BytesIO(data), source) as image:
        _checked(image.height, image.width, args)
    return images.decode_image(data, source)


def _codec(args: argparse.Namespace, synthesis: bool):
    codec = commands.load_codec(args.model, _on_disk(args.weights), args, synthesis)
    for quality in args.quality:
        codec.rate_control.check_quality(quality)
    codec.trace(commands.encoder_options(args))
    return codec


def _compressor(args: argparse.Namespace) -> Callable[[bytes, str], Result]:
    codec, options = _codec(args, synthesis=False), commands.encoder_options(args)

    def work(data: bytes, source: str) -> Result:
        image = _image(data, source, args)
        stream = commands.guarded(codec.compress, image, options, **_controls(args.quality[0]))
        return stream, {"height": image.shape[0], "width": image.shape[1]}

    return work


def _decompressor(args: argparse.Namespace) -> Callable[[bytes, str], Result]:
    codec_for = commands.codec_finder(args.model, args)

    def work(data: bytes, source: str) -> Result:
        header, _, _ = container.unpack(data)
        _checked(header.height, header.width, args)
        codec = codec_for(header)
        if codec.graphs is None:
            codec.trace(commands.encoder_options(args))
        image = commands.guarded(codec.decompress, data, tile=args.tile)
        return images.encode_image(image), {"height": header.height, "width": header.width}

    return work


def _evaluator(args: argparse.Namespace) -> Callable[[bytes, str], Result]:
    from eval import sweep

    codec, options = _codec(args, synthesis=True), commands.encoder_options(args)

    def work(data: bytes, source: str) -> Result:
        image = _image(data, source, args)
        curve, size = [], 0
        for quality in args.quality:
            m = commands.guarded(sweep.measure, codec, image, source, options, **_controls(quality))
            curve.append({"quality": quality, **{key: _finite(getattr(m, key)) for key in FIGURES}})
            size += m.num_bytes
        return b"", {"height": image.shape[0], "width": image.shape[1], "bytes_out": size, "curve": curve}

    return work


WORK = {"compress": _compressor, "decompress": _decompressor, "evaluate": _evaluator}


def _controls(quality: float | None) -> dict:
    return {} if quality is None else {"quality": quality}


def _finite(value: float) -> float | None:
    """JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class Work(beam.DoFn):
    """Makes the result of each file, and gives a row about it. Runs in a child process, which loads the model once.

    args: the command line's, with `settings` and `key`.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def setup(self) -> None:
        """Loads the model, and binds the process to the life of its parent and to its share of the cores."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(self.args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.work = WORK[self.args.command](self.args)

    def process(self, element) -> Iterator[dict]:
        """Works on (name, (path, size), the latest record or None)."""
        name, (path, size), record = element
        start = time.perf_counter()
        row = {"name": name, "input": path, "bytes_in": size, "settings": self.args.key}
        try:
            row |= self._row(name, path, size, record)
        except (UserError, container.StreamError) as error:
            row |= {"status": "failed", "reason": one_line(error)}
        except MemoryError:
            row |= {"status": "failed", "reason": "not enough memory for an image of this size"}
        yield {**row, "seconds": round(time.perf_counter() - start, 3)}

    def _row(self, name: str, path: str, size: int, record: dict | None) -> dict:
        args = self.args
        if size > 8e6 * args.max_megapixels + 1e6:  # 16 bits of four channels and their surroundings
            raise UserError(f"{size} bytes are more than an image of --max_megapixels {args.max_megapixels:g} has")
        data = _read(path)
        content = hashlib.sha256(data).hexdigest()
        suffix = SUFFIX[args.command]
        target = suffix and FileSystems.join(args.output, name + suffix)
        exists = target is None or FileSystems.exists(target)
        if record and exists:
            if (record["content"], record["settings"]) == (content, args.key):
                return {**record, "status": "kept"}
            if target and not args.force:
                raise UserError(f"{target}: exists, made of other content or settings (--force replaces it)")
        result, facts = self.work(data, path)
        if target and not (exists and _read(target) == result):
            if exists and not args.force:
                raise UserError(f"{target}: exists already, with other content (--force replaces it)")
            _write(target, result)
        return {"status": "done", "content": content, "output": target, "bytes_out": len(result), **facts}


# --- the pipeline ----------------------------------------------------------------------------------------------


def _joined(element) -> Iterator[tuple]:
    """(name, files and records of that name) to what `Work` takes."""
    name, groups = element
    record = max(groups["records"], key=lambda row: row["time"], default=None)
    for file in groups["files"]:
        yield name, file, record


def _dead_letter(element) -> dict:
    """A row for a file whose work ended in anything but a result or a user's error."""
    (name, (path, size), _), (kind, text, _) = element
    died = "the process that worked on it died, as it does for want of memory"
    text = died if issubclass(kind, BrokenProcessPool) else one_line(ValueError(text))
    return {"name": name, "input": path, "bytes_in": size, "status": "failed", "reason": text, "seconds": 0.0}


class Record(beam.DoFn):
    """Counts rows in Beam's metrics, and records those of new results in files of a few rows each."""

    def __init__(self, folder: str):
        self.folder = folder
        self.rows: list[dict] = []

    def process(self, row: dict) -> Iterator[dict]:
        """Passes a row on."""
        Metrics.counter("zoo", row["status"]).inc()
        Metrics.distribution("zoo", "milliseconds").update(round(1000 * row["seconds"]))
        if row["status"] == "done":
            Metrics.distribution("zoo", "bytes_out").update(row["bytes_out"])
            self.rows.append({**row, "time": time.time()})
            if len(self.rows) >= RECORD_EVERY:
                self.finish_bundle()
        yield row

    def finish_bundle(self) -> None:
        """Writes what has come together since the last record."""
        if self.rows:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            _write(FileSystems.join(self.folder, f"{uuid.uuid4().hex}.jsonl"), text.encode())
            self.rows = []


def _summands(row: dict) -> Iterator[tuple]:
    """What the summary adds up, by key. Failed files count as files and in their seconds alone."""
    yield from {"files": 1, row["status"]: 1, "worker_seconds": row["seconds"]}.items()
    if row["status"] == "failed":
        return
    for key in ("bytes_in", "bytes_out"):
        yield key, row[key]
    yield "pixels", row["height"] * row["width"]
    for point in row.get("curve", ()):
        for key in FIGURES:
            if point[key] is not None:
                yield f"curve {point['quality']} {key}", point[key]
                yield f"curve {point['quality']} {key} count", 1


def _summary(sums: dict, args: argparse.Namespace) -> str:
    """The sums as JSON, with the rates and means that follow from them."""
    names = ("files", "done", "kept", "failed", "bytes_in", "bytes_out", "pixels", "worker_seconds")
    facts = {**args.settings, **{name: sums.get(name, 0) for name in names}}
    if args.command == "evaluate":
        facts["curve"] = [
            {"quality": q, **{key: _mean(sums, f"curve {q} {key}") for key in FIGURES}} for q in args.quality
        ]
    elif facts["pixels"]:
        stream = facts["bytes_out" if args.command == "compress" else "bytes_in"]
        facts["bpp"] = 8 * stream / facts["pixels"]
    return json.dumps(facts, indent=1)


def _mean(sums: dict, key: str) -> float | None:
    return sums[key] / sums[f"{key} count"] if key in sums else None


def _lines(file) -> Iterable[str]:
    return file.read_utf8().splitlines()


def build(pipeline: beam.Pipeline, args: argparse.Namespace) -> None:
    """Adds the whole of a command to a pipeline.

    args: of `_parser`, completed by `_prepare`.
    """
    tables = FileSystems.join(args.output, "_beam")
    found = (
        pipeline
        | "Match" >> fileio.MatchFiles(args.pattern)
        | "Choose" >> beam.Filter(_is_input, args)
        | "Name" >> beam.Map(lambda file, root: (file.path[len(root) :], (file.path, file.size_in_bytes)), args.root)
    )
    records = (
        pipeline
        | "Match records" >> fileio.MatchFiles(FileSystems.join(tables, "records", "*.jsonl"))
        | fileio.ReadMatches()
        | beam.FlatMap(_lines)
        | beam.Map(json.loads)
        | beam.Map(lambda row: (row["name"], row))
    )
    rows, dead = (
        {"files": found, "records": records}
        | "Join" >> beam.CoGroupByKey()
        | beam.FlatMap(_joined)
        | "Work" >> beam.ParDo(Work(args)).with_exception_handling(use_subprocess=True)
    )
    rows = (
        (rows, dead | "Dead letters" >> beam.Map(_dead_letter))
        | beam.Flatten()
        | "Record" >> beam.ParDo(Record(FileSystems.join(tables, "records")))
    )
    (
        rows
        | beam.Filter(lambda row: row["status"] == "failed")
        | beam.Map(lambda row: json.dumps({"input": row["input"], "reason": row["reason"]}))
        | "Write failed" >> _whole(FileSystems.join(tables, "failed.jsonl"))
    )
    (
        rows
        | beam.FlatMap(_summands)
        | beam.CombinePerKey(sum)
        | beam.combiners.ToDict()
        | beam.Map(_summary, args)
        | "Write summary" >> _whole(FileSystems.join(tables, "summary.json"))
    )


def _whole(path: str) -> beam.PTransform:
    return beam.io.WriteToText(path, num_shards=1, shard_name_template="")


def _is_input(file, args: argparse.Namespace) -> bool:
    """Of a folder the files with our extensions, without hidden ones; of a pattern all, as on the command line."""
    parts = file.path[len(args.root) :].replace("\\", "/").split("/")
    if "_beam" in parts[:-1]:
        return False
    return not args.extensions or (
        os.path.splitext(file.path)[1].lower() in args.extensions and not any(part.startswith(".") for part in parts)
    )


# --- the command line --------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.app.beam",
        description="Works on many files with Apache Beam, whose own flags say where: --runner, --direct_num_workers "
        "and the like.",
    )
    parser.add_argument("command", choices=list(WORK))
    parser.add_argument("inputs", help="A folder or a pattern, on a disk or in a store, such as 'gs://bucket/a/**'.")
    parser.add_argument("-o", "--output", required=True, help="Folder of the results; its _beam has the tables.")
    parser.add_argument("--model", required=True, choices=list(registry.CARDS))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--weights", metavar="FILE", help="Weights file; by default weights that ship.")
    which.add_argument("--preset", help="Which of the weights that ship to use.")
    parser.add_argument(
        "--quality", type=flags.base.numbers, default=(None,), metavar="Q[,Q…]", help="Several for `evaluate` alone."
    )
    parser.add_argument("--effort", type=int, metavar="N", help=f"RDOQ iterations; {DEFAULTS.effort} by default.")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="Side of the tiles of large images.")
    parser.add_argument("--precision", choices=PRECISIONS, default=AUTO, help="Of the transforms.")
    parser.add_argument("--max_megapixels", type=float, default=32, help="Larger images are refused.")
    parser.add_argument(
        "--threads", type=int, help="Of each worker. By default this machine's cores over its workers, else 1."
    )
    parser.add_argument("-f", "--force", action="store_true", help="Replace other files that exist.")
    return parser


def _beam_options(arguments: list[str]) -> PipelineOptions:
    """Beam's options. Those that Beam does not know end the program: Beam itself would ignore them."""
    known = argparse.ArgumentParser(prog="python -m models.app.beam", add_help=False, allow_abbrev=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(known)
    known.parse_args(arguments)
    # The work is done in child processes, so threads are enough; Beam's default is one at a time.
    return PipelineOptions(["--direct_running_mode=multi_threading", *arguments])


def _prepare(args: argparse.Namespace, options: dict) -> None:
    """Completes the arguments: absolute paths, the pattern to match, weights, settings, threads.

    Raises:
      UserError: nothing matches, or the weights cannot do what is asked for.
    """
    if args.command != "evaluate" and len(args.quality) > 1:
        raise UserError(f"{args.command}: takes one quality, and there are {len(args.quality)}")
    for name in ("output", "inputs", "weights"):
        value = getattr(args, name)
        if value and FileSystems.get_scheme(value) is None:
            setattr(args, name, os.path.abspath(value) + ("/" if name == "inputs" and value.endswith("/") else ""))
    args.extensions, args.pattern = (), args.inputs
    if args.inputs.endswith("/") or os.path.isdir(args.inputs):
        args.root = args.inputs.rstrip("/") + "/"
        args.pattern = glob.escape(args.root) + "**"
        args.extensions = {files.STREAM_SUFFIX} if args.command == "decompress" else formats.extensions()
    else:
        args.root = args.inputs[: args.inputs.rfind("/", 0, _first_magic(args.inputs)) + 1]
    try:
        if not FileSystems.match([args.pattern], limits=[1])[0].metadata_list:
            raise UserError(f"{args.inputs}: matches no file")
    except (BeamIOError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{args.inputs}: {reason(error)}") from error
    args.settings = {name: getattr(args, name) for name in SETTINGS}
    if args.command != "decompress" or args.weights:
        args.weights = args.weights or str(weights.default(args.model, args.preset))
        args.settings["weights_id"] = weights.read_metadata(_on_disk(args.weights)).get("weights_id")
    args.key = hashlib.sha256(json.dumps(args.settings, sort_keys=True).encode()).hexdigest()[:16]
    if args.threads is None:
        cores = len(os.sched_getaffinity(0))
        is_here = "Direct" in (options.get("runner") or "Direct")
        args.threads = max(1, cores // (options["direct_num_workers"] or cores)) if is_here else 1
    # A process of its own: TensorFlow must not have started where Beam forks its workers from.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_check, args).result()


def _first_magic(path: str) -> int:
    return min((path.find(c) for c in "*?[" if c in path), default=len(path))


def _check(args: argparse.Namespace) -> None:
    """UserError if the weights cannot do what is asked for."""
    WORK[args.command](args)


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits: with 1 if a file has failed, 2 for usage."""
    args, others = _parser().parse_known_args(argv)
    options = _beam_options(others)
    start = time.perf_counter()
    try:
        _prepare(args, options.get_all_options())
        pipeline = beam.Pipeline(options=options)
        build(pipeline, args)
        pipeline.run().wait_until_finish()
        tables = FileSystems.join(args.output, "_beam")
        summary = json.loads(_read(FileSystems.join(tables, "summary.json")))
        summary["seconds"] = round(time.perf_counter() - start, 1)
        _write(FileSystems.join(tables, "summary.json"), (json.dumps(summary, indent=1) + "\n").encode())
    except UserError as error:
        sys.exit(commands.report_error(str(error)))
    print(", ".join(f"{summary[name]} {name}" for name in ("files", "done", "kept", "failed", "seconds")))
    if summary["failed"]:
        commands.report_error(f"{summary['failed']} files failed: {FileSystems.join(tables, 'failed.jsonl')} says why")
    sys.exit(terminal.finish(1 if summary["failed"] else 0))


if __name__ == "__main__":
    # Under its own name, by which workers import what Beam sends them.
    from models.app import beam as program

    program.main()
