"""Names to models: aliases, forms of a Hub id, local directories."""

from __future__ import annotations

from pathlib import Path

import pytest
from standin_hub import Hub, write_model

from snt import model_refs
from snt.errors import RequestError, UnknownNameError

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("own_caches")


def test_default_ref(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_refs.default_ref() == "smollm2-135m"
    monkeypatch.setenv("SNT_MODEL", "./mine")
    assert model_refs.default_ref() == "./mine"


def test_aliases_are_hub_ids() -> None:
    wanted = {"smollm2-135m", "llama3-8b", "llama2-7b-chat", "mistral-7b", "vicuna-13b"}
    assert wanted | {"llama2-7b-base", "llama3-8b-base", "mistral-7b-base"} == set(
        model_refs.ALIASES
    )
    for name, alias in model_refs.ALIASES.items():
        assert alias.name == name
        assert model_refs._HUB_ID.fullmatch(alias.hub_id)


def test_unknown_name_offers_the_nearest(hub_server: Hub) -> None:
    with pytest.raises(UnknownNameError, match="did you mean llama3-8b"):
        model_refs.resolve("llama3-8B")
    assert hub_server.requests == []


@pytest.mark.parametrize(
    "ref",
    [
        *("", "  ", "/", "a b/c", "owner/", "owner/name@", "owner/name@-x", "owner/name@a..b"),
        *("owner/na--me", "owner/name.git", "owner/näme", "owner/name\n", "owner/a/b"),
        *("https://huggingface.co/owner/name", "../absent", "~absent/model", "x" * 5000, "a\0b"),
    ],
)
def test_bad_forms_are_refused_before_anybody_is_asked(ref: str, hub_server: Hub) -> None:
    with pytest.raises(RequestError) as caught:
        model_refs.resolve(ref)
    assert caught.value.exit_code == 2
    assert hub_server.requests == []


def test_local_directory(own_caches: Path) -> None:
    write_model(own_caches / "models" / "mine")
    for ref in (
        "models/mine",
        "./models/mine",
        str(own_caches / "models" / "mine"),
        "models/mine/",
    ):
        found = model_refs.resolve(ref)
        assert (found.id, found.revision, found.how) == ("mine", None, "local directory")
        assert found.directory == own_caches / "models" / "mine"


def test_alias_beats_a_directory_of_its_name(own_caches: Path, wheel_calls: list[bool]) -> None:
    write_model(own_caches / "smollm2-135m")
    said: list[str] = []
    found = model_refs.resolve("smollm2-135m", offline=True, on_progress=said.append)
    assert found.id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "./smollm2-135m" in said[0]
    assert wheel_calls == [True]
    assert model_refs.resolve("./smollm2-135m").how == "local directory"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "no config.json"),
        (["config.json"], r"no \*.safetensors"),
        (["config.json", "pytorch_model.bin"], "pickled weights"),
        (["patch.safetensors"], "snt patch apply"),
        (["adapter_config.json", "adapter_model.safetensors"], "PEFT adapter"),
    ],
)
def test_directories_that_are_no_model(own_caches: Path, names: list[str], reason: str) -> None:
    (own_caches / "thing").mkdir()
    for name in names:
        (own_caches / "thing" / name).write_text("{}")
    with pytest.raises(RequestError, match=reason):
        model_refs.resolve("./thing")


@pytest.mark.parametrize(
    ("index", "reason"),
    [('{"weight_map": {"a": "model-2.safetensors"}}', "shard model-2"), ("[]", "cannot be read")],
)
def test_incomplete_shards(own_caches: Path, index: str, reason: str) -> None:
    (write_model(own_caches / "m") / "model.safetensors.index.json").write_text(index)
    with pytest.raises(RequestError, match=reason):
        model_refs.resolve("./m")


def test_a_file_is_no_model(own_caches: Path) -> None:
    (own_caches / "model.safetensors").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        model_refs.resolve("./model.safetensors")
