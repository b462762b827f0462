"""Finished work on disk, under a key of all that it depends on: what is there is not redone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.atomic import write_json
from snt.errors import FormatError
from snt.evaluation.completions import Completion, write_completions
from snt.robust.results import StageResult


@dataclass(frozen=True)
class Stages:
    """`<directory>/stages/NAME.json`: a key and, for a measured model, what was measured."""

    directory: Path

    def path(self, name: str) -> Path:
        """Where the finished work `name` is noted."""
        return self.directory / "stages" / f"{name}.json"

    def replies(self, name: str) -> Path:
        """Where the replies of a measured model are."""
        return self.directory / "completions" / f"{name}.jsonl"

    def done(self, name: str, key: str, *files: Path) -> bool:
        """Whether `name` was finished with this key, and its files are there."""
        return self._row(name).get("key") == key and all(path.exists() for path in files)

    def note(self, name: str, key: str) -> None:
        """Work that left files of its own is finished."""
        write_json(self.path(name), {"key": key})

    def result(self, name: str, key: str) -> StageResult | None:
        """What was measured with this key, None when it has to be. Raises FormatError."""
        row = self._row(name)
        if row.get("key") != key:
            return None
        try:
            return StageResult.from_json(row.get("result") or {})
        except FormatError as error:
            raise FormatError(f"{self.path(name)}: {error}; remove the file") from error

    def keep(self, name: str, key: str, result: StageResult, replies: Sequence[Completion]) -> None:
        """Write a measured model's replies, then its result: where the result is, all of it is."""
        write_completions(self.replies(name), replies)
        write_json(self.path(name), {"key": key, "result": result.as_json()})

    def _row(self, name: str) -> dict[str, Any]:
        path = self.path(name)
        if not path.is_file():
            return {}
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} is no JSON: {error}; remove the file") from error
        if not isinstance(row, dict):
            raise FormatError(f"{path} holds no object; remove the file")
        return row
