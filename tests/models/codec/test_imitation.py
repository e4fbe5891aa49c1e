"""ELIC that begins as another one's latents and entropy networks: `train --like`."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.codec import load_for_training
from models.elic import ELIC
from models.entropy.coders import FloatRate
from models.io.errors import UserError

WIDE = dict(patch_widths=(192, 16), patch_blocks=(1, 1))


@pytest.fixture
def teacher(tiny_weights):
    return load_for_training(tiny_weights)


def pupil_of(teacher, **changes):
    pupil = ELIC(dataclasses.replace(teacher.config, **WIDE, **changes), teacher.lmbda)
    pupil.build_variables(training=True)
    return pupil


def test_it_begins_near_its_teacher(teacher, photograph):
    """As near as affine maps come; what stays different is told by the error of the best ones, not by this code."""
    pupil = pupil_of(teacher)
    pupil.start_linear()
    crops = np.stack([photograph[y : y + 96, x : x + 128] for y in range(0, 288, 48) for x in range(0, 384, 64)])
    images = tf.cast(crops, tf.float32)
    expected = teacher.analyse(images)

    def unexplained():
        return float(tf.reduce_sum((pupil.analyse(images) - expected) ** 2) / tf.reduce_sum(expected**2))

    before = unexplained()
    own = {v.ref() for v in pupil.trainable_variables}
    pupil.imitate(teacher)
    pupil.begin_from(crops)
    assert {v.ref() for v in pupil.trainable_variables} == own  # the teacher is no part of it
    assert unexplained() < 0.1 < before
    coders = [FloatRate(codec.entropy_models) for codec in (teacher, pupil)]
    hats = [codec.code(coder, expected, (len(crops), 96, 128)) for codec, coder in zip((teacher, pupil), coders)]
    np.testing.assert_allclose(*hats, atol=1e-4)
    np.testing.assert_allclose(coders[0].bits["y"], coders[1].bits["y"], rtol=1e-4)
    blocks = tf.reshape(pupil.reconstruct(hats[0]) - images, [-1])
    variance = float(tf.math.reduce_variance(images))
    assert float(tf.reduce_mean(blocks**2)) < 0.2 * variance


def test_nothing_is_begun_without_a_teacher(teacher, crop):
    before = [v.numpy() for v in teacher.trainable_variables]
    teacher.begin_from(crop(64, 64)[None])
    for value, variable in zip(before, teacher.trainable_variables):
        np.testing.assert_array_equal(value, variable)


def test_whom_it_can_imitate(teacher):
    with pytest.raises(UserError, match="transforms of patches only"):
        teacher.imitate(teacher)
    with pytest.raises(UserError, match="same hyper_channels are needed, 5, not"):
        pupil_of(teacher, hyper_channels=5).imitate(teacher)
    with pytest.raises(UserError, match="have 1 λ, and --lambda has 2"):
        ELIC(dataclasses.replace(teacher.config, **WIDE), (0.01, 0.02)).imitate(teacher)
