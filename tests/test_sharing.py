"""`snt push` and `snt pull` against a stand-in for the Hub: what travels, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import snt as run_snt
from standin_hub import Hub

import snt
from snt import sharing
from snt.anatomy import Anatomy
from snt.deltas import SliceKey
from snt.errors import FormatError, MissingFileError, RequestError, RunFailure, UnknownNameError
from snt.fingerprint import Fingerprint
from snt.masks import NeuronMask, save_mask
from snt.patches import Patch, save_patch
from snt.shared_card import MARK, card
from snt.shared_files import shared_file

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("own_caches")

ANATOMY = Anatomy("llama", layers=2, d_model=8, d_ff=16, heads=2, kv_heads=2, head_dim=4)
PROVENANCE = {"model": {"id": "tiny/model", "parameters": 4000}}


def _mask(path: Path, *neurons: int) -> Path:
    found = {(1, "ffn"): torch.tensor(neurons or (3, 7), dtype=torch.int32)}
    save_mask(NeuronMask(ANATOMY, found, provenance=PROVENANCE), path)
    return path


def _patch(folder: Path) -> Path:
    folder.mkdir()
    _mask(folder / "mask.safetensors")
    piece = (torch.tensor([3, 7], dtype=torch.int32), torch.full((2, 8), 0.5))
    weights = Fingerprint(ANATOMY.shape(), "f" * 64)
    slices = {SliceKey(1, "mlp.up_proj", "rows"): piece}
    save_patch(Patch(ANATOMY, slices, weights, PROVENANCE), folder / "patch.safetensors")
    (folder / "report.json").write_text("{}")
    (folder / "notes.txt").write_text("private")
    return folder


def _recipe(path: Path) -> Path:
    path.write_text("name: mine\nabout: what I run\ninspect:\n")
    return path


def test_everything_there_and_back(hub_server: Hub, own_caches: Path) -> None:
    hub_server.files = {}
    things = [
        _mask(own_caches / "m.safetensors"),
        _patch(own_caches / "firm"),
        _recipe(own_caches / "r.yaml"),
    ]
    done = snt.push(things, "team/masks", private=True)
    assert (done.repository, done.commit) == ("team/masks", hub_server.sha)
    assert done.kinds == {"m.safetensors": "mask", "firm": "patch", "r.yaml": "recipe"}
    (made,) = hub_server.created
    assert (made["organization"], made["name"], made["visibility"]) == ("team", "masks", "private")
    assert hub_server.messages == ["snt push: m.safetensors, firm, r.yaml"]
    # Only what snt writes into a patch's directory goes with it.
    assert set(hub_server.files) == {
        *("m.safetensors", "r.yaml", "README.md", ".gitattributes"),
        *("firm/patch.safetensors", "firm/mask.safetensors", "firm/report.json"),
    }
    text = hub_server.files["README.md"].decode()
    assert "base_model:\n- tiny/model\n" in text and "no guarantee" in text
    assert "| `m.safetensors` | mask | `tiny/model` | 2 neurons" in text

    found = snt.pull("team/masks", output="got")
    assert found.commit == hub_server.sha and found.kinds == done.kinds
    for thing in things:
        for file in [thing] if thing.is_file() else thing.glob("*.safetensors"):
            there = own_caches / "got" / file.relative_to(own_caches)
            assert there.read_bytes() == file.read_bytes()
    assert not (own_caches / "got" / "firm" / "notes.txt").exists()
    # Once more changes nothing, offline comes from the cache.
    hub_server.requests.clear()
    again = snt.pull("team/masks", ["firm/"], output="got", offline=True)
    assert again.kinds == {"firm": "patch"} and hub_server.requests == []
    assert snt.pull("team/masks", output="got", offline=True).kinds == done.kinds


def test_the_card_keeps_rows_and_leaves_other_cards_alone(
    hub_server: Hub, own_caches: Path
) -> None:
    hub_server.files = {}
    snt.push([_mask(own_caches / "a.safetensors")], "team/masks")
    snt.push([_mask(own_caches / "b.safetensors", 1)], "team/masks@main", message="one more")
    text = hub_server.files["README.md"].decode()
    assert text.count("| mask |") == 2 and text.count("- tiny/model") == 1
    assert hub_server.messages[-1] == "one more"
    hub_server.files["README.md"] = b"# Ours\n"
    snt.push([_mask(own_caches / "c.safetensors")], "team/masks")
    assert hub_server.files["README.md"] == b"# Ours\n" and "c.safetensors" in hub_server.files


def test_a_card_keeps_what_people_wrote(hub_server: Hub, own_caches: Path) -> None:
    hub_server.files = {}
    snt.push([_mask(own_caches / "a.safetensors")], "team/masks")
    text = hub_server.files["README.md"].decode()
    text = text.replace("tags:", "license: apache-2.0\ntags:") + "\n## Ours\n| a | b |\n"
    hub_server.files["README.md"] = text.encode()
    snt.push([_mask(own_caches / "b.safetensors")], "team/masks")
    again = hub_server.files["README.md"].decode()
    assert "license: apache-2.0" in again and again.endswith("## Ours\n| a | b |\n")
    assert again.count("\n| `") == 2 and again.count("base_model:\n- tiny/model\n") == 1
    hub_server.files["README.md"] = b"\xff\xfe"
    snt.push([_mask(own_caches / "c.safetensors")], "team/masks")
    assert hub_server.files["README.md"] == b"\xff\xfe"


def test_a_card_takes_no_markup_from_names() -> None:
    path = Path("x.safetensors")
    shared = sharing.SharedFile(
        "x`|y.safetensors", "mask", {"x": path}, "<b>|", "a\n| `z` | b | c | d |"
    )
    text = card("team/masks", [shared])
    assert text is not None and text.count("\n| `") == 1 and "<b>" not in text
    linked = sharing.SharedFile("r.yaml", "recipe", {"r": path}, None, "![t](http://e) \ud800 \x1b")
    made = card("team/masks", [linked])
    assert made is not None and "](http" not in made and made.encode("utf-8")
    assert card("team/masks", [shared], text) == text
    assert card("team/masks", [shared], "# Ours") is None and MARK in text


def test_a_models_weights_are_not_pulled(hub_server: Hub, own_caches: Path) -> None:
    hub_server.files["m.safetensors"] = _mask(own_caches / "m.safetensors").read_bytes()
    hub_server.files |= {
        "pickle.bin": b"x",
        "../up.safetensors": b"x",
        "../patch.safetensors": b"x",
    }
    assert snt.pull("tiny/model", output="got").kinds == {"m.safetensors": "mask"}
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        snt.pull("tiny/model", ["model.safetensors"], output="got")
    with pytest.raises(UnknownNameError, match="did you mean m.safetensors"):
        snt.pull("tiny/model", ["n.safetensors"], output="got")
    for name in ("pickle.bin", "../up.safetensors", ".."):
        with pytest.raises(UnknownNameError):
            snt.pull("tiny/model", [name], output="got")
    assert sorted(p.name for p in (own_caches / "got").iterdir()) == ["m.safetensors"]
    del hub_server.files["m.safetensors"]
    with pytest.raises(RequestError, match="holds no mask"):
        snt.pull("tiny/model", output="got")


def test_what_is_not_ours_is_left(hub_server: Hub, own_caches: Path) -> None:
    whole = _mask(own_caches / "m.safetensors").read_bytes()
    header = b'{"__metadata__":null}'
    hub_server.files = {
        "m.safetensors": whole,
        "merge_config.yml": b"models: []\n",
        "bomb.yaml": b"a: &a [x]\n" + b"b: [" + b"*a, " * 40 + b"]\n",
        "deep.yaml": b"[" * 3000,
        "date.yaml": b"name: 2001-99-99\n",
        "x/patch.safetensors": whole,
        "x/README.md": b"x",
        "patch.safetensors": whole[:40],
        "null.safetensors": len(header).to_bytes(8, "little") + header,
        "garbage.safetensors": b"\xff" * 64,
    }
    assert snt.pull("team/masks", output="got").kinds == {"m.safetensors": "mask"}
    for name in set(hub_server.files) - {"m.safetensors", "x/patch.safetensors", "x/README.md"}:
        with pytest.raises(RequestError) as error:
            snt.pull("team/masks", [name], output="got")
        assert "/tmp" not in str(error.value) and len(str(error.value)) < 600
    assert [path.name for path in (own_caches / "got").iterdir()] == ["m.safetensors"]


def test_a_pull_touches_nothing_else(hub_server: Hub, own_caches: Path) -> None:
    hub_server.files = {}
    patch = _patch(own_caches / "firm")
    snt.push([patch], "team/masks")
    before = {path.name: path.read_bytes() for path in patch.iterdir()}
    snt.pull("team/masks")
    snt.pull("team/masks", force=True)
    assert {path.name: path.read_bytes() for path in patch.iterdir()} == before
    shutil.rmtree(patch)
    patch.write_text("a file")
    for force in (False, True):
        with pytest.raises(RequestError, match="of another kind"):
            snt.pull("team/masks", force=force)
    assert patch.read_text() == "a file"
    with pytest.raises(RequestError, match="-o takes a directory"):
        snt.pull("team/masks", output="firm")


def test_a_patch_pushed_again_loses_what_it_no_longer_has(
    hub_server: Hub, own_caches: Path
) -> None:
    hub_server.files = {}
    patch = _patch(own_caches / "firm")
    snt.push([patch], "team/masks")
    (patch / "mask.safetensors").unlink()
    snt.push([patch], "team/masks")
    assert {name for name in hub_server.files if "/" in name} == {
        "firm/patch.safetensors",
        "firm/report.json",
    }


def test_branches_and_private_repositories(hub_server: Hub, own_caches: Path) -> None:
    mask = _mask(own_caches / "m.safetensors")
    with pytest.raises(RequestError, match="public already"):
        snt.push([mask], "team/masks", private=True)
    assert "m.safetensors" not in hub_server.files
    snt.push([mask], "team/masks@next")
    assert "POST /api/models/team/masks/branch/next" in hub_server.requests
    assert "POST /api/models/team/masks/commit/next" in hub_server.requests


def test_offline_takes_what_was_pulled_beside_weights(hub_server: Hub, own_caches: Path) -> None:
    mask = _mask(own_caches / "m.safetensors")
    snt.push([mask, _mask(own_caches / "b.safetensors", 1)], "tiny/model")
    snt.pull("tiny/model", ["m.safetensors"], output="got")
    snt.push([mask], "tiny/model")
    hub_server.requests.clear()
    found = snt.pull("tiny/model", output="again", offline=True)
    assert found.kinds == {"m.safetensors": "mask"} and hub_server.requests == []
    with pytest.raises(UnknownNameError):
        snt.pull("tiny/model", ["b.safetensors"], output="again", offline=True)


def test_damaged_files_are_not_kept(hub_server: Hub, own_caches: Path) -> None:
    whole = _mask(own_caches / "m.safetensors").read_bytes()
    hub_server.files = {"good.safetensors": whole, "m.safetensors": whole[:-3]}
    with pytest.raises(FormatError, match=r"team/masks/m\.safetensors"):
        snt.pull("team/masks", ["m.safetensors"], output="got")
    assert not (own_caches / "got").exists()
    assert snt.pull("team/masks", output="got").kinds == {"good.safetensors": "mask"}


def test_other_files_are_replaced_with_force_alone(hub_server: Hub, own_caches: Path) -> None:
    hub_server.files = {"m.safetensors": _mask(own_caches / "m.safetensors").read_bytes()}
    (own_caches / "got").mkdir()
    other = _mask(own_caches / "got" / "m.safetensors", 1).read_bytes()
    with pytest.raises(RequestError, match="--force"):
        snt.pull("team/masks", output="got")
    assert (own_caches / "got" / "m.safetensors").read_bytes() == other
    snt.pull("team/masks", output="got", force=True)
    assert (own_caches / "got" / "m.safetensors").read_bytes() == hub_server.files["m.safetensors"]


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("gated", RequestError, "gated"),
        ("read only", RequestError, "hf auth login"),
        ("missing", UnknownNameError, "has no repository team/masks"),
        ("broken", RunFailure, "HTTP 500"),
    ],
)
def test_a_hub_that_refuses(
    hub_server: Hub, own_caches: Path, mode: str, kind: type[Exception], said: str
) -> None:
    mask = _mask(own_caches / "m.safetensors")
    hub_server.mode = mode
    if mode in ("read only", "broken"):
        with pytest.raises(kind, match=said):
            snt.push([mask], "team/masks")
    if mode != "read only":
        with pytest.raises(kind, match=said):
            snt.pull("team/masks")


def test_what_is_not_shared(own_caches: Path) -> None:
    mask = _mask(own_caches / "m.safetensors")
    patch = _patch(own_caches / "firm")
    (own_caches / "model.bin").write_bytes(b"x")
    (own_caches / "bad.yaml").write_text("name: x\ntune: {speed: 3}\n")
    (own_caches / "here.yaml").write_text("name: x\ntune: {mask: /home/somebody/m.safetensors}\n")
    shutil.copy(mask, own_caches / "m;n.safetensors")
    (own_caches / "nan").mkdir()
    shutil.copy(mask, own_caches / "nan" / "patch.safetensors")
    (own_caches / "empty").mkdir()
    (own_caches / "other").mkdir()
    shutil.copy(mask, own_caches / "other")
    refused: list[tuple[list[Any], str, str]] = [
        ([], "team/masks", "nothing to push"),
        ([mask], "masks", "owner/name"),
        ([mask], "team/../masks", "owner/name"),
        ([own_caches / "none.safetensors"], "team/masks", "no file"),
        ([own_caches / "model.bin"], "team/masks", "only these are shared"),
        ([own_caches / "bad.yaml"], "team/masks", "speed"),
        ([own_caches / "here.yaml"], "team/masks", "a place on this machine"),
        ([own_caches / "m;n.safetensors"], "team/masks", "no name to share"),
        ([own_caches / "nan"], "team/masks", "snt-patch"),
        ([own_caches / "empty"], "team/masks", "patch"),
        ([patch / "patch.safetensors"], "team/masks", "give the directory"),
        ([mask, own_caches / "other" / "m.safetensors"], "team/masks", "two of the files"),
    ]
    for paths, to, said in refused:
        # The Hub of these tests is out of reach: nothing is asked before the files are checked.
        with pytest.raises(RequestError, match=said):
            snt.push(paths, to)
    with pytest.raises(MissingFileError, match="without --offline"):
        snt.pull("team/masks", offline=True)
    assert shared_file(patch).kind == "patch"


def test_the_commands(hub_server: Hub, own_caches: Path) -> None:
    hub_server.files = {}
    _mask(own_caches / "m.safetensors")
    words = ("push", "m.safetensors", "--to", "team/masks", "--json")
    done = run_snt(*words, at=own_caches)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kinds"] == {"m.safetensors": "mask"}
    done = run_snt("pull", "team/masks", "-o", "got", at=own_caches)
    assert done.returncode == 0, done.stderr
    assert "got/m.safetensors: mask, 2 neurons" in done.stdout and hub_server.sha in done.stdout
    done = run_snt("pull", "team/masks", "x", "-o", "got", at=own_caches)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
