"""What the context model saves: the counts are those of the files."""

import pytest
import tensorflow as tf

from eval.studies import cwic_bits
from models.entropy.coders import TableRate


class Rows(TableRate):
    """Counts the bits of the codes that are coded."""

    kept = 0

    def bernoulli(self, name, bits, logits, kept):
        self.kept += float(tf.reduce_sum(kept)) if name == "codes" else 0
        return super().bernoulli(name, bits, logits, kept)


def test_entropy():
    assert cwic_bits.entropy([[1, 1, 2], [0, 0, 5], [0, 0, 0]]).tolist() == [6, 0, 0]


def test_bits_of_a_picture(tiny_cwic, photograph, crop):
    pictures = [photograph, crop(100, 90)]
    figures = cwic_bits.measure(tiny_cwic, pictures)
    pixels = sum(p.shape[0] * p.shape[1] for p in pictures)
    for name in ("codes", "map"):
        parts = figures[name]
        assert parts["static"] <= parts["no model"]
        written = sum(float(tiny_cwic(tf.constant(p[None]))[1][name][0]) for p in pictures)
        assert parts["context"] == pytest.approx(written / pixels, rel=1e-3)
    positions = 48 * 64 + 13 * 12
    assert figures["map"]["no model"] == pytest.approx(3 * positions / pixels)  # 8 levels
    kept = 0
    for picture in pictures:
        coder = Rows(tiny_cwic.bank)
        tiny_cwic.transmit(coder, tiny_cwic.pad(tf.cast(picture[None], tf.float32)))
        kept += coder.kept
    assert figures["codes"]["no model"] * pixels == pytest.approx(kept)
    # Trained weights: the context model wins.
    assert figures["codes"]["context"] < 0.97 * figures["codes"]["static"]
    assert "context" in cwic_bits.table(figures) and "codes" in cwic_bits.table(figures)
