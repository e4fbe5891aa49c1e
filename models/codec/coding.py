"""Images to bytes and back: what `Codec.compress` and `Codec.decompress` do.

    compress     pad ─► analyse (in tiles) ─► encoder-side search ─► code ─► filter ─► payload, fingerprint ─► container
    decompress   container ─► code ─► reconstruct (in tiles) ─► crop ─► filter

The functions take a codec; a served model and a TensorFlow Lite file are graphs of `encode` and `decode`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from models.codec.options import EncoderOptions
from models.entropy import container, rans
from models.entropy.coders import LatentCoder, TableRate
from models.io.errors import UserError
from models.tools import restoration
from models.tools.target_size import largest_within
from transforms import tiling

if TYPE_CHECKING:
    from models.codec.base import Codec


# ---- images to payloads ---------------------------------------------------------------------------------------------


def encode(
    codec: Codec, images: tf.Tensor, header: tf.Tensor, controls: dict, options: EncoderOptions
) -> tuple[tf.Tensor, tf.Tensor]:
    """Encodes images of one size: payloads, string [B], and fingerprints, uint32 [B].

    Args:
      codec: with tables.
      images: uint8 [B, H, W, 3].
      header: the container's header, which the fingerprint covers; string [].
      controls: of `Codec.transmit`, not padded.
      options: the encoder's.
    """
    stream = rans.RansEncoder(codec.coder)
    coder, original = LatentCoder(stream), images
    images, controls = codec.pad(images), codec.pad_controls(controls)
    analysed = analyse_for_encoding(codec, images, controls, options)
    latents = codec.code(coder, analysed, tf.shape(images)[:3], **controls)
    if codec.has_filter:
        decoded = decoded_image(codec, latents, None, tf.shape(original)[1:3], options.tile)
        fit_filter(codec, coder, original, decoded, controls)
    return stream.finish(), stream.fingerprint(header)


def analyse_for_encoding(codec: Codec, images: tf.Tensor, controls: dict[str, tf.Tensor], options: EncoderOptions):
    """Analyses padded images [B, H, W, 3] and searches for better latents, as the weights and the options allow."""
    analysed = refine_analysis(codec, images, controls, options.tile)
    return codec.optimise(images, analysed, controls, options.effort, options.progress)


def refine_analysis(codec: Codec, images: tf.Tensor, controls: dict[str, tf.Tensor], tile: int | None = None):
    """Analyses padded images [B, H, W, 3], and once more with what the synthesis would leave out of them.

    The transforms are not each other's inverse: without any rounding the synthesis gives another image, and at
    high rates that is a third of the error. So a share of what is missing (`compensation`) is added to the image
    and that is analysed again; one step of Landweber's iteration. Only latents that are sent anyhow may change:
    what a trained analysis has left at 0 is not worth its bits.
    """
    analysed = analyse_in_tiles(codec, images, controls, tile)
    if not codec.compensation:
        return analysed
    images = tf.cast(images, tf.float32)
    missing = images - reconstruct_in_tiles(codec, codec.unquantised(analysed, **controls), tile)
    again = analyse_in_tiles(codec, images + codec.compensation * missing, controls, tile)
    return tf.where(tf.abs(analysed * codec.symbol_scale(**controls)) > 0.5, again, analysed)


def analyse_in_tiles(codec: Codec, images: tf.Tensor, controls: dict[str, tf.Tensor], tile: int | None = None):
    """Runs `Codec.analyse` on padded images [B, H, W, 3]; on large ones in tiles, where there are no gradients."""
    maps = {name: value for name, value in controls.items() if len(value.shape) == 4}

    def analyse(part, *parts):
        return codec.analyse(tf.cast(part, tf.float32), **{**controls, **dict(zip(maps, parts))})

    inputs = [images, *maps.values()]
    if codec.reach is None:
        return analyse(*inputs)
    r = codec.reach
    return tiling.in_tiles(analyse, inputs, [1] * len(inputs), r.latents, r.unit, r.analysis, tile)


def reconstruct_in_tiles(codec: Codec, latents, tile: int | None = None) -> tf.Tensor:
    """Runs `Codec.reconstruct`; for large images in tiles, where there are no gradients.

    Raises:
      ValueError: the codec was loaded to compress only, and has no synthesis.
    """
    if not codec.decodes:
        raise ValueError("loaded without the synthesis, which makes images: load(path) has it")
    if codec.reach is None:
        return codec.reconstruct(latents)

    def reconstruct(*parts):
        return codec.reconstruct(tf.nest.pack_sequence_as(latents, parts))

    r = codec.reach
    return tiling.in_tiles(reconstruct, tf.nest.flatten(latents), r.decoded, [1], r.unit, r.synthesis, tile)


def fit_filter(codec: Codec, coder, images: tf.Tensor, decoded: tf.Tensor, controls: dict) -> tf.Tensor:
    """Fits a filter to decoded images [B, H, W, 3] and codes it where it saves more than it costs; coefficients."""
    found, saved = restoration.fit(images, decoded, codec.error_weights(tf.shape(images), **controls))
    size, batch = TableRate(codec.bank), tf.shape(found)[0]
    restoration.code(size, found, batch, codec.gaussian_rows)
    bpp = size.bits["restoration"] / tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
    return restoration.code(coder, tf.where((saved > bpp)[:, None], found, 0), batch, codec.gaussian_rows)


# ---- payloads to images ---------------------------------------------------------------------------------------------


def decode(codec: Codec, payloads: tf.Tensor, header: tf.Tensor, size: tf.Tensor, controls: dict, tile=None):
    """Decodes payloads, string [B], of images of one size (height, width): float32 [B, H, W, 3], fingerprints [B]."""
    latents, coefficients, mark = read(codec, payloads, header, size, controls)
    return decoded_image(codec, latents, coefficients, size, tile), mark


def read(codec: Codec, payloads: tf.Tensor, header: tf.Tensor, size: tf.Tensor, controls: dict):
    """Reads all of payloads: latents, the coefficients of filters (None where there are none), fingerprints [B]."""
    stream = rans.RansDecoder(codec.coder, payloads)
    latents, coefficients = receive(codec, stream, tf.shape(payloads)[0], size, controls)
    stream.finish()
    return latents, coefficients, stream.fingerprint(header)


def receive(codec: Codec, stream: rans.RansDecoder, batch, size, controls: dict):
    """Reads latents and the coefficients of filters of `batch` images of one size from an open stream."""
    coder = LatentCoder(stream)
    latents = codec.transmit(coder, shape=(batch, *codec.padded_size(size[0], size[1])), **controls)
    # The filter is behind all groups: a preview of the first ones has none.
    if not codec.has_filter or "groups" in controls:
        return latents, None
    return latents, restoration.code(coder, None, batch, codec.gaussian_rows)


def decoded_image(codec: Codec, latents, coefficients: tf.Tensor | None, size, tile: int | None = None) -> tf.Tensor:
    """Reconstructs images float32 [B, H, W, 3] from latents, and filters them if there are coefficients."""
    decoded = reconstruct_in_tiles(codec, latents, tile)[:, : size[0], : size[1]]
    return decoded if coefficients is None else restoration.apply(decoded, coefficients)


# ---- files ----------------------------------------------------------------------------------------------------------


def controls_from_args(codec: Codec, shape, controls: dict) -> tuple[bytes, dict[str, tf.Tensor]]:
    """Does what `RateControl.from_args` does for images of a shape (B, H, W). UserError for a name it does not take."""
    unknown = controls.keys() - inspect.signature(codec.rate_control.from_args).parameters
    if unknown:
        raise UserError(f"{codec.entry.name} has no control named {', '.join(sorted(unknown))}")
    return codec.rate_control.from_args(shape, **controls)


def compress_batch(codec: Codec, images: np.ndarray, options: EncoderOptions, controls: dict) -> list[bytes]:
    """Compresses images of one size, see `Codec.compress_batch`."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        raise UserError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    batch, height, width, _ = images.shape
    packed, tensors = controls_from_args(codec, (batch, height, width), controls)
    header = container.Header(codec.entry.model_id, codec.weights_id, height, width, packed)
    inputs = tf.constant(images), tf.constant(container.header_bytes(header)), tensors
    graphs = codec.graphs
    if graphs and graphs.encodes(options):
        payloads, marks = graphs.encode(*inputs)
    else:
        payloads, marks = encode(codec, *inputs, options)
    return [container.pack(header, p, int(m)) for p, m in zip(payloads.numpy(), marks.numpy())]


def compress_to(codec: Codec, image: np.ndarray, target_bytes: int, options: EncoderOptions, controls: dict) -> bytes:
    """Compresses an image in the best quality whose file is not above a size, see `Codec.compress_to`."""
    qualities = codec.rate_control.qualities.tolist()
    if not qualities:
        raise UserError(f"these {codec.entry.name} weights are of one rate: they cannot aim at a size")
    files: dict[int, bytes] = {}

    def size_of(position: int) -> int:
        files[position] = codec.compress(image, options, quality=qualities[position], **controls)
        return len(files[position])

    best = largest_within(max(target_bytes, 1), len(qualities), size_of)
    if best < 0:
        raise UserError(f"the smallest file, {len(files[0])} bytes, is above the {target_bytes} asked for")
    return files[best]


def decompress(codec: Codec, data: bytes, groups: int | None, partial: bool, tile: int | None) -> np.ndarray:
    """Decompresses a file, see `Codec.decompress`."""
    header, payload, fingerprint, controls = open_stream(codec, data, partial)
    height, width = header.height, header.width
    if groups is not None:
        controls["groups"] = groups
    with stream_errors():
        if groups is None and not partial:
            size = tf.constant([height, width])
            inputs = tf.constant([payload]), container.header_bytes(header), size, controls
            if codec.graphs and codec.graphs.tile == tile:
                images, mark = codec.graphs.decode(*inputs)
            else:
                images, mark = decode(codec, *inputs, tile)
            check_symbols(mark, fingerprint)
            return to_uint8(images[0])
        stream = rans.RansDecoder(codec.coder, tf.constant([payload]), partial=partial)
        latents, coefficients = receive(codec, stream, 1, (height, width), controls)
    return to_uint8(decoded_image(codec, latents, coefficients, (height, width), tile)[0])


def read_latents(codec: Codec, data: bytes):
    """Reads the latents of a file without making an image, see `Codec.latents`."""
    header, payload, fingerprint, controls = open_stream(codec, data)
    size = tf.constant([header.height, header.width])
    with stream_errors():
        latents, _, mark = read(codec, tf.constant([payload]), container.header_bytes(header), size, controls)
        check_symbols(mark, fingerprint)
    return latents


def open_stream(
    codec: Codec, data: bytes, partial: bool = False
) -> tuple[container.Header, bytes, int, dict[str, tf.Tensor]]:
    """Header, payload, fingerprint and controls of a file. StreamError unless it is of this model and weights."""
    header, payload, fingerprint = container.unpack(data, partial=partial)
    if header.model_id != codec.entry.model_id:
        raise container.StreamError(f"stream of another model (id {header.model_id}), not of {codec.entry.name}")
    if header.weights_id != codec.weights_id:
        raise container.StreamError(
            f"stream written with other weights ({header.weights_id.hex()}), not these ({codec.weights_id.hex()})"
        )
    return header, payload, fingerprint, codec.rate_control.from_header(header.controls)


@contextlib.contextmanager
def stream_errors():
    """Turns what the coder's operations complain of into a StreamError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        raise container.StreamError(rans.describe(error).removeprefix("coder: ")) from error


def check_symbols(mark: tf.Tensor, fingerprint: int) -> None:
    """StreamError unless the decoded symbols of a file have its fingerprint."""
    if int(mark.numpy()[0]) != fingerprint:
        raise container.StreamError("damaged stream: the decoded symbols are not those that were coded")


def to_uint8(image: tf.Tensor) -> np.ndarray:
    """Rounds and clips 0..255 to uint8."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8).numpy()


# ---- graphs ---------------------------------------------------------------------------------------------------------


class Graphs:
    """Graphs of `encode` and `decode` for images of any size; see `Codec.trace`.

    Args:
      codec: with tables.
      options: of the encoder; images are compressed without the graph where others are asked for.
    """

    def __init__(self, codec: Codec, options: EncoderOptions):
        codec.coder  # noqa: B018 - its tables are variables, and functions that make some are traced twice
        images, string, number = (tf.TensorSpec(*spec) for spec in (
            ([None, None, None, 3], tf.uint8), ([], tf.string), ([2], tf.int32)
        ))  # fmt: skip
        self._options = options
        self.tile = options.tile
        self.encode = tf.function(
            lambda *inputs: encode(codec, *inputs, self._options),
            input_signature=[images, string, codec.rate_control.encode_specs],
            autograph=False,
        )
        self.decode = tf.function(
            lambda *inputs: decode(codec, *inputs, self.tile),
            input_signature=[tf.TensorSpec([None], tf.string), string, number, codec.rate_control.decode_specs],
            autograph=False,
        )

    def encodes(self, options: EncoderOptions) -> bool:
        """Tells whether the graph was made for these options."""
        return dataclasses.replace(options, progress=self._options.progress) == self._options
