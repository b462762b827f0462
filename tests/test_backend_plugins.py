"""The door for backends: what is listed, what is refused by name, what a plugin may break."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snt import backend_plugins, plugins
from snt.backend import ABILITIES, LazyBackend, abilities_of, get_backend, weight_bytes
from snt.backend_plugins import backend_names, backends_that, list_backends
from snt.errors import RequestError, UnavailableError, UnknownNameError
from snt.model_sizes import ALIAS_SIZES

SIZE = ALIAS_SIZES["llama3-8b"]


def installed(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, backend_plugins.DOOR.group) for name, value in points]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)


def plugin(monkeypatch: pytest.MonkeyPatch, module: str, **parts: Any) -> None:
    whole = {"summary": "of a test", "load": lambda *_: None, "fast_dtype": lambda: None, **parts}
    fake: Any = SimpleNamespace(**whole)
    monkeypatch.setitem(sys.modules, module, fake)


def test_a_plugin_of_anybody_is_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, "mine", abilities=("detect",), weight_bytes=lambda size, item: item)
    plugin(monkeypatch, "whole")
    installed(monkeypatch, ("mine", "mine"), ("whole", "whole"))
    assert backend_names() == ["mine", "whole"]
    assert abilities_of(get_backend("mine")) == {"detect"}
    assert abilities_of(get_backend("whole")) == set(ABILITIES)
    assert weight_bytes(get_backend("mine"), SIZE, 2) == 2
    assert weight_bytes(get_backend("whole"), SIZE, 2) == 2 * SIZE.parameters
    assert backends_that(["tune"]) == ["whole"] and backends_that(["detect"]) == ["mine", "whole"]
    with pytest.raises(UnknownNameError, match="did you mean mine"):
        get_backend("mines")


def test_broken_and_double_plugins_break_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, "sound")
    plugin(monkeypatch, "odd", abilities=("fly",))
    points = [("bad", "nowhere_at_all"), ("two", "sound"), ("two", "other"), ("sound", "sound")]
    installed(monkeypatch, *points, ("odd", "odd"), ("half", "snt.errors"))
    assert get_backend("sound").summary == "of a test"
    faults = {one.name: one.fault for one in list_backends()}
    assert faults.pop("sound") is None
    said = {
        "bad": r"'bad' \(nowhere_at_all\) cannot be imported: ModuleNotFoundError",
        "two": "two backends are named 'two': sound and other; uninstall one",
        "odd": "names abilities that there are not: fly",
        "half": "has no summary, load, fast_dtype",
    }
    assert faults.keys() == said.keys()
    for name, words in said.items():
        with pytest.raises(RequestError, match=words) as caught:
            get_backend(name)
        assert faults[name] == str(caught.value)


def test_a_plugin_that_ends_the_process_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "leaves.py").write_text("raise SystemExit(5)")
    monkeypatch.syspath_prepend(tmp_path)
    installed(monkeypatch, ("leaves", "leaves"))
    assert "cannot be imported: SystemExit: 5" in str(list_backends()[0].fault)


def test_what_a_lazy_backend_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lazy = LazyBackend(
        "far", "", "snt.nowhere", requires={"no_such_lib": "pip install no-such-lib"}
    )
    assert lazy.missing() == "pip install no-such-lib"
    with pytest.raises(UnavailableError, match="needs what is not installed; pip install no-such"):
        lazy.load(tmp_path)
    for where in ("snt.nowhere", "snt.errors:nothing"):
        with pytest.raises(UnavailableError, match="cannot be imported"):
            LazyBackend("far", "", where).fast_dtype()
    monkeypatch.setitem(sys.modules, "holds", SimpleNamespace(lazy=lazy))
    installed(monkeypatch, ("far", "holds:lazy"))
    assert list_backends()[0].fault == "not installed: pip install no-such-lib"
    assert backends_that(["detect"]) == []


def test_listing_a_plugin_whose_import_raises(tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[snt.backends]\nbroken = broken_backend\n")
    (tmp_path / "broken_backend.py").write_text("raise OSError('no such device')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = (
        "import sys; sys.argv = ['snt', 'backends', '--json']\nimport snt.cli as c\n"
        "try: c.main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    # What the command line's libraries take by themselves on this machine.
    bare = "import typer, rich.table; from pydantic import TypeAdapter, ValidationInfo"
    listing, libraries = [], []
    for _ in range(5):
        used, said, modules = _seconds(code, path)
        listing.append(used)
        libraries.append(_seconds(bare, path)[0])
    rows = {row["name"]: row for row in json.loads(said)}
    assert rows["full"]["fault"] is None
    assert "(broken_backend) cannot be imported: OSError: no such device" in rows["broken"]["fault"]
    assert not {"torch", "transformers", "numpy", "datasets"} & set(modules.split())
    # In proportion to what the libraries take on this processor (about 2), of the best of five.
    assert min(listing) < max(0.5, 3.0 * min(libraries))


def _seconds(code: str, path: str) -> tuple[float, str, str]:
    """Time of the processor that a Python takes for `code`, and its two outputs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        done.stdout,
        done.stderr,
    )
