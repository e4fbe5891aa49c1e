"""The command line that all models share: train, compress, decompress, evaluate, export.

A model file begins with `models.app.main("elic")`, which calls `main` here. Errors of the user become one line on
stderr and exit code 1 (2 for usage); with several inputs a bad one is reported and the others are still done.

`models/app` is the roof of the project: the one package of `models` that imports `train` and `eval`.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl.flags import argparse_flags

from models.app import commands, flags
from models.codec import registry, weights
from models.codec.precision import AUTO, FLOAT32, PRECISIONS
from models.entropy import container
from models.io import files, images, terminal
from models.io.errors import UserError
from models.io.files import IMAGE_SUFFIX, STREAM_SUFFIX


def main(model: str, argv: Sequence[str] | None = None) -> None:
    """Runs the command line of `model` and exits.

    argv: the arguments without the program's name; those of the process by default.
    """
    warnings.showwarning = _show_warning
    args = _parser(model).parse_args(sys.argv[1:] if argv is None else argv)
    try:
        code = args.command(model, args)
    except (UserError, container.StreamError) as error:
        code = terminal.report_error(str(error))
    except KeyboardInterrupt:
        code = 130
    sys.exit(terminal.finish(code))


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Prints a warning for the user as one line; warnings of libraries are suppressed."""
    if issubclass(category, images.ImageWarning):
        print(f"warning: {message}", file=sys.stderr)


# --- the parser ----------------------------------------------------------------------------------------------


def _parser(model: str) -> argparse.ArgumentParser:
    card, own = registry.card(model), flags.of(model)
    parser = argparse_flags.ArgumentParser(prog=f"{model}.py", description=card.title)
    subcommands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)
    _add_train(subcommands, card, own)
    _add_compress(subcommands, card, own)
    _add_decompress(subcommands, card)
    _add_evaluate(subcommands, card)
    _add_export(subcommands, card)
    for name, command in own.stream_commands.items():
        _add_stream_command(subcommands, name, command)
    _subcommand(subcommands, "presets", _print_presets, "Lists the presets and the weights that ship.")
    return parser


def _print_presets(model: str, args: argparse.Namespace) -> int:
    from models.app import presets

    print(presets.table([registry.card(model)]))
    return 0


def _subcommand(subcommands, name: str, run: Callable, help: str) -> argparse.ArgumentParser:
    parser = subcommands.add_parser(name, help=help, description=help)
    parser.set_defaults(command=run)
    return parser


def _add_weights_flags(parser, card: registry.Card) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--weights", metavar="FILE", help="Weights file (.safetensors); by default weights that ship.")
    names = dict.fromkeys([*card.presets, *(path.stem for path in weights.shipped(card.name))])
    which.add_argument("--preset", choices=list(names), help="Which of the weights that ship to use.")


def _add_recursive_flag(parser) -> None:
    parser.add_argument(
        "--recursive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Descend into the subfolders of a folder (the default).",
    )


def _add_output_flags(parser, result: str, suffix: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        help=f"Where the {result} goes: a file for one input, a folder for several, - for standard output. By default "
        f"beside the input, with {suffix} appended. Inputs from globs and folders keep their subfolders.",
    )
    parser.add_argument("-f", "--force", action="store_true", help="Replace files that exist.")


def _add_train(subcommands, card: registry.Card, own: flags.Flags) -> None:
    from train.options import add_train_flags, group
    from train.pjrt.options import add_pjrt_flags

    parser = _subcommand(subcommands, "train", commands.train, "Trains a model on photographs.")
    add_train_flags(parser, train_path=f"runs/{card.name}")
    group(parser, "model").add_argument(
        "--preset",
        choices=list(card.presets),
        default=next(iter(card.presets)),
        help="Architecture to train. Ignored with --init_weights, which has its own.",
    )
    own.add_train_flags(parser)
    group(parser, "fine-tuning").add_argument(
        "--init_weights", metavar="FILE", help="Start from these trained weights."
    )
    add_pjrt_flags(parser)


def _add_compress(subcommands, card: registry.Card, own: flags.Flags) -> None:
    parser = _subcommand(subcommands, "compress", commands.compress, f"Compresses images to {STREAM_SUFFIX} files.")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="Images, folders or globs; - is standard input.")
    _add_recursive_flag(parser)
    _add_output_flags(parser, "result", STREAM_SUFFIX)
    rate = parser.add_mutually_exclusive_group()
    own.add_compress_flags(parser, rate)
    highest = "Instead: the highest quality whose file has at most this many"
    rate.add_argument("--target_bpp", type=float, help=f"{highest} bits per pixel.")
    rate.add_argument("--target_kb", type=float, help=f"{highest} kB (1000 bytes).")
    _add_effort_flag(parser, card)
    _add_tile_flag(parser)
    _add_precision_flag(parser)
    _add_weights_flags(parser, card)


def _add_decompress(subcommands, card: registry.Card) -> None:
    parser = _subcommand(
        subcommands, "decompress", commands.decompress, f"Decompresses {STREAM_SUFFIX} files to images."
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE", help=f"{STREAM_SUFFIX} files, folders or globs; - is standard input."
    )
    _add_recursive_flag(parser)
    _add_output_flags(parser, "image (its extension chooses the format)", IMAGE_SUFFIX)
    _add_stream_weights_flag(parser)
    _add_tile_flag(parser)
    _add_precision_flag(parser)
    if card.progressive:
        parser.add_argument(
            "--groups",
            type=int,
            metavar="K",
            help="Decode only the first K groups of the latent, the others at their predicted means: a quick preview, "
            "or one step of a progressive display. The fingerprint, which covers all groups, is not checked then.",
        )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="Accept a file that is cut off and show what it still holds: for a download in progress, or a damaged "
        "disk. Nothing can be verified then.",
    )


def _add_effort_flag(parser, card: registry.Card) -> None:
    from models.codec.options import DEFAULTS

    if card.searchable:
        parser.add_argument(
            "--effort",
            type=int,
            metavar="N",
            help="RDOQ iterations, for weights whose files have RDOQ: more of them take longer and make smaller files. "
            f"{DEFAULTS.effort} by default; 0 rounds to the nearest symbols and is the fastest.",
        )


def _add_tile_flag(parser) -> None:
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="Side of the tiles that large images are worked through in: smaller ones take less memory and more "
        "time. By default 1024 above 2.6 megapixels; smaller images are not cut.",
    )


def _add_precision_flag(parser, default: str = AUTO, why: str = "bfloat16 where this processor multiplies it") -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=default,
        help=f"Precision of the transforms. By default {why}. A file decodes to the same symbols with either.",
    )


def _add_stream_weights_flag(parser) -> None:
    parser.add_argument(
        "--weights", metavar="FILE", help="Weights file; by default the one that ships and wrote the file."
    )


def _add_evaluate(subcommands, card: registry.Card) -> None:
    parser = _subcommand(
        subcommands,
        "evaluate",
        commands.evaluate,
        "Compresses images to real files and measures bpp, PSNR and MS-SSIM.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="Images, folders, or globs such as 'kodak/*.png'.")
    _add_recursive_flag(parser)
    parser.add_argument(
        "--quality",
        type=flags.base.numbers,
        default=(None,),
        metavar="Q[,Q…]",
        help="For weights of variable rate: qualities to measure, as `compress` takes them.",
    )
    _add_effort_flag(parser, card)
    parser.add_argument("--json", metavar="FILE", help="Also write the figures as JSON; - is standard output.")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="Also draw the rate-distortion curve, with those of --anchors: .png, .svg or .pdf.",
    )
    parser.add_argument("-f", "--force", action="store_true", help="Replace the files of --json and --plot.")
    parser.add_argument(
        "--anchors",
        nargs="?",
        const="",
        metavar="FILE",
        help="Also print how the mean stands against other codecs at the same rate, and for several qualities the "
        "BD-rates; by default against those measured on the 24 Kodak images (res/eval/anchors.json). For images of "
        "your own `python -m eval.anchors` makes such a file.",
    )
    parser.add_argument(
        "--perceptual",
        action="store_true",
        help="Also SSIMULACRA2, a distance of deep features and, of all images together, a Fréchet distance of them "
        "(pip install ssimulacra2==0.3.0). See res/doc/methods.md.",
    )
    parser.add_argument(
        "--record",
        metavar="NAME",
        help="Also write the mean figures into the header of the weights file, under this name, such as kodak.",
    )
    _add_precision_flag(parser)
    _add_weights_flags(parser, card)


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    if width < 1 or height < 1:
        raise ValueError(text)
    return width, height


_size.__name__ = "WIDTHxHEIGHT"  # what argparse calls it in its messages


def _add_export(subcommands, card: registry.Card) -> None:
    parser = _subcommand(
        subcommands, "export", commands.export, "Writes a SavedModel that TensorFlow Serving runs as it is."
    )
    parser.add_argument("directory", metavar="DIR", help="The model's base path: the SavedModel goes to DIR/VERSION.")
    parser.add_argument("--version", type=int, default=1, help="A server takes the highest it finds.")
    parser.add_argument(
        "--max_megapixels",
        type=float,
        default=32,
        help="Largest request in megapixels, after padding; larger ones are refused, to protect the server's memory.",
    )
    _add_effort_flag(parser, card)
    _add_tile_flag(parser)
    _add_precision_flag(parser, FLOAT32, "float32, which every server computes well")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="For servers with GPUs, whose libraries choose how to convolve: the networks that choose probabilities "
        "are exact with any algorithm, in twice their time. By default only where there is a GPU here.",
    )
    parser.add_argument(
        "--tflite",
        metavar="WxH",
        type=_size,
        help="Instead: compress.tflite and decompress.tflite for one image of exactly this size, in "
        "DIR/tflite-VERSION. They run in TensorFlow Lite with Select TensorFlow ops.",
    )
    _add_weights_flags(parser, card)


def _add_stream_command(subcommands, name: str, command) -> None:
    """A subcommand of the model's own; see `Flags.stream_commands`."""

    def run(model: str, args: argparse.Namespace) -> int:
        codec_for = commands.codec_finder(model, args)

        def work(source: Path) -> str:
            data = files.read_bytes(source)
            codec = codec_for(container.unpack(data)[0])
            text = commands.guarded(command.run, codec, args, data)
            return f"{source}:\n{text}" if "\n" in text else f"{source}: {text}"

        return commands.each(files.expand_inputs(args.inputs), work)

    parser = _subcommand(subcommands, name, run, command.help)
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=f"{STREAM_SUFFIX} files, or globs.")
    _add_stream_weights_flag(parser)
    command.add_flags(parser)


if __name__ == "__main__":
    print(f"usage: python {os.path.join('models', 'MODEL.py')} COMMAND", file=sys.stderr)
    sys.exit(2)
