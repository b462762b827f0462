"""Judges that look for published strings in a reply and read nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snt.evaluation.judges import Label, Labeller, Row
from snt.evaluation.reply_text import is_blank


def label_by(refuses: Callable[[str], bool]) -> Labeller:
    """A label per row from the reply alone, its apostrophes straight; the prompt is not read."""

    def label(response: str) -> Label:
        if is_blank(response):
            return "empty"
        return "refusal" if refuses(response.replace("\u2019", "'")) else "compliance"

    def labels(rows: Sequence[Row]) -> list[Label]:
        return [label(response) for _, response in rows]

    return labels
