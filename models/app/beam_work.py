"""What a worker of `models.app.beam` does with a file, in a child process that loads the model once.

`WORK[command](args)` loads what a command needs and returns a function (data, source) -> (result, facts): the bytes to
write, and what to record. It raises UserError, StreamError or MemoryError, as the command line's own commands do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models.app import commands
from models.entropy import container
from models.io import files, formats, images, terminal
from models.io.errors import UserError, one_line, reason

#: What a command appends to an input's name; None: its results are records alone.
SUFFIX = {"compress": files.STREAM_SUFFIX, "decompress": files.IMAGE_SUFFIX, "evaluate": None}
FIGURES = ("bpp", "psnr", "ms_ssim")
RAW = CompressionTypes.UNCOMPRESSED  # else Beam unpacks files whose names look compressed

Work = Callable[[bytes, str], tuple[bytes, dict]]


# --- files, wherever Beam finds them -------------------------------------------------------------------------


def read_bytes(path: str) -> bytes:
    """Reads a whole file. UserError if that fails."""
    try:
        with FileSystems.open(path, compression_type=RAW) as file:
            return file.read()
    except (OSError, BeamIOError) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file that appears whole: by renaming on a disk; an object store shows an object when it is complete.

    UserError if that fails.
    """
    try:
        if FileSystems.get_scheme(path) is None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            files.atomic_write(path, data, force=True)
        else:
            with FileSystems.create(path, compression_type=RAW) as file:
                file.write(data)
    except (OSError, BeamIOError) as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error


def on_disk(path: str | None) -> str | None:
    """A path that `open` takes: a copy of what does not lie on this machine."""
    if path is None or FileSystems.get_scheme(path) is None:
        return path
    copy = os.path.join(tempfile.mkdtemp(), FileSystems.split(path)[1])
    write_bytes(copy, read_bytes(path))
    return copy


# --- commands --------------------------------------------------------------------------------------------------


def check_pixels(height: int, width: int, args: argparse.Namespace) -> None:
    """UserError if an image has more pixels than `--max_megapixels`."""
    if height * width > args.max_megapixels * 1e6:
        raise UserError(f"{width}x{height} pixels are more than --max_megapixels {args.max_megapixels:g}")


def read_image(data: bytes, source: str, args: argparse.Namespace) -> np.ndarray:
    """Decodes an image, uint8 [H, W, 3]. UserError if it cannot be, or is too large."""
    with formats.open_image(io.BytesIO(data), source) as image:
        check_pixels(image.height, image.width, args)
    return images.decode_image(data, source)


def compressor(args: argparse.Namespace) -> Work:
    """Makes streams of images."""
    codec, options = _codec(args, synthesis=False), commands.encoder_options(args)

    def work(data: bytes, source: str) -> tuple[bytes, dict]:
        image = read_image(data, source, args)
        stream = commands.guarded(codec.compress, image, options, **_controls(args.quality[0]))
        return stream, {"height": image.shape[0], "width": image.shape[1]}

    return work


def decompressor(args: argparse.Namespace) -> Work:
    """Makes PNG images of streams."""
    codec_for = commands.codec_finder(args.model, args, commands.TRACE_FROM)

    def work(data: bytes, source: str) -> tuple[bytes, dict]:
        del source
        header, _, _ = container.unpack(data)
        check_pixels(header.height, header.width, args)
        image = commands.guarded(codec_for(header).decompress, data, tile=args.tile)
        return images.encode_image(image), {"height": header.height, "width": header.width}

    return work


def evaluator(args: argparse.Namespace) -> Work:
    """Measures images there and back at each quality; the result is empty, the figures are facts."""
    from eval import sweep

    codec, options = _codec(args, synthesis=True), commands.encoder_options(args)

    def work(data: bytes, source: str) -> tuple[bytes, dict]:
        image = read_image(data, source, args)
        curve = []
        for quality in args.quality:
            m = commands.guarded(sweep.measure, codec, image, source, options, **_controls(quality))
            figures = {key: getattr(m, key) for key in FIGURES}
            # JSON has neither infinity nor NaN.
            curve.append({k: v if math.isfinite(v) else None for k, v in figures.items()} | {"quality": quality})
        return b"", {"height": image.shape[0], "width": image.shape[1], "curve": curve}

    return work


WORK = {"compress": compressor, "decompress": decompressor, "evaluate": evaluator}


def check(args: argparse.Namespace) -> None:
    """Loads what a command needs. UserError if the weights cannot do what is asked for."""
    WORK[args.command](args)


def _codec(args: argparse.Namespace, synthesis: bool):
    codec = commands.load_codec(args.model, args.weights, args, synthesis)
    for quality in args.quality:
        codec.rate_control.check_quality(quality)
    codec.trace(commands.encoder_options(args))
    return codec


def _controls(quality: float | None) -> dict:
    return {} if quality is None else {"quality": quality}


# --- a file ----------------------------------------------------------------------------------------------------


def _end_with_parent() -> None:
    """Ends this process when its parent has gone, killed or not, and leaves no unfinished file."""
    multiprocessing.parent_process().join()
    for path in list(terminal.unfinished):
        with contextlib.suppress(OSError):
            os.unlink(path)
    os._exit(1)


class Worker(beam.DoFn):
    """Makes the result of each file, and gives a row about it. Runs in a child process, which loads the model once.

    args: the command line's, with `settings` and `key`.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def setup(self) -> None:
        """Loads the model, and binds the process to the life of its parent and to its share of the cores."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which says so
        threading.Thread(target=_end_with_parent, daemon=True).start()
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(self.args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.args.weights = on_disk(self.args.weights)
        self.work = WORK[self.args.command](self.args)

    def process(self, element) -> Iterator[dict]:
        """Works on (name, (path, size), the latest record or None)."""
        name, (path, size), record = element
        start = time.perf_counter()
        row = {"name": name, "input": path, "bytes_in": size, "settings": self.args.key}
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", images.ImageWarning)
                row |= self._row(name, path, size, record)
            notes = [str(w.message) for w in caught if issubclass(w.category, images.ImageWarning)]
            row |= {"warnings": notes} if notes else {}
        except (UserError, container.StreamError) as error:
            row |= {"status": "failed", "reason": one_line(error)}
        except MemoryError:
            row |= {"status": "failed", "reason": "not enough memory for an image of this size"}
        yield {**row, "seconds": round(time.perf_counter() - start, 3)}

    def _row(self, name: str, path: str, size: int, record: dict | None) -> dict:
        args = self.args
        if size > 8e6 * args.max_megapixels + 1e6:  # 16 bits of four channels and their surroundings
            raise UserError(f"{size} bytes are more than an image of --max_megapixels {args.max_megapixels:g} has")
        data = read_bytes(path)
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
        if target and not (exists and read_bytes(target) == result):
            if exists and not args.force:
                raise UserError(f"{target}: exists already, with other content (--force replaces it)")
            write_bytes(target, result)
        return {"status": "done", "content": content, "output": target, "bytes_out": len(result), **facts}
