"""The rANS coder, against a plain decoder written from res/doc/bitstream.md that shares no code with it."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.entropy import rans
from models.entropy.container import Header, header_bytes, pack
from models.entropy.rans import RansCoder, RansDecoder, RansEncoder, lanes
from models.entropy.tables import CdfBank, Row, factorized_rows, gaussian_rows

DOCUMENT = Path(__file__).parents[3] / "res/doc/bitstream.md"
INT32 = np.iinfo(np.int32)
SOON = 10  # seconds: generous for a busy machine, little for a loop or an allocation of a damaged size
M = 65521


class Reference:
    """A decoder of one payload, as one would write it from the document."""

    def __init__(self, bank, payload):
        assert len(payload) % 2 == 0
        self.bank = bank
        self.words = [payload[j] | payload[j + 1] << 8 for j in range(0, len(payload), 2)]
        w = self.words
        assert w[0] >> 8 == len(w) % 256
        assert w[1] == reference_checksum(w)
        self.lanes, count, at = 1 << (w[0] & 15), w[0] >> 4 & 15, 2
        if count == 15:
            count, at = w[2] | w[3] << 16, 4
        self.exceptions = self._exceptions([b for v in w[at : at + count] for b in (v & 255, v >> 8)])
        at += count
        self.states = [w[at + 2 * j] | w[at + 2 * j + 1] << 16 for j in range(self.lanes)]
        self.next = self.words_at = at + 2 * self.lanes
        self.position = self.sign_bits = self.sign_word = 0
        self.in_lanes = []

    @staticmethod
    def _exceptions(data):
        numbers, value, shift = [], 0, 0
        for byte in data:
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                numbers.append(value)
                value = shift = 0
        found, position = {}, -1
        for gap, zigzag in zip(numbers[::2], numbers[1::2]):
            position += 1 + gap
            found[position] = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
        return found

    def code(self, rows, folded):
        symbols, coded = [0] * len(rows), [k for k, r in enumerate(rows) if self.bank.coded[r]]
        for k, where in enumerate(coded):
            symbols[where] = self._step(k % self.lanes, rows[where])
        if folded:
            self._signs(symbols, [k for k in coded if symbols[k]])
        for k in range(len(rows)):
            symbols[k] = self.exceptions.pop(self.position, symbols[k])
            self.position += 1
        return symbols

    def _step(self, lane, row):
        x, total = self.states[lane], 1 << self.bank.precision
        assert 2**16 <= x < 2**32
        low, entry = x % total, 0
        frequencies = self.bank.row(row).tolist()
        while low >= frequencies[entry]:
            low, entry = low - frequencies[entry], entry + 1
        x = frequencies[entry] * (x // total) + low
        if x < 2**16:
            x, self.next = x << 16 | self.words[self.next], self.next + 1
        self.states[lane] = x
        return entry + int(self.bank.offsets[row])

    def _signs(self, symbols, where):
        needed = -(-(self.sign_bits + len(where)) // 16) + -self.sign_bits // 16
        left = len(self.words) - self.next
        new = self.words[self.next : self.next + needed]
        if left < needed:
            assert needed - left == min(self.lanes, needed) and not self.in_lanes
            self.in_lanes = [x & 0xFFFF for x in self.states[: needed - left]]
        self.next += len(new)
        new += self.in_lanes
        for k in where:
            if self.sign_bits % 16 == 0:
                self.sign_word = new.pop(0)
            if self.sign_word >> self.sign_bits % 16 & 1:
                symbols[k] = -symbols[k]
            self.sign_bits += 1

    def finish(self):
        idle = [0] * (self.lanes - len(self.in_lanes))
        assert self.states == [2**16 + w for w in self.in_lanes + idle]
        assert self.next == len(self.words)
        assert not self.exceptions


def reference_checksum(words):
    return sum((w + 1) * (j % (M - 1) + 1) for j, w in enumerate(words) if j != 1) % M


# --------------------------------------------------------------------------------------------------- the bank

UNFOLDED = factorized_rows(np.exp(-np.abs(np.arange(-20, 21)) / np.array([[0.02], [0.5], [3.0]])), -20)
AWAY = factorized_rows(np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]), [INT32.max - 2, INT32.min])  # offsets at the ends
UNLIKELY_ZERO = Row(np.array([0.2, 0.8]), folded=True)
BANK = CdfBank.from_pmfs(gaussian_rows([0.11, 0.2, 1.0, 9.0]) + UNFOLDED + AWAY + [UNLIKELY_ZERO])
FOLDED_ROWS, UNFOLDED_ROWS = (0, 1, 2, 3, 9), (4, 5, 6, 7, 8)
CODER = RansCoder(BANK)


def test_the_bank_has_rows_of_all_kinds():
    assert BANK.coded.tolist() == [False, True, True, True, False, True, True, True, True, True]
    assert BANK.folded.tolist() == [True] * 4 + [False] * 5 + [True]


def draw(rng, batch, count, folded, rows=None, spread=1.0):
    """A pass (rows, symbols, folded) with symbols that mostly fit their rows."""
    rows = rng.choice(rows or (FOLDED_ROWS if folded else UNFOLDED_ROWS), (batch, count)).astype(np.int32)
    sigma = np.array([0.02, 0.2, 1.0, 9.0, 0.02, 0.5, 3.0, 0.5, 0.5, 0.4])[rows] * spread
    centre = np.array([0] * 7 + [INT32.max - 1, INT32.min + 1, 0], np.int64)[rows]
    symbols = np.clip(centre + np.rint(rng.normal(0, sigma)), INT32.min, INT32.max).astype(np.int32)
    return rows, symbols, folded


def encode(passes, coder=CODER, log2_lanes=None):
    encoder = RansEncoder(coder)
    for rows, symbols, folded in passes:
        assert encoder.code(rows, symbols, folded) is not None
    return encoder.finish(log2_lanes)


def decode(strings, passes, coder=CODER):
    decoder = RansDecoder(coder, strings)
    decoded = [decoder.code(rows, None, folded) for rows, _, folded in passes]
    decoder.finish()
    return decoded


def assert_same(decoded, passes):
    assert len(decoded) == len(passes)
    for got, (_, symbols, _) in zip(decoded, passes):
        np.testing.assert_array_equal(got, symbols)


def reference_decode(payload, passes, image=0, bank=BANK):
    """Checks a payload with the plain decoder; returns where each pass ends, in words."""
    reference = Reference(bank, payload)
    ends = []
    for rows, symbols, folded in passes:
        assert reference.code(rows[image].tolist(), folded) == symbols[image].tolist()
        ends.append(reference.next)
    reference.finish()
    return reference.words_at, ends


# ------------------------------------------------------------------------------------------------ round trips


@example(seed=1, batch=3, shapes=[(400, True, False)] * 3 + [(400, False, False)], spread=1.0, log2_lanes=1)
@example(seed=2, batch=2, shapes=[(400, False, False)] + [(400, True, False)] * 3, spread=10.0, log2_lanes=3)
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    shapes=st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 40, 400]), st.booleans(), st.booleans()), min_size=1, max_size=4
    ),
    spread=st.sampled_from([0.0, 1.0, 1.0, 10.0, 1e4, 1e9]),
    log2_lanes=st.sampled_from([None, None, 0, 1, 3, 6, 9]),
)
def test_any_symbols_round_trip_and_the_document_describes_it(seed, batch, shapes, spread, log2_lanes):
    rng = np.random.default_rng(seed)
    passes = [
        draw(
            rng,
            batch,
            count,
            folded,
            rows=(0,) if skipped and folded else (4,) if skipped else None,
            spread=spread,
        )
        for count, folded, skipped in shapes
    ]
    strings = encode(passes, log2_lanes=log2_lanes)
    assert_same(decode(strings, passes), passes)
    for image, payload in enumerate(strings.numpy()):
        reference_decode(payload, passes, image)
        single = [(rows[image : image + 1], symbols[image : image + 1], f) for rows, symbols, f in passes]
        assert encode(single, log2_lanes=log2_lanes).numpy()[0] == payload


def test_extreme_symbols_in_every_row():
    values = [INT32.min, INT32.min + 1, -70000, -1, 0, 1, 127, 128, 70000, INT32.max - 1, INT32.max]
    passes = []
    for kind, folded in ((FOLDED_ROWS, True), (UNFOLDED_ROWS, False)):
        rows, symbols = np.meshgrid(np.array(kind, np.int32), np.array(values, np.int32))
        passes.append((rows.reshape(1, -1), symbols.reshape(1, -1), folded))
    strings = encode(passes)
    assert_same(decode(strings, passes), passes)
    reference_decode(strings.numpy()[0], passes)


def test_exceptions_beyond_the_short_count_use_the_longer_header():
    rows = np.zeros([1, 70000], np.int32)
    symbols = np.where(np.arange(70000) % 3 == 0, 10**9, 0).astype(np.int32)[None]
    strings = encode([(rows, symbols, True)])
    assert strings.numpy()[0][0] >> 4 == 15
    assert_same(decode(strings, [(rows, symbols, True)]), [(rows, symbols, True)])
    reference_decode(strings.numpy()[0], [(rows, symbols, True)])


def test_nothing_to_code_takes_eight_bytes():
    passes = [(np.zeros([2, 500], np.int32), np.zeros([2, 500], np.int32), True)]
    strings = encode(passes)
    assert [len(s) for s in strings.numpy()] == [8, 8]
    assert_same(decode(strings, passes), passes)


def test_pictures_of_a_batch_choose_lanes_for_themselves():
    rng = np.random.default_rng(0)
    rows, symbols, _ = draw(rng, 3, 20000, True, rows=(3,))
    rows[1], symbols[1] = 0, 0
    rows[2, 200:], symbols[2, 200:] = 0, 0
    passes = [(rows, symbols, True), draw(rng, 3, 5, False)]
    strings = encode(passes)
    lanes = [s[0] & 15 for s in strings.numpy()]
    assert lanes[0] > lanes[2] >= lanes[1] == 0
    assert_same(decode(strings, passes), passes)
    for image, payload in enumerate(strings.numpy()):
        reference_decode(payload, passes, image)
        single = [(r[image : image + 1], s[image : image + 1], f) for r, s, f in passes]
        assert encode(single).numpy()[0] == payload


def test_a_batch_that_would_be_decoded_in_an_empty_grid_is_refused(monkeypatch):
    """One image of many lanes and nine of one long lane; alone each of them is decoded."""
    monkeypatch.setattr("models.entropy.rans.decoder.SPARSE_CELLS", 1 << 20)
    rng = np.random.default_rng(0)
    rows = np.full([10, 100_000], 3, np.int32)
    rows[1:] = 1
    rows[1:, 10_000:] = 0
    symbols = np.where(rows == 3, np.rint(rng.normal(0, 9, rows.shape)), 0).astype(np.int32)
    strings = encode([(rows, symbols, True)])
    lanes = [s[0] & 15 for s in strings.numpy()]
    assert lanes[0] - max(lanes[1:]) >= 7, lanes
    with pytest.raises(tf.errors.InvalidArgumentError, match="^coder: the streams of a batch differ too much"):
        RansDecoder(CODER, strings).code(rows)
    for part in (slice(0, 1), slice(1, 10)):
        assert_same(decode(strings[part], [(rows[part], symbols[part], True)]), [(rows[part], symbols[part], True)])


def test_a_huge_and_nearly_empty_picture_gets_lanes_all_the_same():
    rows = np.full([1, 100000], 1, np.int32)
    payload = encode([(rows[:, :1000], 0 * rows[:, :1000], True), (rows, 0 * rows, True)]).numpy()[0]
    assert 101000 / (1 << (payload[0] & 15)) <= 16384


@pytest.mark.parametrize("log2_lanes", [None, 0])
def test_what_the_encoder_writes_has_lanes_enough_for_the_decoder(log2_lanes, monkeypatch):
    """On both sides of each step, and beyond the last, where there are no more lanes; the symbols are in two passes."""
    monkeypatch.setattr(lanes, "MAX_ROWS", 4)
    for count in [5, 9] + [4 * 2**n + more for n in range(10) for more in (0, 1)]:
        rows = np.full([2, count], 1, np.int32)
        rows[1, ::2] = 0  # not coded, but some are exceptions
        symbols = np.zeros_like(rows)
        symbols[:, ::7] = 3
        passes = [(r, s, True) for r, s in zip(np.array_split(rows, 2, 1), np.array_split(symbols, 2, 1))]
        strings = encode(passes, log2_lanes=log2_lanes)
        assert_same(decode(strings, passes), passes)
        if log2_lanes == 0:
            least = [min(int(np.ceil(np.log2(max(k / 4, 1)))), 9) for k in (rows != 0).sum(1)]
            assert [s[0] & 15 for s in strings.numpy()] == least


def test_the_last_sign_words_live_in_the_lanes():
    """Without that, as many words as lanes would be added."""
    rng = np.random.default_rng(1)
    passes = [draw(rng, 1, 3000, True, rows=(3,))]
    plain = [*passes, (np.full([1, 1], 5, np.int32), np.zeros([1, 1], np.int32), False)]
    saved = len(encode(plain, log2_lanes=6).numpy()[0]) - len(encode(passes, log2_lanes=6).numpy()[0])
    assert saved >= 2 * 60
    reference_decode(encode(passes, log2_lanes=6).numpy()[0], passes)


def test_rows_of_the_wrong_kind_are_refused():
    rows, symbols, _ = draw(np.random.default_rng(0), 1, 10, True, rows=(2,))
    with pytest.raises(tf.errors.InvalidArgumentError, match="^coder: a pass mixes"):
        RansEncoder(CODER).code(rows, symbols, folded=False)
    with pytest.raises(ValueError, match="nothing was coded"):
        RansEncoder(CODER).finish()


# ----------------------------------------------------------------------------------------------------- traced


class Traced(tf.Module):
    """Three passes as signatures. Rows of the third depend on the second, as a network's would."""

    ROWS = tf.TensorSpec([None, None], tf.int32)

    def __init__(self):
        super().__init__()
        self.coder = RansCoder(BANK)

    def walk(self, coder, rows, symbols=(None, None, None)):
        a = coder.code(rows, symbols[0], folded=True)
        b = coder.code(UNFOLDED_ROWS[1] + tf.cast(a > 0, tf.int32), symbols[1], folded=False)
        return a, b, coder.code(1 + tf.cast(b > 0, tf.int32), symbols[2])

    @tf.function(input_signature=[ROWS] * 4, autograph=False)
    def compress(self, rows, a, b, c):
        coder = RansEncoder(self.coder)
        self.walk(coder, rows, (a, b, c))
        return {"strings": coder.finish(), "fingerprint": tf.cast(coder.fingerprint(b"head"), tf.int64)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), ROWS], autograph=False)
    def decompress(self, strings, rows):
        coder = RansDecoder(self.coder, strings)
        a, b, c = self.walk(coder, rows)
        coder.finish()
        return {"a": a, "b": b, "c": c, "fingerprint": tf.cast(coder.fingerprint(b"head"), tf.int64)}


@pytest.fixture(scope="module")
def traced():
    module, rng = Traced(), np.random.default_rng(3)
    rows, a, _ = draw(rng, 2, 700, True)
    b = rng.integers(-3, 4, (2, 700)).astype(np.int32)
    c = rng.integers(-2, 3, (2, 700)).astype(np.int32)
    return module, rows, (a, b, c)


def test_traced_and_eager_strings_are_the_same(traced):
    module, rows, symbols = traced
    out = module.compress(rows, *symbols)
    eager = RansEncoder(module.coder)
    module.walk(eager, rows, symbols)
    np.testing.assert_array_equal(out["strings"].numpy(), eager.finish().numpy())
    np.testing.assert_array_equal(out["fingerprint"], eager.fingerprint(b"head").numpy())
    back = module.decompress(out["strings"], rows)
    for name, want in zip("abc", symbols):
        np.testing.assert_array_equal(back[name], want)
    np.testing.assert_array_equal(back["fingerprint"], out["fingerprint"])


def test_a_graph_rejects_damage_with_the_coders_message(traced):
    module, rows, symbols = traced
    good = module.compress(rows, *symbols)["strings"].numpy()
    bad = bytearray(good[1])
    bad[30] ^= 4
    for strings in ([good[0], bytes(bad)], [good[0], good[1][:-2]], [good[0], b""]):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            module.decompress(tf.constant(strings), rows)
        assert rans.describe(error.value).startswith("coder: trunc")


def test_the_loops_are_traced_once_whatever_is_coded():
    rng, counts = np.random.default_rng(5), []
    for batch, count in ((1, 30), (2, 500), (1, 2000)):
        passes = [draw(rng, batch, count, True), draw(rng, batch, 7, False)]
        decode(encode(passes), passes)
        counts.append([f.experimental_get_tracing_count() for f in (lanes.encode_rows, lanes.decode_rows)])
    assert counts[0] == counts[1] == counts[2] and min(counts[0]) >= 1


def test_a_saved_model_needs_tensorflow_alone(traced, tmp_path):
    module, rows, symbols = traced
    tf.saved_model.save(module, tmp_path / "m", signatures={"c": module.compress, "d": module.decompress})
    np.savez(tmp_path / "in.npz", rows=rows, a=symbols[0], b=symbols[1], c=symbols[2])
    code = f"""
import sys, numpy as np, tensorflow as tf
x = {{k: tf.constant(v) for k, v in np.load({str(tmp_path / "in.npz")!r}).items()}}
m = tf.saved_model.load({str(tmp_path / "m")!r}).signatures
strings = m["c"](**x)["strings"]
out = m["d"](strings=strings, rows=x["rows"])
assert all(np.array_equal(out[k], x[k]) for k in "abc")
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
import models.entropy.rans
assert not any("tensorflow_compression" in k for k in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# ----------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def small():
    """A small stream with everything in it: exceptions, several passes, signs in lanes."""
    rng = np.random.default_rng(11)
    passes = [
        draw(rng, 1, 8, False),
        draw(rng, 1, 40, True),
        draw(rng, 1, 5, True, rows=(0,)),
        draw(rng, 1, 30, True, rows=(2, 3)),
    ]
    passes[1][1][0, [3, 30]] = [9999, -5]
    return encode(passes, log2_lanes=1).numpy()[0], passes


def attempt(data, passes):
    """Decodes damaged bytes; returns the symbols, or None if they were rejected as they should be."""
    begin = time.perf_counter()
    try:
        decoded = decode(tf.constant([bytes(data)]), passes)
    except tf.errors.InvalidArgumentError as error:
        assert error.message.startswith("coder: ")
        decoded = None
    assert time.perf_counter() - begin < SOON
    return decoded


def test_every_flipped_byte_is_found(small):
    data, passes = small
    assert_same(attempt(data, passes), passes)
    for j in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            bad = bytearray(data)
            bad[j] ^= flip
            assert attempt(bad, passes) is None, (j, flip)


def test_every_truncation_is_found(small):
    data, passes = small
    for length in range(len(data)):
        assert attempt(data[:length], passes) is None, length


def test_bytes_behind_the_end_are_found(small):
    data, passes = small
    for tail in (b"\0", b"\0\0", b"abc", b"\1" * 512):
        assert attempt(data + tail, passes) is None


def with_checksum(data):
    words = np.frombuffer(bytes(data), "<u2").astype(int)
    words[1] = reference_checksum(words.tolist())
    return words.astype("<u2").tobytes()


def test_flips_that_the_checksum_does_not_see_do_no_harm(small):
    """Wrong symbols are possible, which the fingerprint is for; no crash, no hang, no other kind of error."""
    data, passes = small
    rejected = 0
    for j in range(len(data)):
        if j in (2, 3):
            continue
        bad = bytearray(data)
        bad[j] ^= 0xFF if j % 2 else 0x11
        rejected += attempt(with_checksum(bad), passes) is None
    assert rejected > len(data) // 2  # the end checks see most of it


@pytest.mark.parametrize(
    "words",
    [
        [0x0400, 0, 0, 1],
        [0x0600 | 15 << 4, 0, 0xFFFF, 0xFFFF, 0, 1],  # 2**32 - 1 words of exceptions
        [0x0600 | 9, 0, 0, 1, 0, 1],  # 512 lanes
        [0x0600 | 10, 0, 0, 1, 0, 1],
        [0x0600 | 15, 0, 0, 1, 0, 1],
        [0x0600, 0, 0, 0, 0, 0],  # a lane state below 2**16
        [0x0800 | 3 << 4, 0, 0xFFFF, 0xFFFF, 0xFFFF, 0, 1, 0],  # a number that does not end
        [0x0900 | 4 << 4, 0, 0x8080, 0x8080, 0x8080, 0x0101, 0, 1, 0],  # one of 7 bytes
        [0x0800 | 3 << 4, 0, 0xFF00, 0xFFFF, 0x7FFF, 0, 1, 0],  # a value beyond 32 bits
        [0x0800 | 3 << 4, 0, 0xFFFF, 0xFFFF, 0x017F, 0, 1, 0],  # an exception far outside
    ],
)
def test_headers_that_lie_are_rejected(words):
    passes = [(np.zeros([1, 50], np.int32), np.zeros([1, 50], np.int32), True)]
    good = words == [0x0400, 0, 0, 1]
    decoded = attempt(with_checksum(np.array(words, "<u2").tobytes()), passes)
    assert (decoded is not None) == good


@pytest.mark.parametrize("partial", [False, True])
def test_few_lanes_for_many_symbols_are_rejected_before_they_are_decoded(partial):
    """Eight bytes would be minutes and gigabytes otherwise. What counts is the sum of all passes."""
    claim = with_checksum(np.array([0x0400, 0, 0, 1], "<u2").tobytes())
    begin = time.perf_counter()
    with pytest.raises(tf.errors.InvalidArgumentError, match="^coder: damaged stream .too few lanes"):
        RansDecoder(CODER, tf.constant([claim]), partial).code(np.full([1, 20_000_000], 1, np.int32))
    assert time.perf_counter() - begin < SOON

    rows = np.full([1, lanes.MAX_ROWS], 1, np.int32)
    data = encode([(rows, 0 * rows, True)], log2_lanes=0).numpy()
    assert data[0][0] & 15 == 0
    decoder = RansDecoder(CODER, tf.constant(data), partial)
    assert not decoder.code(rows).numpy().any()
    decoder.code(0 * rows)  # of a row that is not coded
    with pytest.raises(tf.errors.InvalidArgumentError, match="too few lanes"):
        decoder.code(rows[:, :1])


def test_the_end_is_checked():
    """What the checksum would find, if it had not been made to fit."""
    passes = [draw(np.random.default_rng(4), 1, 40, False, rows=(5, 6))]
    words = np.frombuffer(encode(passes, log2_lanes=1).numpy()[0], "<u2").astype(int)
    longer, other_state, other_word = np.append(words, [77]), words.copy(), words.copy()
    longer[0] += 1 << 8
    other_state[4] ^= 0x10
    other_word[-1] ^= 0x1000
    assert_same(attempt(with_checksum(words.astype("<u2").tobytes()), passes), passes)
    for bad in (longer, other_state, other_word):
        assert attempt(with_checksum(bad.astype("<u2").tobytes()), passes) is None


def test_one_damaged_stream_of_a_batch_is_found(small):
    data, passes = small
    twice = [(np.repeat(r, 2, 0), np.repeat(s, 2, 0), f) for r, s, f in passes]
    assert_same(decode(tf.constant([data, data]), twice), twice)
    with pytest.raises(tf.errors.InvalidArgumentError, match="^coder: "):
        decode(tf.constant([data, data[:-3] + b"abc"]), twice)


# ---------------------------------------------------------------------------------------------------- partial


def decode_partial(data, passes):
    decoder = RansDecoder(CODER, tf.constant(data), partial=True)
    decoded, complete = [], []
    for rows, _, folded in passes:
        decoded.append(decoder.code(rows, folded=folded).numpy())
        complete.append(decoder.complete.numpy())
    decoder.finish()
    return decoded, np.array(complete)


def assert_partial(data, passes, words_at, ends, words):
    """Exactly the passes that end within `words` are there, and the others are zeros."""
    decoded, complete = decode_partial([data], passes)
    expected = [words >= max(end, words_at) for end in ends]
    assert complete[:, 0].tolist() == expected, len(data)
    for got, (_, symbols, _), there in zip(decoded, passes, expected):
        np.testing.assert_array_equal(got, symbols if there else 0 * symbols)


def test_a_small_stream_cut_at_every_byte(small):
    data, passes = small
    words_at, ends = reference_decode(data, passes)
    assert len(set(ends)) == 3  # the pass of skipped symbols ends with the one before
    for length in range(len(data) + 1):
        assert_partial(data[:length], passes, words_at, ends, length // 2)


@pytest.mark.parametrize("log2_lanes", [0, 3])
def test_many_cuts_of_many_passes(log2_lanes):
    rng = np.random.default_rng(log2_lanes)
    passes = [draw(rng, 1, 20, folded) for folded in (True, True, False, True, True)] + [draw(rng, 1, 3, True, (0,))]
    data = encode(passes, log2_lanes=log2_lanes).numpy()[0]
    words_at, ends = reference_decode(data, passes)
    for words in range(len(data) // 2 + 1):
        assert_partial(data[: 2 * words], passes, words_at, ends, words)


@pytest.mark.parametrize("tail", [1, 2, 3, 4])
def test_a_whole_stream_may_be_followed_by_what_is_there_of_a_fingerprint(small, tail):
    data, passes = small
    decoded, complete = decode_partial([data + b"\xaa\x55\xff\x01"[:tail]], passes)
    assert complete.all()
    assert_same(decoded, passes)


def test_cuts_of_a_batch_are_independent(small):
    data, passes = small
    _, ends = reference_decode(data, passes)
    thrice = [(np.repeat(r, 3, 0), np.repeat(s, 3, 0), f) for r, s, f in passes]
    decoded, complete = decode_partial([data, data[: 2 * ends[1]], b""], thrice)
    assert complete.T.tolist() == [[True] * 4, [True, True, True, False], [False] * 4]
    for k, (_, symbols, _) in enumerate(thrice):
        np.testing.assert_array_equal(decoded[k], symbols * complete[k][:, None])


def test_running_far_beyond_a_cut_does_no_harm():
    """A long pass that is cut off at its start, then a short one."""
    rng = np.random.default_rng(0)
    passes = [draw(rng, 1, 3000, True, rows=(3,)), draw(rng, 1, 8, True, rows=(3,))]
    data = encode(passes, log2_lanes=0).numpy()[0]
    decoded, complete = decode_partial([data[:60]], passes)
    assert not complete.any() and not any(symbols.any() for symbols in decoded)


def test_partial_mode_survives_damage(small):
    data, passes = small
    for j in range(0, len(data), 2):
        bad = bytearray(data)
        bad[j] ^= 0xFF
        begin = time.perf_counter()
        try:
            decode_partial([bytes(bad)], passes)
        except tf.errors.InvalidArgumentError as error:
            assert error.message.startswith("coder: ")
        assert time.perf_counter() - begin < SOON


# ------------------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_sees_every_symbol_and_the_header():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-5, 5, (3, n)).astype(np.int32) for n in (4, 6))
    base = rans.fingerprint([a, b], b"header").numpy()
    assert base.shape == (3,) and base.dtype == np.uint32 and len(set(base)) == 3
    np.testing.assert_array_equal(rans.fingerprint([a[1:2], b[1:2]], b"header"), base[1:2])
    for n in range(6):
        changed = b.copy()
        changed[1, n] += 1
        np.testing.assert_array_equal(rans.fingerprint([a, changed], b"header") != base, [False, True, False])
    assert np.all(rans.fingerprint([a, b], b"hea_er") != base)
    each = rans.fingerprint([a, b], tf.constant([b"header", b"x", b"header"]))
    np.testing.assert_array_equal(each != base, [False, True, False])


# --------------------------------------------------------------------------------------------------- document


def documented_example():
    text = DOCUMENT.read_text()
    lines = re.search(r"```hex\n(.*?)```", text, re.S).group(1).splitlines()
    return [bytes.fromhex(line[:20]) for line in lines]


def test_the_example_in_the_document_is_what_the_code_writes():
    bank = CdfBank([1024, 2048, 1024, 2048, 1024, 1024, 4095, 1], [3, 3, 2], [-1, 0, 0], [0, 1, 1], [1, 1, 0])
    passes = [
        (np.array([[0, 0, 0, 0]]), np.array([[0, 1, -1, 0]]), False),
        (np.array([[1, 1, 2, 1, 1, 2]]), np.array([[-1, 2, 0, 0, -300, 5]]), True),
    ]
    encoder = RansEncoder(RansCoder(bank))
    for rows, symbols, folded in passes:
        encoder.code(rows, symbols, folded)
    payload = encoder.finish().numpy()[0]
    header = Header(model_id=7, weights_id=b"\1\2\3\4", height=2, width=300, controls=b"\5")
    fingerprint = int(encoder.fingerprint(header_bytes(header))[0])
    assert b"".join(documented_example()) == pack(header, payload, fingerprint)
    reference_decode(payload, passes, bank=bank)


def test_the_fingerprint_is_composed_as_documented():
    def farmhash(data):  # over bytes, where the code hashes tensors
        return tf.fingerprint(tf.constant([data])).numpy().tobytes()

    a, b = np.array([[0, 1, -1, 0]], "<i4"), np.array([[-1, 2, 0, 0, -300, 5]], "<i4")
    header = b"".join(documented_example()[:7])
    composed = farmhash(farmhash(a.tobytes()) + farmhash(b.tobytes()) + farmhash(header))[:4]
    assert composed == documented_example()[-1]
    assert int(rans.fingerprint([a, b], header)[0]).to_bytes(4, "little") == composed


# --------------------------------------------------------------------------------------------------- overhead


def latents(bank, bits_per_pixel, height=512, width=768, seed=0):
    """Passes like those of ELIC: a hyper-latent, then two halves of a checkerboard for 5 groups of channels.

    Rows 0 to 63 of `bank` are Gaussians, the 192 after them the hyper-latent's channels.
    """
    rng = np.random.default_rng(seed)
    positions, groups = height * width // 256, (16, 16, 32, 64, 192)
    z_rows = np.repeat(64 + np.arange(192), positions // 16).astype(np.int32)[None]
    uniform = rng.random(z_rows.size)
    z = np.empty_like(z_rows)
    for r in range(64, 256):
        cumulative = np.cumsum(bank.row(r)) / 4096
        z[z_rows == r] = np.searchsorted(cumulative, uniform[z_rows[0] == r]) + bank.offsets[r]
    level = 1.2 * rng.normal(size=(320, 1)) + 0.9 * rng.normal(size=(320, positions))
    noise = rng.normal(size=level.shape)
    low, high = -8.0, 4.0
    for _ in range(12):  # find the level of sigma that gives the rate
        middle = (low + high) / 2
        rows = np.clip(np.rint((level + middle - np.log(0.11)) / np.log(256 / 0.11) * 63), 0, 63).astype(np.int32)
        y = np.rint(noise * (0.11 * (256 / 0.11) ** (rows / 63))).astype(np.int32)
        too_much = bank.bits(rows, y).sum() > bits_per_pixel * height * width
        low, high = (low, middle) if too_much else (middle, high)
    passes, ends = [(z_rows, z, False)], np.cumsum(groups)
    for begin, end in zip(ends - groups, ends):
        for half in (0, 1):
            part = np.s_[begin:end, half::2]
            passes.append((rows[part].reshape(1, -1), y[part].reshape(1, -1), True))
    return passes


def elic_bank():
    priors = np.exp(-np.abs(np.arange(-30, 31)) / np.geomspace(0.1, 2, 192)[:, None])
    return CdfBank.from_pmfs(gaussian_rows() + factorized_rows(priors, -30))


def test_overhead_is_below_one_percent():
    bank = elic_bank()
    passes = latents(bank, 0.3)
    ideal = sum(bank.bits(rows, symbols).sum() for rows, symbols, _ in passes) / 8
    coder = RansCoder(bank)
    strings = encode(passes, coder)
    size = len(strings.numpy()[0])
    assert ideal < size < 1.01 * ideal
    assert_same(decode(strings, passes, coder), passes)


def test_tiny_pictures_pay_little():
    """32 by 32 pixels: the fixed cost of header and lanes is a few bytes."""
    bank = elic_bank()
    passes = latents(bank, 0.5, 128, 128)
    ideal = sum(bank.bits(rows, symbols).sum() for rows, symbols, _ in passes) / 8
    tiny = [(rows[:, :40], symbols[:, :40], folded) for rows, symbols, folded in passes[:4]]
    ideal = sum(bank.bits(rows, symbols).sum() for rows, symbols, _ in tiny) / 8
    assert len(encode(tiny, RansCoder(bank)).numpy()[0]) <= ideal + 10


def test_the_encoder_knows_the_ideal_bits():
    passes = [
        draw(np.random.default_rng(2), 2, 300, True, rows=(2, 3)),
        draw(np.random.default_rng(2), 2, 50, False),
    ]
    encoder = RansEncoder(CODER)
    ideal = np.zeros(2)
    for rows, symbols, folded in passes:
        encoder.code(rows, symbols, folded)
        bits = BANK.bits(rows, symbols)
        assert not np.any(bits == 32)  # no exceptions, which are priced differently
        ideal += bits.sum(1)
    np.testing.assert_allclose(encoder.cost_bits(), ideal, atol=0.02)
