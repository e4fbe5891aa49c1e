"""The subcommands of all models: train, compress, decompress, evaluate, export.

Errors of the user become one line on stderr; with several inputs a bad one is reported and the others are still done.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import numpy as np

from models.app import flags
from models.codec import registry, weights
from models.codec.options import EncoderOptions
from models.codec.precision import AUTO
from models.entropy import container
from models.io import files, formats, images
from models.io.errors import UserError
from models.io.files import IMAGE_SUFFIX, STREAM_SUFFIX
from models.io.terminal import report_error

#: With at least this many files graphs are made: for fewer, making them takes longer than working without.
TRACE_FROM = 16


def _weights_path(model: str, args: argparse.Namespace) -> Path:
    return Path(args.weights) if args.weights else weights.default(model, args.preset)


def _load_rates(model: str, args: argparse.Namespace, synthesis: bool = True):
    """The codec to compress with: where nobody names weights and those of a model have one rate each, a `Ladder`."""
    steps = weights.ladder(model)
    if args.weights or args.preset or not steps:
        return load_codec(model, _weights_path(model, args), args, synthesis)
    from models.codec.ladder import Ladder

    loaders = [functools.partial(load_codec, model, path, args, synthesis) for path in steps]
    return Ladder(loaders, 1 + steps.index(weights.default(model)))


def load_codec(model: str, path: Path, args: argparse.Namespace, synthesis: bool = True):
    """The codec of a weights file; UserError if it cannot do what --tile and --effort ask for."""
    from models.codec import load

    tile, effort = (getattr(args, name, None) for name in ("tile", "effort"))
    if tile is not None and tile < 1:
        raise UserError(f"--tile {tile}: must be at least 1")
    if effort is not None and effort < 0:
        raise UserError(f"--effort {effort}: must not be negative")

    weights.check_model(path, model)
    codec = load(path, synthesis=synthesis, precision=getattr(args, "precision", AUTO))
    if tile is not None and codec.reach is None:
        raise UserError(
            f"--tile: each pixel depends on the whole image with these {model} weights, which normalise over it"
        )
    if effort and not codec.rdoq:
        raise UserError(f"--effort {effort}: files of these {model} weights take the nearest symbols")
    return codec


def encoder_options(args: argparse.Namespace, **more):
    """Turns --effort and --tile into options of the encoder, where a subcommand has them."""
    effort = getattr(args, "effort", None)
    given = {} if effort is None else {"effort": effort}
    return EncoderOptions(**given, tile=_tile(args), **more)


def _tile(args: argparse.Namespace) -> int | None:
    return None if getattr(args, "tile", None) is None else min(args.tile, container.MAX_PIXELS)


def each(inputs: Sequence[Path], work: Callable[[Path], str | None], targets: Sequence[Path] = ()) -> int:
    """Does `work` on each input and prints the line it returns; reports what fails, and goes on. Returns exit code.

    targets: where results go; if that is a device, such as /dev/stdout, the lines go to stderr.
    """
    from tqdm import tqdm

    lines = sys.stderr if any(map(files.is_device, targets)) else sys.stdout
    code = 0
    bar = tqdm(inputs, unit="file", leave=False, disable=None if len(inputs) > 1 else True)
    for source in bar:
        try:
            line = work(source)
            if line:
                tqdm.write(line, file=lines)
        except (UserError, container.StreamError) as error:
            text = str(error)
            with bar.external_write_mode(file=sys.stderr):
                code = report_error(text if isinstance(error, UserError) else f"{source}: {text}")
        except MemoryError:
            with bar.external_write_mode(file=sys.stderr):
                code = report_error(f"{source}: not enough memory for an image of this size")
    return code


def find_inputs(args: argparse.Namespace, extensions: Container[str]) -> tuple[dict[Path, Path], int]:
    """Returns the files that the arguments name, as `models.io.files.find_inputs`, and the exit code so far.

    An argument that names none is reported, and the others are still done. From now on `args.inputs` are those files.
    """
    inputs: dict[Path, Path] = {}
    code = 0
    for argument in args.inputs:
        try:
            found = files.find_inputs([argument], extensions, args.recursive)
        except UserError as error:
            code = report_error(str(error))
        else:
            for path, name in found.items():
                inputs.setdefault(path, name)
    args.inputs = list(inputs)
    return inputs, code


def find_files(args: argparse.Namespace, extensions: Container[str], suffix: str) -> tuple[dict[Path, Path], int]:
    """Returns the files that the arguments name, each with where its result goes, and the exit code so far."""
    has_folder = any(os.path.isdir(argument) for argument in args.inputs)
    inputs, code = find_inputs(args, extensions)
    output = args.output
    if has_folder and output not in (None, "-"):  # a folder becomes a folder, however few files it holds
        output = os.path.join(output, "")
    return dict(zip(inputs, files.output_paths(inputs, output, suffix))), code


def compress(model: str, args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from models.codec.ladder import Ladder

    for name in ("target_bpp", "target_kb"):
        wish = getattr(args, name)
        if wish is not None and not 0 < wish < float("inf"):
            raise UserError(f"--{name} {wish:g}: must be a number above 0")
    targets, code = find_files(args, formats.extensions(), STREAM_SUFFIX)
    if not targets:
        return code
    codec = _load_rates(model, args, synthesis=False)
    quality = getattr(args, "quality", None)
    codec.rate_control.check_quality(quality)
    one_rate = not isinstance(codec, Ladder)
    own = flags.of(model)
    # An iteration of a large image takes long.
    progress = functools.partial(tqdm, desc="RDOQ", unit="iteration", delay=2, leave=False, disable=None)
    options = encoder_options(args, progress=progress)
    if len(targets) >= TRACE_FROM:
        codec.trace(options)

    def work(source: Path) -> str:
        target = targets[source]
        files.check_target(target, args.force)
        image = images.read_image(source)
        height, width = image.shape[:2]
        limit = _target_bytes(args, height * width)
        controls = own.compress_controls(codec if one_rate else codec.codec(quality), args, image)
        if limit is None:
            data = guarded(codec.compress, image, options, **controls)
        else:
            data = guarded(codec.compress_to, image, limit, options, **controls)
        files.atomic_write(target, data, args.force)
        own.after_compress(codec if one_rate else codec.writer(data), args, image, data)
        return f"{source} -> {target}: {width}x{height}, {len(data)} bytes, {8 * len(data) / (height * width):.4f} bpp"

    return each(list(targets), work, list(targets.values())) or code


def _target_bytes(args: argparse.Namespace, pixels: int) -> int | None:
    """The size of file that the user asked for, if any."""
    if args.target_bpp is not None:
        return int(args.target_bpp * pixels / 8)
    return None if args.target_kb is None else int(args.target_kb * 1000)


def codec_finder(model: str, args: argparse.Namespace, files_ahead: int = 1) -> Callable[[container.Header], object]:
    """Loads the codec that wrote a stream, or that of --weights, each once; with graphs for many files ahead."""
    codecs: dict[bytes | None, object] = {}  # by weights id: inputs may come from several sets

    def codec_for(header: container.Header):
        if header.model_id != registry.card(model).model_id:
            other = registry.name_of(header.model_id)
            raise container.StreamError(
                f"a stream of {other}: models/{other}.py reads it" if other else "a stream of an unknown model"
            )
        key = None if args.weights else header.weights_id
        if key not in codecs:
            path = Path(args.weights) if args.weights else weights.find(model, header.weights_id)
            codecs[key] = load_codec(model, path, args)
            if files_ahead >= TRACE_FROM:
                codecs[key].trace(EncoderOptions(tile=_tile(args)))
        return codecs[key]

    return codec_for


def decompress(model: str, args: argparse.Namespace) -> int:
    groups = getattr(args, "groups", None)
    targets, code = find_files(args, {STREAM_SUFFIX}, IMAGE_SUFFIX)
    if not targets:
        return code
    codec_for = codec_finder(model, args, files_ahead=len(targets))

    def work(source: Path) -> str:
        target = targets[source]
        files.check_target(target, args.force)
        data = files.read_bytes(source)
        header, _, _ = container.unpack(data, partial=args.partial)
        images.check_writable(target, header.height, header.width)
        codec = codec_for(header)
        controls = {} if groups is None else {"groups": groups}
        image = guarded(codec.decompress, data, partial=args.partial, tile=_tile(args), **controls)
        images.write_image(target, image, args.force)
        return f"{source} -> {target}: {image.shape[1]}x{image.shape[0]}"

    return each(list(targets), work, list(targets.values())) or code


def guarded(function, *args, **kwargs):
    """Calls; TensorFlow's way of running out of memory becomes Python's."""
    import tensorflow as tf

    try:
        return function(*args, **kwargs)
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError from error


def evaluate(model: str, args: argparse.Namespace) -> int:
    from eval import perceptual, report, sweep
    from models.codec.distortion import MSE
    from models.codec.ladder import Ladder

    inputs, code = find_inputs(args, formats.extensions())
    if not inputs:
        return code
    names = files.distinct_names({path: Path(path.name) for path in inputs})
    figures = files.target_of(args.json) if args.json else None
    for target in filter(None, (figures, args.plot)):
        files.check_target(target, args.force)
    if args.plot:
        report.check_plot(args.plot)
    judge = perceptual.Judge() if args.perceptual else None
    path = _weights_path(model, args)
    codec = load_codec(model, path, args) if args.quality == (None,) else _load_rates(model, args)
    one_set = not isinstance(codec, Ladder)
    if args.record and not one_set:
        raise UserError("--record: name the weights, here several, with --weights or --preset")
    metric = "psnr" if codec.distortion == MSE else "ms_ssim"
    anchors = []
    if args.anchors is not None:
        anchors = report.comparable(report.load_anchors(args.anchors or report.ANCHORS).values(), metric)
        if not args.anchors and not report.is_kodak(inputs):
            print(
                "note: these anchors are of kodim01 to kodim24, and other images compare with others: "
                "python -m eval.anchors measures them",
                file=sys.stderr,
            )
    for quality in args.quality:
        codec.rate_control.check_quality(quality)
    options = encoder_options(args)
    if len(inputs) * len(args.quality) >= TRACE_FROM:
        codec.trace(options)
    if one_set:
        facts = {"model": model, "weights": path.name, "weights_id": codec.weights_id.hex(), **codec.settings()}
    else:
        facts = {"model": model, **codec.facts()}
    facts["precision"] = codec.precision
    if getattr(args, "effort", None) is not None:
        facts["effort"] = options.effort
    to_device = figures is not None and files.is_device(figures)
    lines = sys.stderr if to_device else sys.stdout
    read = _reader()
    curve, points = [], []
    for quality in args.quality:
        measurements = []

        def work(source: Path, quality=quality, measurements=measurements) -> None:
            controls = {} if quality is None else {"quality": quality}
            image, name = read(source), str(names[source])
            measure = guarded(sweep.measure, codec, image, name, options, judge=judge, **controls)
            measurements.append(measure)

        code = each(list(inputs), work) or code
        if not measurements:
            return code
        table = report.table(measurements)
        print(table if quality is None else f"quality {quality:g}\n{table}", file=lines)
        seen = {}
        if judge:
            crowd = judge.frechet()
            seen = {"frechet_distance": crowd.distance, "patches": crowd.patches}
            print(
                f"Fréchet distance {crowd.distance:.4f} of {crowd.patches} patches, "
                f"{crowd.of_half:.4f} of every other one",
                file=lines,
            )
        if args.anchors is not None:
            print(report.standing(report.mean(measurements), anchors, metric), file=lines)
        lines.flush()  # a quality can take minutes, and this can be a file
        curve.append(measurements)
        points.append({"quality": quality, **report.mean(measurements), **seen})
        # After each quality, so that who stops before the last one keeps the others; what is written to a device stays.
        if figures and (not to_device or len(curve) == len(args.quality)):
            if len(args.quality) > 1:
                facts["curve"] = points
            report.write_json(figures, measurements, force=args.force or len(curve) > 1, **facts, **seen)
    test = report.curve_of(f"{model} {path.stem}" if one_set else model, curve)
    if len(curve) > 1 and anchors:
        print(report.bd_rates(test, anchors, metric), file=lines)
    if args.plot:
        report.plot(args.plot, [test], anchors, metric, force=args.force)
    if args.record and not code:
        weights.annotate(path, **{args.record: "; ".join(map(_mean_figures, curve))})
    return code


def _reader() -> Callable[[Path], np.ndarray]:
    """A function that reads images, and more than once from what can be read only once, such as standard input."""
    held: dict[Path, np.ndarray] = {}

    def read(source: Path) -> np.ndarray:
        if source not in held:
            image = images.read_image(source)
            if not files.is_device(source):
                return image
            held[source] = image
        return held[source]

    return read


def _mean_figures(measurements) -> str:
    from eval import report

    mean = report.mean(measurements)
    figures = f"{mean['bpp']:.4f} bpp, {mean['psnr']:.3f} dB, MS-SSIM {mean['ms_ssim']:.5f}"
    return f"{len(measurements)} images, real files, means: {figures}"


def export(model: str, args: argparse.Namespace) -> int:
    if args.version < 1:
        raise UserError(f"--version {args.version}: must be at least 1")
    if not 0 < args.max_megapixels * 1e6 <= container.MAX_PIXELS:
        limit = container.MAX_PIXELS // 10**6
        raise UserError(f"--max_megapixels {args.max_megapixels:g}: must be above 0 and at most {limit}")
    path = _weights_path(model, args)
    codec = load_codec(model, path, args)
    from models.app import serving
    from transforms import exact

    if codec.reach is None and args.max_megapixels > 1:
        warnings.warn(
            f"these {model} weights normalise over the whole image, and were trained on small ones: colours and "
            "contrast of large images may be off, and they take memory in one piece: see --max_megapixels",
            images.ImageWarning,
            stacklevel=1,
        )
    card = {"model": model, "about": " ".join(sys.modules[type(codec).__module__].__doc__.split("\n\n")[0:2])}
    card |= {**weights.read_metadata(path), "precision": codec.precision}
    options = encoder_options(args)
    with exact.algorithm_independent(True if args.gpu else None):
        if args.tflite:
            from models.app import tflite

            target = tflite.export(
                codec, args.directory, *args.tflite, version=args.version, card=card, options=options
            )
        else:
            pixels = int(args.max_megapixels * 1e6)
            target = serving.export(codec, args.directory, args.version, pixels, card, options)
    print(f"{path} -> {target}")
    return 0


def train(model: str, args: argparse.Namespace) -> int:
    """Trains a model, and prints how to use the weights."""
    from train.options import fit_options
    from train.pjrt import options as pjrt_options

    own = flags.of(model)
    outside = pjrt_options.uses_pjrt(args)
    options = pjrt_options.pjrt_fit_options(args) if outside else fit_options(args)
    own.check_train_flags(args)

    def build():
        return own.for_training(args)

    if outside:
        from train.pjrt import export as pjrt

        best = pjrt.train(registry.get(model), build, options, args)
        if best:
            print(f"trained weights: {best}")
    else:
        from train.fit import fit

        trained = fit(build, options)
        best = trained.best
        print(f"trained weights: {best} (lowest validation loss), {trained.final} (last step)")
    if best:
        program = f"models/{model}.py" if model in registry.MODEL_IDS.values() else f"{model}.py"
        print(f"to use them: python {program} compress IMAGE --weights {best}")
    return 0
