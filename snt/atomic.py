"""Files that appear whole or not at all: temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snt.errors import RequestError, RunFailure
from snt.processes import own_files, writes


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, else it is removed.

    In a process that does not lead it always is (snt.processes). Raises RequestError when the
    folder cannot be written and RunFailure when the disk is full.
    """
    path = Path(path)
    if not writes():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / path.name).touch()
            yield Path(folder) / path.name
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise RequestError(
            f"cannot write {path}: {error.strerror}; choose another place with -o"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; a shared mask should be as readable as any other file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _write_failure(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path, directory: bool = False) -> None:
    """Raise RequestError now, before hours of work, when `path` could not be written afterwards.

    What lies there may be replaced by what is to be written: a file, or with `directory` one.
    """
    path = Path(path)
    if not writes():
        return
    if path.exists() and path.is_dir() != directory:
        there = "a directory" if path.is_dir() else "a file"
        raise RequestError(f"cannot write {path}: it is {there}; choose another place with -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise RequestError(
            f"cannot write {path}: {error.strerror}; choose another place with -o"
        ) from error
    os.close(handle)
    Path(name).unlink()


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it becomes `path`.

    An existing directory at `path` is replaced only after the new one is complete. In a process
    that does not lead, nothing is (snt.processes).
    """
    path = Path(path)
    if not writes():
        # What is written into it is read back, so there it is kept.
        with tempfile.TemporaryDirectory() as folder, own_files():
            yield Path(folder)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise RequestError(
            f"cannot write {path}: {error.strerror}; choose another place with -o"
        ) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if path.exists():
            retired = Path(
                tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent)
            )
            path.replace(retired / path.name)
            temporary.replace(path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            temporary.replace(path)
    except OSError as error:
        raise _write_failure(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` atomically, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON with sorted keys."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_failure(path: Path, error: OSError) -> RunFailure:
    reason = error.strerror or str(error)
    if isinstance(error, shutil.Error):  # a copied folder: one fault per file, the first says it
        reason = str(error.args[0][0][-1]).partition(": ")[0]
    return RunFailure(
        f"could not write {path}: {reason}; nothing was left under that name. "
        "Free some space or choose another place with -o"
    )
