"""ELIC on the contract: what may depend on what, groups, and streams that are cut off."""

import numpy as np
import pytest
import tensorflow as tf

from models.codec import load
from models.codec.registry import get
from models.elic import ELIC, PRESETS, Config
from models.entropy import container, rans
from models.entropy.coders import LatentCoder, TableRate
from models.entropy.container import StreamError
from models.io.errors import UserError


class Recorder(TableRate):
    """A latent coder that keeps what each pass was predicted from: one array of parameters per pass."""

    def __init__(self, bank):
        super().__init__(bank)
        self.passes = []

    def gaussian(self, name, latent, parameters):
        self.passes.append(parameters.value.numpy())
        return super().gaussian(name, latent, parameters)


class RecordingCoder(LatentCoder):
    """The same for a real stream, in either direction."""

    def __init__(self, stream):
        super().__init__(stream)
        self.passes = []

    def gaussian(self, name, latent, parameters):
        self.passes.append(parameters.value.numpy())
        return super().gaussian(name, latent, parameters)


# --- causality ---------------------------------------------------------------------------------------------------

ROWS, COLUMNS = 10, 16


class Probe:
    """A codec whose latents are given: which parameters does `transmit` give for them?"""

    def __init__(self, path):
        self.codec = load(path)
        self.groups = self.codec.config.groups
        self.codec.analysis = lambda images: tf.constant(self.y)
        self.codec.hyper_analysis = lambda y: tf.constant(self.z)
        random = np.random.default_rng(4)
        self.y = np.zeros([1, ROWS, COLUMNS, sum(self.groups)], np.float32)
        self.z = np.zeros([1, 3, 4, self.codec.config.hyper_channels], np.float32)
        self.y0 = random.normal(0, 4, self.y.shape).astype(np.float32)
        self.z0 = random.normal(0, 4, self.z.shape).astype(np.float32)

    def passes(self, y=None, z=None):
        """Parameters of each pass: anchors and non-anchors of the first group, of the second, ..."""
        self.y, self.z = self.y0 if y is None else y, self.z0 if z is None else z
        recorder = Recorder(self.codec.bank)
        self.codec.transmit(recorder, tf.zeros([1, 16 * ROWS, 16 * COLUMNS, 3]))
        return recorder.passes

    def changed(self, row, column, group):
        """For each pass, where its parameters change (bool [rows, columns / 2]) with y there and in that group."""
        y, first = self.y0.copy(), sum(self.groups[:group])
        y[0, row, column, first : first + self.groups[group]] += 60
        return [np.any(a != b, -1)[0] for a, b in zip(self.passes(), self.passes(y=y))]


@pytest.fixture(scope="module")
def probe(tiny_weights):
    return Probe(tiny_weights)


def test_each_pass_is_over_half_of_the_positions(probe):
    """Parameter networks run where the pass needs them, and nowhere else."""
    shapes = [p.shape for p in probe.passes()]
    assert shapes == [(1, ROWS, COLUMNS // 2, 2 * g) for g in probe.groups for _ in range(2)]


@pytest.mark.parametrize("group", [0, 1, 2])
def test_an_anchor_changes_its_neighbours_and_what_comes_after(probe, group):
    row, column = 4, 6
    changed = probe.changed(row, column, group)
    assert not np.any(changed[: 2 * group + 1]), "something that is coded before depends on it"
    neighbours = changed[2 * group + 1]
    assert neighbours.any()
    for r, half in zip(*np.nonzero(neighbours)):
        c = 2 * half + 1 - r % 2  # the column of a non-anchor
        assert abs(r - row) <= 2 and abs(c - column) <= 2
    for later in changed[2 * group + 2 :]:
        assert later.any(), "the channel context does not see it"


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_non_anchor_changes_nothing_of_its_group(probe, group):
    changed = probe.changed(4, 7, group)
    assert not np.any(changed[: 2 * group + 2])
    for later in changed[2 * group + 2 :]:
        assert later.any()


def test_the_hyper_latent_changes_everything(probe):
    for before, after in zip(probe.passes(), probe.passes(z=-probe.z0)):
        assert np.any(before != after)


def test_zero_context_is_what_anchors_are_given(probe):
    """The last pass needs the spatial context, so it must differ from what the anchors' parameters would be."""
    y = probe.y0.copy()
    anchor = (np.arange(ROWS)[:, None] + np.arange(COLUMNS)) % 2 == 0
    y[0, anchor] = 100 * np.sign(y[0, anchor])
    before, after = probe.passes(), probe.passes(y=y)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.mean(before[1] != after[1]) > 0.1


def test_decoder_predicts_what_the_encoder_did(tiny, crop):
    image = tiny.pad(tf.constant(crop(70, 90)[None], tf.float32))
    encoder = RecordingCoder(stream := rans.RansEncoder(tiny.coder))
    latents = tiny.transmit(encoder, image)
    decoder = RecordingCoder(rans.RansDecoder(tiny.coder, stream.finish()))
    decoded = tiny.transmit(decoder, shape=(1, *image.shape[1:3]))
    assert len(encoder.passes) == len(decoder.passes) == 2 * len(tiny.config.groups)
    for mine, theirs in zip(encoder.passes, decoder.passes):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(latents, decoded)
    rows = np.concatenate([np.split(p, 2, -1)[1].ravel() for p in encoder.passes])
    assert len(np.unique(rows)) > 5  # they do predict something
    assert np.any(latents != np.rint(latents))  # and means are not all integers


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(crop):
    return crop(100, 140)


@pytest.fixture(scope="module")
def stream(tiny, picture):
    return tiny.compress(picture)


def error(image, other):
    return np.mean((image.astype(float) - other) ** 2)


def test_more_groups_are_no_worse(tiny, picture, stream):
    count = len(tiny.config.groups)
    pictures = [tiny.decompress(stream, groups=k) for k in range(count + 1)]
    errors = [error(picture, p) for p in pictures]
    assert all(p.shape == picture.shape for p in pictures)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]
    np.testing.assert_array_equal(pictures[-1], tiny.decompress(stream))


@pytest.mark.parametrize("groups", [-1, 4, 100])
def test_there_are_only_so_many_groups(tiny, stream, groups):
    with pytest.raises(UserError, match="0 to 3"):
        tiny.decompress(stream, groups=groups)


def test_the_groups_of_a_damaged_stream_are_refused(tiny, stream):
    with pytest.raises(StreamError):
        tiny.decompress(stream[:-9], groups=1)
    with pytest.raises(StreamError):
        tiny.decompress(stream[:30] + bytes([stream[30] ^ 4]) + stream[31:], groups=1)


# --- streams that are cut off ------------------------------------------------------------------------------------


def test_a_stream_that_is_cut_off_shows_what_it_holds(tiny, picture, stream):
    whole = tiny.decompress(stream)
    header = len(container.header_bytes(container.unpack(stream)[0]))
    errors = []
    for end in [*range(header, len(stream), max(1, len(stream) // 12)), len(stream) - 1, len(stream)]:
        shown = tiny.decompress(stream[:end], partial=True)
        assert shown.shape == picture.shape and shown.dtype == np.uint8
        errors.append(error(picture, shown))
        if end < len(stream):
            with pytest.raises(StreamError):
                tiny.decompress(stream[:end])
    np.testing.assert_array_equal(shown, whole)
    assert errors[0] > 2 * errors[-1]
    assert len(set(errors)) > 3  # it comes in steps
    # Nearly monotone: a hyper-latent without its latents may show a little less than nothing at all.
    assert all(later < 1.3 * earlier for earlier, later in zip(errors, errors[1:]))


def test_a_stream_that_is_cut_off_in_its_header_is_refused(tiny, stream):
    for end in range(11):
        for partial in (False, True):
            with pytest.raises(StreamError, match="truncated|empty"):
                tiny.decompress(stream[:end], partial=partial)


def test_groups_of_a_stream_that_is_cut_off(tiny, picture, stream):
    shown = tiny.decompress(stream[: len(stream) // 2], groups=1, partial=True)
    assert shown.shape == picture.shape
    np.testing.assert_array_equal(tiny.decompress(stream, groups=1, partial=True), tiny.decompress(stream, groups=1))


# --- the architecture --------------------------------------------------------------------------------------------


def test_base_is_the_paper():
    config = PRESETS["base"]
    assert config == Config()
    assert config.widths == (192, 192, 192) and config.latents == 320
    assert config.groups == (16, 16, 32, 64, 192)
    assert get("elic").codec is ELIC and get("elic").model_id == 1
