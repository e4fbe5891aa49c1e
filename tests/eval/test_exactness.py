"""The entropy path gives the same integers however it is run, and floats do not."""

import numpy as np
import pytest
import tensorflow as tf

from eval import exactness
from eval.replay import Recorder
from models.elic import ELIC, Config
from transforms.exact import Fixed


@pytest.fixture(scope="module")
def path(tiny_weights, crop):
    """The tiny codec with both of its forms, the symbols of a crop, and the crop's padded shape."""
    from models.codec import load

    codec = load(tiny_weights)
    exactness._load_floats(codec, tiny_weights)
    image = crop(96, 128)
    return codec, exactness.recorded_symbols(codec, image), (1, *codec.padded_size(*image.shape[:2]))


@pytest.fixture(scope="module")
def integer_results(path):
    return exactness.in_this_process(*path, exact=True)


def test_integers_agree_eagerly_in_graphs_under_xla_and_in_batches(integer_results):
    verdicts = {name: exactness.differences(integer_results["eager"], r) for name, r in integer_results.items()}
    assert set(verdicts) == {"eager", "graph", "XLA", "batch of 4"}
    assert set(verdicts.values()) == {"identical"}


def test_rows_and_means_are_not_all_the_same(integer_results):
    """Otherwise agreement would prove nothing."""
    means, rows = (np.concatenate(integer_results["eager"][n::2], 1) for n in (0, 1))
    assert len(np.unique(rows)) > 5 and len(np.unique(means)) > 20


def test_floats_do_not_agree(path):
    results = exactness.in_this_process(*path, exact=False)
    assert any(exactness.differences(results["eager"], result) != "identical" for result in results.values())


def test_integers_agree_under_jax(path, integer_results, jax_python, tmp_path):
    exactness.export(*path, exact=True, directory=tmp_path)
    np.savez(tmp_path / "expected.npz", *integer_results["eager"])  # not what XLA gave here
    assert exactness.under_jax(jax_python, tmp_path).startswith("identical")


def test_a_difference_under_jax_is_seen(path, integer_results, jax_python, tmp_path):
    exactness.export(*path, exact=True, directory=tmp_path)
    expected = [value.copy() for value in integer_results["eager"]]
    expected[1][0, 0] += 1
    np.savez(tmp_path / "expected.npz", *expected)
    assert "and 1 rows differ" in exactness.under_jax(jax_python, tmp_path)


def test_weights_of_several_rates_run_at_their_middle_quality(crop):
    codec = ELIC(Config((16, 16, 16), (4, 4, 8), 16, (16, 16), 32, (16, 16), 16), (0.003, 0.01, 0.03))
    codec.build_variables(training=True)
    codec.calibrate(crop(64, 64)[None])

    def symbols_of(step: int) -> np.ndarray:
        coder = Recorder()
        codec.transmit(coder, tf.cast(crop(64, 64)[None], tf.float32), quality=tf.constant([step]))
        return np.concatenate(coder.symbols, 1)

    symbols = exactness.recorded_symbols(codec, crop(64, 64))
    np.testing.assert_array_equal(np.concatenate(symbols, 1), symbols_of(32))
    assert np.any(symbols_of(32) != symbols_of(64))
    predictions = exactness.entropy_path(codec, (1, 64, 64), exact=True)(*symbols)
    assert [p.shape for p in predictions[::2]] == [s.shape for s in symbols[1:]]


def test_differences_are_counted():
    reference = [np.zeros([1, 4]), np.zeros([1, 4])]
    other = [np.array([[0, 0.5, 0, 0]]), np.array([[0, 1, 1, 0]])]
    assert exactness.differences(reference, other) == "1 of 4 means and 2 rows differ"


def test_a_tile_gives_what_the_whole_gives(path):
    """Away from its border: three 5x5 convolutions reach 6 positions."""
    codec = path[0]
    random = np.random.default_rng(0)
    net = codec.channel_contexts[1]
    whole = random.integers(-127, 128, [1, 24, 32, net.channels]).astype(np.float32)
    everywhere = net.integers(Fixed(tf.constant(whole))).value.numpy()
    tile = net.integers(Fixed(tf.constant(whole[:, 3:22, 5:30]))).value.numpy()
    np.testing.assert_array_equal(tile[:, 6:-6, 6:-6], everywhere[:, 9:16, 11:24])
