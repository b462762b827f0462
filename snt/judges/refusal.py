"""`refusal`: this project's own reader of replies (`snt.evaluation.refusal_rules`)."""

from __future__ import annotations

from collections.abc import Sequence

from snt.evaluation.judges import JudgeChoice, Label, Labeller, Row
from snt.evaluation.refusal_rules import label_reply
from snt.judges.settings import no_setting

summary = "reads a reply with its prompt: refusal, partial, compliance or nothing said"
heuristic = False
scores_harm = False


def open_judge(choice: JudgeChoice) -> Labeller:
    """The reader. Raises RequestError for a setting."""
    no_setting("refusal", choice)
    return labels


def labels(rows: Sequence[Row]) -> list[Label]:
    """A label per row, about a third of a millisecond each."""
    return [label_reply(prompt, response) for prompt, response in rows]
