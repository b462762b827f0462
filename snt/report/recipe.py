"""A recipe's plan, and what its run found: one table, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.recipes import RecipeRun
from snt.report.detection import detection_table
from snt.report.evaluation import comparison_table
from snt.report.figures import duration, gigabytes, percent
from snt.report.inspection import render


def plan_table(plan: Mapping[str, Any]) -> Table:
    """The steps of a recipe and their settings."""
    table = Table(
        title=f"{plan['recipe']}: {plan['about']}",
        caption=f"model: {plan['model']}; files: {plan['directory']}",
        title_justify="left",
        box=box.SIMPLE,
        caption_justify="left",
    )
    table.add_column("step")
    table.add_column("settings")
    for step in plan["steps"]:
        shown = [f"{k}: {v}" for k, v in step.items() if k != "step" and v not in (None, {})]
        table.add_row(step["step"], "\n".join(shown))
    return table


def recipe_tables(run: RecipeRun) -> list[RenderableType]:
    """The mask, then the one table that matters, then where the files are."""
    results = run.results
    shown: list[RenderableType] = []
    if "inspect" in results:
        shown.append(render(results["inspect"]))
    elif "detect" in results:
        shown += detection_table(results["detect"].as_json())
    if "place" in results:
        from snt.report.place import place_tables

        shown += place_tables(results["place"])
    if "robust-tune" in results:
        from snt.report.robust import robust_tables

        shown += robust_tables(results["robust-tune"])
    share = ""
    if "tune" in results:
        tuned = results["tune"]
        size = tuned.proof.masked / tuned.settings["model"]["parameters"]
        share = f", {percent(size, 2)} of its parameters tuned"
    if "eval" in results:
        found = results["eval"]
        # The step always measures the model that the patch is for.
        if found.baseline is not None:
            title = f"{found.baseline_model}{share}: before and after"
            names = ("before", "after")
            shown.append(comparison_table(found.baseline, found.measured, title, names))
    cost = f"{duration(run.seconds)}, at most {gigabytes(run.peak_bytes)} of memory"
    return [*shown, f"{cost}; files: {run.directory}"]
