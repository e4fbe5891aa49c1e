"""The container in TensorFlow ops is the container."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.entropy import container, container_ops

WEIGHTS = b"\x01\xfe\x80\x7f"
sizes = st.one_of(st.integers(1, 300), st.sampled_from([127, 128, 129, 16383, 16384, 16385]))


@settings(deadline=None, max_examples=40)
@given(
    height=sizes,
    width=sizes,
    controls=st.lists(st.binary(min_size=2, max_size=2), min_size=1, max_size=3),
    payload=st.binary(max_size=40),
    mark=st.integers(0, 2**32 - 1),
)
def test_same_bytes_both_ways(height, width, controls, payload, mark):
    assume(height * width <= container.MAX_PIXELS)
    files = []
    for data in controls:
        header = container.Header(9, WEIGHTS, height, width, data)
        files.append(container.pack(header, payload, mark))
    batch = len(controls)
    data = tf.constant([list(c) for c in controls], tf.uint8)
    heads = container_ops.headers(9, WEIGHTS, tf.constant(height), tf.constant(width), data)
    packed = container_ops.pack(heads, tf.fill([batch], payload), tf.fill([batch], tf.constant(mark, tf.uint32)))
    assert packed.numpy().tolist() == files
    parts = container_ops.unpack(packed, 9, WEIGHTS, 2)
    assert parts.header.numpy().tolist() == heads.numpy().tolist()
    assert parts.height.numpy().tolist() == [height] * batch and parts.width.numpy().tolist() == [width] * batch
    np.testing.assert_array_equal(parts.controls, data)
    assert parts.payload.numpy().tolist() == [payload] * batch
    assert parts.fingerprint.numpy().tolist() == [mark] * batch


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=30))
def test_what_one_refuses_the_other_refuses(data):
    """Headers that begin well and go on anyhow."""
    file = container.MAGIC + bytes([container.VERSION, 9]) + WEIGHTS + data
    try:
        header, payload, mark = container.unpack(file)
        sound = len(header.controls) == 1
    except container.StreamError:
        sound = False
    if not sound:
        with pytest.raises(tf.errors.InvalidArgumentError):
            container_ops.unpack(tf.constant([file]), 9, WEIGHTS, 1)
        return
    parts = container_ops.unpack(tf.constant([file]), 9, WEIGHTS, 1)
    assert (int(parts.height[0]), int(parts.width[0])) == (header.height, header.width)
    assert parts.payload.numpy()[0] == payload and int(parts.fingerprint[0]) == mark
    assert bytes(parts.controls.numpy()[0]) == header.controls
