"""The checkout can be installed, and says what is missing where it cannot."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKE = shutil.which("make")


def pins(name):
    """The pinned requirements of a file: name -> list of versions (one per Python, where they differ)."""
    result = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if line and not line.startswith("-"):
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9.]+)(; python_version .+)?", line)
            assert match, f"{name}: not pinned exactly: {line}"
            result.setdefault(match[1], []).append(match[2])
    return result


def run_make(*arguments, cwd, path=None):
    """Runs make on its own account: the one that may be running these tests tells its children how to behave."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run([MAKE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def make(*arguments, cwd, path=None):
    """Runs make in a copy of the Makefile that has nothing but it; nothing is installed."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        (cwd / name).write_bytes((ROOT / name).read_bytes())
    return run_make(*arguments, cwd=cwd, path=path)


def program(folder, name, body):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def python_of_version(version, venv_module=True):
    """A stand-in for a Python interpreter, as the Makefile asks it."""
    return (
        'case "$2" in\n'
        f'  *version_info*) echo "{version}" ;;\n'
        f"  *ensurepip*) exit {0 if venv_module else 1} ;;\n"
        f'  *) echo "$0 $*" >> "{{calls}}"; [ "$1" = --version ] || exit 7 ;;\n'
        "esac"
    )


@pytest.fixture
def tools(tmp_path):
    """A PATH with the tools that the Makefile uses, and without any Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("rm", "touch", "sh"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


# --- requirements ----------------------------------------------------------------------------------------


def test_everything_is_pinned_and_the_zoo_comes_last():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    assert lines[-1] == "-e ."
    required = pins("requirements.txt")
    assert required["tensorflow"] == required["tensorflow-compression"] == ["2.14.1"]
    assert required["tensorflow-addons"] == ["0.22.0"]
    assert required["numpy"][0].startswith("1.")
    assert {"absl-py", "pillow", "safetensors", "tqdm", "scipy", "matplotlib"} <= set(required)
    assert {"pytest", "hypothesis", "ruff"} <= set(pins("requirements-dev.txt"))


def test_every_import_of_the_zoo_is_required():
    """What is imported anywhere, but not required, would fail for users only."""
    names = {"tensorflow_compression": "tensorflow-compression", "tensorflow_addons": "tensorflow-addons"}
    names |= {"tensorflow_probability": "tensorflow-probability", "PIL": "pillow", "absl": "absl-py"}
    names |= {"tensorflow_serving": "tensorflow-serving-api", "grpc": "tensorflow-serving-api"}
    ours = {"models", "transforms", "train", "eval"}
    # For people who have them: data sets by name, another runtime, peers, charts, many machines, how images look.
    optional = {"tensorflow_datasets", "jax", "jaxlib", "torch", "compressai", "plotly", "apache_beam"}
    optional |= {"ssimulacra2"}
    imported = set()
    for folder in ours:
        for file in (ROOT / folder).rglob("*.py"):
            code = file.read_text(encoding="utf-8")
            imported |= set(re.findall(r"^\s*(?:import|from) (\w+)(?:\.\w+)*(?: as \w+| import .+)?$", code, re.M))
    foreign = imported - ours - optional - set(sys.stdlib_module_names if sys.version_info >= (3, 10) else ())
    if sys.version_info < (3, 10):
        pytest.skip("the list of standard modules came with Python 3.10")
    assert "numpy" in foreign and "PIL" in foreign
    missing = {names.get(name, name) for name in foreign} - set(pins("requirements.txt")) - {"keras"}
    assert not missing


def test_the_gpu_requirements_are_those_of_tensorflow_without_tensorrt():
    named = [line for line in metadata.requires("tensorflow") if "and-cuda" in line]
    expected = {}
    for line in named:
        match = re.match(r"([\w-]+)\s*\(?==([\d.]+)\)?", line)
        expected[match[1]] = [match[2]]
    assert expected.pop("tensorrt") == ["8.5.3.1"]
    assert len(expected) == 10
    assert pins("requirements-gpu.txt") == expected


def test_ci_resolves_the_gpu_requirements():
    # There and not here, because pip fetches two gigabytes of wheels to read their metadata.
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"pip install .*--dry-run.*--no-deps.*\\\n.*-r requirements-gpu\.txt", script)
    assert "set -euo pipefail" in script and "\nmake test\n" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# --- make ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_no_python_at_all(checkout, tools, target):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "old").touch()
    result = make(target, cwd=checkout, path=str(tools))
    assert result.returncode != 0 and result.stdout == ""
    assert "Python 3.9, 3.10 or 3.11 with its venv module is needed" in result.stderr
    assert "Found: none of them." in result.stderr and "make PYTHON=" in result.stderr
    assert len(result.stderr.splitlines()) == 4 and "ignored" not in result.stderr  # ours, and make's own
    assert (checkout / ".venv" / "old").exists()  # nothing was removed without a replacement


def test_only_unsuitable_pythons(checkout, tools):
    program(tools, "python3", python_of_version("3.13"))
    program(tools, "python3.10", python_of_version("3.10", venv_module=False))
    program(tools, "python3.11", "echo 'python3.11: command not found' >&2; exit 127")  # as version managers do
    result = make("demo", cwd=checkout, path=str(tools))
    assert result.returncode != 0
    assert "python3 (Python 3.13)" in result.stderr
    assert "python3.10 (Python 3.10 without its venv module: try 'apt install python3.10-venv')" in result.stderr
    assert "command not found" not in result.stderr


@pytest.mark.parametrize(
    "there, chosen",
    [
        ({"python3": "3.13", "python3.9": "3.9"}, "python3.9"),
        ({"python3.9": "3.9", "python3.11": "3.11"}, "python3.11"),
        ({"python": "3.10"}, "python"),
    ],
)
def test_a_suitable_python_is_found(checkout, tools, tmp_path, there, chosen):
    calls = tmp_path / "calls"
    for name, version in there.items():
        program(tools, name, python_of_version(version).replace("{calls}", str(calls)))
    result = make("demo", cwd=checkout, path=str(tools))
    assert result.returncode != 0  # the stand-in makes no virtual environment, which must not pass for success
    assert calls.read_text().splitlines()[-1] == f"{tools / chosen} -m venv .venv"
    assert not (checkout / ".venv" / ".installed").exists()


def test_a_named_python_is_the_only_one_tried(checkout, tools, tmp_path):
    calls = tmp_path / "calls"
    program(tools, "python3.11", python_of_version("3.11").replace("{calls}", str(calls)))
    result = make("demo", "PYTHON=/nowhere/python3.10", cwd=checkout, path=str(tools))
    assert "Looked for: /nowhere/python3.10. Found: none of them." in result.stderr
    assert not calls.exists()


@pytest.mark.parametrize("changed", ["requirements.txt", "pyproject.toml"])
def test_the_environment_is_made_anew_only_when_requirements_change(checkout, changed):
    make("--version", cwd=checkout)  # copies the files
    stamp = checkout / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    now = stamp.stat().st_mtime
    for name in ("requirements.txt", "pyproject.toml"):
        os.utime(checkout / name, (now - 10, now - 10))

    def commands():
        return run_make("-n", "demo", cwd=checkout).stdout

    assert commands() == ".venv/bin/python -m eval.demo\n"
    os.utime(checkout / changed, (now + 10, now + 10))
    anew = commands()
    assert anew.index("rm -rf .venv") < anew.index("-m venv .venv") < anew.index("pip install")
    # The stamp is the last thing before the demo: an installation that fails is begun again.
    assert anew.rstrip().split("\n")[-2:] == ["touch .venv/.installed", ".venv/bin/python -m eval.demo"]
