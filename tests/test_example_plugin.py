"""A backend of somebody else, built and installed into a virtual environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import snt

PLUGIN = Path(__file__).parent / "plugins" / "example_backend"
KIT = """
from snt.backend import get_backend
from snt.testing import check_backend
print(check_backend(get_backend("example")))
"""


def _run(*command: str | Path, at: Path, path: str = "") -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=at,
        env={**environment, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_installed_listed_and_conforms(tmp_path: Path) -> None:
    here = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", here, at=tmp_path)
    python = here / "bin" / "python"
    site = _run(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", at=here)
    # What this environment has, the editable snt among it, stands behind what is installed there.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    (Path(site.strip()) / "behind.pth").write_text(f"{line}\n")
    pip = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    _run(sys.executable, *pip, "--no-build-isolation", PLUGIN, at=tmp_path)
    # The snt that is under test, from wherever it was imported here.
    path = os.environ.get("PYTHONPATH", "")
    command = "import sys; sys.argv = ['snt', 'backends', '--json']\nimport snt.cli as c; c.main()"
    rows = {row["name"]: row for row in json.loads(_run(python, "-c", command, at=here, path=path))}
    assert rows["full"]["fault"] is None
    assert rows["example"]["fault"] is None
    assert rows["example"]["abilities"] == ["detect", "score", "generate", "patch"]
    where = _run(python, "-c", "import snt; print(snt.__file__)", at=here, path=path)
    assert Path(where.strip()) == Path(snt.__file__)
    said = _run(python, "-c", KIT, at=here, path=path)
    assert "importances_equal_the_oracle: ok" in said and "deltas_train: not offered" in said
