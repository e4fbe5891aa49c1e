"""Container: what goes in comes out, and whatever is not a stream is refused in one clear line."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.entropy.container import MAX_PIXELS, Header, StreamError, header_bytes, pack, unpack

HEADER = Header(model_id=7, weights_id=b"\1\2\3\4", height=512, width=768, controls=b"\5")
PAYLOAD, FINGERPRINT = b"payload!", 0xFEDCBA98
DATA = pack(HEADER, PAYLOAD, FINGERPRINT)

headers = st.builds(
    Header,
    model_id=st.integers(0, 255),
    weights_id=st.binary(min_size=4, max_size=4),
    height=st.integers(1, 1 << 14),
    width=st.integers(1, 1 << 14),
    controls=st.binary(max_size=200),
)


@given(headers, st.binary(max_size=50), st.integers(0, 2**32 - 1))
def test_round_trip(header, payload, fingerprint):
    data = pack(header, payload, fingerprint)
    assert unpack(data) == (header, payload, fingerprint)
    assert data.startswith(header_bytes(header))
    whole = payload + fingerprint.to_bytes(4, "little")
    assert unpack(data, partial=True) == (header, whole, None)


def test_the_largest_sizes_fit():
    for size in ((1, MAX_PIXELS), (MAX_PIXELS, 1), (1 << 14, 1 << 14)):
        header = Header(0, b"wxyz", *size)
        assert unpack(pack(header, b"", 0)) == (header, b"", 0)


def test_bytes_are_as_documented():
    header, fingerprint = bytes.fromhex("4c5a 01 07 01020304 8004 8006 01 05"), bytes.fromhex("98badcfe")
    assert header + PAYLOAD + fingerprint == DATA


def test_at_most_20_bytes_besides_the_payload():
    header = Header(255, b"\xff" * 4, 16383, 16383, b"abc")
    assert len(pack(header, b"", 2**32 - 1)) == 20


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty stream"),
        (b"\x89PNG\r\n", "not a stream of this zoo"),
        (b"LX" + DATA[2:], "not a stream of this zoo"),
        (b"X", "not a stream of this zoo"),
        (b"L", "truncated stream"),
        (b"LZ\2" + DATA[3:], "format version 2, newer than the 1"),
        (b"LZ\0" + DATA[3:], "no format version 0"),
        (DATA[:8] + b"\0\1" + DATA[10:], "0x1 pixels"),
        (DATA[:8] + b"\1\0" + DATA[10:], "1x0 pixels"),
        (
            DATA[:8] + b"\x81\x80\x80\x40\x03" + DATA[12:],
            "damaged stream: it claims an image of 134217729x3 pixels",
        ),
        (DATA[:8] + b"\x80\x80\x80\x80\x80\x01" + DATA[12:], "malformed"),
        (DATA[:8] + b"\x80\x00" + DATA[10:], "malformed"),
        (DATA[:12] + b"\xff\xff\x7f", "truncated stream: it ends within its header"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_refusals(data, message, partial):
    with pytest.raises(StreamError, match=message) as error:
        unpack(data, partial)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)


def test_cut_anywhere():
    start = len(header_bytes(HEADER))
    for length in range(len(DATA)):
        if length < start:
            with pytest.raises(StreamError):
                unpack(DATA[:length], partial=True)
        else:
            assert unpack(DATA[:length], partial=True) == (HEADER, DATA[start:length], None)
        if length < start + 4:
            with pytest.raises(StreamError, match="empty|truncated"):
                unpack(DATA[:length])


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_id", 256),
        ("model_id", -1),
        ("weights_id", b"123"),
        ("height", 0),
        ("width", -1),
        ("width", MAX_PIXELS),
        ("version", 2),
    ],
)
def test_what_cannot_be_represented_is_not_written(field, value):
    with pytest.raises(ValueError):
        header_bytes(dataclasses.replace(HEADER, **{field: value}))
