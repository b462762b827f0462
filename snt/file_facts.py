"""Facts about masks, scores files and patches, counted against base rates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from snt.anatomy import KINDS, Anatomy
from snt.errors import FormatError
from snt.masks import NeuronMask
from snt.scores import Scores
from snt.scores_files import ScoresFile

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
TOP = 5
_TAG = re.compile(r"[\w-]{1,35}")  # BCP 47: no language tag is longer.


@dataclass(frozen=True)
class Share:
    """The mask's part in a group of neurons: a kind, or a third of the layers.

    `count` of the group's `total` neurons are masked. `base_rate` is the group's share of all
    neurons of the model and `mask_share` its share of the mask, None for an empty mask. `layers`
    are the first and the last of a third.
    """

    count: int
    total: int
    base_rate: float
    mask_share: float | None
    layers: tuple[int, int] | None = None

    @property
    def share(self) -> float:
        """Masked neurons over all neurons of the group."""
        return self.count / self.total

    @property
    def lift(self) -> float | None:
        """How many times more of the mask is in this group than a random mask would have."""
        return None if self.mask_share is None else self.mask_share / self.base_rate


@dataclass(frozen=True)
class MaskFacts:
    """A mask by kind (`kinds`), by third of the layers (`thirds`) and by layer.

    `layers` holds per kind one count per layer; `model_parameters` is None when the file does not
    say how many the model has.
    """

    name: str
    anatomy: Anatomy
    neurons: int
    parameters: int
    model_parameters: int | None
    kinds: Mapping[str, Share]
    thirds: Mapping[str, Share]
    layers: Mapping[str, tuple[int, ...]]
    provenance: Mapping[str, Any]

    @property
    def language(self) -> str | None:
        """The language of the prompts that the mask was found on, where the file says it."""
        corpora = self.provenance.get("corpora")
        corpus = corpora.get("corpus") if isinstance(corpora, dict) else None
        language = corpus.get("language") if isinstance(corpus, dict) else None
        return language if isinstance(language, str) and _TAG.fullmatch(language) else None

    @property
    def parameter_share(self) -> float | None:
        """Masked parameters over all parameters of the model, where that is known."""
        return self.parameters / self.model_parameters if self.model_parameters else None

    def as_json(self) -> dict[str, Any]:
        """Counts and shares by kind and layer in the words of a detection's report."""
        sizes = {kind: self.anatomy.size(kind) for kind in KINDS}
        rows = [{k: self.layers[k][layer] for k in KINDS} for layer in range(self.anatomy.layers)]
        return {
            "name": self.name,
            "format": "snt-mask",
            "language": self.language,
            "anatomy": self.anatomy.shape(),
            "neurons": self.neurons,
            "parameters": self.parameters,
            "parameter_share": self.parameter_share,
            "counts": {"by_kind": {k: g.count for k, g in self.kinds.items()}, "by_layer": rows},
            "shares": {
                "by_kind": {k: g.share for k, g in self.kinds.items()},
                "by_layer": [{k: row[k] / sizes[k] for k in KINDS} for row in rows],
            },
            "base_rates": {k: g.base_rate for k, g in self.kinds.items()},
            "lifts": {k: g.lift for k, g in self.kinds.items()},
            "thirds": {
                k: {**asdict(g), "share": g.share, "lift": g.lift} for k, g in self.thirds.items()
            },
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class RankedNeuron:
    """A neuron of a scores file. Rank 0 is the most important of its layer and kind.

    `typical_rank` is the geometric mean over the prompts, to within a bin of the histogram (half
    an octave); `minimum` is the smallest importance.
    """

    layer: int
    kind: str
    index: int
    typical_rank: float
    worst_rank: int
    minimum: float


@dataclass(frozen=True)
class ScoresFacts:
    """A scores file: `quantiles` holds per kind the QUANTILES of the smallest importance of each
    neuron over the prompts; `top` the neurons whose mean log-rank is best, the larger minimum
    first where it is equal.
    """

    name: str
    anatomy: Anatomy
    prompts: int
    places: int
    neurons: int
    quantiles: Mapping[str, tuple[float, ...]]
    top: tuple[RankedNeuron, ...]
    provenance: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The facts as they are; quantiles are named by their fraction."""
        named = {
            kind: dict(zip(map(str, QUANTILES), values, strict=True))
            for kind, values in self.quantiles.items()
        }
        return {
            "name": self.name,
            "format": "snt-scores",
            "anatomy": self.anatomy.shape(),
            "prompts": self.prompts,
            "places": self.places,
            "neurons": self.neurons,
            "minimum_quantiles": named,
            "top": [asdict(neuron) for neuron in self.top],
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class PatchFacts:
    """A patch by its metadata, and by the mask and the report beside it where they are there."""

    name: str
    mask: MaskFacts | None
    report: Mapping[str, Any] | None
    provenance: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Metadata, the mask's facts and the whole report."""
        return {
            "name": self.name,
            "format": "snt-patch",
            "mask": None if self.mask is None else self.mask.as_json(),
            "report": None if self.report is None else dict(self.report),
            "provenance": dict(self.provenance),
        }


def mask_facts(name: str, mask: NeuronMask) -> MaskFacts:
    """The facts of a mask, under `name`. Raises FormatError when its metadata contradict it."""
    anatomy = mask.anatomy
    layers = {
        kind: tuple(len(mask.neurons.get((layer, kind), ())) for layer in range(anatomy.layers))
        for kind in KINDS
    }
    return MaskFacts(
        name,
        anatomy,
        len(mask),
        mask.parameters,
        _model_parameters(name, mask),
        *by_kind_and_third(anatomy, layers),
        layers,
        mask.provenance,
    )


def by_kind_and_third(
    anatomy: Anatomy, layers: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Share], dict[str, Share]]:
    """Shares by kind and by third of the layers, from one count per kind and layer."""
    per_layer = sum(anatomy.size(kind) for kind in KINDS)
    everywhere = per_layer * anatomy.layers
    masked = sum(map(sum, layers.values()))

    def share(count: int, total: int, span: tuple[int, int] | None = None) -> Share:
        return Share(count, total, total / everywhere, count / masked if masked else None, span)

    kinds = {k: share(sum(layers[k]), anatomy.size(k) * anatomy.layers) for k in KINDS}
    thirds = {}
    for name, (start, stop) in thirds_of(anatomy.layers).items():
        count = sum(sum(layers[kind][start:stop]) for kind in KINDS)
        thirds[name] = share(count, per_layer * (stop - start), (start, stop - 1))
    return kinds, thirds


def thirds_of(layers: int) -> dict[str, tuple[int, int]]:
    """The first layer and the one past the last of the early, middle and late third.

    A third without a layer is left out.
    """
    edges = [round(layers * third / 3) for third in range(4)]
    spans = zip(("early", "middle", "late"), edges[:-1], edges[1:], strict=True)
    return {name: (start, stop) for name, start, stop in spans if start < stop}


def scores_facts(name: str, file: ScoresFile) -> ScoresFacts:
    """The facts of a scores file, under `name`."""
    import numpy as np

    places = file.scores.places
    quantiles = {}
    for kind in KINDS:
        minima = [scores.minimum.numpy() for (_, k), scores in places.items() if k == kind]
        if minima:
            quantiles[kind] = tuple(np.quantile(np.concatenate(minima), QUANTILES).tolist())
    return ScoresFacts(
        name,
        file.anatomy,
        max((scores.prompts for scores in places.values()), default=0),
        len(places),
        sum(len(scores.minimum) for scores in places.values()),
        quantiles,
        top_neurons(file.scores, TOP),
        file.provenance,
    )


def top_neurons(scores: Scores, count: int) -> tuple[RankedNeuron, ...]:
    """The `count` neurons with the best mean log-rank in their layer and kind."""
    found: list[tuple[tuple[float, float, int, str, int], RankedNeuron]] = []
    for (layer, kind), held in sorted(scores.places.items()):
        mean, _ = held.mean_log_rank()
        order = held.minimum.argsort(descending=True, stable=True)
        for index in order[mean[order].argsort(stable=True)][:count].tolist():
            best, minimum = float(mean[index]), float(held.minimum[index])
            # Bin b begins at rank 2^(b/2) - 1.
            neuron = RankedNeuron(
                layer, kind, index, 2 ** (best / 2) - 1, int(held.worst_rank[index]), minimum
            )
            found.append(((best, -minimum, layer, kind, index), neuron))
    return tuple(neuron for _, neuron in sorted(found, key=lambda item: item[0])[:count])


def _model_parameters(name: str, mask: NeuronMask) -> int | None:
    model = mask.provenance.get("model")
    total = model.get("parameters") if isinstance(model, dict) else None
    if total is None:
        return None
    if type(total) is not int or total < max(1, mask.parameters):
        raise FormatError(
            f"{name}: its metadata says that the model has {total!r:.80} parameters, and the mask "
            f"alone has {mask.parameters}"
        )
    return total
