"""CDF bank: what is stored is what was made, and it is a good approximation of the probabilities."""

import subprocess
import sys

import numpy as np
import pytest

from models.entropy import tables
from models.entropy.tables import CdfBank, Row


def test_importing_tables_and_container_imports_no_tensorflow():
    code = "import sys, models.entropy.tables, models.entropy.container; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scales_are_log_spaced_between_the_ends():
    scales = tables.scale_table(64, 0.11, 256.0)
    assert scales.shape == (64,)
    np.testing.assert_allclose(scales[[0, -1]], [0.11, 256.0])
    np.testing.assert_allclose(scales[1:] / scales[:-1], scales[1] / scales[0])


@pytest.fixture(scope="module")
def gaussians():
    return CdfBank.from_pmfs(tables.gaussian_rows())


def test_rows_have_positive_frequencies_and_a_common_sum(gaussians):
    assert len(gaussians) == 64
    for r in range(64):
        assert gaussians.row(r).min() >= 1
        assert gaussians.row(r).sum() == 4096


def test_gaussian_rows_are_folded_and_reach_six_sigma_and_three(gaussians):
    assert gaussians.folded.all()
    np.testing.assert_array_equal(gaussians.lengths, np.ceil(6 * tables.SCALES + 3) + 1)
    np.testing.assert_array_equal(gaussians.coded, tables.SCALES > 0.125)
    assert not gaussians.coded[:2].any() and gaussians.coded[2:].all()


def test_gaussian_rows_cost_little_more_than_the_true_entropy(gaussians):
    rng = np.random.default_rng(0)
    for r in (8, 20, 30):
        scale = tables.SCALES[r]
        symbols = np.rint(rng.normal(0, scale, 20000)).astype(np.int32)
        edges = np.arange(-100.5, 101)
        cdf = np.array([tables.math.erfc(-e / scale / 2**0.5) / 2 for e in edges])
        ideal = -np.log2(np.diff(cdf)[symbols + 100]).mean()
        assert gaussians.bits(np.full(20000, r), symbols).mean() == pytest.approx(ideal, rel=0.01)


def test_fitted_rows_cost_the_entropy_of_what_was_seen(gaussians):
    """Laplacian symbols in a row made for a Gaussian; the rows in which nothing was seen stay as they are."""
    symbols = np.rint(np.random.default_rng(0).laplace(0, 0.6, 200_000)).astype(np.int32)
    seen = np.bincount(np.abs(symbols))
    counts = np.zeros_like(gaussians.frequencies)
    counts[gaussians.starts[16] :][: len(seen)] = seen
    counts[gaussians.starts[0]] = 10**6  # row 0 is not coded
    fitted = gaussians.fitted(counts)
    rows = np.full(len(symbols), 16)
    entropy = -np.sum(seen / len(symbols) * np.log2(np.maximum(seen, 1) / len(symbols))) + np.mean(symbols != 0)
    assert fitted.bits(rows, symbols).mean() == pytest.approx(entropy, rel=0.002)
    assert gaussians.bits(rows, symbols).mean() > 1.02 * entropy
    for r in set(range(64)) - {16}:
        np.testing.assert_array_equal(fitted.row(r), gaussians.row(r))
    for name in ("lengths", "offsets", "folded", "coded"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(gaussians, name))


def test_quantising_keeps_probabilities_close():
    pmf = np.array([0.5, 0.25, 0.2, 0.05])
    frequencies = tables.quantise_pmf(pmf)
    np.testing.assert_allclose(frequencies, 4096 * pmf, atol=1)
    np.testing.assert_array_equal(tables.quantise_pmf(3 * pmf), frequencies)  # scale does not matter
    np.testing.assert_array_equal(tables.quantise_pmf(np.array([0.3])), [4096])
    np.testing.assert_array_equal(tables.quantise_pmf(np.array([1.0, 0, 0])), [4094, 1, 1])


@pytest.mark.parametrize("pmf", [[], [0.0, 0.0], [0.5, -0.1], [np.nan, 1.0], np.ones(5000)])
def test_quantising_refuses_what_is_no_distribution(pmf):
    with pytest.raises(ValueError, match="CDF bank"):
        tables.quantise_pmf(np.array(pmf))


def test_factorized_rows_are_trimmed_and_dead_channels_are_not_coded():
    pmfs = np.array([[1e-9, 0.1, 0.6, 0.3, 1e-9], [0, 1e-6, 1 - 2e-6, 1e-6, 0], [0.5, 0.5, 0, 0, 0]])
    narrow, dead, shifted = tables.factorized_rows(pmfs, [-2, -2, 7])
    np.testing.assert_array_equal(narrow.pmf, [0.1, 0.6, 0.3])
    assert (narrow.offset, narrow.folded, narrow.coded) == (-1, False, True)
    assert not dead.coded
    assert shifted.offset == 7 and shifted.coded


def test_a_channel_that_is_never_zero_is_coded():
    (row,) = tables.factorized_rows(np.array([[0.0, 1.0]]), 4)
    assert row.offset == 5 and row.coded


def test_bits_by_hand():
    bank = CdfBank([1024, 2048, 1024, 2048, 1024, 1024, 4096], [3, 3, 1], [-1, 0, 0], [0, 1, 1], [1, 1, 0])
    rows = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]])
    symbols = np.array([[-1, 0, 1, 2], [0, 1, -2, -(2**31)], [0, 1, -1, 2**31 - 1]])
    x = tables.EXCEPTION_BITS
    np.testing.assert_array_equal(bank.bits(rows, symbols), [[2, 1, 2, x], [1, 3, 3, x], [0, x, x, x]])


def test_a_bank_survives_storage():
    bank = CdfBank.from_pmfs([Row(np.array([0.3, 0.7]), -5), Row(np.array([0.9, 0.1]), folded=True, coded=False)], 10)
    stored = bank.tensors()
    assert all(isinstance(v, np.ndarray) and v.ndim == 1 for v in stored.values())
    again = CdfBank.from_tensors(stored)
    assert again.precision == 10
    for name, value in stored.items():
        np.testing.assert_array_equal(again.tensors()[name], value)
        assert again.tensors()[name].dtype == value.dtype
    del stored["offsets"]
    with pytest.raises(ValueError, match="offsets missing"):
        CdfBank.from_tensors(stored)


def test_stacking_keeps_rows_in_order():
    a = CdfBank.from_pmfs([Row(np.array([0.25, 0.75]), 1)])
    b = CdfBank.from_pmfs([Row(np.array([0.5, 0.25, 0.25]), folded=True), Row(np.array([1.0]), 3)])
    both = a + b
    assert len(both) == 3
    np.testing.assert_array_equal(both.row(1), b.row(0))
    np.testing.assert_array_equal(both.offsets, [1, 0, 3])
    np.testing.assert_array_equal(both.folded, [False, True, False])
    with pytest.raises(ValueError, match="precision"):
        _ = a + CdfBank([2], [1], [0], [0], [1], 1)


@pytest.mark.parametrize(
    "change",
    [
        {"frequencies": [4096, 4095]},
        {"frequencies": [4096, 4096, 4096]},
        {"frequencies": [4096, 0]},
        {"lengths": [2, 0]},
        {"offsets": [0, 1]},
        {"folded": [False]},
        {"precision": 13},
        {"precision": 40},
    ],
)
def test_an_inconsistent_bank_is_refused(change):
    good = {
        "frequencies": [4096, 4096],
        "lengths": [1, 1],
        "offsets": [0, 0],
        "folded": [0, 1],
        "coded": [1, 1],
    }
    CdfBank(**good)
    with pytest.raises(ValueError, match="CDF bank"):
        CdfBank(**good | change)


def test_rows_for_bits_are_uniform_in_the_logit():
    """A bit of any probability within the table's reach costs at most 0.0008 more than its entropy."""
    bank = CdfBank.from_pmfs(tables.bernoulli_rows())
    assert len(bank) == tables.NUM_LOGITS + 1 and bank.coded[:-1].all() and not bank.coded[-1]
    assert bank.bits(np.array([tables.NUM_LOGITS, 63, 63]), np.array([0, 0, 1])).tolist() == [0, 1, 1]
    logits = np.linspace(-7, 7, 1001)
    rows = np.rint(logits / tables.LOGIT_STEP + tables.NUM_LOGITS // 2).astype(int)
    p = 1 / (1 + np.exp(-logits))
    cost = p * bank.bits(rows, np.ones_like(rows)) + (1 - p) * bank.bits(rows, np.zeros_like(rows))
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert np.all(cost - entropy < 8e-4) and np.all(cost - entropy > -1e-9)
