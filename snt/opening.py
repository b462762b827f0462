"""A model opened for work: resolved, loaded by a backend, fingerprinted, a patch attached to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snt.backend import LoadedModel
from snt.backend_choice import AUTO, Option, check_abilities, choose
from snt.chat import Chat
from snt.errors import FormatError, MismatchError, MissingFileError, RequestError, unknown_name
from snt.fingerprint import Fingerprint, fingerprint_of
from snt.model_refs import ResolvedModel, default_ref, resolve
from snt.preflight import Work, duration, seconds_of
from snt.progress import Progress, Silence

if TYPE_CHECKING:
    import torch

    from snt.masks import NeuronMask
    from snt.patches import Patch
    from snt.scores_files import ScoresFile

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelChoice:
    """Which model, held how: what the options common to all commands say.

    `ref` None means `named`, the model that a mask or patch names, else the default. `dtype` "auto"
    leaves the choice to the work at hand, `backend` None or "auto" to what the machine has. `base`
    is the model that a patch belongs to, where the patch does not name one that can be found by
    name. `template`: None for the tokenizer's own chat template, "plain" for none, else a file that
    holds one.
    """

    ref: str | None = None
    backend: str | None = None
    dtype: str = "auto"
    system: str | None = None
    offline: bool = False
    base: str | None = None
    template: str | None = None


@dataclass(frozen=True)
class OpenModel:
    """A loaded model and what must be known about it to cite a number."""

    resolved: ResolvedModel
    model: LoadedModel
    chat: Chat
    fingerprint: Fingerprint
    backend: str
    patch_digest: str | None = None
    deactivated: str | None = None
    offline: bool = False

    @property
    def id(self) -> str:
        """The model's name for metadata, never a path."""
        return self.resolved.id

    def describe(self) -> dict[str, Any]:
        """Model, fingerprint, template and how it was held, as they stand in metadata."""
        return {
            "model": {
                "id": self.resolved.id,
                "revision": self.resolved.revision,
                "architecture": self.model.anatomy.model_type,
                "parameters": self.model.parameters,
            },
            "fingerprint": self.fingerprint.weights,
            "backend": self.backend,
            "dtype": dtype_name(self.model.dtype),
            **self.chat.describe(),
        }

    def check_mask(self, mask: NeuronMask) -> str | None:
        """Raises MismatchError for another shape; returns a warning for other weights."""
        if mask.anatomy != self.model.anatomy:
            raise MismatchError(
                f"the mask is for another model ({_shape(mask.anatomy.shape())}) than {self.id} "
                f"({_shape(self.model.anatomy.shape())}); detect on this model"
            )
        theirs = mask.provenance.get("fingerprint")
        if theirs is not None and theirs != self.fingerprint.weights:
            return (
                f"the mask was detected on other weights of this shape than {self.id} "
                f"({named_model(mask) or 'unnamed'}); fine for a fine-tune of that model"
            )
        return None


def resolve_choice(
    choice: ModelChoice, named: str | None = None, progress: Progress | None = None
) -> ResolvedModel:
    """The model directory of a choice, saying which model was picked when none was given."""
    progress = progress or Silence()
    if choice.ref is not None:
        return resolve(choice.ref, offline=choice.offline, on_progress=progress.say)
    if named is not None and "/" not in named:
        raise RequestError(
            f"the file names the model {named!r}, a local directory; give that directory as MODEL, "
            "or, where MODEL is a patch, with --base"
        )
    ref = named or default_ref()
    progress.say(f"model: {ref}" + (" (named by the file)" if named else " (the default)"))
    return resolve(ref, offline=choice.offline, on_progress=progress.say)


def open_model(
    choice: ModelChoice,
    *,
    exact: bool = False,
    named: str | None = None,
    work: Work | None = None,
    progress: Progress | None = None,
) -> OpenModel:
    """Resolve and load. `exact` work (detection) prefers float32, other work what is fast here.

    What `work` will take is said before anything is loaded. Raises the errors of `resolve`,
    UnknownNameError for a backend or dtype, RequestError for work that the backend cannot do or
    that does not fit this machine.
    """
    import torch

    from snt.machine import devices
    from snt.model_sizes import size_of

    progress = progress or Silence()
    if choice.dtype not in DTYPES:
        raise unknown_name("dtype", choice.dtype, DTYPES)
    work = work or Work()
    asked = None if choice.backend == AUTO else choice.backend
    if asked is not None:
        check_abilities(asked, work)
    resolved = resolve_choice(choice, named, progress)
    size, device = size_of(resolved.directory), devices()[0]
    taken = choose(resolved.id, size, work, device, backend=asked, dtype=choice.dtype, exact=exact)
    option = taken.option
    dtype = getattr(torch, option.dtype)
    progress.say(f"backend: {option.name} in {option.dtype}, {taken.why}")
    _say_estimate(option, work, seconds_of(size, work, device.kind, dtype), progress)
    model = option.backend.load(resolved.directory, dtype)
    progress.say(f"{resolved.id} on {model.device}, {dtype_name(model.dtype)}, {option.name}")
    chat = Chat(model.tokenizer, model.context, choice.system, chat_template(choice.template))
    if not chat.has_template:
        progress.say("no chat template: a prompt is its plain text and a line break")
    fingerprint = fingerprint_of(resolved.directory, model.anatomy)
    return OpenModel(resolved, model, chat, fingerprint, option.name, offline=choice.offline)


@contextmanager
def opened(
    choice: ModelChoice,
    *,
    named: str | None = None,
    work: Work | None = None,
    progress: Progress | None = None,
) -> Iterator[OpenModel]:
    """Like `open_model`, but MODEL may be a patch directory: its deltas are attached meanwhile.

    Raises MismatchError when the patch is for other weights.
    """
    directory = patch_directory(choice.ref)
    if directory is None:
        yield open_model(choice, named=named, work=work, progress=progress)
        return
    from snt.deltas import Deltas, digest_of
    from snt.patches import load_patch

    patch = load_patch(directory / "patch.safetensors")
    work = work or Work()
    work = replace(work, needs=tuple(dict.fromkeys((*work.needs, "patch"))))
    base = open_model(
        replace(choice, ref=choice.base), named=named_model(patch), work=work, progress=progress
    )
    check_patch(patch, base)
    trained_with = patch.provenance.get("template")
    if trained_with != base.chat.describe()["template"]:
        progress = progress or Silence()
        progress.say("warning: the patch was trained with another chat template than this one")
    on_device = {
        key: (indices.to(base.model.device), delta.to(base.model.device))
        for key, (indices, delta) in patch.slices.items()
    }
    with Deltas(on_device).attached(base.model):
        yield replace(base, patch_digest=digest_of(patch.slices))


def check_patch(patch: Patch, base: OpenModel) -> None:
    """Raises MismatchError when the patch does not belong to these weights."""
    if patch.fingerprint != base.fingerprint:
        raise MismatchError(
            f"the patch is for other weights than {base.id}: fingerprint "
            f"{patch.fingerprint.weights[:12]} and {base.fingerprint.weights[:12]}; tune it again "
            "on this model"
        )


def named_model(made: NeuronMask | Patch | ScoresFile) -> str | None:
    """The model that a mask, a patch or a scores file names."""
    model = made.provenance.get("model")
    name = model.get("id") if isinstance(model, dict) else None
    return name if isinstance(name, str) else None


def patch_directory(ref: str | None) -> Path | None:
    """`ref` as a directory when it holds a patch."""
    path = Path(ref) if ref else None
    return path if path is not None and (path / "patch.safetensors").is_file() else None


def chat_template(choice: str | None) -> str | None:
    """The template that `--template` names: None for the tokenizer's, empty for plain text.

    Raises MissingFileError, and FormatError for a file that is no Jinja template.
    """
    if choice is None:
        return None
    if choice == "plain":
        return ""
    path = Path(choice)
    if not path.is_file():
        raise MissingFileError(
            f"--template {choice}: there is no such file; give one with a Jinja chat template, or "
            "`plain` for none"
        )
    from jinja2 import Environment, TemplateError

    try:
        text = path.read_text(encoding="utf-8")
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except (UnicodeDecodeError, TemplateError) as error:
        raise FormatError(f"--template {path.name} is no Jinja template: {error}") from error
    if not text.strip():
        raise FormatError(f"--template {path.name} is empty; give `plain` for no template")
    return text


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def _say_estimate(option: Option, work: Work, seconds: float, progress: Progress) -> None:
    about = f" and about {duration(seconds)}" if seconds else ""
    progress.say(f"estimate: memory {option.memory}{about}")


def _shape(shape: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in shape.items())
