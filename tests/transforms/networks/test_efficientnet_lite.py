"""EfficientNet-Lite: its shape, and where it is cut."""

import numpy as np
import pytest
import tensorflow as tf

from models.tasks.classifier import Classifier
from transforms.networks import efficientnet_lite as lite


@pytest.mark.parametrize(
    "variant, millions, channels", [("efficientnet_lite0", 4.65, 40), ("efficientnet_lite2", 6.09, 48)]
)
def test_size(variant, millions, channels):
    """Parameters as published; normalisation is folded, which takes away half of its own."""
    classifier = Classifier(variant, [str(k) for k in range(1000)])
    assert sum(int(np.prod(v.shape)) for v in classifier.named_variables().values()) / 1e6 == pytest.approx(
        millions, rel=0.01
    )
    features = classifier.features_at_cut(tf.zeros([1, 64, 96, 3]))
    assert features.shape == (1, 8, 12, channels) and lite.cut_channels(variant) == channels


def test_activations_are_those_of_the_two_halves():
    classifier = Classifier("efficientnet_lite0", ["a", "b"])
    images = tf.random.stateless_uniform([2, 70, 90, 3], [1, 2], 0, 255)
    found = classifier.features(images)
    assert [tuple(x.shape[1:]) for x in found] == [
        (35, 45, 16),
        (18, 23, 24),
        (9, 12, 40),
        (5, 6, 112),
        (3, 3, 1280),
    ]
    np.testing.assert_allclose(found[2], classifier.features_at_cut(images), rtol=1e-5, atol=1e-4)
    means = tf.reduce_mean(found[-1], [1, 2])
    np.testing.assert_allclose(classifier(images), classifier.tail.predictions(means), rtol=1e-5, atol=1e-4)


def test_what_is_decoded_and_repeated_has_a_gradient_back_to_the_image():
    classifier = Classifier("efficientnet_lite0", ["a", "b"])
    images = tf.random.stateless_uniform([1, 64, 64, 3], [3, 4], 0, 255)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = classifier(images)
    assert float(tf.reduce_max(tf.abs(tape.gradient(logits, images)))) > 0
