"""Interleaved rANS coder in stock TensorFlow ops: batches of integer symbols to strings and back.

Stock ops only, so an exported SavedModel runs in any TensorFlow runtime; the same code runs eagerly and
traced. All that is coded for one image shares one stream, in *passes*: the network runs between them, and a
pass may depend on all before it.

    encoder                                            decoder
    enc = RansEncoder(coder)                           dec = RansDecoder(coder, strings)
    z = enc.code(z_rows, z, folded=False)              z = dec.code(z_rows, folded=False)
    y = enc.code(rows_from(z), y)                      y = dec.code(rows_from(z))
    strings = enc.finish()                             dec.finish()

What the loops cost is the number of kernels they launch, not the arithmetic. So everything that can be done for
all rows at once is done outside of them: finding the tables' entries, signs, exceptions.

    lookup       the tables of a bank, as both directions look them up
    lanes        states and lanes: the grid of a pass, and the loops over its rows
    exceptions   symbols that no table holds
    signs        raw sign bits
    stream       what the encoder keeps of a pass; header, checksum, bytes
    encoder, decoder

The format is described in res/doc/bitstream.md. Numbers there and here: states are below 2**32 and at least
2**16, words are 16 bits. They are carried in int64, which TensorFlow's kernels handle as quickly as int32 at
these sizes.
"""

from models.entropy.rans.decoder import RansDecoder
from models.entropy.rans.digests import digest, fingerprint
from models.entropy.rans.encoder import RansEncoder
from models.entropy.rans.lookup import RansCoder
from models.entropy.rans.ops import CPU, describe, require

__all__ = ["CPU", "RansCoder", "RansDecoder", "RansEncoder", "describe", "digest", "fingerprint", "require"]
