"""Repositories of the Hugging Face Hub that hold other things than models: read, written to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from snt import hub_models
from snt.errors import MissingFileError, RequestError
from snt.shared_files import is_ours
from snt.tensor_files import METADATA_KEY

T = TypeVar("T")

# How long one question may take; contents have the library's own patience.
SECONDS = 30.0


class Snapshot(Protocol):
    """The files of one commit: their paths, what they are, and a folder with some of them."""

    @property
    def commit(self) -> str: ...

    @property
    def paths(self) -> Sequence[str]: ...

    def is_ours(self, at: str) -> bool:
        """Whether the file at this path says that snt wrote it."""

    def fetch(self, paths: Sequence[str]) -> Path:
        """A folder in which these files lie."""


@dataclass(frozen=True)
class Repository:
    """A repository to write to, and the branch of it, None for the main one."""

    name: str
    branch: str | None

    def made_ready(self, private: bool) -> tuple[str, set[str]]:
        """Make the repository and the branch where they are missing; its commit and its paths.

        Raises RequestError when a private one is asked for and it is there, public.
        """
        if not self._ask(lambda: self._api.repo_exists(self.name)):
            self._ask(lambda: self._api.create_repo(self.name, private=private, exist_ok=True))
        elif private and not self._ask(lambda: self._api.model_info(self.name)).private:
            raise RequestError(
                f"{self.name} is public already; make it private on {hub_models.endpoint()}, or "
                "leave out --private"
            )
        if self.branch is not None:
            branch = self.branch
            self._ask(lambda: self._api.create_branch(self.name, branch=branch, exist_ok=True))
        info = self._ask(
            lambda: self._api.model_info(self.name, revision=self.branch, timeout=SECONDS)
        )
        return str(info.sha), {file.rfilename for file in info.siblings or []}

    def card(self) -> str:
        """The text of its README.md, read beside the cache: no snapshot is to begin with it."""

        def question() -> str:
            with tempfile.TemporaryDirectory() as folder:
                path = self._api.hf_hub_download(
                    self.name, "README.md", revision=self.branch, cache_dir=folder
                )
                return Path(path).read_text(encoding="utf-8", errors="replace")

        return self._ask(question)

    def commit(self, operations: Sequence[Any], message: str, parent: str) -> Any:
        """One commit of all `operations` on top of `parent`, refused when that is not the last."""
        return _explained(
            self.name,
            self.branch,
            lambda: self._api.create_commit(
                self.name,
                operations,
                commit_message=message,
                revision=self.branch,
                parent_commit=parent,
            ),
        )

    @cached_property
    def _api(self) -> Any:
        return _api()

    def _ask(self, question: Callable[[], T]) -> T:
        return _asked(self.name, self.branch, question)


@dataclass(frozen=True)
class _Listed:
    """A commit on the Hub, of which nothing need be here yet."""

    repository: str
    revision: str | None
    commit: str
    paths: tuple[str, ...]

    def is_ours(self, at: str) -> bool:
        """By the file's first bytes, for it may be a model's weights."""
        if not at.endswith(".safetensors"):
            return True
        from huggingface_hub.errors import SafetensorsParsingError

        def question() -> bool:
            try:
                header = _api().parse_safetensors_file_metadata(
                    self.repository, at, revision=self.commit
                )
                return METADATA_KEY in (header.metadata or {})
            # Whatever the header of a file holds that is none of ours.
            except (SafetensorsParsingError, TypeError, KeyError, AttributeError):
                return False

        return _asked(self.repository, self.revision, question)

    def fetch(self, paths: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        return _explained(
            self.repository,
            self.revision,
            lambda: hub_models.within(
                None,
                lambda: Path(
                    snapshot_download(
                        self.repository,
                        revision=self.commit,
                        endpoint=hub_models.endpoint(),
                        allow_patterns=list(paths),
                        tqdm_class=hub_models.hidden_bar(),
                    )
                ),
            ),
        )


@dataclass(frozen=True)
class _Cached:
    """A commit of which an earlier pull left files in the cache."""

    folder: Path
    commit: str

    @cached_property
    def paths(self) -> tuple[str, ...]:
        files = (at for at in self.folder.rglob("*") if at.is_file())
        return tuple(at.relative_to(self.folder).as_posix() for at in files)

    def is_ours(self, at: str) -> bool:
        return is_ours(self.folder / at)

    def fetch(self, paths: Sequence[str]) -> Path:
        return self.folder


def listed_snapshot(repository: str, revision: str | None) -> Snapshot:
    """The newest commit of a revision on the Hub. Raises as `hub_models.explained` says."""
    info = _asked(
        repository,
        revision,
        lambda: _api().model_info(repository, revision=revision, timeout=SECONDS),
    )
    names = tuple(file.rfilename for file in info.siblings or [])
    return _Listed(repository, revision, str(info.sha), names)


def cached_snapshot(repository: str, revision: str | None) -> Snapshot:
    """The newest commit in the cache, or the one that `revision` names. Raises MissingFileError."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        repositories = frozenset()
    found = [
        held
        for repo in repositories
        if repo.repo_type == "model" and repo.repo_id == repository
        for held in repo.revisions
        if revision is None or revision in held.refs or held.commit_hash.startswith(revision)
    ]
    if not found:
        at = "" if revision is None else f"@{revision}"
        raise MissingFileError(
            f"{repository}{at} is not in the cache of the Hub; pull it once without --offline"
        )
    newest = max(found, key=lambda held: held.last_modified)
    return _Cached(newest.snapshot_path, newest.commit_hash)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_models.endpoint())


def _asked(repository: str, revision: str | None, question: Callable[[], T]) -> T:
    """The answer to a short question, within its time."""
    return _explained(repository, revision, lambda: hub_models.within(SECONDS, question))


def _explained(repository: str, revision: str | None, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:  # HTTP, TLS, proxy and JSON faults share no base
        raise hub_models.explained(error, repository, revision, (), "repository") from error
