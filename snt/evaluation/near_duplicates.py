"""Near-duplicates among prompts: what a model was made from must not be what it is judged on.

Two prompts are near-duplicates when the sets of three-character pieces of their texts, without
case and punctuation, share at least 70% (Jaccard). Exact, not hashed: one sparse product of the
two corpora gives every pair's overlap.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE: Final = 3
THRESHOLD: Final = 0.7
_ROWS = 1_000  # compared with the whole other corpus at once
_WORD = re.compile(r"[\w\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]+")  # Thai vowel signs are no letters


@dataclass(frozen=True)
class Pair:
    """Text `first` of one corpus and `second` of the other, counted from 0, and their Jaccard."""

    first: int
    second: int
    similarity: float


def near_duplicates(
    first: Sequence[str], second: Sequence[str], threshold: float = THRESHOLD
) -> list[Pair]:
    """For each text of `second` the most similar one of `first`, where they are near-duplicates.

    In the order of `second`; of equally similar ones the first.
    """
    import numpy as np

    best: dict[int, Pair] = {}
    for start, similarity in _similarities(first, second):
        for column in np.flatnonzero(similarity.max(axis=0, initial=0.0) >= threshold):
            row = int(similarity[:, column].argmax())
            value = float(similarity[row, column])
            held = best.get(int(column))
            if held is None or value > held.similarity:
                best[int(column)] = Pair(start + row, int(column), value)
    return [best[column] for column in sorted(best)]


def clusters_of(texts: Sequence[str], threshold: float = THRESHOLD) -> list[int]:
    """The cluster of each text: near-duplicates, and what they are near-duplicates of, are one.

    Clusters are numbered in the order of their first texts.
    """
    import numpy as np

    sparse = import_module("scipy.sparse")
    rows, columns = [], []
    for start, similarity in _similarities(texts, texts):
        found = np.nonzero(similarity >= threshold)
        rows.append(found[0] + start)
        columns.append(found[1])
    if not rows:
        return []
    at = (np.concatenate(rows), np.concatenate(columns))
    graph = sparse.coo_array((np.ones(len(at[0])), at), shape=(len(texts), len(texts)))
    _, labels = import_module("scipy.sparse.csgraph").connected_components(graph, directed=False)
    names: dict[int, int] = {}
    return [names.setdefault(int(label), len(names)) for label in labels]


def pieces(text: str) -> set[str]:
    """The three-character pieces of a text, lower case, words apart by one space.

    A text without a letter or digit has itself as its one piece.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(_WORD.findall(plain))
    padded = f" {words} " if words else plain
    return {padded[at : at + PIECE] for at in range(max(1, len(padded) - PIECE + 1))}


def _similarities(
    first: Sequence[str], second: Sequence[str]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Jaccard of blocks of `first`, from the row given, with the whole of `second`."""
    import numpy as np

    if not first or not second:
        return
    numbers: dict[str, int] = {}
    held, other = _table(first, numbers), _table(second, numbers)
    shape = (len(first), len(numbers)), (len(second), len(numbers))
    csr = import_module("scipy.sparse").csr_array
    left, right = (csr(table, shape=size) for table, size in zip((held, other), shape, strict=True))
    sizes = [np.diff(table[2]).astype(np.float32) for table in (held, other)]
    for start in range(0, len(first), _ROWS):
        shared = (left[start : start + _ROWS] @ right.T).toarray()
        mine = sizes[0][start : start + _ROWS, None]
        yield start, shared / (mine + sizes[1][None, :] - shared)


def _table(
    texts: Sequence[str], numbers: dict[str, int]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Ones, column numbers and row starts of a sparse table of texts by pieces."""
    import numpy as np

    columns: list[int] = []
    starts = [0]
    for text in texts:
        columns += [numbers.setdefault(piece, len(numbers)) for piece in sorted(pieces(text))]
        starts.append(len(columns))
    return np.ones(len(columns), dtype=np.float32), np.array(columns), np.array(starts)
