"""Training runs: what they write, how they stop and how they go on."""

import csv
import dataclasses
import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import tensorflow as tf

from models import elic
from models.codec.training import freeze
from models.io.errors import UserError
from train import callbacks, devices, fit
from train.data import open_data, validation_dataset
from train.options import FitOptions

STEPS = 4


@pytest.fixture
def options(tmp_path, pictures):
    return FitOptions(
        train_path=str(tmp_path / "run"),
        train_glob=pictures,
        patchsize=32,
        batchsize=2,
        epochs=3,
        steps_per_epoch=STEPS,
        learning_rate=1e-3,
        seed=3,
    )


@pytest.fixture
def each_step(monkeypatch):
    """Calls functions after each training step with (steps done in this call of fit, model)."""
    functions, done = [], [0]
    original = callbacks.StopOnNaN.on_batch_end

    def on_batch_end(self, batch, logs=None):
        done[0] += 1
        for function in functions:
            function(done[0], self.model)
        original(self, batch, logs)

    monkeypatch.setattr(callbacks.StopOnNaN, "on_batch_end", on_batch_end)
    return functions


def values(codec) -> list[np.ndarray]:
    return [variable.numpy() for variable in codec.trainable_variables]


def stored(path) -> list[np.ndarray]:
    with safetensors.safe_open(path, "numpy") as file:
        return [file.get_tensor(name) for name in sorted(file.keys())]


def assert_same(left, right, rtol=1e-5):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


def differ(left, right) -> bool:
    return any(np.abs(a - b).max() > 1e-5 for a, b in zip(left, right))


def log(options) -> list[dict]:
    with open(Path(options.train_path) / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def stop_after(steps):
    return lambda step, model: os.kill(os.getpid(), signal.SIGTERM) if step == steps else None


def backup_of(options) -> str:
    return tf.train.latest_checkpoint(os.path.join(options.train_path, "backup", "chief"))


# --- a whole run -------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_its_files(options, tiny_codec, each_step):
    trajectory = []
    each_step.append(lambda step, model: trajectory.append(values(model)))
    trained = fit.fit(tiny_codec, options)
    assert len(trajectory) == 12
    assert trained.history["loss"][-1] < trained.history["loss"][0]
    rows = log(options)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert {"loss", "bpp", "mse", "psnr", "val_loss", "val_bpp", "val_mse", "val_psnr"} <= set(rows[0])
    assert list(Path(options.train_path, "tensorboard").glob("*/events*"))
    assert_same(stored(trained.final), trajectory[-1], rtol=0)
    # Calibrated with training patches before each of the two files is written.
    assert trained.codec.saved == [trained.final, trained.best]
    assert trained.codec.calibrated_with.shape == (options.calibration, 32, 32, 3)
    with safetensors.safe_open(trained.final, "numpy") as file:
        metadata = file.metadata()
    assert metadata["steps"] == "12" and metadata["batchsize"] == "2"
    assert not any("/" in value for value in metadata.values()), "no paths of this machine in what is published"


def test_best_is_the_epoch_of_the_lowest_validation_loss(options, tiny_codec, each_step):
    trajectory = []

    def spoil_last_epoch(step, model):
        if step == 9:
            for variable in model.trainable_variables:
                variable.assign(variable * 2 + 1)
        trajectory.append(values(model))

    each_step.append(spoil_last_epoch)
    trained = fit.fit(tiny_codec, options)
    losses = trained.history["val_loss"]
    assert int(np.argmin(losses)) == 1
    assert_same(stored(trained.best), trajectory[7], rtol=0)
    assert_same(values(trained.codec), trajectory[7], rtol=0)
    assert_same(stored(trained.final), trajectory[11], rtol=0)


def test_validation_loss_is_that_of_the_held_out_patches(options, tiny_codec):
    trained = fit.fit(tiny_codec, dataclasses.replace(options, epochs=1))
    _, crops = open_data(options)
    trained.codec.reset_metrics()
    logs = trained.codec.evaluate(validation_dataset(crops, 2), return_dict=True, verbose=0)
    assert logs["loss"] == pytest.approx(trained.history["val_loss"][0], rel=1e-5)


# --- resuming ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, stop",
    [
        ({}, 6),
        ({}, STEPS),  # in the last step of an epoch, which then ends as always
        (dict(schedule="cosine", crops_per_image=2, ema=0.8), 5),
        (dict(optimizer="soap"), 6),
    ],
)
def test_a_resumed_run_ends_as_if_never_stopped(options, tiny_codec, each_step, tmp_path, change, stop, caplog):
    options = dataclasses.replace(options, **change)
    whole = fit.fit(tiny_codec, options)
    parts = dataclasses.replace(options, train_path=str(tmp_path / "parts"), resume=True)
    steps = []
    each_step.extend([lambda step, model: steps.append(step), stop_after(12 + stop)])
    with pytest.raises(SystemExit) as exit_, caplog.at_level(logging.WARNING):
        fit.fit(tiny_codec, parts)
    assert exit_.value.code == 143 and "SIGTERM" in caplog.text
    assert len(steps) == stop
    assert not Path(parts.train_path, fit.FINAL).exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    resumed = fit.fit(tiny_codec, parts)
    assert len(steps) == 12
    assert resumed.codec.optimizer.iterations.numpy() == 12
    assert_same(stored(resumed.final), stored(whole.final))
    assert_same(state(resumed), state(whole), rtol=1e-4)
    assert [row["epoch"] for row in log(parts)] == ["0", "1", "2"]
    np.testing.assert_allclose([float(row["val_loss"]) for row in log(parts)], whole.history["val_loss"], rtol=1e-5)


def state(trained) -> list[np.ndarray]:
    return [variable.numpy() for variable in trained.codec.optimizer.variables]


def test_best_survives_a_resume_that_is_worse(options, tiny_codec, each_step):
    first = fit.fit(tiny_codec, options)
    best = stored(first.best)

    def spoil(step, model):
        for variable in model.trainable_variables:
            variable.assign(variable * 2 + 1)

    each_step.append(spoil)
    again = fit.fit(tiny_codec, dataclasses.replace(options, epochs=4, resume=True))
    assert len(again.history["val_loss"]) == 1
    assert again.history["val_loss"][0] > min(first.history["val_loss"])
    assert_same(stored(again.best), best, rtol=0)


def test_resuming_a_finished_run_trains_no_more_and_writes_its_files(options, tiny_codec, each_step):
    options = dataclasses.replace(options, ema=0.9)
    first = fit.fit(tiny_codec, options)
    final, best = stored(first.final), stored(first.best)
    os.remove(first.final)
    each_step.append(lambda step, model: pytest.fail("a step was trained"))
    again = fit.fit(tiny_codec, dataclasses.replace(options, resume=True))
    assert_same(stored(again.final), final, rtol=0)
    assert_same(stored(again.best), best, rtol=0)


def test_a_run_is_not_overwritten_or_mixed_up(options, tiny_codec):
    fit.fit(tiny_codec, options)
    with pytest.raises(UserError, match="--resume"):
        fit.fit(tiny_codec, options)
    for change in (dict(steps_per_epoch=5), dict(batchsize=4), dict(ema=0.5), dict(optimizer="soap")):
        with pytest.raises(UserError, match=f"--{next(iter(change))}"):
            fit.fit(tiny_codec, dataclasses.replace(options, resume=True, **change))


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(lmbda=0.02), "lambda 0.01, and cannot resume with 0.02"),
        (dict(channels=5), "config.channels 4, and cannot resume with 5"),  # would not fit the checkpoint's shapes
        (dict(part="decoder"), "freeze nothing, and cannot resume with decoder"),
        (dict(name="other"), "model tiny, and cannot resume with other"),
    ],
)
def test_a_run_goes_on_with_the_codec_it_was_begun_with(options, tiny_codec, each_step, change, says):
    fit.fit(tiny_codec, options)
    files = {path: path.read_bytes() for path in Path(options.train_path).iterdir() if path.is_file()}

    def other(part=None, name="tiny", **settings):
        codec = tiny_codec(**settings)
        codec.entry = SimpleNamespace(name=name)
        freeze(codec, part)
        return codec

    each_step.append(lambda step, model: pytest.fail("a step was trained"))
    with pytest.raises(UserError, match=f"was begun with {says}") as error:
        fit.fit(lambda: other(**change), dataclasses.replace(options, resume=True, epochs=4))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in files} == files


def test_a_run_of_before_codecs_were_noted_goes_on(options, tiny_codec):
    fit.fit(tiny_codec, options)
    noted = Path(options.train_path, "options.json")
    before = json.loads(noted.read_text())
    assert before.pop("codec")["lambda"] == "0.01"
    noted.write_text(json.dumps(before))
    fit.fit(tiny_codec, dataclasses.replace(options, resume=True, epochs=4))
    assert len(log(options)) == 4
    assert json.loads(noted.read_text())["codec"]["lambda"] == "0.01"  # from now on


def test_what_a_codec_is(tiny_codec):
    """As of `Codec` itself: all strings, and what tells most is first."""
    codec = elic.ELIC(elic.PRESETS["small"], (0.01, 0.02))
    known = fit.identity(codec)
    assert list(known)[:3] == ["model", "lambda", "freeze"]
    assert (known["model"], known["lambda"], known["freeze"]) == ("elic", "0.01,0.02", "nothing")
    assert set(known) > {f"config.{name}" for name in dataclasses.asdict(codec.config)}
    assert all(isinstance(value, str) for value in known.values())
    freeze(codec, "encoder")
    assert fit.identity(codec)["freeze"] == "encoder"
    assert fit.identity(tiny_codec()).keys() == {"model", "lambda", "freeze", "config.channels"}


def test_an_unwritable_folder_is_one_line(options, tiny_codec, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        fit.fit(tiny_codec, dataclasses.replace(options, train_path=str(tmp_path / "file" / "run")))


# --- checkpoints that are cut short ------------------------------------------------------------------------


def cut(prefix, kind, size=-7):
    (path,) = Path(prefix).parent.glob(f"{Path(prefix).name}.{kind}")
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("kind", ["data*", "index"])
@pytest.mark.parametrize("size", [0, 100, -7])
def test_a_run_goes_on_from_an_older_state_where_the_newest_is_cut_short(options, tiny_codec, caplog, kind, size):
    expected = fit.fit(tiny_codec, options)
    expected = stored(expected.final), stored(expected.best)
    newest = backup_of(options)
    cut(newest, kind, size)
    done = fit.fit(tiny_codec, dataclasses.replace(options, resume=True))
    (line,) = [record.getMessage() for record in caplog.records if "cut short" in record.getMessage()]
    assert line.startswith(f"{newest}: is cut short or damaged; the run continues from ") and line.endswith("ckpt-2")
    assert len(done.history["loss"]) == 1
    assert_same(stored(done.final), expected[0], rtol=0)
    assert_same(stored(done.best), expected[1], rtol=0)
    assert backup_of(options) == newest and fit.is_whole(newest)


def test_a_run_without_a_whole_state_is_one_line_and_stays(options, tiny_codec):
    fit.fit(tiny_codec, options)
    backups = Path(options.train_path, "backup", "chief")
    for index in backups.glob("*.index"):
        cut(index.with_suffix(""), "data*")
    (backups / "checkpoint").write_bytes(b"")  # TensorFlow's own list of them
    before = {path: path.read_bytes() for path in Path(options.train_path).rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="ckpt-3: is cut short or damaged, and so are older states") as error:
        fit.fit(tiny_codec, dataclasses.replace(options, resume=True))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="holds a training run"):
        fit.fit(tiny_codec, options)
    assert {path: path.read_bytes() for path in before} == before


def test_the_best_epoch_is_sought_again_where_its_checkpoint_is_cut_short(options, tiny_codec, caplog):
    fit.fit(tiny_codec, options)
    best = os.path.join(options.train_path, "best", "weights")
    cut(best, "data*")
    with pytest.raises(UserError, match=f"{best}: is missing, cut short or damaged; .*final.safetensors is written"):
        fit.fit(tiny_codec, dataclasses.replace(options, resume=True))
    fit.fit(tiny_codec, dataclasses.replace(options, resume=True, epochs=4))
    assert f"{best}: is missing, cut short or damaged" in caplog.text and fit.is_whole(best)


def test_a_log_whose_last_line_is_cut_short_still_tells_the_best_loss(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,loss,val_loss\n0,2.0,1.5\n1,1.0,0.5\n2,1.")
    assert fit._best_loss(str(tmp_path / "log.csv")) == 0.5


# --- what the user can put right ---------------------------------------------------------------------------


def test_pictures_that_vanish_are_one_line(options, tiny_codec, each_step, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(Path(options.train_glob).parent, folder)

    def vanish(step, model):
        for path in folder.iterdir():
            path.unlink()

    each_step.append(vanish)
    options = dataclasses.replace(options, train_glob=f"{folder}/*.png", cache_gb=0, steps_per_epoch=400, calibration=2)
    with pytest.raises(UserError) as error:
        fit.fit(tiny_codec, options)
    assert re.fullmatch(rf"{folder}/\d\d\.png: damaged, and so are those around it", str(error.value))


@pytest.mark.parametrize(
    "message, says",
    [
        ("Graph execution error:\n\nOOM when allocating tensor with shape[9]", "a smaller --batchsize or --patchsize"),
        ("run/best/weights.index; No space left on device", "No space left on device"),
    ],
)
def test_a_full_memory_or_disk_is_one_line(options, tiny_codec, each_step, message, says):
    def full(step, model):
        raise tf.errors.ResourceExhaustedError(None, None, message)

    each_step.append(full)
    with pytest.raises(UserError, match=says) as error:
        fit.fit(tiny_codec, options)
    assert "\n" not in str(error.value) and ("memory" in str(error.value)) == ("OOM" in message)


def test_other_errors_of_tensorflow_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError), fit.user_errors():
        tf.reshape(tf.zeros([3]), [2])


# --- losses that are not finite ----------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [dict(nan_at=5), dict(nan_gradient_at=2 * STEPS - 1)])
def test_divergence_is_an_error_and_keeps_the_last_good_state(options, tiny_codec, each_step, poison):
    trajectory = []
    each_step.append(lambda step, model: trajectory.append(values(model)))
    with pytest.raises(UserError, match="epoch 2 is not finite") as error:
        fit.fit(lambda: tiny_codec(**poison), options)
    assert "\n" not in str(error.value)
    assert len(trajectory) == (6 if "nan_at" in poison else 8)
    assert tf.train.load_variable(backup_of(options), "ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE") == 0
    assert not list(Path(options.train_path).glob("*.safetensors"))
    trajectory.append("resumed")
    trained = fit.fit(tiny_codec, dataclasses.replace(options, resume=True))
    assert len(trajectory) == trajectory.index("resumed") + 1 + 2 * STEPS
    assert np.isfinite(trained.history["loss"]).all()


@pytest.mark.parametrize("poison", [dict(nan_at=1), dict(nan_gradient_at=STEPS - 1)])
def test_divergence_in_the_first_epoch_promises_nothing(options, tiny_codec, poison):
    with pytest.raises(UserError, match="epoch 1 is not finite. Nothing is kept: try a lower --learning_rate"):
        fit.fit(lambda: tiny_codec(**poison), options)
    assert len(fit.fit(tiny_codec, options).history["loss"]) == 3  # there is nothing in its way


# --- averages, schedules, precision ------------------------------------------------------------------------


def test_the_average_is_what_is_validated_and_saved(options, tiny_codec, each_step, tmp_path):
    momentum = 0.7
    plain, averaged = [], []
    each_step.append(lambda step, model: (plain if step <= 12 else averaged).append(values(model)))
    fit.fit(tiny_codec, options)
    codecs = []

    def build():
        codecs.append(tiny_codec())
        return codecs[-1]

    averaging = dataclasses.replace(options, ema=momentum, train_path=str(tmp_path / "averaged"))
    trained = fit.fit(build, averaging)
    # Training itself goes on as without an average, epochs' ends included.
    for a, b in zip(plain, averaged):
        assert_same(a, b)

    tf.keras.utils.set_random_seed(3)
    initial = tiny_codec()
    initial(tf.zeros([1, 32, 32, 3]))
    average = values(initial)
    expected = []
    for weights in averaged:
        average = [momentum * a + (1 - momentum) * w for a, w in zip(average, weights)]
        expected.append(average)
    assert differ(expected[-1], averaged[-1])
    assert_same(stored(trained.final), expected[-1])
    epoch = int(np.argmin(trained.history["val_loss"]))
    assert_same(stored(trained.best), expected[STEPS * (epoch + 1) - 1])

    _, crops = open_data(options)
    for epoch in range(3):
        for variable, value in zip(initial.trainable_variables, expected[STEPS * (epoch + 1) - 1]):
            variable.assign(value)
        loss = float(np.mean([initial.losses_of(b, False)["loss"] for b in validation_dataset(crops, 2)]))
        assert loss == pytest.approx(trained.history["val_loss"][epoch], rel=1e-5)


def test_the_learning_rate_drops_for_the_last_part(options, tiny_codec, each_step):
    rates = []
    each_step.append(lambda step, model: rates.append(float(model.optimizer.learning_rate)))
    fit.fit(tiny_codec, dataclasses.replace(options, drop_share=0.25))
    # After step n the optimizer shows the rate that step n was taken with.
    np.testing.assert_allclose(rates, [1e-3] * 9 + [1e-4] * 3, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0), ("drop", 0), ("cosine", 3)])
def test_a_time_budget_ends_the_run_and_the_rate_falls_with_the_time(
    options, tiny_codec, each_step, monkeypatch, schedule, warmup
):
    options = dataclasses.replace(
        options, minutes=10 / 60, epochs=100, schedule=schedule, drop_share=0.25, warmup_steps=warmup
    )
    clock, rates = [1000.0], []
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])

    def tick(step, model):
        rates.append(float(model.optimizer.learning_rate))
        clock[0] += 1

    each_step.append(tick)
    trained = fit.fit(tiny_codec, options)
    progress = np.arange(10) / 10
    expected = (1 + np.cos(np.pi * progress)) / 2 if schedule == "cosine" else np.where(progress < 0.75, 1, 0.1)
    expected = expected * np.minimum(1, (np.arange(10) + 1) / max(1, warmup))
    np.testing.assert_allclose(rates, options.learning_rate * expected, rtol=1e-5)
    assert len(log(options)) == 3  # the third epoch is cut short, and validated
    with safetensors.safe_open(trained.final, "numpy") as file:
        assert file.metadata()["steps"] == "10"


@pytest.mark.parametrize("stop", [2 * STEPS, STEPS + 2, 2])  # at the end of an epoch, and in the middle of one
def test_a_time_budget_goes_on_when_resumed(options, tiny_codec, each_step, monkeypatch, stop):
    options = dataclasses.replace(options, minutes=10 / 60, epochs=100, schedule="cosine")
    clock, rates = [0.0], []
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    each_step.append(lambda step, model: clock.__setitem__(0, clock[0] + 1))
    each_step.append(lambda step, model: rates.append(float(model.optimizer.learning_rate)))
    each_step.append(stop_after(stop))
    with pytest.raises(callbacks.TrainingInterrupted):
        fit.fit(tiny_codec, options)
    clock[0] += 5000  # while it does not run
    fit.fit(tiny_codec, dataclasses.replace(options, resume=True))
    assert len(rates) == 10
    progress = np.arange(10) / 10
    np.testing.assert_allclose(rates, options.learning_rate * (1 + np.cos(np.pi * progress)) / 2, rtol=1e-5)


@pytest.mark.parametrize("precision, compute", [("bfloat16", "bfloat16"), ("float16", "float16"), ("auto", "bfloat16")])
def test_mixed_precision_is_in_force_while_the_codec_is_built(options, tiny_codec, precision, compute):
    if precision == "auto" and tf.config.list_physical_devices("GPU"):
        compute = "float16"
    trained = fit.fit(tiny_codec, dataclasses.replace(options, mixed_precision=precision, epochs=2))
    assert trained.codec.analysis.compute_dtype == compute
    assert trained.codec.analysis.variable_dtype == trained.codec.synthesis.compute_dtype == "float32"
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    assert np.isfinite(trained.history["val_loss"]).all()
    scaled = isinstance(trained.codec.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    assert scaled == (compute == "float16")


def test_precision_is_put_back_after_an_error():
    with pytest.raises(RuntimeError), devices.precision("bfloat16"):
        raise RuntimeError
    assert tf.keras.mixed_precision.global_policy().name == "float32"
