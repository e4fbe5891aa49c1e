"""Folders that outgrow a machine: compress, decompress and evaluate as an Apache Beam pipeline.

    python -m models.app.beam compress '/photos/**/*.jpg' -o /packed --model elic --direct_num_workers 8

    match inputs ──┐                                                            ┌─► records, every few files
                   ├─► join by name ─► read, work, write (a process a worker) ──┼─► failed.jsonl: dead letters
    earlier records┘                                                            └─► summary.json: sums of all

Where it runs is up to Beam's own flags, such as --runner; requirements-beam.txt installs it. Each worker works in a
child process: if a file kills that, the file becomes a dead letter, and the next file gets a new process.

A record says of which content and with which settings a result was made. So a second run does what is missing, new or
changed, whether the first one has finished or was killed. Tables lie in the folder `_beam/COMMAND` below the output.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import logging
import multiprocessing
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from models.app import flags
from models.codec import registry, weights
from models.codec.options import DEFAULTS
from models.codec.precision import FLOAT32, PRECISIONS
from models.io import files, formats, terminal
from models.io.errors import UserError, one_line, reason

logging.basicConfig(level=logging.ERROR)  # before Beam logs what its extras would bring
# Workers fork, and nobody calls gRPC in their children: its handlers of forks have nothing to do but to complain.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

try:
    import apache_beam as beam
    from apache_beam.io import fileio
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.metrics import Metrics
    from apache_beam.options.pipeline_options import PipelineOptions

    from models.app import beam_work
except ImportError as error:
    raise SystemExit(f"error: {error}: pip install -r requirements-beam.txt") from error

#: Results between two records: what a killed worker may have to do again.
RECORD_EVERY = 16
#: What decides about a result's bytes, besides the weights.
SETTINGS = ("command", "model", "quality", "effort", "tile", "precision")


# --- the pipeline ----------------------------------------------------------------------------------------------


def _named(file, args: argparse.Namespace) -> Iterator:
    """Gives (name, (path, size)) of an input; a failed row if Beam cannot name it.

    Inputs are the files of a folder with our extensions, without hidden ones; of a pattern all, as on the command line.
    """
    name = file.path[len(args.root) :]
    parts = name.split("/")
    if "_beam" in parts[:-1]:
        return
    if args.extensions and (
        os.path.splitext(name)[1].lower() not in args.extensions or any(part.startswith(".") for part in parts)
    ):
        return
    try:
        name.encode()
    except UnicodeEncodeError:
        yield beam.pvalue.TaggedOutput("unnamed", _failed(ascii(name), ascii(file.path), "its name is not UTF-8"))
    else:
        yield name, (file.path, file.size_in_bytes)


def _failed(name: str, path: str, why: str) -> dict:
    return {"name": name, "input": path, "status": "failed", "reason": why, "seconds": 0.0}


def _joined(element) -> Iterator[tuple]:
    """(name, files and records of that name) to what `Worker` takes."""
    name, groups = element
    record = max(groups["records"], key=lambda row: row["time"], default=None)
    for file in groups["files"]:
        yield name, file, record


def _dead_letter(element) -> dict:
    """A row for a file whose work ended in anything but a result or a user's error."""
    (name, (path, _), _), (kind, text, _) = element
    died = "the process that worked on it died, as it does for want of memory"
    return _failed(name, path, died if issubclass(kind, BrokenProcessPool) else one_line(ValueError(text)))


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
            beam_work.write_bytes(FileSystems.join(self.folder, f"{uuid.uuid4().hex}.jsonl"), text.encode())
            self.rows = []


def _summands(row: dict) -> Iterator[tuple]:
    """What the summary adds up, by key."""
    yield from {"files": 1, row["status"]: 1, "worker_seconds": row["seconds"]}.items()
    if row["status"] == "failed":
        return
    yield from {"bytes_in": row["bytes_in"], "bytes_out": row["bytes_out"]}.items()
    yield "pixels", row["height"] * row["width"]
    for point in row.get("curve", ()):
        for key in beam_work.FIGURES:
            if point[key] is not None:
                yield f"{key} {point['quality']}", point[key]
                yield f"{key} {point['quality']} count", 1


def _summary(sums: dict, args: argparse.Namespace) -> str:
    """The sums as JSON, with the rates and means that follow from them."""

    def mean(key: str) -> float | None:
        return sums[key] / sums[f"{key} count"] if key in sums else None

    names = ("files", "done", "kept", "failed", "bytes_in", "bytes_out", "pixels", "worker_seconds")
    facts = {**args.settings, **{name: sums.get(name, 0) for name in names}}
    if args.command == "evaluate":
        facts["curve"] = [
            {"quality": q, **{key: mean(f"{key} {q}") for key in beam_work.FIGURES}} for q in args.quality
        ]
    elif facts["pixels"]:
        facts["bpp"] = 8 * facts["bytes_out" if args.command == "compress" else "bytes_in"] / facts["pixels"]
    return json.dumps(facts, indent=1)


def build(pipeline: beam.Pipeline, args: argparse.Namespace) -> None:
    """Adds the whole of a command to a pipeline.

    args: of `_parser`, completed by `_prepare`.
    """
    tables = FileSystems.join(args.output, "_beam", args.command)
    found, unnamed = (
        pipeline
        | "Match" >> fileio.MatchFiles(args.pattern)
        | "Name" >> beam.FlatMap(_named, args).with_outputs("unnamed", main="found")
    )
    records = (
        pipeline
        | "Match records" >> fileio.MatchFiles(FileSystems.join(tables, "records", "*.jsonl"))
        | fileio.ReadMatches()
        | beam.FlatMap(lambda file: map(json.loads, file.read_utf8().splitlines()))
        | beam.Map(lambda row: (row["name"], row))
    )
    rows, dead = (
        {"files": found, "records": records}
        | "Join" >> beam.CoGroupByKey()
        | beam.FlatMap(_joined)
        | "Work" >> beam.ParDo(beam_work.Worker(args)).with_exception_handling(use_subprocess=True)
    )
    # Each recorded before they meet: there some runners wait for all work to end.
    recorder = Record(FileSystems.join(tables, "records"))
    rows = (
        rows | "Record" >> beam.ParDo(recorder),
        dead | beam.Map(_dead_letter) | "Record dead letters" >> beam.ParDo(recorder),
        unnamed | "Record unnamed" >> beam.ParDo(recorder),
    ) | beam.Flatten()
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


# --- the command line --------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.app.beam",
        description="Works on many files with Apache Beam, whose own flags say where: --runner, --direct_num_workers "
        "and the like.",
    )
    parser.add_argument("command", choices=list(beam_work.SUFFIX))
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
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=FLOAT32,
        help="Of the transforms; float32 by default, in which different machines give the same files.",
    )
    parser.add_argument("--max_megapixels", type=float, default=32, help="Larger images are refused.")
    parser.add_argument(
        "--threads", type=int, help="Of each worker. By default this machine's cores over its workers, else 1."
    )
    parser.add_argument("-f", "--force", action="store_true", help="Replace other files that exist.")
    return parser


def _beam_options(arguments: list[str], parser: argparse.ArgumentParser) -> PipelineOptions:
    """Beam's options. A flag that Beam does not know ends the program: Beam itself would ignore it."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(known)
    unknown = known.parse_known_args(arguments)[1]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    # The work is done in child processes, so threads are enough; Beam's default is one at a time.
    return PipelineOptions(["--direct_running_mode=multi_threading", *arguments])


def _prepare(args: argparse.Namespace, options: dict) -> None:
    """Completes the arguments: absolute paths, the pattern to match, weights, settings, threads.

    Raises:
      UserError: nothing matches, or the weights cannot do what is asked for.
    """
    if args.command != "evaluate" and len(args.quality) > 1:
        raise UserError(f"{args.command}: takes one quality, and there are {len(args.quality)}")
    is_folder = args.inputs.endswith("/") or os.path.isdir(args.inputs)
    for name in ("output", "inputs", "weights"):  # workers may have another working directory
        value = getattr(args, name)
        if value and FileSystems.get_scheme(value) is None:
            setattr(args, name, os.path.abspath(value))
    args.pattern, args.extensions = args.inputs, ()
    if is_folder:
        args.root = args.inputs.rstrip("/") + "/"
        args.pattern = glob.escape(args.root) + "**"
        args.extensions = {files.STREAM_SUFFIX} if args.command == "decompress" else formats.extensions()
    else:
        args.root = re.match(r"[^*?\[]*/|", args.inputs)[0]
    try:
        found = FileSystems.match([args.pattern], limits=[1])[0].metadata_list
    except (OSError, BeamIOError, ValueError) as error:
        raise UserError(f"{args.inputs}: cannot be listed: {reason(error)}") from error
    if not found:
        raise UserError(f"{args.inputs}: matches no file")
    args.settings = {name: getattr(args, name) for name in SETTINGS}
    if args.command != "decompress" or args.weights:
        args.weights = args.weights or str(weights.default(args.model, args.preset))
        args.settings["weights_id"] = weights.read_metadata(beam_work.on_disk(args.weights)).get("weights_id")
    args.key = hashlib.sha256(json.dumps(args.settings, sort_keys=True).encode()).hexdigest()[:16]
    if args.threads is None:
        cores = len(os.sched_getaffinity(0))
        is_here = "Direct" in (options.get("runner") or "Direct")
        args.threads = max(1, cores // (options["direct_num_workers"] or cores)) if is_here else 1
    # A process of its own: TensorFlow must not have started where Beam forks its workers from.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(
            beam_work.check, argparse.Namespace(**{**vars(args), "weights": beam_work.on_disk(args.weights)})
        ).result()


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits: with 1 if a file has failed, 2 for usage."""
    parser = _parser()
    args, others = parser.parse_known_args(argv)
    options = _beam_options(others, parser)
    start = time.perf_counter()
    try:
        _prepare(args, options.get_all_options())
        pipeline = beam.Pipeline(options=options)
        build(pipeline, args)
        pipeline.run().wait_until_finish()
        tables = FileSystems.join(args.output, "_beam", args.command)
        summary = json.loads(beam_work.read_bytes(FileSystems.join(tables, "summary.json")))
        if not summary["files"]:
            raise UserError(f"{args.inputs}: is a directory without such files")
        summary["seconds"] = round(time.perf_counter() - start, 1)
        beam_work.write_bytes(FileSystems.join(tables, "summary.json"), (json.dumps(summary, indent=1) + "\n").encode())
    except UserError as error:
        sys.exit(terminal.report_error(str(error)))
    print(", ".join(f"{summary[name]} {name}" for name in ("files", "done", "kept", "failed", "seconds")))
    if summary["failed"]:
        terminal.report_error(f"{summary['failed']} files failed: {FileSystems.join(tables, 'failed.jsonl')} says why")
    sys.exit(terminal.finish(1 if summary["failed"] else 0))


if __name__ == "__main__":
    # Under its own name, by which workers import what Beam sends them.
    from models.app import beam as program

    terminal.prepare()
    program.main()
