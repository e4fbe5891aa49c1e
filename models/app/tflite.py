"""TensorFlow Lite: a codec as two files, for images of one size.

    compress.tflite      image uint8 [1, H, W, 3], and the model's controls  -> bitstream_bytes string [1]
    decompress.tflite    bitstream_bytes string [1]                          -> image uint8 [1, H, W, 3]

The strings are the files of the command line. Networks and coder convert, but not to TensorFlow Lite's own ops alone:
strings are cut and joined, and unsigned integers shifted, by ops that only TensorFlow has. So the interpreter must have
Select TensorFlow ops (the Flex delegate), as the one in TensorFlow's wheel does.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from models.app import serving
from models.codec import Codec
from models.codec.options import DEFAULTS, EncoderOptions
from models.io.errors import UserError


def export(
    codec: Codec,
    directory,
    width: int,
    height: int,
    version: int = 1,
    card: dict | None = None,
    options: EncoderOptions = DEFAULTS,
) -> Path:
    """Writes compress.tflite and decompress.tflite to `directory`/tflite-`version`, whole or not at all.

    Args:
      codec: from `models.codec.load`.
      directory: a server's base path will do: a server takes no notice of them.
      width, height: of the images.
      version: 1 or above.
      card: facts for model_card.json.
      options: of the encoder; its tiles are the decoder's, too.

    Returns:
      That folder.

    Raises:
      UserError: the version exists, cannot be written, or cannot be converted.
    """
    target = Path(directory) / f"tflite-{version}"

    def write(folder: Path, _) -> None:
        folder.mkdir()
        for name, function in functions(codec, width, height, options).items():
            (folder / f"{name}.tflite").write_bytes(convert(function))
        serving.write_card(folder / serving.MODEL_CARD, card or {})

    serving.write_folder(target, write)
    return target


def functions(
    codec: Codec, width: int, height: int, options: EncoderOptions = DEFAULTS
) -> dict[str, tf.types.experimental.GenericFunction]:
    """ "compress" and "decompress" of `serving.signatures`, for one image of a fixed size."""
    codec.coder  # noqa: B018 - its tables are made outside of the graphs
    padded = codec.padded_size(height, width)
    # These files take one size only, so a server's limit does not apply.
    served = serving.signatures(codec, padded[0] * padded[1], options)
    wishes = [  # a number, or a map
        tf.TensorSpec((1, height, width, 1)[: len(spec.shape)], spec.dtype, name)
        for name, spec in codec.rate_control.request_specs.items()
    ]
    image = tf.TensorSpec([1, height, width, 3], tf.uint8, "image")
    bitstream = tf.TensorSpec([1], tf.string, "bitstream_bytes")

    def decompress(bitstream_bytes):
        # A stream of another size is an error of the interpreter's.
        return {"image": tf.ensure_shape(served["decompress"].python_function(bitstream_bytes)["image"], image.shape)}

    return {
        "compress": tf.function(served["compress"].python_function, input_signature=[image, *wishes], autograph=False),
        "decompress": tf.function(decompress, input_signature=[bitstream], autograph=False),
    }


def convert(function) -> bytes:
    """A function of fixed shapes as a TensorFlow Lite file. UserError if it has what the converter cannot take."""
    module = tf.Module()
    concrete = function.get_concrete_function()
    module.variables_of_it = concrete.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    # TensorFlow Lite's own form of TensorArray fails at run time, with negative sizes (2.14): TensorFlow's it is.
    converter._experimental_lower_tensor_list_ops = False
    try:
        return converter.convert()
    except Exception as error:  # the converter's own kinds, of several modules
        raise UserError(f"TensorFlow Lite cannot convert this model: {str(error).splitlines()[0]}") from error
