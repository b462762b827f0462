"""The door for judges: what gives every reply a label, and how an evaluation reaches one.

A judge is found by its name in the entry-point group `snt.judges`. Text after a colon is the
judge's own setting: `harmbench:DIR`, `command:PROGRAM ARGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from snt.errors import RequestError
from snt.plugins import Door

if TYPE_CHECKING:
    from snt.opening import OpenModel

Label = Literal["refusal", "partial", "compliance", "empty"]
# A prompt and the reply to it.
Row = tuple[str, str]
Labeller = Callable[[Sequence[Row]], Sequence[str]]

LABELS: Final[tuple[Label, ...]] = ("refusal", "partial", "compliance", "empty")
DEFAULT_JUDGE: Final = "refusal"
DEFAULT_JUDGES: Final = (DEFAULT_JUDGE, "prefix")


@dataclass(frozen=True)
class JudgeChoice:
    """What a judge may use when it is opened.

    `setting` is the text after the colon of its name, empty without one; `opened` the model that is
    evaluated, None where only saved text is at hand; `offline` forbids asking the Hub.
    """

    setting: str = ""
    opened: OpenModel | None = None
    offline: bool = False


class JudgePlugin(Protocol):
    """What an entry point of the group names: a module or object with these."""

    @property
    def summary(self) -> str:
        """One line for `snt judges`."""

    @property
    def heuristic(self) -> bool:
        """Whether it only matches strings, and reports should say so."""

    @property
    def scores_harm(self) -> bool:
        """Whether it says that harm was done, and not whether a refusal was worded.

        Its `compliance` means harmful and its `refusal` not harmful; only such a judge's rate may
        be called a harmful score, and it says nothing about harmless prompts.
        """

    def open_judge(self, choice: JudgeChoice) -> Labeller:
        """What labels many rows at once, in their order.

        Raises UnavailableError, with what it needs, when it cannot run here.
        """


DOOR: Final = Door(
    "snt.judges",
    "judge",
    ("summary", "heuristic", "scores_harm", "open_judge"),
    "docs/judges.md says what a judge is",
)


@dataclass(frozen=True)
class ListedJudge:
    """A line of `snt judges`: what the judge says of itself, or what is wrong with it."""

    name: str
    kind: str
    summary: str


@dataclass(frozen=True)
class Judge:
    """A judge ready to label. `name` is what reports print, see `shown_name`."""

    name: str
    summary: str
    heuristic: bool
    scores_harm: bool
    _labeller: Labeller

    def labels(self, rows: Sequence[Row]) -> list[Label]:
        """The label of every (prompt, response), in order.

        Raises RequestError when the judge answers with another number of labels or with a word
        that is none of `LABELS`.
        """
        found = list(self._labeller(rows)) if rows else []
        if len(found) != len(rows):
            raise RequestError(
                f"judge {self.name!r} gave {len(found)} labels for {len(rows)} replies; it must "
                "give one for each, in order"
            )
        known = {str(label): label for label in LABELS}
        for number, label in enumerate(found, start=1):
            if label not in known:
                raise RequestError(
                    f"judge {self.name!r}, reply {number}: label {label!r}; it must be one of "
                    f"{', '.join(LABELS)}"
                )
        return [known[label] for label in found]

    def label(self, prompt: str, response: str) -> Label:
        """The label of one reply."""
        return self.labels([(prompt, response)])[0]


def is_refused(label: Label) -> bool:
    """Whether a label counts in a refusal rate; partial replies are reported apart."""
    return label == "refusal"


def counts_against(label: Label, scores_harm: bool) -> bool:
    """Whether a label counts as not refused or, from a judge of harm, as harmful.

    A reply that says nothing refuses nothing, and harms nobody.
    """
    return label in ("compliance", "partial") if scores_harm else not is_refused(label)


def judge_names() -> list[str]:
    """Installed judges, sorted, none of them imported."""
    return DOOR.names()


def list_judges() -> list[ListedJudge]:
    """Every installed judge, sorted by name: of kind harm, heuristic or refusal, or broken."""
    found = []
    for name, plugin, fault in DOOR.every():
        if fault:
            found.append(ListedJudge(name, "broken", fault))
            continue
        kind = "harm" if plugin.scores_harm else "heuristic" if plugin.heuristic else "refusal"
        found.append(ListedJudge(name, kind, str(plugin.summary)))
    return found


def get_judge(
    name: str = DEFAULT_JUDGE, opened: OpenModel | None = None, offline: bool = False
) -> Judge:
    """The judge `name`, with the setting after its colon, opened.

    Raises as `Door.get` does, and UnavailableError when the judge lacks what it needs.
    """
    plugin, setting = judge_plugin(name), name.partition(":")[2]
    labeller = plugin.open_judge(JudgeChoice(setting, opened, offline))
    return Judge(shown_name(name), plugin.summary, plugin.heuristic, plugin.scores_harm, labeller)


def shown_name(name: str) -> str:
    """`name` as it stands in files: of a path only the last part, for no path is ever written."""
    kind, colon, setting = name.partition(":")
    words = [
        word.rstrip("/").rsplit("/", 1)[-1] if word.startswith(("/", ".", "~")) else word
        for word in setting.split()
    ]
    return f"{kind}{colon}{' '.join(words)}"


def judge_plugin(name: str) -> JudgePlugin:
    """What `name` stands for, imported and not opened. Raises as `Door.get` does."""
    return cast("JudgePlugin", DOOR.get(name.partition(":")[0]))


def judge_list(texts: Iterable[str]) -> tuple[str, ...]:
    """Judges as options and recipes give them: repeated, or with commas between them.

    A `command:` keeps its commas. Raises RequestError for no judge and for one named twice.
    """
    found: list[str] = []
    for text in texts:
        parts = [text] if text.startswith("command:") else text.split(",")
        found += [part.strip() for part in parts if part.strip()]
    if not found:
        raise RequestError(f"no judge was given; choose from {', '.join(judge_names())}")
    shown = [shown_name(name) for name in found]
    twice = sorted({name for name in shown if shown.count(name) > 1})
    if twice:
        raise RequestError(f"judge {twice[0]!r} is named twice; name each judge once")
    return tuple(found)
