"""Training outside TensorFlow: what `train.pjrt` exports trains under JAX as it does under TensorFlow.

The tests that run JAX need an interpreter that has it: see `jax_python` in tests/conftest.py.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from toy import Toy

from models import elic
from models.codec import weights
from models.io.errors import UserError
from train.options import FitOptions
from train.pjrt import export as pjrt
from train.pjrt import options as pjrt_options
from train.pjrt import run as pjrt_run
from train.soap import SOAP

ROOT = Path(__file__).resolve().parents[3]
RUNNER = ROOT / "train" / "pjrt" / "run.py"
STEPS = 20


class ShallowElic(elic.ELIC):
    """ELIC with two layers for each of its deep transforms, which are most of the time to compile."""

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        conv, transposed = tf.keras.layers.Conv2D, tf.keras.layers.Conv2DTranspose
        settings = {"strides": 4, "padding": "same"}
        self.analysis = tf.keras.Sequential([conv(6, 5, **settings), conv(config.latents, 5, **settings)])
        self.synthesis = tf.keras.Sequential([transposed(6, 5, **settings), transposed(3, 5, **settings)])


def compiled(codec, rate=1e-3, ema=0.9):
    codec.compile(
        optimizer=tf.keras.optimizers.Adam(rate, global_clipnorm=1.0, use_ema=ema > 0, ema_momentum=ema or 0.99)
    )
    return codec


def make_batches(shape, count=STEPS):
    """Coarse random images: uint8 [count, *shape]."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 256, (count, shape[0], shape[1] // 8, shape[2] // 8, 3), np.uint8)
    return coarse.repeat(8, 2).repeat(8, 3)


def under_tensorflow(codec, batches):
    """The metrics of each step under TensorFlow itself, not XLA: [N, 4]."""
    step = tf.function(pjrt.training_step(codec))
    return np.array([[float(value) for value in step(batch)] for batch in batches])


@pytest.fixture(scope="session")
def run(jax_python):
    """Runs the runner to its end: run(directory, *flags) -> CompletedProcess."""

    # Half of the time to compile, and as exact.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}

    def run(directory, *flags, code=0, **kwargs):
        done = subprocess.run(
            command(jax_python, directory, *flags), capture_output=True, text=True, env=environment, **kwargs
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def command(python, directory, *flags):
    return [python, str(RUNNER), str(directory), "--decay_from", "1", *map(str, flags)]


def one_line(process, *parts):
    """Asserts that stderr is a single error line that has all the parts."""
    assert re.fullmatch(r"error: [^\n]+\n", process.stderr), process.stderr
    for part in parts:
        assert part in process.stderr


@pytest.fixture(scope="session")
def toy_batches(tmp_path_factory):
    batches = make_batches((2, 16, 16, 3))
    path = tmp_path_factory.mktemp("batches") / "batches.npy"
    np.save(path, batches)
    return path


@pytest.fixture(scope="session")
def toy(tmp_path_factory, toy_batches):
    """An exported toy codec, and TensorFlow's run of it: (directory, codec after the run, metrics)."""
    directory = tmp_path_factory.mktemp("toy")
    tf.keras.utils.set_random_seed(1)
    codec = compiled(Toy())
    pjrt.export(codec, (2, 16, 16, 3), directory, options={"batchsize": 2})
    metrics = under_tensorflow(codec, np.load(toy_batches))
    return directory, codec, metrics


@pytest.fixture(scope="session")
def toy_trained(tmp_path_factory, toy, toy_batches, run):
    """The folder of a finished run of 20 steps. To be copied before it is changed."""
    out = tmp_path_factory.mktemp("out") / "run"
    run(toy[0], "--batches", toy_batches, "--steps", STEPS, "--out", out, "--progress_seconds", 0)
    return out


@pytest.fixture
def trained(toy_trained, tmp_path):
    """A copy of `toy_trained`."""
    return Path(shutil.copytree(toy_trained, tmp_path / "run"))


def logged(out, names=("loss", "bpp", "mse", "psnr")):
    with open(Path(out) / "log.csv", encoding="utf-8") as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


# --- the same training -----------------------------------------------------------------------------------


def test_elic_trains_under_jax_as_under_tensorflow(tmp_path, run):
    config = elic.Config(
        widths=(4, 4, 6),
        groups=(2, 4),
        hyper_channels=4,
        hyper_widths=(4, 6),
        context_widths=(4, 4),
        parameter_width=8,
    )
    batches = make_batches((2, 32, 32, 3))
    np.save(tmp_path / "batches.npy", batches)
    tf.keras.utils.set_random_seed(2)
    codec = compiled(ShallowElic(config, lmbda=0.01), ema=0)
    pjrt.export(codec, (2, 32, 32, 3), tmp_path / "step")
    expected = under_tensorflow(codec, batches)
    run(tmp_path / "step", "--batches", tmp_path / "batches.npy", "--steps", STEPS, "--progress_seconds", 0)
    np.testing.assert_allclose(logged(tmp_path / "step"), expected, rtol=1e-3)
    np.testing.assert_allclose(logged(tmp_path / "step")[:3], expected[:3], rtol=1e-5)


def test_a_step_judged_by_ms_ssim_takes_its_pictures(tmp_path):
    """As inputs: XLA took those of `tf.image.ssim_multiscale` for constants."""
    codec = Toy()
    codec.set_distortion("ms-ssim")
    pjrt.export(compiled(codec), (1, 164, 164, 3), tmp_path)
    step = json.loads((tmp_path / "step.json").read_text())
    assert step["settings"]["distortion"] == "ms-ssim" and "ms_ssim" in step["metrics"]


def test_losses_and_weights_are_those_of_tensorflow(toy, toy_trained, toy_batches):
    _, by_tensorflow, expected = toy
    np.testing.assert_allclose(logged(toy_trained), expected, rtol=1e-5)
    # A step that learns nothing would show: the losses of the untrained codec are others.
    assert np.abs(logged(toy_trained)[-1] / expected[0] - 1).max() > 1e-3
    codec = Toy()
    state = pjrt.import_state(toy_trained, codec)
    assert state["step"] == STEPS and state["options"] == {"batchsize": 2}
    raw = {name: variable.numpy() for name, variable in by_tensorflow.named_variables().items()}
    by_tensorflow.optimizer.finalize_variable_values(by_tensorflow.trainable_variables)
    for name, variable in codec.named_variables().items():
        average = by_tensorflow.named_variables()[name].numpy()
        np.testing.assert_allclose(variable.numpy(), average, rtol=2e-3, atol=1e-6, err_msg=name)
    saved = np.load(next(toy_trained.glob("checkpoint-*")) / "weights.npz")
    for name, value in raw.items():
        np.testing.assert_allclose(saved[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        by_tensorflow.named_variables()[name].assign(value)


def test_soap_takes_its_steps_under_jax(toy, toy_batches, tmp_path, run):
    tf.keras.utils.set_random_seed(1)
    codec = Toy()
    codec.compile(optimizer=SOAP(1e-3, refresh=3, global_clipnorm=1.0))
    pjrt.export(codec, (2, 16, 16, 3), tmp_path / "step")
    expected = under_tensorflow(codec, np.load(toy_batches))
    run(tmp_path / "step", "--batches", toy_batches, "--steps", STEPS, "--progress_seconds", 0)
    # Eigenvectors of what is next to nothing are any, and others under XLA, but steps along them are as long as others.
    found = logged(tmp_path / "step")
    np.testing.assert_allclose(found, expected, rtol=4e-3)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert np.abs(toy[2] / expected - 1).max() > 0.02  # Adam's


def test_noise_is_uniform_and_of_its_step_alone():
    def draw(step):
        with pjrt.seeded_noise(step):
            return tf.random.uniform([40000], -0.5, 0.5), tf.random.uniform([40000], -0.5, 0.5)

    steps = [tf.constant(n, tf.int64) for n in (0, 1)]
    streams = [stream.numpy() for step in steps for stream in draw(step)]
    for stream in streams:
        assert abs(stream.mean()) < 5 / np.sqrt(12 * 40000)
        assert np.histogram(stream, 16, (-0.5, 0.5))[0] == pytest.approx(2500, abs=5 * 50)
        assert abs(np.corrcoef(stream[1:], stream[:-1])[0, 1]) < 0.025
    assert np.abs(np.corrcoef(streams) - np.eye(4)).max() < 0.025
    by_xla = tf.function(draw, jit_compile=True)(steps[1])
    np.testing.assert_array_equal(by_xla, streams[2:])
    before = tf.random.uniform([4])
    assert not np.array_equal(before, tf.random.uniform([4]))  # TensorFlow's own is back in place


def test_seeded_noise_costs_the_bits_of_tensorflows_own(toy_batches):
    tf.keras.utils.set_random_seed(1)
    codec = Toy()
    images = tf.cast(np.load(toy_batches).reshape(-1, 16, 16, 3), tf.float32)

    def bits():
        return codec(images, training=True)[1]["y"].numpy()

    own = np.mean([bits() for _ in range(50)], 0)
    seeded = []
    for step in range(50):
        with pjrt.seeded_noise(tf.constant(step)):
            seeded.append(bits())
    spread = np.std(seeded, 0) / np.sqrt(50)
    assert np.abs((np.mean(seeded, 0) - own) / spread).max() < 8
    assert spread.min() > 0


# --- what travels ----------------------------------------------------------------------------------------


def test_export_names_everything_and_no_path(toy):
    directory, codec, _ = toy
    description = json.loads((directory / "step.json").read_text())
    kinds = {e["name"]: e["kind"] for e in description["inputs"]}
    assert {n for n, kind in kinds.items() if kind == "weight"} == set(codec.named_variables())
    assert kinds["optimizer/velocities/analysis/kernel"] == "optimizer"
    assert {"optimizer/iterations", "optimizer/learning_rate"} < set(kinds)
    assert len(kinds) == len(description["inputs"])
    text = (directory / "step.hlo").read_bytes() + (directory / "step.json").read_bytes()
    assert b".py" not in text and b"site-packages" not in text


def test_noise_that_would_repeat_is_refused(tmp_path):
    class Noisy(Toy):
        def train_step(self, images):
            return super().train_step(images + tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32))

    with pytest.raises(ValueError, match="random numbers"):
        pjrt.export(compiled(Noisy()), (1, 8, 8, 3), tmp_path)


def test_parts_are_small_and_complete():
    arrays = {f"weight{k}": np.full(2_000_000 + k, k, np.float16) for k in range(9)}
    parts = pjrt_run.split(arrays)
    assert len(parts) == 3
    assert [name for part in parts for name in part] == list(arrays)
    assert all(sum(v.nbytes for v in part.values()) <= 15e6 for part in parts)


def test_float16_is_clipped():
    assert pjrt_run.to_float16(np.float32([1e9, -1e9, 0.5])).tolist() == [65504, -65504, 0.5]


# --- batches and rates -----------------------------------------------------------------------------------


def test_crops_are_of_their_step_and_flipped_half_the_time():
    picture = np.arange(20 * 30 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 30, 3)
    picture[..., 0] = np.arange(30)  # columns
    picture[..., 1] = np.arange(20)[:, None]  # rows
    batch = pjrt_run.random_batch([picture], (200, 8, 8, 3), 5, 7)
    np.testing.assert_array_equal(batch, pjrt_run.random_batch([picture], (200, 8, 8, 3), 5, 7))
    assert not np.array_equal(batch, pjrt_run.random_batch([picture], (200, 8, 8, 3), 5, 8))
    columns, rows = batch[:, 0, :, 0].astype(int), batch[:, :, 0, 1].astype(int)
    assert set(columns.min(1)) == set(range(23)) and set(rows.min(1)) == set(range(13))
    assert (np.diff(rows, axis=1) == 1).all()
    flipped = columns[:, 0] > columns[:, 1]
    assert (np.abs(np.diff(columns, axis=1)) == 1).all() and 60 < flipped.sum() < 140


@pytest.mark.parametrize(
    ("decay", "shares", "rates"),
    [("cosine", (0, 0.5, 0.75, 1), (1, 1, 0.55, 0.1)), ("drop", (0, 0.49, 0.5, 1), (1, 1, 0.1, 0.1))],
)
def test_rate_decays_within_the_steps_or_the_time(decay, shares, rates, monkeypatch):
    settings = {"rate": 1.0, "end_rate": 0.1, "decay_from": 0.5, "decay": decay, "warmup": 0}
    by_steps = pjrt_run.Schedule(argparse.Namespace(steps=100, minutes=None, **settings), 0.0)
    by_clock = pjrt_run.Schedule(argparse.Namespace(steps=None, minutes=10.0, **settings), 1000.0)
    for share, rate in zip(shares, rates):
        assert by_steps.rate(by_steps.progress(round(100 * share)), round(100 * share)) == pytest.approx(rate)
        # Saving takes the last minute: all is over, and the rate decayed, when it begins.
        monkeypatch.setattr(time, "monotonic", lambda share=share: 1000 + 540 * share)
        assert by_clock.progress(0, reserve=60) == pytest.approx(share)
        assert by_clock.rate(by_clock.progress(0, reserve=60), 0) == pytest.approx(rate)
        # Begun again, by another process.
        args = argparse.Namespace(steps=None, minutes=10.0, **settings)
        assert pjrt_run.Schedule(args, time.monotonic(), 540 * share).progress(0, 60) == pytest.approx(share)


def test_rate_rises_over_the_warm_up():
    settings = {"rate": 1.0, "end_rate": 0.0, "decay_from": 0.0, "decay": "cosine", "minutes": None, "steps": 100}
    plain, warm = (pjrt_run.Schedule(argparse.Namespace(warmup=n, **settings), 0.0) for n in (0, 8))
    rises = [warm.rate(n / 100, n) / plain.rate(n / 100, n) for n in (0, 1, 7, 8, 60)]
    assert rises == pytest.approx([0.125, 0.25, 1, 1, 1])


def test_broken_pictures_are_skipped_and_counted(toy, tmp_path, run):
    random = np.random.default_rng(0)
    for name, size in (
        ("good.png", (40, 36)),
        ("also.jpg", (16, 16)),
        ("small.png", (50, 15)),
        ("cut.png", (64, 64)),
    ):
        Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("not a picture")
    globs = f"{tmp_path}/*.png,{tmp_path}/*.jpg"
    done = run(toy[0], "--images", globs, "--steps", 3, "--out", tmp_path / "out", "--seed", 1)
    assert "2 images" in done.stdout and "2 broken files skipped, 1 smaller" in done.stdout
    assert "step 3" in done.stdout
    (tmp_path / "list.txt").write_text(f"{tmp_path}/text.jpg\n{tmp_path}/small.png\n")
    failed = run(toy[0], "--images", f"@{tmp_path}/list.txt", "--steps", 3, "--out", tmp_path / "none", code=1)
    one_line(failed, "no image to train on", "1 broken", "1 smaller")


# --- stopping and going on -------------------------------------------------------------------------------


def test_sigterm_saves_and_resume_goes_on_as_if_nothing_had_happened(toy, toy_batches, jax_python, tmp_path, run):
    flags = ("--batches", toy_batches, "--progress_seconds", 0.2)
    interrupted = command(jax_python, toy[0], *flags, "--steps", 10**9, "--out", tmp_path / "a")
    with subprocess.Popen(interrupted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step "):
                break
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped at step" in rest and not errors
    step = pjrt.read_state(tmp_path / "a")[0]["step"]
    assert step > 0
    run(toy[0], *flags, "--steps", step + 30, "--out", tmp_path / "a", "--resume")
    run(toy[0], *flags, "--steps", step + 30, "--out", tmp_path / "b")
    states = [pjrt.read_state(tmp_path / name) for name in "ab"]
    assert states[0][0]["step"] == states[1][0]["step"] == step + 30
    for file in ("weights.npz", "optimizer.npz"):
        resumed, straight = (np.load(tmp_path / name / f"checkpoint-{step + 30:08d}" / file) for name in "ab")
        assert set(resumed) == set(straight)
        for name in resumed:
            np.testing.assert_allclose(resumed[name], straight[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert len(list((tmp_path / "a").glob("checkpoint-*"))) == 1


def test_divergence_keeps_the_last_good_state(toy, toy_batches, trained, run):
    flags = ("--batches", toy_batches, "--out", trained, "--rate", 1e30)
    done = run(toy[0], *flags, "--steps", 60, "--resume", code=1)
    one_line(done, "diverged", "checkpoint-00000020")
    assert [p.name for p in trained.glob("checkpoint-*")] == ["checkpoint-00000020"]
    # One more step: its loss is still good, the weights after it are not.
    done = run(toy[0], *flags[:-1], "inf", "--steps", 21, "--resume", code=1)
    one_line(done, "after step 21")
    assert pjrt.read_state(trained)[0]["step"] == STEPS


def test_full_disk_keeps_the_last_good_state(toy, toy_batches, trained, run):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    flags = ("--batches", toy_batches, "--out", trained, "--steps", 30, "--resume")
    done = run(toy[0], *flags, code=1, preexec_fn=small_files)
    one_line(done, "cannot save the state", "checkpoint-00000020")
    assert pjrt.read_state(trained)[0]["step"] == STEPS
    assert not list(trained.glob(".checkpoint*"))
    run(toy[0], *flags)
    assert pjrt.read_state(trained)[0]["step"] == 30


def test_a_full_disk_on_the_way_is_a_warning(monkeypatch, capsys):
    checkpoints = pjrt_run.Checkpoints("nowhere")
    runner = pjrt_run.Run.__new__(pjrt_run.Run)
    runner._checkpoints = checkpoints

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "_save", full)
    runner._save_if_possible()
    assert (
        capsys.readouterr().out
        == "warning: cannot save the state: No space left on device; no state was saved before\n"
    )


# --- mistakes --------------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(toy, toy_batches, trained, run):
    done = run(toy[0], "--batches", toy_batches, "--out", trained, "--steps", 30, code=1)
    one_line(done, "--resume continues it")


def test_resuming_a_finished_run_says_so(toy, toy_batches, trained, run):
    flags = ("--batches", toy_batches, "--out", trained, "--resume")
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    done = run(toy[0], *flags, "--steps", STEPS)
    assert done.stdout == f"nothing is left to do: done at step {STEPS}, state in {trained}/checkpoint-00000020\n"
    assert {path: path.read_bytes() for path in before} == before
    # Of a run by the clock some time is left, which was for saving.
    edit_state(trained, seconds=50.0, finished={"steps": None, "minutes": 1.0})
    assert "nothing is left to do" in run(toy[0], *flags, "--minutes", 1).stdout
    # One that was stopped in this time has none for a step.
    edit_state(trained, seconds=59.5, finished=None)
    done = run(toy[0], *flags, "--minutes", 1)
    assert f"resuming at step {STEPS}" in done.stdout and "nothing is left to do" in done.stdout


def test_the_clock_goes_on_when_resumed(toy, toy_batches, trained, run):
    assert 0 < json.loads((trained / "checkpoint-00000020" / "state.json").read_text())["seconds"] < 600
    edit_state(trained, seconds=5400.0)
    flags = ("--decay_from", 0, "--rate", 1e-3, "--end_rate", 0, "--progress_seconds", 0, "--out", trained)
    run(toy[0], "--batches", toy_batches, *flags, "--minutes", 100, "--steps", 24, "--resume")
    rates = logged(trained, ["rate"])[STEPS:, 0]
    assert rates[0] == pytest.approx(1e-3 * (1 + np.cos(0.9 * np.pi)) / 2, rel=0.15)  # 20 of 24 steps are less
    assert 5400 < pjrt.read_state(trained)[0]["seconds"] < 6000
    assert pjrt.read_state(trained)[0]["finished"] == {"steps": 24, "minutes": 100.0}


def edit_state(out, **changes):
    path = Path(out) / "checkpoint-00000020" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("what", "value"), [("model", "elic"), ("config", '{"channels": 5}'), ("format", "lic-zoo step 99")]
)
def test_a_state_of_something_else_is_refused(toy, toy_batches, trained, run, what, value):
    path = trained / "checkpoint-00000020" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), what: value}))
    flags = ("--batches", toy_batches, "--out", trained, "--steps", 30, "--resume")
    one_line(run(toy[0], *flags, code=1), f"of {what}", value)
    with pytest.raises(UserError, match=re.escape(value)):
        pjrt.import_state(trained, Toy())


def test_a_state_of_other_shapes_is_refused(toy, toy_batches, trained, run):
    path = trained / "checkpoint-00000020" / "weights.npz"
    values = dict(np.load(path))
    values["analysis/bias"] = values["analysis/bias"][:2]
    np.savez(path, **values)
    flags = ("--batches", toy_batches, "--out", trained, "--steps", 30, "--resume")
    one_line(run(toy[0], *flags, code=1), "does not fit", "analysis/bias")


def test_a_damaged_state_is_one_line(toy, toy_batches, trained, run):
    state = trained / "checkpoint-00000020"
    (state / "optimizer.npz").write_bytes((state / "optimizer.npz").read_bytes()[:500])
    flags = ("--batches", toy_batches, "--out", trained, "--steps", 30, "--resume")
    one_line(run(toy[0], *flags, code=1), "optimizer.npz")
    (state / "weights-00.npz").unlink()
    with pytest.raises(UserError, match="0 of 1 files"):
        pjrt.import_state(trained, Toy())
    with pytest.raises(UserError, match="holds no state"):
        pjrt.import_state(trained / "nothing", Toy())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("__version__ = '0.4.30'", "jax 0.4.30 does not have"),
        ("raise ImportError('no jax')", "jax is missing"),
    ],
)
def test_a_jax_that_will_not_do_is_named_with_those_that_will(toy, toy_batches, tmp_path, content, says):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text(content)
    flags = ("--batches", toy_batches, "--steps", 3, "--out", tmp_path / "out")
    done = subprocess.run(
        command(sys.executable, toy[0], *flags),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    one_line(done, says, pjrt_run.JAX_VERSIONS)


# --- the command line ------------------------------------------------------------------------------------


def flags_of(*argv):
    parser = argparse.ArgumentParser()
    pjrt_options.add_pjrt_flags(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--runtime", "pjrt"], "--pjrt_python"),
        (["--pjrt_python", "p"], "needs --runtime pjrt"),
        (["--export_only", "a", "--import_state", "b"], "one of them"),
    ],
)
def test_contradicting_flags_are_refused(argv, says):
    with pytest.raises(UserError, match=says):
        pjrt_options.uses_pjrt(flags_of(*argv))


def test_without_its_flags_nothing_changes():
    assert not pjrt_options.uses_pjrt(flags_of())


def test_train_exports_runs_imports_and_saves(pictures, jax_python, tmp_path, capfd):
    options = FitOptions(
        train_path=str(tmp_path),
        train_glob=pictures,
        batchsize=2,
        patchsize=16,
        epochs=1,
        steps_per_epoch=4,
        ema=0.9,
    )
    args = flags_of("--runtime", "pjrt", "--pjrt_python", jax_python)

    path = pjrt.train(Toy.entry, Toy, options, args)

    output = capfd.readouterr().out
    assert "11 images" in output and "done at step 4" in output  # one of the twelve is held out
    assert "held-out images: loss" in output
    metadata = weights.read_metadata(path)
    assert metadata["model"] == "toy" and metadata["steps"] == "4" and metadata["ema"] == "0.9"
    assert float(metadata["validation_loss"]) > 0
    assert not any(str(tmp_path) in value for value in metadata.values())
    with pytest.raises(UserError, match="--resume continues"):
        pjrt.train(Toy.entry, Toy, options, args)
    with pytest.raises(UserError, match="--batchsize 2"):
        other = dataclasses.replace(options, batchsize=4, resume=True)
        pjrt.train(Toy.entry, Toy, other, args)
    with pytest.raises(UserError, match="was begun with lambda 0.01, and cannot resume with 0.5"):
        pjrt.train(Toy.entry, lambda: Toy(lmbda=0.5), dataclasses.replace(options, resume=True), args)
    # A process that died after the last step, before it had written the weights, can be followed by another.
    os.remove(path)
    assert pjrt.train(Toy.entry, Toy, dataclasses.replace(options, resume=True), args) == path
    assert "nothing is left to do" in capfd.readouterr().out
    assert weights.read_metadata(path) == metadata


def test_pictures_are_held_out_only_where_they_were(pictures, toy_trained, tmp_path, capsys):
    """The run on the other machine took what images it was given."""
    options = FitOptions(str(tmp_path), pictures, batchsize=2, patchsize=16, calibration=4, validation_steps=1)
    args = flags_of("--import_state", str(toy_trained))

    def facts(options):
        return [name for name in weights.read_metadata(pjrt.train(Toy.entry, Toy, options, args)) if "valid" in name]

    assert facts(options) == []
    assert capsys.readouterr().out.startswith("training images: loss ")
    others = dataclasses.replace(options, validation_glob=pictures.replace("*", "0*"))
    assert set(facts(others)) == {f"validation_{name}" for name in ("loss", "bpp", "mse", "psnr")}
    assert capsys.readouterr().out.startswith("validation images: loss ")


def test_what_is_exported_needs_no_checkout(tmp_path, capsys):
    options = FitOptions("not used", "not read", batchsize=2, patchsize=16)
    pjrt.train(Toy.entry, Toy, options, flags_of("--export_only", str(tmp_path / "step")))
    assert "pjrt_run.py" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "step").iterdir()} == {"step.hlo", "step.json", "start", "pjrt_run.py"}
    command = [sys.executable, "-I", "pjrt_run.py", ".", "--images", "none.png", "--steps", "1"]
    done = subprocess.run(command, cwd=tmp_path / "step", capture_output=True, text=True)
    one_line(done, "no image to train on")


@pytest.mark.parametrize(
    ("argv", "changes", "names"),
    [
        (
            ["--runtime", "pjrt"],
            dict(cache_gb=1, crops_per_image=4, minutes=3, seed=1),
            "--crops_per_image, --cache_gb",
        ),
        (["--runtime", "pjrt"], dict(minutes=3, validation_steps=2, ema=0.9), ""),
        (["--export_only", "x"], dict(train_glob="not read", minutes=3, seed=1), "--minutes"),
        (["--import_state", "x"], dict(calibration=3, patchsize=64, warmup_steps=3), "--warmup_steps"),
    ],
)
def test_what_is_given_in_vain_is_named(argv, changes, names, caplog):
    options = FitOptions(**{"train_path": "x", "train_glob": "y", **changes})
    pjrt_options.warn_of_idle(options, flags_of(*argv))
    assert caplog.messages == (
        [f"{argv[0].replace('runtime', 'runtime pjrt')}: has no use for {names}"] if names else []
    )
