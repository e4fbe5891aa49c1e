"""Names and files of the command line: what is an input, where results go, whole files or none."""

import errno
import os
import threading

import pytest

from models.io import files
from models.io.errors import UserError


def test_an_existing_file_is_only_replaced_by_force(tmp_path):
    path = tmp_path / "a.bin"
    files.atomic_write(path, b"one")
    with pytest.raises(UserError, match="exists already"):
        files.atomic_write(path, b"two")
    assert path.read_bytes() == b"one"
    files.atomic_write(path, b"three", force=True)
    assert path.read_bytes() == b"three"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_new_files_have_the_usual_permissions(tmp_path):
    files.atomic_write(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_targets_that_cannot_be(tmp_path):
    for path, match in [
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "a", "folder does not exist"),
        (tmp_path / ("n" * 300), "name too long"),
        ("/proc/a", "cannot be written"),
    ]:
        with pytest.raises(UserError, match=match):
            files.check_target(path, force=True)
        with pytest.raises(UserError, match=match):
            files.atomic_write(path, b"data", force=True)
    assert os.listdir(tmp_path) == []


def test_what_is_open_is_written_and_read_where_it_stands(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with open(path, "ab") as out, open(path, "rb") as source:
        (tmp_path / "link").symlink_to(f"/dev/fd/{out.fileno()}")
        for name in (f"/dev/fd/{out.fileno()}", f"/proc/{os.getpid()}/fd/{out.fileno()}", tmp_path / "link"):
            files.check_target(name)
            files.atomic_write(name, b"+new")
        assert path.read_bytes() == b"old+new+new+new"
        os.lseek(source.fileno(), 4, os.SEEK_SET)
        assert files.read_bytes(f"/proc/self/fd/{source.fileno()}") == b"new+new+new"
        for name in (f"/dev/fd/{source.fileno()}", "/dev/fd/9999"):
            with pytest.raises(UserError, match="is not open for writing"):
                files.check_target(name)
    assert not (tmp_path / "link").exists() and (tmp_path / "link").is_symlink()


def test_a_pipe_can_be_read_from_wherever_one_likes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"through"), daemon=True)
    thread.start()
    with files.open_input(tmp_path / "pipe") as file:
        assert file.read() == b"through" and file.seek(0) == 0
    thread.join(timeout=10)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_on_the_way_leaves_nothing_new_and_the_old(tmp_path, monkeypatch, error, step):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        files.atomic_write(path, b"new", force=True)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written: no space left on device"
    assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == b"old"


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append(path.exists()), replace(*names)))
    files.atomic_write(path, b"x" * 100_000)
    assert seen == [False] and path.stat().st_size == 100_000


def test_a_link_is_followed_and_a_pipe_is_not_replaced(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    files.atomic_write(tmp_path / "link", b"new", force=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()), daemon=True)
    thread.start()
    files.atomic_write(tmp_path / "pipe", b"through")
    thread.join(timeout=10)
    assert read == [b"through"] and (tmp_path / "pipe").is_fifo()


# --- names -----------------------------------------------------------------------------------------------


def test_globs_are_expanded_in_order_and_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["b.png", "a.png", "c.jpg", "shot[1].png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png" / "deeper").mkdir(parents=True)
    (tmp_path / "folder.png" / "deeper" / "d.png").touch()
    names = [str(p) for p in files.expand_inputs(["c.jpg", "*.png", "a.png", "gone.png"])]
    assert names == ["c.jpg", "a.png", "b.png", "shot[1].png", "gone.png"]
    assert [str(p) for p in files.expand_inputs(["shot[1].png"])] == ["shot[1].png"]
    assert "folder.png/deeper/d.png" in [str(p) for p in files.expand_inputs(["**/*.png"])]


def test_a_glob_that_matches_nothing_is_refused(tmp_path):
    (tmp_path / "folder.gif").mkdir()
    for pattern in ["*.png", "*.gif"]:
        with pytest.raises(UserError, match="matches no file"):
            files.expand_inputs([tmp_path / pattern])


def names_of(*arguments):
    inputs, *others = arguments
    return [str(path) for path in files.output_paths(files.find_inputs(inputs), *others)]


def test_where_results_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_of(["x/a.png", "b.png"], None, ".tfci") == ["x/a.png.tfci", "b.png.tfci"]
    assert names_of(["x/a.png"], "out.bin", ".tfci") == ["out.bin"]
    assert not (tmp_path / "out.bin").exists()
    assert names_of(["x/a.png", "b.png"], "new/deep", ".png") == ["new/deep/a.png.png", "new/deep/b.png.png"]
    assert (tmp_path / "new" / "deep").is_dir()
    assert names_of(["x/a.png"], "new", ".tfci") == ["new/a.png.tfci"]
    assert names_of(["x/a.png"], "other/", ".tfci") == ["other/a.png.tfci"]


def test_results_that_would_clash_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="of both a.png and ../"):
        names_of(["a.png", f"./../{tmp_path.name}/a.png"], "out", ".tfci")
    with pytest.raises(UserError, match="is an input"):
        names_of(["a.png"], "./a.png", ".tfci")
    with pytest.raises(UserError, match="is an input"):
        names_of(["a.png", "a.png.tfci"], None, ".tfci")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="need a folder"):
        names_of(["a.png", "b.png"], "file", ".tfci")
    with pytest.raises(UserError, match="cannot be made"):
        names_of(["a.png", "b.png"], "file/deeper", ".tfci")
    with pytest.raises(UserError, match="is a directory"):
        names_of(["."], None, ".tfci")


def test_folders_below_the_root_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "tree/a.png",
        "tree/x/a.png",
        "tree/y/z/a.png",
        "tree/y/b.PNG",
        "tree/y/notes.txt",
        "tree/.cache/c.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    below = ["a.png", "x/a.png", "y/b.PNG", "y/z/a.png"]

    def found(*arguments, **options):
        return sorted(map(str, files.find_inputs(arguments, {".png"}, **options).values()))

    assert found("tree") == found(str(tmp_path / "tree")) == found("./tree/") == below
    assert found("tree", recursive=False) == ["a.png"]
    assert found("tree/**/*.png") == ["a.png", "x/a.png", "y/z/a.png"]
    assert found("t*/y/*/a.png") == ["tree/y/z/a.png"]
    assert found("tree/x/a.png", "tree/y/b.PNG") == ["a.png", "b.PNG"]
    assert found("tree/y/*/../b.PNG") == ["b.PNG"]
    with pytest.raises(UserError, match="tree/.cache/none: is a directory without such files"):
        (tmp_path / "tree" / ".cache" / "none").mkdir()
        found("tree/.cache/none")
    inputs = files.find_inputs(["tree"], {".png"})
    assert [str(path) for path in files.output_paths(inputs, "out", ".tfci")] == [
        f"out/{name}.tfci" for name in map(str, inputs.values())
    ]
    assert (tmp_path / "out" / "y" / "z").is_dir()
    # Named one by one, as a shell does it: the same where two names would be equal, else flat.
    names = ["tree/x/a.png", "tree/y/z/a.png"]
    assert names_of(names, "flat", ".tfci") == ["flat/x/a.png.tfci", "flat/y/z/a.png.tfci"]
    assert names_of(["tree/x/a.png", "tree/y/b.PNG"], "flat", ".tfci") == ["flat/a.png.tfci", "flat/b.PNG.tfci"]


def test_a_dash_is_standard_input_and_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").touch()
    assert names_of(["-"], None, ".tfci") == names_of(["a.png"], "-", ".tfci") == ["/dev/stdout"]
    assert names_of(["-", "a.png"], "out", ".tfci") == ["out/stdin.tfci", "out/a.png.tfci"]
    assert names_of(["./-"], "./-x", ".tfci") == ["-x"] and files.expand_inputs(["./-"])[0].is_file()
    with pytest.raises(UserError, match="-: standard output takes one result, and there are 2"):
        names_of(["a.png", "b.png"], "-", ".tfci")
