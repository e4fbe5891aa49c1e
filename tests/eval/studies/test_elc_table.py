"""The table of ELC: rows, and figures that are those of the files."""

import numpy as np
import pytest
import tensorflow as tf

from eval.metrics import psnr
from eval.studies import elc_table
from models.tasks.classifier import Classifier


@pytest.fixture(scope="module")
def rows(tiny_elc, crop):
    tf.keras.utils.set_random_seed(4)
    classifier = Classifier(tiny_elc.config.classifier, tiny_elc.labels)
    pictures = np.stack([crop(64, 96), crop(64, 96, 200)])
    seen = np.argmax(classifier(tf.cast(pictures, tf.float32)), -1)
    labels = np.array([seen[0], (seen[1] + 1) % 3])  # the classifier is right once
    return pictures, elc_table.measure(tiny_elc, classifier, pictures, labels, perceptual=True)


def test_rows(rows, tiny_elc):
    pictures, figures = rows
    names = ["latents", "decoder's image", "enhanced image", "jpeg", "webp", "avif", "uncompressed"]
    assert list(figures) == names
    sizes = [len(tiny_elc.compress(picture)) for picture in pictures]
    assert figures["latents"]["bpp"] == pytest.approx(8 * np.mean(sizes) / (64 * 96))
    assert figures["uncompressed"] == {"top1": 0.5, "top5": 1.0}
    error = np.mean([psnr(p, tiny_elc.decompress(tiny_elc.compress(p))) for p in pictures])
    assert figures["enhanced image"]["psnr"] == pytest.approx(error)
    assert figures["enhanced image"]["feature_distance"] > 0 and "psnr" not in figures["latents"]
    assert figures["enhanced image"]["frechet"] > 0


def test_table(rows):
    text = elc_table.table(rows[1])
    lines = text.splitlines()
    assert len(lines) == 9 and len({line.count("|") for line in lines}) == 1
    assert lines[-1].startswith("| uncompressed |  | 0.500 |")
