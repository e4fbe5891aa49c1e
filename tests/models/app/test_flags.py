"""What stands twice so that `--help` waits for no TensorFlow, and what it costs; names that stand for weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import elc, sae_spn
from models.app import presets
from models.app.flags import base
from models.app.flags import elc as elc_flags
from models.app.flags import sae_spn as sae_spn_flags
from models.codec import distortion, load, registry, weights
from models.io.errors import UserError

ROOT = Path(__file__).parents[3]


def test_choices_are_those_of_the_models():
    assert tuple(elc.STAGES) == elc_flags.STAGES
    assert set(sae_spn_flags.VARIANTS) == set(sae_spn.VARIANTS)
    assert tuple(base.DISTORTIONS) == tuple(distortion.KINDS)


@pytest.mark.parametrize("model", registry.MODEL_IDS.values())
def test_help_and_usage_errors_import_no_tensorflow(model, tmp_path):
    """Of every subcommand, with a folder of that name in the way of the real one."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('imported')")
    commands = "train", "compress", "decompress", "evaluate", "export", "presets"
    program = "\n".join(
        ["import contextlib", "from models.app.cli import main"]
        + [f"with contextlib.suppress(SystemExit): main({model!r}, {[c, f]!r})" for c in commands for f in HELP]
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "imported" not in done.stderr, done.stderr
    assert done.stdout.count("usage: ") >= len(commands)
    assert done.stderr.count("unrecognized arguments") == len(commands) or "required" in done.stderr


HELP = "--help", "--no_such_flag"


def test_weights_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Path(load("cwic").path) == weights.SHIPPED / "cwic" / f"{registry.card('cwic').weights}.safetensors"
    assert Path(load("sae_spn", "small-sae").path).stem == "small-sae"
    assert type(load("sae_spn")).from_preset().variant == "sae_spn"  # what its paper is about
    with pytest.raises(UserError, match="no weights for elic base ship"):
        load("elic", "base")
    with pytest.raises(UserError, match="no such weights file"):
        load("elicit")
    with pytest.raises(UserError, match="name of a model"):
        load("elicit", "small")


def test_the_table_of_presets_names_all(monkeypatch):
    text = presets.table(registry.CARDS.values())
    for card in registry.CARDS.values():
        assert card.title in text
        for name in card.presets:
            assert f"\n  {name} " in text
        for path in weights.shipped(card.name):
            assert f"\n  {path.stem} " in text
    assert "\n  medium *  " in text and "28.91 dB at 0.179 bpp to 37.02 dB at 1.058 bpp" in text
