"""Two measurements on the same prompts: paired differences, relative change of perplexity."""

from __future__ import annotations

from snt.errors import RequestError
from snt.evaluation.measurement import Measurement
from snt.evaluation.near_duplicates import clusters_of
from snt.evaluation.perplexity import relative_change
from snt.evaluation.statistics import PairedDifference, paired_difference
from snt.evaluation.suites import ANY


def compare(before: Measurement, after: Measurement) -> dict[str, PairedDifference]:
    """Paired differences, after minus before, of every rate that both measured on the same prompts.

    Raises RequestError when the prompts differ.
    """
    differences = {}
    there = after.rates
    for metric in before.rates:
        if metric not in there:
            continue
        name = metric.removesuffix(f".{ANY}")
        if before.corpora[name]["sha256"] != after.corpora[name]["sha256"]:
            raise RequestError(f"{metric}: the two measurements are of different prompts")
        outcomes = before.outcomes(metric), after.outcomes(metric)
        # Attempts at one request hang together, and near-duplicates are one observation.
        clusters = after.clusters(metric)
        if clusters is None:
            prompts = [row.prompt for row in after.completions if row.suite == metric]
            clusters = clusters_of(prompts) if len(prompts) == len(outcomes[0]) else None
        differences[metric] = paired_difference(*outcomes, clusters=clusters)
    return differences


def perplexity_change(before: Measurement, after: Measurement) -> tuple[float, float, float] | None:
    """Relative change of perplexity with a paired bootstrap interval over texts, as fractions."""
    if before.perplexity is None or after.perplexity is None:
        return None
    return relative_change(before.perplexity, after.perplexity)


def metric_values(measured: Measurement) -> dict[str, float]:
    """The bare figures: rates as fractions, perplexity as it is."""
    values = {metric: rate.rate for metric, rate in measured.rates.items()}
    if measured.perplexity is not None:
        values["perplexity"] = measured.perplexity.value
    if measured.tasks is not None:
        values |= {name: task.value for name, task in measured.tasks.metrics.items()}
    return values
