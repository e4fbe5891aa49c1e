"""The settings of a run and their flags."""

import argparse
import dataclasses
import subprocess
import sys

import pytest

from models.io.errors import UserError
from train.options import FitOptions, add_train_flags, fit_options


def parse(*arguments: str) -> FitOptions:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lambda", dest="lmbda", type=float)
    add_train_flags(parser, "/tmp/train_x")
    return fit_options(parser.parse_args(arguments))


def test_flags_are_the_fields():
    assert parse("--train_glob=*.png", "--lambda=1") == FitOptions("/tmp/train_x", "*.png")
    given = FitOptions("p", None, "clic", "v", 3, 4, 5, 6.0, 7, 8, 1.5, 9, 0.1, "cosine", 0.2, 25, 0.3, 0.4, "float16")
    given = dataclasses.replace(given, strategy="mirrored", resume=True, seed=1, calibration=11, optimizer="soap")
    flags = []
    for name, value in dataclasses.asdict(given).items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not None:
            flags.append(f"--{name}={value}")
    assert parse(*flags) == given
    others = ("train_glob", "labelled")  # one of the three says where images are
    assert all(getattr(given, f.name) != f.default for f in dataclasses.fields(FitOptions) if f.name not in others)


def test_mixed_precision_needs_no_value():
    assert parse("--train_glob=a,b", "--train_glob=c").train_glob == ("a,b", "c")
    assert parse("--train_glob=x", "--mixed_precision").mixed_precision == "auto"
    assert parse("--train_glob=x").mixed_precision == "off"


@pytest.mark.parametrize(
    "bad",
    [
        dict(train_glob=None),
        dict(tfds="clic"),
        dict(batchsize=0),
        dict(patchsize=-1),
        dict(epochs=0),
        dict(steps_per_epoch=0),
        dict(validation_steps=0),
        dict(calibration=0),
        dict(learning_rate=0.0),
        dict(learning_rate=float("nan")),
        dict(crops_per_image=0),
        dict(cache_gb=-1.0),
        dict(clipnorm=-1.0),
        dict(warmup_steps=-1),
        dict(drop_share=1.1),
        dict(ema=1.0),
        dict(minutes=0.0),
        dict(seed=-1),
        dict(optimizer="sgd"),
        dict(schedule="linear"),
        dict(mixed_precision="float64"),
        dict(strategy="tpu"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(bad):
    with pytest.raises(UserError, match=f"--{next(iter(bad))}") as error:
        FitOptions(**{"train_path": "", "train_glob": "x", **bad})
    assert "\n" not in str(error.value)


def test_help_does_not_wait_for_tensorflow():
    code = "import sys, train.options; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
