"""The command line as a shell starts it: redirections, pipes, closed and full streams, interrupts."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def shell(tmp_path, tiny_weights):
    """Runs a line of bash in a folder of its own; `elic` stands for the program and `$W` for its weights."""

    def shell(line):
        program = f'elic() {{ {sys.executable} {ROOT / "models" / "elic.py"} "$@"; }}; W="--weights {tiny_weights}"'
        command = ["bash", "-o", "pipefail", "-c", f"{program}; {line}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)

    return shell


@pytest.fixture
def pair(tmp_path, crop):
    """Two images, a.png and b.png; returns their pixels."""
    pixels = [crop(20, 30), crop(20, 30, top=200)]
    for name, array in zip("ab", pixels):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return pixels


# --- descriptors that are open -----------------------------------------------------------------------------------


def test_results_are_added_to_what_is_open(shell, tmp_path, pair, tiny):
    (tmp_path / "old").write_bytes(b"precious")
    done = shell("elic compress a.png -o /dev/stdout $W >> old && elic compress b.png -o /proc/self/fd/7 $W 7>> old")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "old").read_bytes() == b"precious" + tiny.compress(pair[0]) + tiny.compress(pair[1])
    (tmp_path / "figures").write_bytes(b"precious")
    done = shell("elic evaluate a.png --json /dev/stdout $W >> figures")
    assert done.returncode == 0 and b"mean of 1" in done.stderr
    text = (tmp_path / "figures").read_bytes()
    assert text.startswith(b"precious") and json.loads(text[8:])["pictures"][0]["name"] == "a.png"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "figures", "old"]


def test_a_dash_is_standard_input_and_output(shell, tmp_path, pair, tiny):
    done = shell("elic compress - $W < a.png | tee a.tfci | elic decompress - -o - $W > a.out")
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "a.tfci").read_bytes()
    assert data == tiny.compress(pair[0])
    with Image.open(tmp_path / "a.out") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), tiny.decompress(data))
    done = shell("elic evaluate - b.png --json - $W < a.png")
    assert done.returncode == 0, done.stderr
    assert [picture["name"] for picture in json.loads(done.stdout)["pictures"]] == ["stdin", "b.png"]
    assert sorted(os.listdir(tmp_path)) == ["a.out", "a.png", "a.tfci", "b.png"]


# --- streams that are closed, full or gone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "redirection, code, says",
    [
        ("| true", 0, ""),
        ("> /dev/full", 1, "error: standard output: no space left on device"),
        (">&-", 0, ""),
    ],
)
def test_no_stream_stops_the_work(shell, tmp_path, pair, tiny, redirection, code, says):
    done = shell(f"elic compress a.png b.png -o d $W {redirection}")
    assert (done.returncode, done.stderr.decode().strip()) == (code, says)
    for name, pixels in zip("ab", pair):
        assert (tmp_path / "d" / f"{name}.png.tfci").read_bytes() == tiny.compress(pixels)


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", ">&- 2>&-"])
def test_a_bad_input_that_cannot_be_reported_does_not_stop_the_others(shell, tmp_path, pair, tiny, redirection):
    done = shell(f"elic compress missing.png a.png b.png -o d $W {redirection}")
    assert done.returncode == 1
    for name, pixels in zip("ab", pair):
        assert (tmp_path / "d" / f"{name}.png.tfci").read_bytes() == tiny.compress(pixels)


def test_a_result_that_its_stream_cannot_take_is_an_error(shell, tmp_path, pair):
    for redirection, says in (("> /dev/full", b"no space left"), (">&-", b"not open for writing")):
        done = shell(f"elic compress a.png -o /dev/stdout $W {redirection}")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(b"error: /dev/stdout: ") and says in line


# --- interrupts --------------------------------------------------------------------------------------------------


def interrupted(command, is_time, cwd, **options):
    """Starts a process, interrupts it when it is time, and checks that it ends with one line and 130."""
    # Where these tests run in the background SIGINT is ignored, and children inherit that.
    options["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    while not is_time(process):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"interrupted\n")


def has_printed(process):
    return process.stdout.readline()


def test_an_interrupt_during_the_first_imports(tmp_path):
    """A package that the program imports stands in for those that take long."""
    (tmp_path / "absl").mkdir()
    (tmp_path / "absl" / "__init__.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    command = [sys.executable, str(ROOT / "models" / "elic.py"), "compress", "a.png"]
    interrupted(command, has_printed, tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})


def test_an_interrupt_during_the_work(tmp_path, tiny_weights, tiny, crop):
    count = 15  # of more files the program makes graphs first, and files from graphs may differ in a symbol
    for number in range(count):
        Image.fromarray(crop(200, 300)).save(tmp_path / f"{number:02}.png")
    command = [sys.executable, str(ROOT / "models" / "elic.py"), "compress", "*.png", "-o", "out"]
    out = tmp_path / "out"
    interrupted([*command, "--weights", str(tiny_weights)], lambda _: [*out.glob("*.tfci")], tmp_path)
    done = sorted(os.listdir(out))
    assert done == [f"{number:02}.png.tfci" for number in range(len(done))] and len(done) < count
    assert {(out / name).read_bytes() for name in done} == {tiny.compress(crop(200, 300))}


def test_an_interrupt_while_a_file_is_written_leaves_no_half(tmp_path):
    code = """
import os, time
from models.io import files, terminal
terminal.prepare()
os.fsync = lambda _: (print(os.listdir("."), flush=True), time.sleep(60))
files.atomic_write("a", b"x" * 10000, force=True)
"""
    (tmp_path / "a").write_bytes(b"old")
    interrupted([sys.executable, "-c", code], has_printed, tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"
