"""The optimizer of a run."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from train.optimizer import FusedAdam, make_optimizer, make_schedule
from train.options import FitOptions

OPTIONS = FitOptions(train_path="", train_glob="x", learning_rate=1e-3, epochs=5, steps_per_epoch=4)


def test_schedules():
    def rates(**change):
        schedule = make_schedule(dataclasses.replace(OPTIONS, **change))
        return np.array([float(schedule(step)) for step in range(20)])

    np.testing.assert_allclose(rates(), [1e-3] * 18 + [1e-4] * 2, rtol=1e-5)
    np.testing.assert_allclose(rates(drop_share=0.0), [1e-3] * 20, rtol=1e-5)
    np.testing.assert_allclose(rates(drop_share=1.0), [1e-4] * 20, rtol=1e-5)
    cosine = 1e-3 * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2
    np.testing.assert_allclose(rates(schedule="cosine"), cosine, rtol=1e-4)
    rise = np.minimum(1, (np.arange(20) + 1) / 8)
    np.testing.assert_allclose(rates(schedule="cosine", warmup_steps=8), cosine * rise, rtol=1e-4)
    np.testing.assert_allclose(rates(warmup_steps=8), rates() * rise, rtol=1e-5)


def test_gradients_are_clipped():
    weight = tf.Variable([0.0, 0.0])
    for clipnorm, expected in [(1.0, [0.6, 0.8]), (0.0, [30.0, 40.0])]:
        optimizer = make_optimizer(dataclasses.replace(OPTIONS, clipnorm=clipnorm))
        optimizer.apply_gradients([(tf.constant([30.0, 40.0]), weight)])
        momentum = next(v for v in optimizer.variables if "/m/" in v.name)
        np.testing.assert_allclose(momentum.numpy(), 0.1 * np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_numbers_are_those_of_keras(sparse):
    random = np.random.default_rng(0)
    first, gradients = random.normal(size=[6, 5]), random.normal(size=[9, 6, 5])

    def train(kind):
        schedule = make_schedule(dataclasses.replace(OPTIONS, schedule="cosine", warmup_steps=3))
        optimizer = kind(schedule, global_clipnorm=1.0, use_ema=True, ema_momentum=0.9)
        weight = tf.Variable(first, dtype=tf.float32)
        for gradient in gradients.astype(np.float32):
            if sparse:
                gradient = tf.IndexedSlices(gradient[:2], tf.constant([4, 1]), tf.constant([6, 5]))
            optimizer.apply_gradients([(gradient, weight)])
        return {v.name: v.numpy() for v in optimizer.variables} | {"weight": weight.numpy()}

    expected, found = train(tf.keras.optimizers.Adam), train(FusedAdam)
    assert np.abs(found["weight"] - first).max() > 1e-3
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
