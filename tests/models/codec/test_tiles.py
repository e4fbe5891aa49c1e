"""Large images in tiles: how far the networks reach, and that files and images are those of the whole."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models import cwic, elc, elic, sae_spn, sft
from models.codec import EncoderOptions, load
from models.io.images import read_image, write_image
from transforms import tiling

ELIC = elic.Config((8, 8, 8), (4, 4), 4, (8, 8), 8, (8, 8), 8)
SFT = sft.Config((8, 8, 8, 8), 8, 4, (8, 8), 4, 8, (8,), (8,), 8)
CWIC = cwic.Config((8, 8), (16, 16, 8), 8, 4, (4, 4), 8, 4)
SAE = sae_spn.Config((8, 8, 8, 8, 8), (2, 2), 3, "channel", 1.0, 8, (8, 8, 8, 8))
ELC = elc.Config(16, (8, 8), 8, (8, 8), 8, (8,) * 5, 16, 4, 1, 8)

#: Codecs by name: what makes one.
CODECS = {
    "elic": lambda: elic.ELIC(ELIC),
    "elic detail": lambda: elic.ELIC(dataclasses.replace(ELIC, groups=(4, 4, 8), detail=8)),
    "sft": lambda: sft.SFT(SFT),
    "cwic": lambda: cwic.CWIC(CWIC, stage=2, ratio=0.5),
    "sae": lambda: sae_spn.SAESPN(SAE, variant="sae"),
    "sae_spn": lambda: sae_spn.SAESPN(SAE, variant="sae_spn"),
    "elc": lambda: elc.ELC(ELC),
    "elc enhanced": lambda: elc.ELC(ELC, stage="decoder", labels=("a", "b")),
}


def without_biases(codec) -> None:
    """Then nothing comes of nothing, and whatever comes of one pixel is within its reach; all else random."""
    for name, variable in codec.named_variables().items():
        if not variable.trainable:
            continue  # the integer networks, which have no part in it
        if name.rpartition("/")[-1].startswith("bias"):
            variable.assign(tf.zeros_like(variable))
        elif len(variable.shape) > 1 and not np.any(variable.numpy()):
            variable.assign(tf.random.normal(variable.shape, stddev=0.1))


def first_and_last(values: tf.Tensor) -> tuple[int, int]:
    """The first and the last row of [B, H, W, C] that is not all zero, and one behind it."""
    rows = np.flatnonzero(np.any(values.numpy() != 0, (0, 2, 3)))
    return int(rows[0]), int(rows[-1]) + 1


def analysis(codec):
    """What the codec makes of pixels, from what they are to a float that is not quantised yet."""
    if isinstance(codec, cwic.CWIC):  # of which the importance net is what reaches farther
        net = codec.importance_net.layers
        return lambda x: net[1](net[0](codec.encoder(codec.normalise(x))))
    if isinstance(codec, sft.SFT):
        return lambda x: codec.analyse(x, x[..., :1] - 127.5)
    if isinstance(codec, sae_spn.SAESPN):
        return lambda x: codec.analyse(x)[0]
    return codec.analyse


def decoded(codec, rows: int) -> list[tf.Tensor]:
    """Latents of zeros for images of so many rows, as `reconstruct` takes them."""
    depths = {sft.SFT: lambda c: (c.latents, codec.prior_channels()), cwic.CWIC: lambda c: (c.codes,)}
    depths |= {sae_spn.SAESPN: lambda c: (c.latents,), elc.ELC: lambda c: (c.width,), elic.ELIC: lambda c: (c.latents,)}
    channels = depths[type(codec)](codec.config)
    return [tf.zeros([1, rows // cell, -(-64 // cell), c]) for cell, c in zip(codec.reach.decoded, channels)]


def synthesis(codec):
    def run(latents):
        if isinstance(codec, sft.SFT):
            return codec.synthesis(*latents)
        if isinstance(codec, sae_spn.SAESPN):
            return codec.synthesis(latents[0], [])[0]
        if isinstance(codec, elc.ELC) and codec.enhances:
            return codec.enhancement(codec.synthesis_stages(latents[0]))
        if isinstance(codec, elic.ELIC):
            return codec.synthesise(latents[0])
        return codec.synthesis(latents[0])

    return run


@pytest.mark.parametrize("name", CODECS)
def test_networks_reach_as_far_as_they_say(name):
    """A single row of pixels, or of latents, shows where the receptive field ends; not beyond it, nor well before."""
    tf.keras.utils.set_random_seed(0)
    codec = CODECS[name]()
    codec.build_variables()
    without_biases(codec)
    unit, rows = codec.reach.unit, 1536
    middle, farthest = rows // 2, 0
    cell = codec.reach.latents[0]
    for at in (middle, middle + cell - 1):
        pixels = np.full([1, rows, 64, 3], 127.5, np.float32)
        pixels[:, at] += np.random.default_rng(0).normal(0, 100, [64, 3])
        first, last = first_and_last(analysis(codec)(tf.constant(pixels)))
        # The tile that ends behind the first cell needs this row, and so does the one that begins with the last cell.
        farthest = max(farthest, at + 1 - (first + 1) * cell, (last - 1) * cell - at)
    assert codec.reach.analysis - unit < farthest <= codec.reach.analysis

    farthest = 0
    for part, cell in enumerate(codec.reach.decoded):
        latents = decoded(codec, rows)
        at = middle // cell
        latents[part] = tf.tensor_scatter_nd_add(
            latents[part], [[0, at]], tf.random.normal([1, *latents[part].shape[2:]])
        )
        first, last = first_and_last(synthesis(codec)(latents))
        # Tiles begin and end at units only.
        farthest = max(farthest, (at + 1) * cell - (first // unit + 1) * unit, (last - 1) // unit * unit - at * cell)
    assert codec.reach.synthesis - unit < farthest <= codec.reach.synthesis


def test_normalisation_over_the_whole_picture_is_not_tiled():
    assert sae_spn.SAESPN(dataclasses.replace(SAE, norm="instance")).reach is None


@pytest.mark.parametrize("model", ["elic", "sft", "cwic", "sae_spn", "elc"])
@pytest.mark.parametrize("traced", [False, True])
def test_file_and_picture_of_tiles_are_those_of_the_whole(model, golden_weights, photograph, traced):
    """Up to the order in which floats are added: pixels by a level, a latent in ten thousand by one."""
    codec = load(golden_weights(model))
    picture = photograph[:250, :390]
    whole = codec.compress(picture)
    expected = codec.decompress(whole)
    options = EncoderOptions(tile=128)
    if traced:
        codec.trace(options)
    tiled = codec.compress(picture, options)
    assert abs(len(tiled) - len(whole)) <= 0.001 * len(whole) + 2
    picture = codec.decompress(whole, tile=128).astype(int)
    assert np.abs(picture - expected).max() <= 1
    assert np.mean(picture != expected) < 1e-3
    assert np.mean(np.abs(codec.decompress(tiled, tile=128).astype(int) - expected) > 1) < 1e-2


def run(model, *arguments) -> int:
    from models.app.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(model, list(map(str, arguments)))
    return stopped.value.code


def test_command_line(tiny_weights, tiny, crop, tmp_path, capsys):
    picture, stream = tmp_path / "a.png", tmp_path / "a.png.tfci"
    write_image(picture, crop(200, 300))
    assert run("elic", "compress", picture, "--tile", 64, "--weights", tiny_weights) == 0
    assert abs(stream.stat().st_size - len(tiny.compress(crop(200, 300)))) <= 2
    assert run("elic", "decompress", stream, "--tile", 64, "--weights", tiny_weights) == 0
    decoded = read_image(tmp_path / "a.png.tfci.png").astype(int)
    assert np.abs(decoded - tiny.decompress(stream.read_bytes())).max() <= 1
    capsys.readouterr()
    assert run("elic", "compress", picture, "-f", "--tile", 0, "--weights", tiny_weights) == 1
    assert capsys.readouterr().err == "error: --tile 0: must be at least 1\n"


def test_weights_that_cannot_be_tiled_say_so(crop, tmp_path, capsys):
    codec = sae_spn.SAESPN(dataclasses.replace(SAE, norm="instance"), variant="sae")
    codec.build_variables(training=True)
    codec.calibrate(np.stack([crop(64, 64), crop(64, 64, 200)]))
    codec.save(tmp_path / "w.safetensors")
    write_image(tmp_path / "a.png", crop(64, 64))
    assert run("sae_spn", "compress", tmp_path / "a.png", "--tile", 64, "--weights", tmp_path / "w.safetensors") == 1
    error = capsys.readouterr().err
    assert "each pixel depends on the whole image" in error and error.count("\n") == 1
    assert not (tmp_path / "a.png.tfci").exists()


def test_help_names_the_defaults(capsys):
    from models.app.cli import main

    with pytest.raises(SystemExit):
        main("elic", ["compress", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"By default {tiling.TILE} above {tiling.LARGE / 1e6:.1f} megapixels" in text
