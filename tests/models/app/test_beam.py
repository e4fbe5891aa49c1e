"""Apache Beam: results equal to the command line's, nothing lost, whatever dies. Each run is a process of its own.

Beam forks its workers, and TensorFlow, which runs here, must not have started where it does.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.app import cli

pytest.importorskip("apache_beam", reason="Apache Beam is not installed (requirements-beam.txt)")

from models.app import beam, beam_work  # noqa: E402

#: Runs the command line, but an image called killer.png kills the process that reads it, as want of memory does.
PROGRAM = """
import os, signal, sys, time
from models.app import beam
from models.io import images

decode = images.decode_image

def decode_or_die(data, name):
    if name.endswith("killer.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ["SECONDS_MORE"]))
    return decode(data, name)

images.decode_image = decode_or_die
beam.RECORD_EVERY = 2
beam.main(sys.argv[1:])
"""


#: How many images can be compressed.
GOOD = 195
UNNAMED = os.fsdecode(b"\xff.png")


def start(*arguments, weights, seconds_more=0):
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments), "--model", "elic", "--weights", str(weights)]
    environment = {**os.environ, "SECONDS_MORE": str(seconds_more)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def run(*arguments, weights):
    process = start(*arguments, weights=weights)
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in err
    return process.returncode, out, err


def tables(folder, command):
    """The summary, and the reasons of failures by the name of the file."""
    folder = folder / "_beam" / command
    failed = [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()), {Path(f["input"]).name: f["reason"] for f in failed}


def results(folder, suffix):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.name.endswith(suffix)}


def is_running(session):
    """Whether a process of a session is left; one that nobody has waited for does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == session and state != "Z":
            return True
    return False


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("nothing happens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photograph):
    """195 images in two folders, and 5 files that fail."""
    folder = tmp_path_factory.mktemp("beam")
    images = folder / "images"
    (images / "below").mkdir(parents=True)
    for n in range(GOOD):
        image = Image.fromarray(np.ascontiguousarray(photograph[n : n + 40 + n % 20, 100:150]))
        image.save(images / ("below" if n % 3 else "") / f"{n}.png")
    (images / "empty.jpg").touch()
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:500])
    Image.new("RGB", (400, 300)).save(images / "large.png")
    Image.new("RGB", (10, 10)).save(images / "killer.png")
    Image.new("RGB", (10, 10)).save(images / UNNAMED)
    return folder


@pytest.fixture(scope="module")
def packed(folder, tiny_weights):
    """The folder of results, of a run that is killed in the middle and one after it."""
    out = folder / "packed"
    arguments = ("compress", folder / "images", "-o", out, "--max_megapixels", "0.1", "--direct_num_workers", "2")
    process = start(*arguments, weights=tiny_weights, seconds_more=1)
    records = out / "_beam" / "compress" / "records"
    wait_for(lambda: process.poll() is not None or (records.is_dir() and list(records.glob("*.jsonl"))))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not is_running(process.pid))  # workers end with the program
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.tfci")}
    code, printed, errors = run(*arguments, weights=tiny_weights)
    return out, first, code, printed, errors


def test_a_killed_run_is_completed(packed):
    out, first, code, printed, _ = packed
    summary, failed = tables(out, "compress")
    assert code == 1
    assert printed.startswith(f"{GOOD + 5} files, {summary['done']} done, {summary['kept']} kept, 5 failed")
    assert 2 <= summary["kept"] <= len(first) < GOOD and summary["kept"] + summary["done"] == GOOD
    assert {path: path.stat().st_mtime_ns for path in first} == first  # none was written again
    assert list(out.rglob("*.tmp")) == []


def test_results_are_those_of_the_command_line(packed, folder, tiny_weights):
    by_hand, good = folder / "by_hand", folder / "images" / "**" / "[0-9]*.png"
    with pytest.raises(SystemExit) as end:
        cli.main("elic", ["compress", str(good), "-o", str(by_hand), "--weights", str(tiny_weights)])
    assert end.value.code == 0
    expected = results(by_hand, ".tfci")
    assert results(packed[0], ".tfci") == expected and len(expected) == GOOD


def test_dead_letters_have_their_reasons(packed):
    _, failed = tables(packed[0], "compress")
    assert failed.keys() == {"empty.jpg", "cut.png", "large.png", "killer.png", r"\udcff.png'"}
    assert failed[r"\udcff.png'"] == "its name is not UTF-8"
    assert failed["empty.jpg"].endswith("empty.jpg: is empty")
    assert "truncated" in failed["cut.png"]
    assert "400x300 pixels are more than --max_megapixels 0.1" in failed["large.png"]
    assert "process that worked on it died" in failed["killer.png"]


def test_the_summary_adds_up(packed, folder):
    out = packed[0]
    summary, _ = tables(out, "compress")
    files = results(out, ".tfci")
    assert summary["bytes_out"] == sum(map(len, files.values()))
    assert summary["pixels"] == sum(50 * (40 + n) for n in (k % 20 for k in range(GOOD)))
    assert summary["bpp"] == pytest.approx(8 * summary["bytes_out"] / summary["pixels"])
    assert summary["bytes_in"] == sum((folder / "images" / name[:-5]).stat().st_size for name in files)


def test_decompress(packed, folder, tiny, tiny_weights):
    out = folder / "back"
    (packed[0] / "cut.png.tfci").write_bytes((packed[0] / "0.png.tfci").read_bytes()[:-4])
    code, _, _ = run("decompress", packed[0], "-o", out, weights=tiny_weights)
    summary, failed = tables(out, "decompress")
    assert code == 1 and failed.keys() == {"cut.png.tfci"} and summary["done"] == GOOD
    (packed[0] / "cut.png.tfci").unlink()
    streams = results(packed[0], ".tfci")
    for name, data in streams.items():
        image = np.asarray(Image.open(out / f"{name}.png"))
        # Graphs round differently, see `Codec.trace`.
        assert np.abs(image.astype(int) - tiny.decompress(data)).max() <= 1


def test_evaluate(photograph, tiny_weights, tmp_path):
    by_hand = tmp_path / "by_hand.json"
    for n in range(2):
        Image.fromarray(np.ascontiguousarray(photograph[:170, 60 * n : 60 * n + 180])).save(tmp_path / f"{n}.png")
    code, _, _ = run("evaluate", tmp_path / "*.png", "-o", tmp_path / "figures", weights=tiny_weights)
    with pytest.raises(SystemExit):
        cli.main("elic", ["evaluate", str(tmp_path / "*.png"), "--weights", str(tiny_weights), "--json", str(by_hand)])
    mean = json.loads(by_hand.read_text())["mean"]
    (point,) = tables(tmp_path / "figures", "evaluate")[0]["curve"]
    assert code == 0 and point.pop("quality") is None
    assert point == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--direct_num_wrkers", "2"), 2, "unrecognized arguments: --direct_num_wrkers 2"),
        ((), 1, "matches no file"),
        (("--quality", "1,2"), 1, "takes one quality"),
    ],
)
def test_usage(arguments, code, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        beam.main(["compress", str(tmp_path / "*.png"), "-o", str(tmp_path / "out"), "--model", "elic", *arguments])
    assert end.value.code == code
    assert message in capsys.readouterr().err


@pytest.fixture
def worker(tmp_path):
    """A worker whose work is to repeat the content, and a function that gives it a file: work(content, record)."""
    args = beam._parser().parse_args(["compress", "in", "-o", str(tmp_path), "--model", "elic"])
    args.key = "settings"
    worker = beam_work.Worker(args)
    worker.work = lambda data, source: (2 * data, {})
    source = tmp_path / "a.png"

    def work(content, record=None):
        source.write_bytes(content)
        (row,) = worker.process(("a.png", (str(source), len(content)), record))
        return row

    work.args, work.target = args, tmp_path / "a.png.tfci"
    return work


def test_what_is_done_is_kept(worker):
    row = worker(b"content")
    assert row["status"] == "done" and worker.target.read_bytes() == b"contentcontent"
    assert worker(b"content", row)["status"] == "kept"
    worker.target.unlink()
    assert worker(b"content", row)["status"] == "done"


def test_what_was_done_and_not_recorded_is_recorded(worker):
    worker(b"content")
    assert worker(b"content")["status"] == "done"


@pytest.mark.parametrize("change", ["content", "settings", "foreign"])
def test_other_results_are_replaced_by_force_alone(worker, change):
    record = worker(b"content")
    before = worker.target.read_bytes()
    content = b"content" if change == "settings" else b"changed"
    worker.args.key = "others" if change == "settings" else worker.args.key
    record = None if change == "foreign" else record
    row = worker(content, record)
    assert row["status"] == "failed" and "(--force replaces it)" in row["reason"]
    assert worker.target.read_bytes() == before
    worker.args.force = True
    assert worker(content, record)["status"] == "done"
    assert worker.target.read_bytes() == 2 * content


def test_files_that_cannot_be_images_are_not_read(worker):
    worker.args.max_megapixels = 1e-6
    row = worker(bytes(2_000_000))
    assert row["status"] == "failed" and "--max_megapixels" in row["reason"]


def test_records_say_what_is_new(tmp_path):
    recorder = beam.Record(str(tmp_path))
    rows = [{"status": status, "seconds": 0.0, "bytes_out": 1} for status in ("done", "kept", "failed")]
    assert [row for row in rows for row in recorder.process(row)] == rows
    recorder.finish_bundle()
    (record,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["status"] for line in record.read_text().splitlines()] == ["done"]
