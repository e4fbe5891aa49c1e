"""SavedModels that stock TensorFlow Serving runs: a codec as signatures of core ops.

    compress           image uint8 [B, H, W, 3], and the model's controls    -> bitstream_bytes string [B]
    decompress         bitstream_bytes string [B], of images of one size   -> image uint8 [B, H, W, 3]
    compress_file      image_bytes string [B], PNG or JPEG of any sizes, and controls -> bitstream_bytes string [B]
    decompress_file    bitstream_bytes string [B], of any sizes              -> image_bytes string [B], PNG
    serving_default    compress_file without controls

and what a model tells of latents besides (`Codec.latent_outputs`), such as ELC's

    classify           bitstream_bytes string [B], of images of one size   -> probabilities float32 [B, K]

The strings are the files of the command line, and either reads the other's. The REST interface takes and gives inputs
and outputs whose names end in `_bytes` as base64. A bad request gets INVALID_ARGUMENT and a text that says what is
wrong, before memory is allocated for what it claims.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from models.codec import Codec, coding
from models.codec.options import DEFAULTS, EncoderOptions
from models.entropy import container_ops
from models.entropy.rans import CPU, require
from models.io.errors import UserError, one_line, reason
from models.io.images import encode_image

#: Larger images and batches are refused: one request must not take a server's memory.
MAX_PIXELS = 1 << 25
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # what files of these formats begin with
#: Longest stream that is taken: bytes for each pixel of the limit (images take about one), and bytes besides.
STREAM_BYTES_PER_PIXEL, STREAM_BYTES = 4, 1 << 16
MODEL_CARD = "model_card.json"
WARMUP = "tf_serving_warmup_requests"


def signatures(codec: Codec, max_pixels: int = MAX_PIXELS, options: EncoderOptions = DEFAULTS) -> dict[str, Callable]:
    """The functions of a SavedModel by the names of their signatures, see above; not traced yet.

    Args:
      codec: ready to code.
      max_pixels: larger images are refused, and batches that have more in all. Sizes count after padding to the codec's
        stride, as the networks see images: an image of one row takes the memory of many.
      options: of the encoder; its tiles are the decoder's, too.
    """
    images = tf.TensorSpec([None, None, None, 3], tf.uint8, "image")
    bitstreams = tf.TensorSpec([None], tf.string, "bitstream_bytes")
    files = tf.TensorSpec([None], tf.string, "image_bytes")
    wishes = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in codec.rate_control.request_specs.items()]

    def check_size(batch, height, width, *values):
        """`height`, `width` and `values`, which exist only if `batch` images of this size are within the limit."""
        batch, *padded = (tf.cast(n, tf.int64) for n in (batch, *codec.padded_size(height, width)))
        pixels = batch * padded[0] * padded[1]
        rows, columns = codec.stride
        message = f"1 to {max_pixels} pixels are served at once, of images padded to multiples of {columns}x{rows}"
        return require((pixels >= 1) & (pixels <= max_pixels), message, height, width, *values)

    def check_batch(*values):
        """`values`, which exist only if they are of as many images each, and of one at least."""
        counts = [tf.shape(value)[0] for value in values]
        values = require(counts[0] > 0, "a request without images", *values)
        return require(tf.equal(counts, counts[0]), "the inputs of a request must be of equally many images", *values)

    def encode(image, controls: dict):
        shape, (height, width) = tf.shape(image), image.shape[1:3]
        if height is None or width is None:  # else the graph is made for this size
            image, *values = check_batch(image, *controls.values())
            controls = dict(zip(controls, values))
            height, width, image = check_size(*tf.unstack(shape[:3]), image)
        data, tensors = codec.rate_control.graph_from_args((shape[0], height, width), **controls)
        header = container_ops.headers(codec.entry.model_id, codec.weights_id, height, width, data)
        payload, mark = coding.encode(codec, image, header, tensors, options)
        return container_ops.pack(header, payload, mark)

    def named(controls) -> dict:
        return {spec.name: value for spec, value in zip(wishes, controls)}

    @tf.function(input_signature=[images, *wishes], autograph=False)
    def compress(image, *controls):
        return {"bitstream_bytes": encode(image, named(controls))}

    def compress_plainly(image):
        return compress(image, *middle_controls(codec).values())

    def unpack(bitstream_bytes):
        """The arguments of `coding.decode`, and the fingerprints of files of one size."""
        (bitstream_bytes,) = check_batch(bitstream_bytes)
        control_bytes = codec.rate_control.control_bytes
        parts = container_ops.unpack(bitstream_bytes, codec.entry.model_id, codec.weights_id, control_bytes)
        same = (parts.height == parts.height[:1]) & (parts.width == parts.width[:1])
        (size,) = require(same, "the images of a batch must be of one size", tf.stack([parts.height, parts.width]))
        size = tf.stack(check_size(tf.shape(bitstream_bytes)[0], *tf.unstack(size[:, 0])))
        # The coder lays all out as long as the longest, which is so no more than a few times the images.
        lengths = tf.cast(tf.strings.length(parts.payload), tf.int64)
        fits = tf.size(lengths, tf.int64) * tf.reduce_max(lengths) <= STREAM_BYTES + STREAM_BYTES_PER_PIXEL * max_pixels
        (payload,) = require(fits, "a stream is longer than any of such an image", parts.payload)
        return (payload, parts.header, size, codec.rate_control.graph_from_header(parts.controls)), parts.fingerprint

    def verified(mark, fingerprint, value):
        message = "damaged stream: the decoded symbols are not those that were coded"
        return require(mark == fingerprint, message, value)[0]

    @tf.function(input_signature=[bitstreams], autograph=False)
    def decompress(bitstream_bytes):
        arguments, fingerprint = unpack(bitstream_bytes)
        images, mark = coding.decode(codec, *arguments, options.tile)
        images = verified(mark, fingerprint, images)
        return {"image": tf.cast(tf.round(tf.clip_by_value(images, 0.0, 255.0)), tf.uint8)}

    def of_latents(function):
        @tf.function(input_signature=[bitstreams], autograph=False)
        def output(bitstream_bytes):
            arguments, fingerprint = unpack(bitstream_bytes)
            latents, _, mark = coding.read(codec, *arguments)
            return function(verified(mark, fingerprint, latents))

        return output

    def one_by_one(function, values):
        # One at a time, where `map_fn` would take several: the limit is for the memory of one.
        return tf.map_fn(function, values, fn_output_signature=tf.string, parallel_iterations=1)

    def each_file(function):
        """`function` of an image [1, H, W, 3], for each of several encoded images of different sizes."""

        def one(arguments):
            with tf.device(CPU):
                (file,) = check_size(1, *_size_of_file(arguments[0]), arguments[0])[2:]
                image = tf.io.decode_image(file, channels=3, expand_animations=False)
            return function(image[None], *(value[None] for value in arguments[1:]))["bitstream_bytes"][0]

        return lambda *arguments: {"bitstream_bytes": one_by_one(one, tuple(check_batch(*arguments)))}

    def decompress_one(bitstream):
        image = decompress(bitstream[None])["image"][0]
        with tf.device(CPU):
            return tf.io.encode_png(image)

    @tf.function(input_signature=[bitstreams], autograph=False)
    def decompress_file(bitstream_bytes):
        return {"image_bytes": one_by_one(decompress_one, *check_batch(bitstream_bytes))}

    return {
        "serving_default": tf.function(each_file(compress_plainly), input_signature=[files], autograph=False),
        "compress": compress,
        "decompress": decompress,
        "compress_file": tf.function(each_file(compress), input_signature=[files, *wishes], autograph=False),
        "decompress_file": decompress_file,
        **{name: of_latents(function) for name, function in codec.latent_outputs().items()},
    }


def _size_of_file(file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Height and width of a PNG or JPEG, a string scalar, as its header says: nothing is decoded for that.

    TensorFlow's decoders allocate what a header claims, and a few bytes can claim gigabytes.

    Raises:
      tf.errors.InvalidArgumentError: neither PNG nor JPEG.
    """
    start = tf.io.decode_raw(file, tf.uint8, fixed_length=24)
    is_png, is_jpeg = (tf.reduce_all(start[: len(magic)] == list(magic)) for magic in (PNG, JPEG))
    file, start = require(is_png | is_jpeg, "neither PNG nor JPEG", file, start)
    # The first chunk of a PNG is its header: behind 4 bytes of length and 4 of name, two big-endian numbers.
    numbers = tf.reshape(tf.cast(start[16:24], tf.int64), [2, 4])
    width, height = tf.unstack(tf.reduce_sum(numbers * [1 << 24, 1 << 16, 1 << 8, 1], 1))
    png = tf.stack([height, width])
    size = tf.cond(is_jpeg, lambda: tf.cast(tf.io.extract_jpeg_shape(file)[:2], tf.int64), lambda: png)
    return size[0], size[1]


def export(
    codec: Codec,
    directory,
    version: int = 1,
    max_pixels: int = MAX_PIXELS,
    card: dict | None = None,
    options: EncoderOptions = DEFAULTS,
) -> Path:
    """Writes a SavedModel to `directory`/`version`, whole or not at all. Returns that folder.

    Args:
      codec: from `models.codec.load`.
      directory: what TensorFlow Serving calls a model's base path.
      version: of the model, 1 or above: the server takes the highest.
      max_pixels: see `signatures`.
      card: facts for assets/model_card.json.
      options: of the encoder; its tiles are the decoder's, too.

    Raises:
      UserError: the version exists, or cannot be written.
    """
    target = Path(directory) / str(version)
    write_folder(target, lambda folder, scratch: _save(codec, folder, scratch, max_pixels, card or {}, options))
    return target


def write_folder(target: Path, write: Callable[[Path, Path], None]) -> None:
    """Writes a folder, whole or not at all: `write(folder, scratch)`, with room for what is not to stay in `scratch`.

    Raises:
      UserError: it exists, or cannot be written.
    """
    if target.exists():
        raise UserError(f"{target}: exists: name another --version")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {reason(error)}") from error
    try:
        write(scratch / "model", scratch)
        os.replace(scratch / "model", target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {reason(error)}") from error
    except tf.errors.OpError as error:  # TensorFlow writes most of it, and reports a full disk so
        raise UserError(f"{target}: cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save(codec: Codec, folder: Path, scratch: Path, max_pixels: int, card: dict, options: EncoderOptions) -> None:
    codec.coder  # noqa: B018 - its tables are made outside of the graphs
    functions = signatures(codec, max_pixels, options)
    concrete = {name: function.get_concrete_function() for name, function in functions.items()}
    path = scratch / MODEL_CARD
    write_card(path, card)
    module = tf.Module()
    # Not the codec itself: Keras would save all that a model can do.
    module.all_variables = list({id(v): v for f in concrete.values() for v in f.variables}.values())
    module.model_card = tf.saved_model.Asset(str(path))
    tf.saved_model.save(module, str(folder), signatures=concrete)
    write_warmup(folder, codec)


def write_card(path: Path, card: dict) -> None:
    """Writes the facts of a model as JSON."""
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")


def write_warmup(folder: Path, codec: Codec) -> None:
    """Writes assets.extra/tf_serving_warmup_requests: a request to each signature, for the server to begin with.

    The first image through a graph takes seconds longer than the next; no user should be the one to wait.
    """
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    image, wishes = _sample_image(), middle_controls(codec)
    file = {"image_bytes": np.array([encode_image(image)], object)}
    stream = {"bitstream_bytes": np.array([codec.compress(image)], object)}
    inputs = {
        "compress": {"image": image[None], **wishes},
        "decompress": stream,
        "compress_file": {**file, **wishes},
        "decompress_file": stream,
        "serving_default": file,
        **dict.fromkeys(codec.latent_outputs(), stream),
    }
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / WARMUP)) as writer:
        for signature, values in inputs.items():
            request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(signature_name=signature))
            for name, value in values.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def middle_controls(codec: Codec) -> dict[str, np.ndarray]:
    """Values for the controls of one request: a middle quality, for all of the image where the control is a map."""
    control = codec.rate_control
    middle = control.qualities[control.qualities.size // 2] if control.qualities.size else 0
    return {name: np.full([1] * len(spec.shape), middle, np.float32) for name, spec in control.request_specs.items()}


def _sample_image() -> np.ndarray:
    """uint8 [192, 256, 3], a gradient."""
    rows, columns = np.mgrid[:192, :256]
    return np.stack([rows, columns, (rows + columns) // 2], -1).astype(np.uint8)
