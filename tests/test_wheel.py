"""The wheel, used outside the checkout: entry points, corpora and recipes come with it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, as an installation lays them out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _python(unpacked: Path, code: str, at: Path) -> str:
    # -S leaves the editable installation out; the installed packages are added behind the wheel.
    paths = [str(unpacked), sysconfig.get_path("purelib")]
    code = f"import sys; sys.path += {paths!r}\n" + code
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=at, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_outside_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    out = _python(
        unpacked,
        "import snt\n"
        "from snt import corpora, recipes\n"
        "from snt.backend import backend_names, get_backend\n"
        "print(snt.__file__)\n"
        "print(len(corpora.load('harmful').texts), list(recipes.built_in_recipes()))\n"
        "print(recipes.load_recipe('recipes/quickstart.yaml').steps)\n"
        "from importlib import import_module\n"
        "print(import_module(get_backend('full').implementation).__file__)\n",
        tmp_path,
    )
    lines = out.splitlines()
    assert Path(lines[0]).is_relative_to(unpacked) and Path(lines[3]).is_relative_to(unpacked)
    assert int(lines[1].split()[0]) >= 240 and "quickstart" in lines[1]
    assert "detect" in lines[2]


def test_the_wheel_declares_its_commands_and_backends(unpacked: Path) -> None:
    (points,) = unpacked.glob("*.dist-info/entry_points.txt")
    text = points.read_text()
    assert "snt = snt.cli:main" in text and "full = snt_backends.built_in:full" in text
    assert "[snt.judges]" in text and "refusal = snt.judges.refusal" in text
    assert not list(unpacked.rglob("tests"))
