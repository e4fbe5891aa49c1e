"""What a training says, and when it says that it will end."""

import dataclasses

import pytest
import tensorflow as tf

from train import progress
from train.options import SAMPLE_GLOB, FitOptions

OPTIONS = FitOptions("runs/x", "photos/*.png", batchsize=4, epochs=2, steps_per_epoch=100)
LOGS = {"loss": 1.5, "bpp": 0.25, "mse": 3.0, "psnr": 31.25, "val_loss": 1.75, "val_bpp": 0.3, "val_psnr": 30.5}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so, from 1000 on."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def codec(tiny_codec):
    codec = tiny_codec()
    codec.build((None, 8, 8, 3))
    return codec


def steps(speaker, clock, count: int, seconds: float, first: int = 0) -> None:
    for step in range(first, first + count):
        clock[0] += seconds
        speaker.on_train_batch_end(step, {"loss": 2.0, "bpp": 0.5, "psnr": 30.0})


def test_durations():
    texts = [progress.duration(s) for s in (0.4, 59, 61, 3599, 3600, 90 * 60, 47.9 * 3600, 48 * 3600, 39 * 86400)]
    assert texts == ["0 s", "59 s", "1 min", "1 h 0 min", "1 h 0 min", "1 h 30 min", "47 h 54 min", "2 days", "39 days"]


def test_a_run_from_beginning_to_end(clock, codec, capsys):
    speaker = progress.Progress(OPTIONS)
    speaker.set_model(codec)
    speaker.on_train_begin()
    speaker.on_epoch_begin(0)
    steps(speaker, clock, 1, 20)
    assert capsys.readouterr().out.splitlines()[-1] == "traced in 20 s"
    steps(speaker, clock, 5, 2, first=1)
    # 194 steps of 2 s are left.
    assert capsys.readouterr().out == "194 steps: about 6 min here\n"
    steps(speaker, clock, 10, 2, first=6)
    assert capsys.readouterr().out == ("epoch 1, step 16/100: loss 2, 0.5 bpp, 30.00 dB, 2 images/s, 6 min left\n")
    speaker.on_epoch_end(0, LOGS)
    assert capsys.readouterr().out == (
        "epoch 1: loss 1.5, 0.25 bpp, 31.25 dB; validation loss 1.75, 0.3 bpp, 30.50 dB; 50 s\n"
    )


def test_a_run_that_would_take_days(clock, codec, capsys, monkeypatch):
    presets = {"base": dataclasses.replace(codec.entry.card.presets["base"], kmac=500.0)}
    presets["small"] = dataclasses.replace(presets["base"], kmac=50.0)
    card = dataclasses.replace(codec.entry.card, presets=presets)
    monkeypatch.setattr(type(codec), "entry", dataclasses.replace(codec.entry, card=card))
    speaker = progress.Progress(dataclasses.replace(OPTIONS, epochs=1000, steps_per_epoch=1000))
    speaker.set_model(codec)
    speaker.on_train_begin()
    speaker.on_epoch_begin(0)
    steps(speaker, clock, 6, 3)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "999,994 steps: about 35 days here; --minutes sets the time, --preset small costs 10 % of it"
    )


def test_a_budget_of_minutes(clock, codec, capsys):
    speaker = progress.Progress(dataclasses.replace(OPTIONS, minutes=10))
    speaker.set_model(codec)
    speaker.on_train_begin()
    speaker.on_epoch_begin(0)
    steps(speaker, clock, 6, 10)
    assert capsys.readouterr().out.splitlines()[-1] == "0.1 steps/s: about 54 steps in the time that is left"


@pytest.mark.parametrize("samples", [False, True])
def test_the_introduction(codec, capsys, samples):
    options = dataclasses.replace(OPTIONS, train_glob=SAMPLE_GLOB) if samples else OPTIONS
    progress.introduce(codec, options, tf.distribute.get_strategy(), "7 images to train on")
    out = capsys.readouterr().out
    assert out.startswith("no data named: takes the sample photographs") == samples
    assert "tiny, preset base: 0.00 M parameters, 1 kMAC/pixel\n" in out
    assert "on CPU:0 (one device), mixed precision off: batches of 4 patches of 256x256\n" in out
    assert out.endswith("7 images to train on; 200 steps in epochs of 100, in runs/x\n")
