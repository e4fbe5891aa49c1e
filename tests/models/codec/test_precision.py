"""bfloat16 transforms: other pixels by a little, the same symbols of any file."""

import numpy as np
import pytest
import tensorflow as tf

from models.codec import load, precision, registry
from models.io.errors import UserError


@pytest.fixture(scope="module", params=registry.MODEL_IDS.values())
def pair(request, golden_weights):
    """A codec of each model, in float32 and in bfloat16."""
    path = golden_weights(request.param)
    return load(path, precision="float32"), load(path, precision="bfloat16")


def layers_of(codec) -> set[str]:
    return {layer.compute_dtype for layer in codec.submodules if isinstance(layer, tf.keras.layers.Conv2D)}


def test_files_of_either_decode_alike_with_either(pair, crop):
    """The symbols: a file has their fingerprint, and `latents` checks it."""
    assert [codec.precision for codec in pair] == ["float32", "bfloat16"]
    assert layers_of(pair[0]) == {"float32"} and layers_of(pair[1]) >= {"bfloat16"}
    image = crop(64, 96)
    for data in [codec.compress(image) for codec in pair]:
        tf.nest.map_structure(np.testing.assert_array_equal, *(codec.latents(data) for codec in pair))
        difference = np.subtract(*(codec.decompress(data).astype(int) for codec in pair))
        # A switch of SAE-SPN's that another rounding predicts moves a pixel.
        assert np.mean(np.abs(difference)) < (1 if pair[0].entry.card.bfloat16 else 5)


def test_what_auto_is(monkeypatch):
    monkeypatch.setenv("ZOO_PRECISION", "auto")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    monkeypatch.setattr(precision, "_has_gpu", lambda: False)
    for flags, expected in (
        ({"avx2"}, "float32"),
        ({"avx2", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
    ):
        monkeypatch.setattr(precision, "_processor_flags", lambda flags=flags: flags)
        assert precision.resolve("auto") == expected
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert precision.resolve("auto") == "float32"
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    monkeypatch.setattr(precision, "_has_gpu", lambda: True)
    assert precision.resolve("auto") == "float32"
    monkeypatch.setenv("ZOO_PRECISION", "bfloat16")
    assert precision.resolve("auto") == "bfloat16" and precision.resolve("float32") == "float32"


def test_models_that_choose_by_floats_stay_in_float32(monkeypatch, golden_weights):
    monkeypatch.setenv("ZOO_PRECISION", "bfloat16")
    assert load(golden_weights("sae_spn")).precision == "float32"
    assert load(golden_weights("cwic")).precision == "bfloat16"


def test_names_that_are_none(monkeypatch):
    with pytest.raises(UserError, match="no precision is called 'half'"):
        precision.resolve("half")
    monkeypatch.setenv("ZOO_PRECISION", "half")
    with pytest.raises(UserError, match="ZOO_PRECISION is 'half'"):
        precision.resolve("auto")
