"""The command line as a shell starts it: redirections, pipes, closed and full streams, interrupts."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


# --- streams that are closed, full or gone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "redirection, code, says",
    [
        ("| true", 0, ""),
        ("> /dev/full", 1, "error: standard output: no space left on device"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("> /dev/null 2> /dev/full", 0, ""),
    ],
)
def test_no_stream_stops_the_work(shell, tmp_path, pair, tiny, redirection, code, says):
    done = shell(f"elic compress a.png b.png -o d $W {redirection}")
    assert (done.returncode, done.stderr.decode().strip()) == (code, says)
    for name, pixels in zip("ab", pair):
        assert (tmp_path / "d" / f"{name}.png.tfci").read_bytes() == tiny.compress(pixels)


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", "> /dev/full 2>&1", "2>&1 | true", ">&- 2>&-"])
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
