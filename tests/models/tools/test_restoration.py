"""The filter that a file holds for its image."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from variants import with_config

from models.app import tflite
from models.app.serving import signatures
from models.codec import load, weights
from models.entropy.coders import TableRate
from models.tools import restoration


@pytest.fixture(scope="module")
def restoring(tiny_weights, tmp_path_factory):
    """The tiny golden codec, whose files hold filters."""
    return with_config(tiny_weights, tmp_path_factory.mktemp("restoring"), restoration=True)


@pytest.fixture(scope="module")
def plain(tiny_weights):
    return load(tiny_weights)


def mse(a, b):
    return np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)


# --- the filter --------------------------------------------------------------------------------------------------


def test_zeros_change_nothing(crop):
    picture = tf.cast(crop(20, 30)[None], tf.float32)
    zeros = tf.zeros([1, restoration.COEFFICIENTS], tf.int32)
    np.testing.assert_allclose(restoration.apply(picture, zeros), picture, atol=1e-3)


def test_the_filter_of_a_filtered_picture_is_found(crop):
    """All coefficients are told apart, in strips as in one, and each image has its own."""
    pictures = tf.cast(np.stack([crop(150, 90), crop(150, 90, 200)]), tf.float32)
    random = np.random.default_rng(1)
    wanted = tf.constant(random.integers(-20, 20, [2, restoration.COEFFICIENTS]), tf.int32)
    found, _ = restoration.fit(restoration.apply(pictures, wanted), pictures, tf.ones([2, 150, 90, 1]))
    np.testing.assert_allclose(found, wanted, atol=2)
    assert not np.array_equal(wanted[0], wanted[1])


def test_it_is_what_the_page_of_the_bit_stream_says(crop):
    picture = crop(20, 30).astype(float)
    weights = np.random.default_rng(2).integers(-40, 40, [1, restoration.COEFFICIENTS])
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), "edge")
    expected = picture.copy()
    for i, j in np.ndindex(20, 30):
        around = {(a, b): padded[1 + i + a, 1 + j + b] for a in (-1, 0, 1) for b in (-1, 0, 1)}
        features = [around[a, b] + around[-a, -b] - 2 * around[0, 0] for a, b in ((0, 1), (1, 0), (1, 1), (1, -1))]
        features = np.concatenate([*features, (around[0, 0] - 128) / 4, [4]])
        expected[i, j] += features @ weights.reshape(16, 3) / 256
    restored = restoration.apply(tf.constant(picture[None], tf.float32), tf.constant(weights, tf.int32))
    np.testing.assert_allclose(restored[0], expected, atol=0.01)
    assert (restoration.SOME, restoration.NONE, restoration.WORTH) == (12, 0, 50)


def test_the_fit_is_the_least_squares(crop):
    original = tf.cast(crop(80, 70)[None], tf.float32)
    blurred = tf.nn.avg_pool2d(original, 3, 1, "SAME")
    found, lower = restoration.fit(original, blurred, tf.fill([1, 80, 70, 1], 0.01))
    best = mse(restoration.apply(blurred, found), original)
    assert float(lower[0]) == pytest.approx(0.01 * (mse(blurred, original) - best), rel=1e-3)
    assert best < 0.9 * mse(blurred, original)
    for change in np.eye(restoration.COEFFICIENTS, dtype=np.int32)[:: restoration.FEATURES // 3] * 8:
        assert mse(restoration.apply(blurred, found + change), original) > best * 0.9999


def test_pixels_count_as_they_are_told_to(crop):
    """What the left half would have alone is found where the right one counts nothing to speak of."""
    original = tf.cast(crop(150, 80)[None], tf.float32)
    decoded = tf.concat([tf.nn.avg_pool2d(original[:, :, :40], 3, 1, "SAME"), original[:, :, 40:] - 9], 2)
    count = np.full([1, 150, 80, 1], 1e-6, np.float32)
    count[:, :, :40] = 0.01
    found, lower = restoration.fit(original, decoded, tf.constant(count))
    restored = restoration.apply(decoded, found)

    def left(pictures):
        return mse(pictures[:, :, :40], original[:, :, :40])

    assert float(lower[0]) == pytest.approx(0.01 * (left(decoded) - left(restored)) / 2, rel=0.02)
    evenly, _ = restoration.fit(original, decoded, tf.ones([1, 150, 80, 1]))
    assert left(restored) < 0.95 * left(restoration.apply(decoded, evenly))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_small_and_flat_pictures(shape):
    flat = tf.fill([1, *shape, 3], 77.0)
    found, _ = restoration.fit(flat, flat - 5, tf.ones([1, *shape, 1]))
    np.testing.assert_allclose(restoration.apply(flat - 5, found), flat, atol=0.5)


# --- in files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(64, 96), (75, 93)])
def test_files_are_what_was_estimated(restoring, crop, height, width):
    image = crop(height, width)
    data = restoring.compress(image)
    estimate, bits = restoring(tf.constant(image[None]))
    assert np.abs(restoring.decompress(data).astype(float) - estimate[0]).max() <= 0.51
    assert "restoration" in bits
    assert abs(sum(float(b[0]) for b in bits.values()) / 8 - len(data)) < 60  # lanes, header, fingerprint


def test_it_pays(restoring, plain, crop):
    """The loss is smaller with a filter than without; where the bits are not worth it there is none."""
    image = crop(160, 240)
    with_filter, without = restoring.compress(image), plain.compress(image)

    def loss(codec, data):
        return 8 * len(data) / image[..., 0].size + plain.lambdas[0] * mse(codec.decompress(data), image)

    assert len(with_filter) > len(without) + 10
    assert loss(restoring, with_filter) < loss(plain, without)
    tiny_image = crop(8, 8)
    assert len(restoring.compress(tiny_image)) <= len(plain.compress(tiny_image)) + 8
    np.testing.assert_array_equal(
        restoring.decompress(restoring.compress(tiny_image)), plain.decompress(plain.compress(tiny_image))
    )


def test_each_picture_of_a_batch_has_its_own(restoring, crop):
    images = np.stack([crop(64, 96), crop(64, 96, 200)])
    for data, image in zip(restoring.compress_batch(images), images):
        alone = restoring.decompress(restoring.compress(image))
        assert np.abs(restoring.decompress(data).astype(int) - alone).max() <= 2


def test_previews_have_no_filter_and_what_is_cut_off_is_shown(restoring, plain, crop):
    image = crop(160, 240)
    data = restoring.compress(image)
    groups = len(plain.config.groups)
    np.testing.assert_array_equal(
        restoring.decompress(data, groups=groups), plain.decompress(plain.compress(image), groups=groups)
    )
    np.testing.assert_array_equal(restoring.decompress(data, partial=True), restoring.decompress(data))
    assert restoring.decompress(data[:-30], partial=True).shape == image.shape


def test_a_sender_alone_restores_too(restoring, crop):
    image = crop(64, 96)
    assert load(restoring.path, synthesis=False).compress(image) == restoring.compress(image)


def test_served_files_are_read_here_and_theirs_there(restoring, crop):
    image = crop(64, 96)
    served = signatures(restoring)
    data = served["compress"](tf.constant(image[None]))["bitstream_bytes"].numpy()[0]
    here = restoring.decompress(restoring.compress(image)).astype(int)
    assert np.abs(restoring.decompress(data) - here).max() <= 2
    there = served["decompress"](tf.constant([restoring.compress(image)]))["image"][0].numpy()
    assert np.abs(there - here).max() <= 1


def test_tensorflow_lite_runs_both_sides(restoring, crop, tmp_path):
    image = crop(64, 96)
    folder = tflite.export(restoring, tmp_path, 96, 64)

    def run(name, value):
        lite = tf.lite.Interpreter(str(folder / f"{name}.tflite"))
        lite.allocate_tensors()
        lite.set_tensor(lite.get_input_details()[0]["index"], value)
        lite.invoke()
        return lite.get_tensor(lite.get_output_details()[0]["index"])[0]

    data = restoring.compress(image)
    here, from_lite = restoring.decompress(data).astype(int), restoring.decompress(run("compress", image[None]))
    assert np.abs(from_lite - here).max() <= 2
    assert np.abs(run("decompress", np.array([data])) - here).max() <= 1


def test_bits_of_a_filter(restoring):
    size = TableRate(restoring.bank)
    coefficients = np.zeros([2, restoration.COEFFICIENTS], np.int32)
    coefficients[1] = np.random.default_rng(0).normal(0, 40, restoration.COEFFICIENTS)
    decoded = restoration.code(size, tf.constant(coefficients), 2)
    np.testing.assert_array_equal(decoded, coefficients)
    none, some = size.bits["restoration"].numpy()
    assert none < 8 and 200 < some < 480


# --- of SFT, where the pixels of an image have their own λ ---------------------------------------------------------


@pytest.fixture(scope="module")
def sft_pair(golden_weights, tmp_path_factory):
    """The tiny golden SFT, with filters and without."""
    path = golden_weights("sft")
    return with_config(path, tmp_path_factory.mktemp("restoring_sft"), restoration=True), load(path)


@pytest.mark.parametrize("height, width", [(64, 96), (75, 93)])
def test_files_of_sft_are_what_was_estimated(sft_pair, crop, height, width):
    codec, _ = sft_pair
    image = crop(height, width)
    quality = np.tile(np.linspace(0, 1, width, dtype=np.float32), [height, 1])
    data = codec.compress(image, quality_map=quality)
    estimate, bits = codec(tf.constant(image[None]), quality_map=tf.constant(quality[None, ..., None]))
    assert np.abs(codec.decompress(data).astype(float) - estimate[0]).max() <= 0.51
    assert float(bits["restoration"][0]) > 100


def test_it_pays_where_the_map_says(sft_pair, crop):
    """The loss, in which pixels count by their quality, is smaller; the region of the filter is that of the quality."""
    codec, without = sft_pair
    image = crop(160, 240)
    quality = np.zeros([160, 240], np.float32)
    quality[:, 120:] = 1

    def figures(codec):
        data = codec.compress(image, quality_map=quality)
        decoded = codec.decompress(data)
        weighted = codec.lambda_map(tf.constant(quality[..., None])) * (decoded.astype(np.float32) - image) ** 2
        return 8 * len(data) / quality.size + np.mean(weighted), mse(decoded[:, 120:], image[:, 120:])

    (loss, region), (loss_without, region_without) = figures(codec), figures(without)
    assert loss < loss_without and region < region_without


def test_a_target_is_met_with_the_filter_in_the_file(sft_pair, crop):
    codec, _ = sft_pair
    image = crop(160, 240)
    size = len(codec.compress(image, quality=0.5))
    assert abs(len(codec.compress_to(image, size)) - size) < 0.03 * size


# --- of CWIC, whose tables have Gaussians for the filter alone ------------------------------------------------------


def test_cwic_has_filters(crop):
    """The shipped weights': the golden ones know colours so badly that no filter is sent."""
    codec, without = (load(weights.default("cwic", "small-r25")) for _ in range(2))
    without.config = dataclasses.replace(codec.config, restoration=False)
    image = crop(275, 193)
    data, plainly = codec.compress(image), without.compress(image)
    estimate, bits = codec(tf.constant(image[None]))
    assert np.abs(codec.decompress(data).astype(float) - estimate[0]).max() <= 0.51
    assert float(bits["restoration"][0]) > 100

    def loss(codec, data):
        return 8 * len(data) / image[..., 0].size + codec.lmbda * mse(codec.decompress(data), image)

    assert loss(codec, data) < loss(without, plainly)
