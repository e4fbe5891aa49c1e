"""Training by MS-SSIM in the place of squared errors."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from eval import metrics
from models.app import cli
from models.codec import distortion, load, load_for_training, weights
from models.elic import ELIC, Config
from models.io.errors import UserError
from train.optimizer import FusedAdam

TINY = Config((8, 8, 8), (4, 4), 8, (8, 8), 16, (8, 8), 8)
SIDE = 176


def noisy(picture, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, picture.shape)
    return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def judged(tiny_weights, crop, tmp_path_factory):
    """Weights file of the tiny model, judged by MS-SSIM."""
    codec = load_for_training(tiny_weights)
    codec.set_distortion("ms-ssim")
    codec.calibrate(crop(SIDE, SIDE)[None])
    path = tmp_path_factory.mktemp("judged") / "tiny.safetensors"
    codec.save(path)
    return path


def test_it_is_the_metric_on_the_scale_of_squared_errors(crop):
    pictures = np.stack([crop(SIDE, 200), crop(SIDE, 200, 20)])
    shown = np.stack([noisy(pictures[0], 5), noisy(pictures[1], 20)])
    arguments = [tf.constant(x, tf.float32) for x in (pictures, shown)]
    expected = [metrics.ms_ssim(a, b) for a, b in zip(pictures, shown)]
    values = distortion.distortion("ms-ssim", *arguments)
    np.testing.assert_allclose(values, 1290 * (1 - np.array(expected)), rtol=1e-3)
    # The pairs of λ that are in use, of which the scale is the mean.
    pairs = np.array([[2.4, 4.58, 8.73, 16.64, 31.73, 60.5], [0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483]])
    np.testing.assert_allclose(np.mean(pairs[0] / pairs[1]), distortion.MS_SSIM_SCALE, rtol=0.01)
    np.testing.assert_allclose(
        distortion.distortion("mse", *arguments), np.mean((pictures.astype(float) - shown) ** 2, (1, 2, 3)), rtol=1e-5
    )


def test_a_step_lowers_the_loss_that_it_is_about(tiny_weights, crop, eagerly):
    codec, pictures = load_for_training(tiny_weights), np.stack([crop(SIDE, SIDE), crop(SIDE, SIDE, 20)])
    codec.set_distortion("ms-ssim")
    codec.compile(FusedAdam(1e-3))
    before = codec.test_on_batch(pictures, return_dict=True)
    assert before["loss"] == pytest.approx(before["bpp"] + codec.lmbda * 1290 * (1 - before["ms_ssim"]), rel=1e-3)
    for _ in range(4):
        codec.train_on_batch(pictures)
    after = codec.test_on_batch(pictures, return_dict=True)
    assert after["loss"] < before["loss"]
    assert all(np.all(np.isfinite(value)) for value in codec.trainable_variables)


def test_the_file_says_so_and_what_goes_on_from_it_does_too(judged, tiny_weights):
    assert weights.read_metadata(judged)["distortion"] == "ms-ssim"
    assert "distortion" not in weights.read_metadata(tiny_weights)
    for codec in (load(judged), load_for_training(judged), load_for_training(judged, lmbda=(0.002, 0.01))):
        assert codec.distortion == "ms-ssim" and codec.metrics[-1].name == "ms_ssim"
    several = load_for_training(judged, lmbda=(0.002, 0.01))
    assert several.with_detail(4).distortion == "ms-ssim"
    assert load(tiny_weights).distortion == "mse"


def test_a_file_of_an_unknown_distortion_is_refused(judged, tmp_path):
    values, header = weights.read(judged)
    weights.write(tmp_path / "w.safetensors", values, {**header, "distortion": "lpips"})
    with pytest.raises(UserError, match="damaged weights file: no distortion named lpips"):
        load(tmp_path / "w.safetensors")


def test_files_hold_no_filter():
    codec = ELIC(Config(**{**TINY.__dict__, "restoration": True}))
    assert codec.has_filter
    codec.set_distortion("ms-ssim")
    assert not codec.has_filter


def test_evaluate_compares_what_it_was_trained_for(judged, tiny_weights, crop, tmp_path, capsys):
    Image.fromarray(crop(SIDE, SIDE)).save(tmp_path / "a.png")
    for path, metric in ((judged, " (MS-SSIM)"), (tiny_weights, "")):
        with pytest.raises(SystemExit) as stopped:
            cli.main("elic", ["evaluate", str(tmp_path / "a.png"), "--weights", str(path), "--anchors"])
        output = capsys.readouterr().out
        assert not stopped.value.code and f" dB{metric}\n" in output
        assert ("elic2022-msssim" in output) == bool(metric) and "vtm" in output


def trained(tmp_path, *flags):
    cli.main("elic", ["train", "--train_path", str(tmp_path / "run"), "--lambda", "0.01", *flags])


@pytest.fixture
def photographs(crop, tmp_path):
    for n in range(3):
        Image.fromarray(crop(SIDE + 20, SIDE + 20, 10 * n)).save(tmp_path / f"{n}.png")
    return str(tmp_path / "*.png")


def test_training_from_the_command_line(judged, tiny_weights, photographs, tmp_path, capsys, eagerly):
    common = ["--train_glob", photographs, "--batchsize", "2", "--epochs", "1", "--steps_per_epoch", "2"]
    common += ["--patchsize", str(SIDE), "--calibration", "2", "--validation_steps", "1"]
    for init, flags, kind in (
        (tiny_weights, ["--distortion", "ms-ssim"], "ms-ssim"),
        (judged, [], "ms-ssim"),
        (judged, ["--distortion", "mse"], "mse"),
    ):
        with pytest.raises(SystemExit) as stopped:
            trained(tmp_path / f"{init.parent.name}{len(flags)}", "--init_weights", str(init), *common, *flags)
        output = capsys.readouterr()
        assert not stopped.value.code, output.err
        assert (", MS-SSIM 0." in output.out) == (kind == "ms-ssim")
        final = tmp_path / f"{init.parent.name}{len(flags)}" / "run" / "final.safetensors"
        assert load(final).distortion == kind


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--patchsize", "128"], "--patchsize 128: MS-SSIM takes 161 pixels at least, and not 128"),
        (["--patchsize", "176", "--restoration"], "--restoration: a filter is for squared errors"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(flags, message, photographs, tiny_weights, tmp_path, capsys):
    common = ["--init_weights", str(tiny_weights), "--train_glob", photographs, "--distortion", "ms-ssim"]
    with pytest.raises(SystemExit) as stopped:
        trained(tmp_path, *common, *flags)
    assert stopped.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and message in errors[0]
