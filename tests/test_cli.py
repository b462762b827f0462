"""The command line in processes of its own, and the directions that imports may take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def _snt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _python(f"import sys; sys.argv = ['snt', *{arguments!r}]\nimport snt.cli as c; c.main()")


def test_help_imports_no_torch() -> None:
    done = _python(
        "import sys; sys.argv = ['snt', '--help']\n"
        "import snt.cli\n"
        "try: snt.cli.main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not code and not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert "backends" in done.stdout


def test_models_and_backends() -> None:
    names = [row["name"] for row in json.loads(_snt("models", "--json").stdout)]
    assert {"smollm2-135m", "llama3-8b", "vicuna-13b"} <= set(names)
    listed = {row["name"]: row for row in json.loads(_snt("backends", "--json").stdout)}
    assert listed["full"]["fault"] is None and "tune" in listed["full"]["abilities"]
    assert "smollm2-135m" in _snt("models").stdout


def test_listing_backends_imports_no_torch() -> None:
    done = _python(
        "import sys; sys.argv = ['snt', 'backends']\n"
        "import snt.cli\n"
        "try: snt.cli.main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not code and not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_wrong_option_is_exit_2() -> None:
    assert _snt("models", "--nonsense").returncode == 2
    assert _snt("no-such-command").returncode == 2


def test_imports_run_one_way() -> None:
    for file in (ROOT / "snt").rglob("*.py"):
        assert "snt_backends" not in re.findall(
            r"^\s*(?:from|import) (\w+)", file.read_text(), re.M
        )
    allowed = {"snt.backend", "snt.errors", "snt.anatomy", "snt.beginnings"}
    for file in (ROOT / "backends").rglob("*.py"):
        found = set(re.findall(r"^\s*(?:from|import) (snt[.\w]*)", file.read_text(), re.M))
        assert {name for name in found if not name.startswith("snt_backends.")} <= allowed, file
