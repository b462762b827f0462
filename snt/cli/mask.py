"""`snt mask`: masks from scores files, from other masks and from files of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snt.cli import options
from snt.cli.output import Output

if TYPE_CHECKING:
    from snt.mask_making import MadeMask

mask_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Make masks from scores files, from other masks or from files of others.",
)
Masks = Annotated[list[Path], typer.Argument(metavar="MASK...", help="Masks of one model.")]
Written = Annotated[Path, typer.Option("-o", "--output", help="The mask file to write.")]


@mask_app.command("from-scores")
def from_scores(
    scores: Annotated[
        list[Path],
        typer.Argument(metavar="SCORES...", help="Scores files of one corpus, or all its shards."),
    ],
    output: Written,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="Scores of the second corpus; once for each file."),
    ] = None,
    select: options.Select = options.SELECT,
    consistency: options.Consistency = 1.0,
    combine: options.Combine = None,
    select_against: options.SelectAgainst = None,
    at_most: options.AtMost = None,
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Kinds of neurons; default: all that were scored.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Cut any selection from the scores that `snt detect` wrote; merge shards exactly."""
    from snt.mask_making import mask_from_scores

    _show(
        mask_from_scores(
            scores,
            against=against or (),
            select_by=select,
            select_against=select_against,
            consistency=consistency,
            combine=combine,
            kinds=None if kinds is None else options.names(kinds),
            at_most=at_most,
            output=output,
        ),
        Output(as_json, quiet),
    )


@mask_app.command()
def union(
    masks: Masks, output: Written, as_json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Neurons of any of the masks."""
    from snt.mask_making import mask_union

    _show(mask_union(masks, output), Output(as_json, quiet))


@mask_app.command()
def intersect(
    masks: Masks, output: Written, as_json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Neurons of all of the masks."""
    from snt.mask_making import mask_intersect

    _show(mask_intersect(masks, output), Output(as_json, quiet))


@mask_app.command()
def subtract(
    masks: Masks, output: Written, as_json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Neurons of the first mask that are in none of the others."""
    from snt.mask_making import mask_subtract

    _show(mask_subtract(masks, output), Output(as_json, quiet))


@mask_app.command()
def random(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="The mask to match.")],
    output: Written,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """As many neurons of every layer and kind as a mask has, drawn at random."""
    from snt.mask_making import mask_random

    _show(mask_random(mask, output, seed=seed), Output(as_json, quiet))


@mask_app.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A neuron file as the published code writes it."),
    ],
    output: Written,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The model that the file is of; default: $SNT_MODEL, else smollm2-135m.",
        ),
    ] = None,
    kv_axis: Annotated[
        str,
        typer.Option(
            "--kv-axis",
            help="What its key and value indices are: tuned (divided as the published tuning "
            "does), measured (the row whose repeated copy was scored), rows (as they stand).",
        ),
    ] = "tuned",
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """A mask from a neuron file of the published code or of its re-implementations."""
    out = Output(as_json, quiet)
    from snt.mask_making import mask_import

    _show(
        mask_import(file, output, model=model, kv_axis=kv_axis, offline=offline, progress=out),
        out,
    )


def _show(made: MadeMask, out: Output) -> None:
    from snt.report.detection import mask_table

    if made.warning:
        out.say(f"warning: {made.warning}")
    report = made.as_json()
    out.result(report, *mask_table(report))
