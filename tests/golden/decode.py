"""Decodes the golden stream in a given setting of TensorFlow.

    python tests/golden/decode.py WEIGHTS STREAM PICTURE.npy THREADS [jit]

writes the pixels and prints the fingerprint of the symbols. `jit` compiles networks and synthesis with XLA.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from models.codec import Codec, load
from models.entropy.rans import RansDecoder
from transforms.exact import EntropyNet, Fixed


class SymbolHash:
    """Within, all symbols that a decoder reads are hashed."""

    def __enter__(self):
        self._digest, self._code = hashlib.sha256(), RansDecoder.code

        def code(decoder, rows, symbols=None, folded=True):
            decoded = self._code(decoder, rows, symbols, folded)
            for part in (rows, decoded):
                self._digest.update(np.asarray(part).astype("<i4").tobytes())
            return decoded

        RansDecoder.code = code
        return self

    def __exit__(self, *_):
        RansDecoder.code = self._code

    def hex(self) -> str:
        """Of the table rows and symbols of all passes, in order, as little-endian int32: SHA-256."""
        return self._digest.hexdigest()


def compile_with_xla(codec: Codec) -> None:
    """Makes the networks of a codec run compiled."""
    for layer in codec.submodules:
        if isinstance(layer, EntropyNet):
            layer.integers = _compiled(layer.integers)
    codec.reconstruct = tf.function(codec.reconstruct, jit_compile=True)


def _compiled(integers):
    function = tf.function(lambda value: integers(Fixed(value)).value, jit_compile=True)
    return lambda x: Fixed(function(x.value))


def _main(weights, stream, picture, threads, *flags):
    tf.config.threading.set_inter_op_parallelism_threads(int(threads))
    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    codec = load(weights)
    if "jit" in flags:
        compile_with_xla(codec)
    with SymbolHash() as symbols:
        np.save(picture, codec.decompress(Path(stream).read_bytes()))
    print(symbols.hex())


if __name__ == "__main__":
    _main(*sys.argv[1:])
