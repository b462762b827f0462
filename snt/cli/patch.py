"""`snt patch`: merge patches into models and out again, join, scale, compare and export them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snt.cli import options
from snt.cli.output import Output

if TYPE_CHECKING:
    from snt.patch_making import MadePatch

patch_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Merge a patch into a model or take it out; stack, scale, compare and export patches.",
)
Patch = Annotated[Path, typer.Argument(metavar="PATCH_DIR", help="What `snt tune` wrote.")]
Directory = Annotated[Path, typer.Option("-o", "--output", help="The directory to write.")]


@patch_app.command()
def apply(
    patch: Patch,
    output: Directory,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The base model, when not the one that the patch names."),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="0 to 2: times the deltas.")] = 1.0,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (the checkpoint's), float32, bf16 or fp16.")
    ] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Apply to other weights of the same shape.")
    ] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the merged model: a directory that plain transformers loads."""
    out = Output(as_json, quiet)
    from snt.patching import patch_apply
    from snt.report.patching import apply_table

    report = patch_apply(
        patch,
        output,
        model=model,
        scale=scale,
        dtype=dtype,
        force=force,
        offline=offline,
        progress=out,
    ).as_json()
    out.result(report, *apply_table(report))


@patch_app.command()
def revert(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="What `apply` wrote.")],
    output: Directory,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the model as it was before a patch, bit for bit."""
    out = Output(as_json, quiet)
    from snt.patching import patch_revert
    from snt.report.patching import revert_table

    report = patch_revert(model, output).as_json()
    out.result(report, *revert_table(report))


@patch_app.command()
def stack(
    patches: Annotated[
        list[Path], typer.Argument(metavar="PATCH_DIR...", help="Patches of one base model.")
    ],
    output: Directory,
    conflicts: Annotated[
        str | None,
        typer.Option(
            "--conflicts",
            help="Entries that two patches train: sum, first or last; default: refuse them.",
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one patch of two or more: their deltas added."""
    out = Output(as_json, quiet)
    from snt.patch_making import patch_stack

    command = options.typed_command()
    _show(patch_stack(patches, output, conflicts=conflicts, command=command), out)


@patch_app.command()
def scale(
    patch: Patch,
    output: Directory,
    factor: Annotated[float, typer.Option("--scale", help="0 to 2: times the deltas.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a patch whose deltas are some times those of another."""
    out = Output(as_json, quiet)
    from snt.patch_making import patch_scale

    _show(patch_scale(patch, output, scale=factor, command=options.typed_command()), out)


@patch_app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="PATCH_DIR", help="A patch.")],
    second: Annotated[Path, typer.Argument(metavar="PATCH_DIR2", help="Another patch.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two patches: entries, norms and cosine by module."""
    out = Output(as_json, quiet)
    from snt.patching import patch_diff
    from snt.report.patching import diff_table

    report = patch_diff(first, second).as_json()
    out.result(report, *diff_table(report))


@patch_app.command()
def export(
    patch: Patch,
    output: Directory,
    format: Annotated[str, typer.Option("--format", help="peft: a LoRA adapter.")] = "peft",
    base: Annotated[
        str | None,
        typer.Option("--base", help="Model id to write, when not the one that the patch names."),
    ] = None,
    uniform_rank: Annotated[
        bool,
        typer.Option(
            "--uniform-rank",
            help="One rank for all modules, padded with zeros to one that vLLM allows.",
        ),
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the patch as an exact LoRA adapter that peft and LoRA servers load."""
    out = Output(as_json, quiet)
    from snt.patching import patch_export
    from snt.report.patching import export_table

    made = patch_export(patch, output, format=format, base=base, uniform_rank=uniform_rank)
    if made.warning:
        out.say(f"warning: {made.warning}; PEFT loads the adapter all the same")
    report = made.as_json()
    out.result(report, *export_table(report))


def _show(made: MadePatch, out: Output) -> None:
    from snt.report.patching import made_table

    report = made.as_json()
    out.result(report, *made_table(report))
