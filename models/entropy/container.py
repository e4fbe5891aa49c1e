"""The file format around a coded image: a short header, the payload of the coder, a fingerprint.

    magic 'LZ' | version | model id | weights id (4) | height | width | n | n control bytes
    payload
    fingerprint (4)

Height, width and n are LEB128. With an image of less than 16384 pixels a side and up to 3 control bytes it
all takes at most 20 bytes besides the payload. Pure Python; `container_ops.py` writes and reads the same bytes in
TensorFlow ops, and changes with this file. `res/doc/bitstream.md` is the reference.

What only one model has to say goes into its control bytes (`models/codec/rate_control.py`), and the format stays.
"""

from __future__ import annotations

from dataclasses import dataclass

MAGIC = b"LZ"
VERSION = 1
MAX_PIXELS = 1 << 28
"""Larger images are taken for damage: nothing may be allocated for what a broken header claims."""

WEIGHTS_ID_BYTES = 4
FINGERPRINT_BYTES = 4
_LEB128_MAX_BYTES = 5


class StreamError(ValueError):
    """Says in one line why the bytes are not a stream that can be read."""


@dataclass(frozen=True)
class Header:
    """The header: what a decoder must know before it can read the payload.

    Attributes:
      model_id: format id of the model, 0..255.
      weights_id: 4 bytes that name the weights.
      height: of the image, in pixels.
      width: of the image, in pixels.
      controls: what the model needs besides, for instance a quality index.
      version: of the container.
    """

    model_id: int
    weights_id: bytes
    height: int
    width: int
    controls: bytes = b""
    version: int = VERSION


def header_bytes(header: Header) -> bytes:
    """Writes a header as it stands in a file. The fingerprint covers these bytes too.

    Raises:
      ValueError: a field cannot be represented.
    """
    if header.version != VERSION or not 0 <= header.model_id <= 255 or len(header.weights_id) != WEIGHTS_ID_BYTES:
        raise ValueError(f"not a valid header: {header}")
    if not _plausible_size(header.height, header.width):
        raise ValueError(f"an image of {header.height}x{header.width} pixels cannot be stored")
    return b"".join(
        [
            MAGIC,
            bytes([header.version, header.model_id]),
            header.weights_id,
            _leb128(header.height),
            _leb128(header.width),
            _leb128(len(header.controls)),
            header.controls,
        ]
    )


def pack(header: Header, payload: bytes, fingerprint: int) -> bytes:
    """Writes a complete file.

    Args:
      header: see `Header`.
      payload: from the coder.
      fingerprint: of the symbols and of `header_bytes(header)`, 0..2**32 - 1.
    """
    return header_bytes(header) + payload + int(fingerprint).to_bytes(FINGERPRINT_BYTES, "little")


def unpack(data: bytes, partial: bool = False) -> tuple[Header, bytes, int | None]:
    """Takes a file apart.

    Args:
      data: the file's bytes.
      partial: the end of the file may be missing. Then everything after the header is payload, as nobody can
        tell whether its last bytes are the fingerprint; the coder copes with that tail.

    Returns:
      Header, payload and fingerprint (None if `partial`).

    Raises:
      StreamError: `data` is not a stream of this zoo, of a newer version, damaged or cut off.
    """
    header, start = _parse_header(data)
    if partial:
        return header, data[start:], None
    end = len(data) - FINGERPRINT_BYTES
    if end < start:
        raise StreamError("truncated stream: it ends before its fingerprint")
    return header, data[start:end], int.from_bytes(data[end:], "little")


def _parse_header(data: bytes) -> tuple[Header, int]:
    """Reads the header; returns it and the number of its bytes."""
    if not data:
        raise StreamError("empty stream")
    if not data.startswith(MAGIC[: len(data)]):
        raise StreamError("not a stream of this zoo")
    reader = _Reader(data)
    reader.take(len(MAGIC))
    version = reader.take(1)[0]
    if version > VERSION:
        raise StreamError(f"stream of format version {version}, newer than the {VERSION} that is known here")
    if version < VERSION:  # there is none yet: a VERSION 2 would read those of version 1 here
        raise StreamError(f"damaged stream: there is no format version {version}")
    model_id = reader.take(1)[0]
    weights_id = reader.take(WEIGHTS_ID_BYTES)
    height, width = reader.leb128(), reader.leb128()
    if not _plausible_size(height, width):
        raise StreamError(f"damaged stream: it claims an image of {height}x{width} pixels")
    controls = reader.take(reader.leb128())
    return Header(model_id, weights_id, height, width, controls, version), reader.position


def _plausible_size(height: int, width: int) -> bool:
    return height >= 1 and width >= 1 and height * width <= MAX_PIXELS


class _Reader:
    """A position in bytes that must not end early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = bytes(data), 0

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise StreamError("truncated stream: it ends within its header")
        return self.data[start : self.position]

    def leb128(self) -> int:
        value = 0
        for k in range(_LEB128_MAX_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 127) << (7 * k)
            if byte < 128:
                if byte == 0 and k:  # another spelling of a shorter number: never written
                    break
                return value
        raise StreamError("damaged stream: a number in its header is malformed")


def _leb128(value: int) -> bytes:
    """Unsigned LEB128: 7 bits a byte, low ones first, bit 7 set on all bytes but the last."""
    groups = [value & 127]
    while value := value >> 7:
        groups[-1] |= 128
        groups.append(value & 127)
    return bytes(groups)
