"""`snt push` and `snt pull`: masks, scores, patches and recipes on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any, TypeVar

from snt import hub_models
from snt.atomic import sha256_of, whole_directory, whole_file
from snt.errors import MissingFileError, RequestError, unknown_name
from snt.model_refs import repository_of
from snt.progress import Progress, Silence
from snt.shared_card import card
from snt.shared_files import METADATA_KEY, PATTERNS, SharedFile, is_ours, names_in, shared_file

T = TypeVar("T")

# How long one question may take; contents have the library's own patience.
SECONDS = 30.0


@dataclass(frozen=True)
class Pushed:
    """What was put on the Hub: `files` are paths in `repository`, `commit` the commit's hash."""

    repository: str
    commit: str
    url: str
    files: tuple[str, ...]
    kinds: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The report of `snt push --json`."""
        return asdict(self)


@dataclass(frozen=True)
class Pulled:
    """What was fetched: name -> kind in `kinds`, and where each lies now in `files`."""

    repository: str
    commit: str
    files: tuple[Path, ...]
    kinds: dict[str, str]
    facts: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The report of `snt pull --json`."""
        return {**asdict(self), "files": [str(path) for path in self.files]}


def push(
    paths: Sequence[str | Path],
    to: str,
    *,
    private: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Put masks, scores files, patch directories and recipes into the repository `to`, one commit.

    Everything is read and checked first. The repository is made when there is none, with a card
    that says what is in it; a card that somebody else wrote is left alone. Raises RequestError and
    children for what cannot be shared or reached with this token, RunFailure when the Hub fails.
    """
    progress = progress or Silence()
    repository, revision = repository_of(to)
    if hub_models.forbidden():
        raise RequestError("HF_HUB_OFFLINE is set, and snt push needs the Hub; unset it")
    if not paths:
        raise RequestError("nothing to push; give masks, scores files, patch directories, recipes")
    shared = [shared_file(Path(path)) for path in paths]
    names = [one.name for one in shared]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"two of the files are named {twice!r}; rename one of them")
    files = {at: path for one in shared for at, path in one.files.items()}
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub_models.endpoint())
    if not _asked(to, lambda: api.repo_exists(repository)):
        _asked(to, lambda: api.create_repo(repository, private=private, exist_ok=True))
    written = card(repository, shared, _card_of(api, repository, revision))
    operations = [CommitOperationAdd(at, str(path)) for at, path in sorted(files.items())]
    if written is not None:
        operations.append(CommitOperationAdd("README.md", written.encode("utf-8")))
    size = sum(path.stat().st_size for path in files.values())
    progress.say(f"sending {len(files)} files ({size / 1e6:.1f} MB) to {repository}")
    done = _explained(
        to,
        lambda: api.create_commit(
            repository,
            operations,
            commit_message=message or f"snt push: {', '.join(names)}",
            revision=revision,
        ),
    )
    kinds = {one.name: one.kind for one in shared}
    return Pushed(repository, str(done.oid), str(done.commit_url), tuple(sorted(files)), kinds)


def pull(
    source: str,
    names: Sequence[str] = (),
    *,
    output: str | Path = ".",
    force: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Fetch what `source`, `owner/name[@revision]`, holds of snt's files, or `names` of it.

    Each is checked before it lies in `output`; files there that differ are replaced with `force`
    alone. `offline` takes what an earlier pull left in the cache. Raises UnknownNameError for a
    name that is not there, RequestError and children for what cannot be had or is not what it
    says, RunFailure when the Hub fails.
    """
    progress = progress or Silence()
    repository, revision = repository_of(source)
    offline = offline or hub_models.forbidden()
    asked = [name.rstrip("/") for name in names]
    cached = _cached(repository, revision, asked) if offline else None
    held = names_in(_listing(repository, revision) if cached is None else _files_in(cached))
    missing = next((name for name in asked if name not in held), None)
    if missing is not None:
        raise unknown_name(f"file of {repository}", missing, held)
    ours = asked or [
        name
        for name, at in held.items()
        if (_is_ours(repository, revision, at[0]) if cached is None else is_ours(cached / at[0]))
    ]
    if not ours:
        raise RequestError(f"{repository} holds no mask, scores file, patch or recipe of snt")
    paths = [at for name in ours for at in held[name]]
    fetched = cached or _explained(
        repository, lambda: _snapshot(repository, revision, paths), revision
    )
    output = Path(output)
    with tempfile.TemporaryDirectory() as folder:
        # The cache holds links, and more than was asked for.
        for at in paths:
            (Path(folder) / at).parent.mkdir(exist_ok=True)
            copyfile(fetched / at, Path(folder) / at)
        checked = [shared_file(Path(folder) / name) for name in ours]
        for one in () if force else checked:
            _check_room(one, output)
        for one in checked:
            _place(one, output)
            progress.say(f"{one.name}: {one.kind}, {one.facts}")
    return Pulled(
        repository,
        fetched.name,
        tuple(output / one.name for one in checked),
        {one.name: one.kind for one in checked},
        {one.name: one.facts for one in checked},
    )


def _card_of(api: Any, repository: str, revision: str | None) -> str | None:
    from huggingface_hub.errors import EntryNotFoundError

    def question() -> str | None:
        try:
            path = api.hf_hub_download(repository, "README.md", revision=revision)
        except EntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8")

    return _asked(repository, question)


def _listing(repository: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub_models.endpoint())
    info = _asked(
        repository, lambda: api.model_info(repository, revision=revision, timeout=SECONDS), revision
    )
    return [file.rfilename for file in info.siblings or []]


def _is_ours(repository: str, revision: str | None, at: str) -> bool:
    """As `is_ours`, of a file that is not here yet: by its first bytes, for it may be large."""
    if not at.endswith(".safetensors"):
        return True
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub_models.endpoint())
    header = _asked(
        repository, lambda: api.parse_safetensors_file_metadata(repository, at, revision=revision)
    )
    return METADATA_KEY in header.metadata


def _snapshot(
    repository: str, revision: str | None, patterns: Sequence[str], offline: bool = False
) -> Path:
    """The folder of one commit's files whose paths match, downloaded unless `offline`."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository,
            revision=revision,
            endpoint=hub_models.endpoint(),
            allow_patterns=list(patterns),
            local_files_only=offline,
        )
    )


def _cached(repository: str, revision: str | None, names: Sequence[str]) -> Path:
    """The folder of what an earlier pull fetched, `names` of it or all."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [part for name in names for part in (name, f"{name}/*")] or list(PATTERNS)
    try:
        return _snapshot(repository, revision, patterns, offline=True)
    except LocalEntryNotFoundError as error:
        raise MissingFileError(
            f"{', '.join(names) or 'all of its files'} of {repository} would have to be in the "
            "cache of the Hub; pull once without --offline, or name what was pulled before"
        ) from error


def _files_in(folder: Path) -> list[str]:
    return [at.relative_to(folder).as_posix() for at in folder.rglob("*") if at.is_file()]


def _check_room(one: SharedFile, output: Path) -> None:
    """Raise RequestError when something else lies where `one` would."""
    for at, path in one.files.items():
        there = output / at
        if there.exists() and (there.is_dir() or sha256_of(there) != sha256_of(path)):
            raise RequestError(
                f"{there} exists and is another file; --force replaces it, -o takes another place"
            )


def _place(one: SharedFile, output: Path) -> None:
    if one.kind != "patch":
        with whole_file(output / one.name) as temporary:
            copyfile(one.files[one.name], temporary)
        return
    with whole_directory(output / one.name) as folder:
        for path in one.files.values():
            copyfile(path, folder / path.name)


def _asked(repository: str, question: Callable[[], T], revision: str | None = None) -> T:
    """The answer to a short question, within its time. Raises as `_explained` does."""
    return _explained(repository, lambda: hub_models.within(SECONDS, question), revision)


def _explained(repository: str, call: Callable[[], T], revision: str | None = None) -> T:
    try:
        return call()
    except Exception as error:  # HTTP, TLS, proxy and JSON faults share no base
        raise hub_models.explained(error, repository, revision, (), "repository") from error
