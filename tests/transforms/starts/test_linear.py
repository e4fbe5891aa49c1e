"""The linear start of transforms: ELIC's, SFT's and ELC's."""

import argparse

import numpy as np
import pytest
import tensorflow as tf

from models.app import flags
from models.cwic import CWIC
from models.cwic import PRESETS as CWIC_PRESETS
from models.elc import ELC
from models.elc import PRESETS as ELC_PRESETS
from models.elic import ELIC, Config
from models.sft import PRESETS as SFT_PRESETS
from models.sft import SFT
from transforms.starts import linear as linear_start

# More channels than the first stages have components, and fewer than the last ones.
SMALL = Config(
    widths=(16, 56, 96),
    groups=(4, 4, 8, 16, 128),
    hyper_channels=8,
    hyper_widths=(8, 8),
    hyper_features=8,
    context_widths=(8, 8),
    parameter_width=8,
)


def psnr(a, b) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(a) - b) ** 2) / 255**2))


def not_learning(codec, pictures, parts=("analysis/", "synthesis/")) -> list[str]:
    """The variables of those parts that have no gradient after a linear start and two steps."""
    codec(tf.zeros([1, 64, 64, 3]), training=True)
    codec.init_pca()
    codec.compile(tf.keras.optimizers.Adam(1e-4))
    for _ in range(2):  # behind kernels of zeros learning begins with the second step
        codec.train_step(pictures)
    with tf.GradientTape() as tape:
        loss = codec.losses(codec.batch(pictures), training=True)["loss"]
    names = [n for n in codec.named_variables() if n.startswith(parts)]
    assert len(names) > 30
    gradients = tape.gradient(loss, [codec.named_variables()[n] for n in names])
    return [n for n, g in zip(names, gradients) if g is None or not np.any(g)]


@pytest.fixture(scope="module")
def photographs(photograph):
    return np.stack([photograph[:128, :192], photograph[128:256, 100:292]]).astype(np.float32)


@pytest.fixture(scope="module")
def started():
    codec = ELIC(SMALL, lmbda=0.01)
    codec.init_pca()
    return codec


def test_stages_are_orthonormal_and_lose_nothing_while_there_is_room():
    stages = linear_start.principal_components([16, 56, 96, 160])
    assert [stage.kernel.shape for stage in stages] == [(2, 2, 3, 12), (2, 2, 12, 48), (2, 2, 48, 96), (2, 2, 96, 160)]
    for stage in stages:
        flat = stage.kernel.reshape(-1, stage.kernel.shape[-1])
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)


def test_first_component_is_the_mean_brightness():
    block = np.ones([3])
    for stage in linear_start.principal_components([12, 48]):
        block = np.einsum("yxio,i->o", stage.kernel, block)
    assert abs(block[0]) == pytest.approx(np.sqrt(3 * 16), rel=1e-2)  # of 16 pixels of three equal values
    assert np.abs(block[1:]).max() < 0.5


def test_synthesis_inverts_analysis(started, photographs):
    restored = started.reconstruct(started.analyse(tf.constant(photographs)))
    assert psnr(restored, photographs) > 30
    random = ELIC(SMALL, lmbda=0.01)
    assert psnr(random.reconstruct(random.analyse(tf.constant(photographs))), photographs) < 20


def test_energy_comes_first_and_the_step_follows_lambda(started, photographs):
    latents = started.analyse(tf.constant(photographs))
    power = np.std(latents, axis=(0, 1, 2))
    assert power[:4].min() > 5 * power[-16:].max()
    finer = ELIC(SMALL, lmbda=0.04)
    finer.init_pca()
    of_finer = np.std(finer.analyse(tf.constant(photographs)), axis=(0, 1, 2))
    # Twice, but for what the gates that are not quite closed add.
    np.testing.assert_allclose(of_finer[:32] / power[:32], 2, rtol=0.05)
    rounded = [
        psnr(c.reconstruct(tf.round(c.analyse(tf.constant(photographs)))), photographs) for c in (started, finer)
    ]
    assert rounded[0] > 25 and rounded[1] > rounded[0] + 1


def test_all_that_is_silent_at_first_can_learn(photographs):
    codec = ELIC(SMALL, lmbda=0.01)
    codec.init_pca()
    codec.compile(tf.keras.optimizers.Adam(1e-4))
    with tf.GradientTape() as tape:
        loss = codec.losses(photographs[:, :64, :64], training=True)["loss"]
    names = [n for n in codec.named_variables() if n.startswith(("analysis/", "synthesis/"))]
    variables = [codec.named_variables()[n] for n in names]
    silent = [
        n
        for n, g in zip(names, tape.gradient(loss, variables))
        if n.endswith(("expand/kernel", "gate/bias")) and not np.any(g)
    ]
    assert len(names) > 100
    # The mask has a say when its gate has weights, after the first step.
    assert all("/mask/" in n for n in silent)


def test_command_line_flag():
    elic = flags.of("elic")
    parser = argparse.ArgumentParser()
    elic.add_train_flags(parser)

    def made(*flags):
        # The others are of the command line's, for all models.
        return elic.for_training(
            parser.parse_args(flags, argparse.Namespace(init_weights=None, preset="small", patchsize=256))
        )

    picture = tf.zeros([1, 32, 32, 3]) + 200.0
    linear, random = made("--start", "linear"), made("--start", "random")
    assert psnr(linear.reconstruct(linear.analyse(picture)), picture) > 30
    assert psnr(random.reconstruct(random.analyse(picture)), picture) < 20


# --- SFT, which has convolutions at full resolution and GDNs in between ---------------------------------------------


def sft_shown(codec, pictures, quality: float, rounded: bool = False):
    """Images from latents that are not coded; the hyper-latent says nothing but the quality."""
    batch, height, width, _ = pictures.shape
    y = codec.analyse(tf.constant(pictures), tf.fill([batch, height, width, 1], quality))
    z = np.zeros([batch, height // 64, width // 64, codec.prior_channels()], np.float32)
    z[..., -1] = 16 * (quality - 0.5)
    scale = codec.latent_scale(tf.constant(z), height // 16, width // 16)
    return codec.reconstruct((tf.round(y * scale) / scale if rounded else y, tf.constant(z)))


@pytest.fixture(scope="module")
def sft():
    codec = SFT(SFT_PRESETS["small"], lmbda=(0.001, 0.08))
    codec.init_pca()
    return codec


def test_sft_begins_as_a_block_transform_at_every_quality(sft, photographs):
    pictures = photographs[:, :128, :192]
    for quality in (0.0, 0.5, 1.0):
        assert psnr(sft_shown(sft, pictures, quality), pictures) > 38
    rounded = [psnr(sft_shown(sft, pictures, quality, rounded=True), pictures) for quality in (0.0, 0.5, 1.0)]
    assert rounded[0] > 27 and min(np.diff(rounded)) > 2
    random = SFT(SFT_PRESETS["small"], lmbda=(0.001, 0.08))
    assert psnr(sft_shown(random, pictures, 0.5), pictures) < 20


def test_sft_step_follows_lambda(sft, photographs):
    pictures = photographs[:, :128, :192]
    finer = SFT(SFT_PRESETS["small"], lmbda=(0.004, 0.32))
    finer.init_pca()
    maps = tf.fill([*pictures.shape[:3], 1], 0.5)
    of_both = [np.std(codec.analyse(tf.constant(pictures), maps), axis=(0, 1, 2))[:32] for codec in (sft, finer)]
    np.testing.assert_allclose(of_both[1] / of_both[0], 2, rtol=0.01)


def test_all_of_sft_learns_from_a_linear_start(photographs):
    assert not_learning(SFT(SFT_PRESETS["small"], lmbda=(0.001, 0.08)), photographs[:, :64, :64]) == []


def test_sft_command_line_flag(photographs):
    parser = argparse.ArgumentParser()
    own = flags.of("sft")
    own.add_train_flags(parser)
    pictures = photographs[:, :64, :64]
    for start, works in (((), True), (("--start", "linear"), True), (("--start", "random"), False)):
        arguments = parser.parse_args(start, argparse.Namespace(init_weights=None, preset="small"))
        assert (psnr(sft_shown(own.for_training(arguments), pictures, 0.5), pictures) > 30) == works


# --- ELC, whose skips see one pixel of four -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elc():
    codec = ELC(ELC_PRESETS["small"], lmbda=0.0018)
    codec.init_pca()
    return codec


def test_a_stage_in_two_ways_is_the_stage_where_the_rank_allows_it():
    first, second, third = linear_start.principal_components([64, 64, 64])
    for stage in (first, second):
        fine, coarse = stage.kernel.shape[2:]
        skip, take, give = stage.past_first(4 * fine)
        both = (take.reshape(-1, len(give)) @ give).reshape(2, 2, fine, coarse)
        both[0, 0] += skip
        assert len(give) == 3 * fine  # all that the first neighbour does not tell
        np.testing.assert_allclose(both, stage.kernel, atol=1e-4)
    # Where it does not, what is lost falls with the rank, and there is none better: the skip has its share.
    flat = third.kernel.reshape(-1, 64)
    lost = []
    for rank in (8, 16, 32):
        skip, take, give = third.past_first(rank)
        error = flat - take.reshape(-1, rank) @ give
        error[:48] -= skip
        lost.append(np.trace(error.T @ third.covariance @ error))
        np.testing.assert_allclose(error.T @ third.covariance @ error @ give.T, 0, atol=1e-4 * lost[-1])
        np.testing.assert_allclose(third.covariance[:48] @ error, 0, atol=1e-4 * lost[-1])
    assert lost[0] > 1.5 * lost[1] > 2 * lost[2] > 0


def test_elc_begins_as_a_block_transform(elc, photographs):
    restored = elc.reconstruct(elc.analyse(tf.constant(photographs)))
    # What 64 of 768 components can hold.
    blocks = photographs.reshape(2, 8, 16, 12, 16, 3)
    means = np.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape).reshape(photographs.shape)
    assert psnr(restored, photographs) > psnr(means, photographs) + 3
    random = ELC(ELC_PRESETS["small"], lmbda=0.0018)
    assert psnr(random.reconstruct(random.analyse(tf.constant(photographs))), photographs) < 20


def test_elc_step_follows_lambda(elc, photographs):
    finer = ELC(ELC_PRESETS["small"], lmbda=0.0072)
    finer.init_pca()
    of_both = [np.std(codec.analyse(tf.constant(photographs)), axis=(0, 1, 2))[:32] for codec in (elc, finer)]
    np.testing.assert_allclose(of_both[1] / of_both[0], 2, rtol=0.05)


def test_all_of_elc_learns_from_a_linear_start(photographs):
    assert not_learning(ELC(ELC_PRESETS["small"], lmbda=0.0018), photographs[:, :64, :64]) == []


def test_elc_command_line_flag(photographs):
    parser = argparse.ArgumentParser()
    own = flags.of("elc")
    own.add_train_flags(parser)
    pictures = photographs[:, :64, :64]
    for start, works in (((), True), (("--start", "linear"), True), (("--start", "random"), False)):
        codec = own.for_training(parser.parse_args(start, argparse.Namespace(init_weights=None, preset="small")))
        assert (psnr(codec.reconstruct(codec.analyse(tf.constant(pictures))), pictures) > 21) == works


# --- CWIC, whose codes are bits: see test_binary_start ---------------------------------------------------------------


def test_all_of_cwic_learns_from_its_start(photographs):
    parts = ("encoder/", "code_head/", "synthesis/")
    assert not_learning(CWIC(CWIC_PRESETS["small"]), photographs[:, :64, :64], parts) == []
