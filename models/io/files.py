"""Files of a command line: the inputs that it names, where results go, and writing them whole or not at all.

No TensorFlow here: the command line refuses bad names before it pays for that import.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Union

from models.io import descriptors, terminal
from models.io.errors import UserError, reason

PathLike = Union[str, "os.PathLike[str]"]

#: Appended to an input's name: for images that come out of files, and for files that images become.
IMAGE_SUFFIX, STREAM_SUFFIX = ".png", ".tfci"


# --- names -----------------------------------------------------------------------------------------------


def expand_inputs(patterns: Iterable[PathLike]) -> list[Path]:
    """Returns the files that the user's arguments name, as `find_inputs` does."""
    return list(find_inputs(patterns))


def find_inputs(
    patterns: Iterable[PathLike], extensions: Container[str] = (), recursive: bool = True
) -> dict[Path, Path]:
    """Returns the files that the user's arguments name; expands folders, and the globs that the shell left alone.

    A file of exactly that name wins over the pattern, so `shot[1].png` can be given as it is. A plain name
    is not looked up: if it is missing, reading it says so, and the other inputs are still done. `-` is standard input.

    Args:
      patterns: the arguments.
      extensions: in lower case, of the files that are taken from folders. Without any, folders are not expanded.
      recursive: whether to take the files in the folders of a folder, too.

    Returns:
      Each file once, and its name below the folder, or below the part of the glob that is no pattern: `a/b.png` for
      `tree/a/b.png` as found by `tree/**/*.png`.

    Raises:
      UserError: a pattern matches no file, or a folder holds none.
    """
    found: dict[Path, Path] = {}
    for pattern in map(os.fspath, patterns):
        if pattern == "-":
            found.setdefault(descriptors.STDIN, Path(descriptors.STDIN.name))
            continue
        if extensions and os.path.isdir(pattern):
            root, names = pattern, _files_below(pattern, extensions, recursive)
            if not names:
                raise UserError(f"{pattern}: is a directory without such files")
        elif os.path.lexists(pattern) or not glob.has_magic(pattern):
            root, names = os.path.dirname(pattern), [pattern]
        else:
            root = pattern
            while glob.has_magic(root):
                root = os.path.dirname(root)
            names = [name for name in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(name)]
            if not names:
                raise UserError(f"{pattern}: matches no file")
        for name in names:
            below = Path(os.path.relpath(name, root or "."))
            # A pattern can lead out of its root again.
            found.setdefault(Path(name), Path(below.name) if below.parts[:1] == ("..",) else below)
    return found


def _files_below(folder: str, extensions: Container[str], recursive: bool) -> list[str]:
    """The files of a folder with these extensions, in order; without hidden ones, as a glob finds them."""
    pattern = os.path.join(glob.escape(folder), "**" if recursive else "", "*")
    names = sorted(glob.glob(pattern, recursive=recursive))
    return [name for name in names if os.path.splitext(name)[1].lower() in extensions and os.path.isfile(name)]


def distinct_names(inputs: Mapping[Path, Path]) -> dict[Path, Path]:
    """Returns a name for each input, as `find_inputs` gives them, and longer ones where two would be equal.

    Then the names are those below the folder that all inputs have in common.
    """
    if len(set(inputs.values())) == len(inputs) or len(inputs) < 2:
        return dict(inputs)
    on_disk = [path for path in inputs if path != descriptors.STDIN]
    root = os.path.commonpath([os.path.abspath(path.parent) for path in on_disk])
    return {**inputs, **{path: Path(os.path.relpath(path, root)) for path in on_disk}}


def output_paths(inputs: Mapping[Path, Path], output: PathLike | None, suffix: str) -> list[Path]:
    """Returns where the result of each input goes.

    Without `output` it lies beside the input, with the suffix appended (`a.png` -> `a.png.tfci`). With it,
    `output` is the file for one input, and a folder for several; an existing folder, or a name that ends in
    a slash, is a folder for one input too. Below it the results have the inputs' `distinct_names`, folders included.
    Folders that do not exist are made. `-` is standard output, and where the result of standard input goes by default.

    Args:
      inputs: one or more, as of `find_inputs`.
      output: the user's `-o`, or None.
      suffix: what to append, with its dot.

    Returns:
      One path per input, in their order, all different.

    Raises:
      UserError: two results would be one file, a result would replace an input, an input is `.` or `/`, or
        the folder is a file or cannot be made.
    """
    for path in inputs:
        if not path.name:  # `.` and `/`: nothing to append a suffix to
            raise UserError(f"{path}: is a directory")
    if output is None:
        targets = [descriptors.STDOUT if p == descriptors.STDIN else p.with_name(p.name + suffix) for p in inputs]
    elif os.fspath(output) == "-":
        if len(inputs) > 1:
            raise UserError(f"-: standard output takes one result, and there are {len(inputs)}")
        targets = [descriptors.STDOUT]
    elif len(inputs) > 1 or os.path.isdir(output) or os.fspath(output).endswith(os.sep):
        names = distinct_names(inputs).values()
        targets = [Path(output) / name.with_name(name.name + suffix) for name in names]
        _make_folder(output, len(inputs))
        for folder in {target.parent for target in targets}:
            with contextlib.suppress(OSError):  # said of the results that need it, when it is their turn
                os.makedirs(folder, exist_ok=True)
    else:
        targets = [Path(output)]
    _refuse_clashes(list(inputs), targets)
    return targets


def target_of(name: PathLike) -> Path:
    """Returns the file that a flag names; `-` is standard output."""
    return descriptors.STDOUT if os.fspath(name) == "-" else Path(name)


def _make_folder(folder: PathLike, count: int) -> None:
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder}: is a file, but the results of {count} inputs need a folder")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {reason(error)}") from error


def _refuse_clashes(paths: Sequence[Path], targets: Sequence[Path]) -> None:
    sources = {os.path.realpath(path): path for path in paths}
    taken: dict[str, Path] = {}
    for path, target in zip(paths, targets):
        real = os.path.realpath(target)
        if descriptors.descriptor_of(target) is not None and not os.path.isfile(real):
            continue  # such as a terminal, which is read and written
        if real in sources:
            raise UserError(f"{target}: is an input, and would be replaced by the result of {path}")
        if real in taken:
            raise UserError(f"{target}: would be the result of both {taken[real]} and {path}")
        taken[real] = path


# --- reading ---------------------------------------------------------------------------------------------


def open_input(path: PathLike) -> BinaryIO:
    """Opens a file for reading from wherever one likes; pipes and open descriptors are read into memory. OSError."""
    number = descriptors.descriptor_of(path)
    if number is not None:
        return io.BytesIO(descriptors.read(number))
    file = open(path, "rb")  # noqa: SIM115
    if not stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        return file
    with file:
        return io.BytesIO(file.read())


def read_bytes(path: PathLike) -> bytes:
    """Reads a whole file. UserError if that fails."""
    try:
        with open_input(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error


# --- writing ---------------------------------------------------------------------------------------------


def check_target(path: PathLike, force: bool = False) -> None:
    """Says early, before any work is done, what `atomic_write` would refuse.

    Raises:
      UserError: the path is a directory, has a name that cannot be, lies in a folder that does not exist or cannot be
        written to, exists and `force` is not given, or is a descriptor that is not open for writing.
    """
    number = descriptors.descriptor_of(path)
    if number is not None:
        descriptors.check_writable(number, path)
        return
    if is_device(path):
        return
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise UserError(f"{path}: is a directory")
    try:
        exists = bool(os.lstat(target))
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except OSError as error:  # such as a name that is too long for the file system
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error
    if exists and not force:
        raise UserError(f"{path}: exists already (--force replaces it)")
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise UserError(f"{path}: its folder does not exist")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permissions do not tell of all that cannot be written to
    except OSError as error:
        raise UserError(f"{path}: its folder cannot be written to: {reason(error)}") from error


def atomic_write(path: PathLike, data: bytes, force: bool = False) -> None:
    """Writes a file that appears complete or not at all: it is written beside itself, then renamed.

    A link is followed, a device or pipe is written to as it is, and so is what this process has open already.

    Args:
      path: where to.
      data: the whole content.
      force: whether an existing file may be replaced.

    Raises:
      UserError: as of `check_target`, or the disk is full, or the like. Nothing is left behind.
    """
    check_target(path, force)
    number = descriptors.descriptor_of(path)
    try:
        if number is not None:
            descriptors.write(number, data)
        elif is_device(path):
            Path(path).write_bytes(data)
        else:
            _write_and_rename(os.path.realpath(path), data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error


def write_json(path: PathLike, value) -> None:
    """Writes a value as JSON, whole or not at all, over what was there, in a folder that need not exist.

    UserError if that fails.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {reason(error)}") from error
    atomic_write(path, json.dumps(value, indent=2).encode(), force=True)


def _write_and_rename(target: str, data: bytes) -> None:
    # A short name of our own: appending to the target's could exceed what file systems allow, and tempfile's
    # files are private to the user, which the result should not be.
    temporary = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.tmp")
    terminal.unfinished.add(temporary)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # an interrupt from the keyboard, too, must not leave the temporary file
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        terminal.unfinished.discard(temporary)


def is_device(path: PathLike) -> bool:
    """Returns whether something is there that is neither file nor directory: renaming onto it would destroy it.

    Also for a name of what this process has open already, whatever that is: the shell made it.
    """
    if descriptors.descriptor_of(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode  # of what a link leads to: that of a pipe in /proc is no path
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
