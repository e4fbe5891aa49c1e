"""What coding the latents saves: the counts are those of the files."""

import numpy as np
import pytest
import tensorflow as tf

from eval.studies import cwic_bits, sae_bits


def test_counts():
    symbols = np.array([[[0, 1], [2, 1]], [[2, 1], [2, 0]]])
    assert sae_bits.counts(symbols, 3).tolist() == [[1, 0, 3], [1, 3, 0]]


def test_bits_of_a_picture(tiny_sae_spn, photograph, crop):
    pictures = [photograph, crop(100, 90)]
    figures = sae_bits.measure(tiny_sae_spn, pictures)
    pixels = sum(p.shape[0] * p.shape[1] for p in pictures)
    parts = figures.pop("latents")
    assert not figures
    positions = 24 * 32 + 7 * 6  # padded to whole latents, and an even number of columns
    assert parts["no model"] == pytest.approx(8 * np.log2(5) * positions / pixels)
    written = sum(float(tiny_sae_spn(tf.constant(p[None]))[1]["latents"][0]) for p in pictures)
    assert parts["context"] == pytest.approx(written / pixels, rel=1e-3)
    assert 0 < parts["static"] < parts["no model"]
    assert "static" in cwic_bits.table({"latents": parts})
