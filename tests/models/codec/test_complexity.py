"""Parameters and multiply-adds, and the figures on the models' cards."""

import numpy as np
import pytest
import tensorflow as tf

from models.codec import complexity, registry


def test_multiply_adds_of_structures():
    """As many as a convolution has, whatever the latents are held in."""
    layer = tf.keras.layers.Conv2D(5, 3, padding="same", use_bias=False)
    layer.build([1, 8, 6, 4])
    latents = (tf.zeros([1, 8, 6, 4]), [tf.zeros([1, 2, 2, 1], tf.int32)])
    assert complexity.multiply_adds(lambda parts: layer(parts[0]), latents) == 8 * 6 * 9 * 4 * 5


@pytest.mark.parametrize("model", registry.MODEL_IDS.values())
def test_cards_name_parameters_and_multiply_adds(model):
    entry = registry.get(model)
    for name, preset in entry.card.presets.items():
        codec = entry.codec(entry.presets[name])
        codec.build_variables(training=True)
        found = complexity.parameters(codec) / 1e6, complexity.kmac_per_pixel(codec)
        np.testing.assert_allclose(
            (preset.parameters, preset.kmac), found, rtol=5e-3, err_msg=f"{model} {name} {found}"
        )
