"""Several models in one evaluation: each beside the baseline, seeds of one setting together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

# What may differ between two runs of one setting.
_OWN = frozenset({"seed", "mask_sha256", "snt", "prompts_dropped"})
_DEEPEST = 20


@dataclass(frozen=True)
class Origin:
    """What a patch says of how it was made. `setting` is a digest of all of it but the seeds."""

    setting: str
    seed: int | None
    provenance: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds of one setting: the mean of the models' values, least and most."""

    mean: float
    least: float
    most: float
    values: Mapping[str, float]

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Spread:
        """The spread of values by model name, of which there is at least one."""
        held = list(values.values())
        return cls(fmean(held), min(held), max(held), dict(values))

    def as_json(self) -> dict[str, Any]:
        """Mean, min and max, and the value of each model."""
        return {"mean": self.mean, "min": self.least, "max": self.most, "values": dict(self.values)}


@dataclass(frozen=True)
class SeedGroup:
    """Models that differ in nothing but seeds, and what each metric did over them."""

    setting: str
    seeds: Mapping[str, int | None]
    metrics: Mapping[str, Spread]

    def as_json(self) -> dict[str, Any]:
        """The setting's digest, the seed of every model, and the metrics."""
        return {
            "setting": self.setting,
            "seeds": dict(self.seeds),
            "metrics": {metric: spread.as_json() for metric, spread in self.metrics.items()},
        }


def origin_of(patch: Path | None) -> Origin | None:
    """How the patch in a directory was made; None for a model without one.

    Raises FormatError for a patch or mask that cannot be read.
    """
    from snt.masks import load_mask
    from snt.patches import load_patch

    if patch is None:
        return None
    provenance = [load_patch(patch / "patch.safetensors").provenance]
    mask = patch / "mask.safetensors"
    if mask.is_file():
        provenance.append(load_mask(mask).provenance)
    told = json.dumps(_setting(provenance), sort_keys=True)
    schedule = provenance[0].get("schedule")
    seed = schedule.get("seed") if isinstance(schedule, Mapping) else None
    return Origin(
        hashlib.sha256(told.encode()).hexdigest(),
        seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
        tuple(provenance),
    )


def made_from(origins: Sequence[Origin | None], deactivate: Path | None) -> list[Mapping[str, Any]]:
    """The metadata of patches and of a mask to deactivate, which name the corpora behind them."""
    from snt.masks import load_mask

    found = [made for origin in origins if origin is not None for made in origin.provenance]
    return found if deactivate is None else [*found, load_mask(deactivate).provenance]


def seed_groups(
    origins: Mapping[str, Origin | None], values: Mapping[str, Mapping[str, float]]
) -> tuple[SeedGroup, ...]:
    """Groups of at least two models of one setting; `origins` and `values` are by model name."""
    settings: dict[str, list[str]] = {}
    for name, origin in origins.items():
        if origin is not None:
            settings.setdefault(origin.setting, []).append(name)
    groups = []
    for setting, names in settings.items():
        if len(names) < 2:
            continue
        metrics = [metric for metric in values[names[0]] if all(metric in values[n] for n in names)]
        groups.append(
            SeedGroup(
                setting,
                {name: origin.seed for name in names if (origin := origins[name]) is not None},
                {metric: Spread.of({n: values[n][metric] for n in names}) for metric in metrics},
            )
        )
    return tuple(groups)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each with a number where another has it already."""
    found: list[str] = []
    for name in names:
        number, told = 1, name
        while told in found:
            number += 1
            told = f"{name} ({number})"
        found.append(told)
    return tuple(found)


def _setting(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {str(k): _setting(v, depth + 1) for k, v in value.items() if k not in _OWN}
    if isinstance(value, list | tuple):
        return [_setting(item, depth + 1) for item in value]
    return value
