"""The door for judges: what gives every reply a label, and how an evaluation reaches one.

A judge is found by its name in the entry-point group `snt.judges`; built-ins use the same door as
anybody else's. Only the chosen one is imported. Text after a colon is the judge's own setting:
`harmbench:DIR`, `command:PROGRAM ARGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final, Literal, Protocol

from snt.errors import RequestError, UnavailableError, unknown_name

if TYPE_CHECKING:
    from snt.opening import OpenModel

Label = Literal["refusal", "partial", "compliance", "empty"]
# A prompt and the reply to it.
Row = tuple[str, str]
Labeller = Callable[[Sequence[Row]], Sequence[str]]

GROUP: Final = "snt.judges"
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
    """Installed judges, sorted, none of them imported. Duplicate names are refused."""
    return sorted(_installed())


def get_judge(
    name: str = DEFAULT_JUDGE, opened: OpenModel | None = None, offline: bool = False
) -> Judge:
    """The judge `name`, with the setting after its colon, opened.

    Raises UnknownNameError with the nearest names, and UnavailableError when it cannot be imported
    or lacks what it needs.
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
    """What `name` stands for, imported and not opened: its summary and its kind.

    Raises UnknownNameError, or UnavailableError with the plugin's fault.
    """
    kind, installed = name.partition(":")[0], _installed()
    if kind not in installed:
        hint = "" if installed else "No judge is installed: install snt again."
        raise unknown_name("judge", kind, installed, hint)
    try:
        plugin: JudgePlugin = installed[kind].load()
    except Exception as error:  # a plugin may fail in any way it likes
        raise UnavailableError(
            f"judge {kind!r} ({installed[kind].value}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    lacking = [word for word in _PARTS if not hasattr(plugin, word)]
    if lacking:
        raise UnavailableError(
            f"judge {kind!r} ({installed[kind].value}) has no {', '.join(lacking)}; a judge "
            f"brings {', '.join(_PARTS)}"
        )
    return plugin


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


_PARTS: Final = ("summary", "heuristic", "scores_harm", "open_judge")


def _installed() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in found and found[point.name].value != point.value:
            raise RequestError(
                f"two judges are named {point.name!r}: {found[point.name].value} and "
                f"{point.value}; uninstall one of them"
            )
        found[point.name] = point
    return found
