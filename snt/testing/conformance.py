"""`check_backend`: everything that a backend must do, on a pico model that is made here."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snt.backend import Backend, abilities_of
from snt.testing import checks
from snt.testing.subject import BackendFault as BackendFault
from snt.testing.subject import Subject, reference_of

# Check -> the ability without which it is left out.
_CHECKS: tuple[tuple[Callable[[Subject], None], str | None], ...] = (
    (checks.describes_itself, None),
    (checks.loads, None),
    (checks.weights_are_the_checkpoint_s, None),
    (checks.hidden_and_logits, "score"),
    (checks.shows_every_layer, "detect"),
    (checks.importances_equal_the_oracle, "detect"),
    (checks.deltas_train, "tune"),
    (checks.patches_act, "patch"),
    (checks.neurons_go_and_come_back, "patch"),
    (checks.generates, "generate"),
    (checks.other_families_are_refused, None),
)


@dataclass(frozen=True)
class Conformance:
    """The outcome of every check by name: None where it passed, else what is wrong.

    `left_out` names checks of abilities that the backend does not offer.
    """

    outcomes: dict[str, str | None]
    left_out: tuple[str, ...]

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong, by check."""
        return {name: said for name, said in self.outcomes.items() if said is not None}

    def __str__(self) -> str:
        lines = [f"{name}: {said or 'ok'}" for name, said in self.outcomes.items()]
        return "\n".join([*lines, *(f"{name}: not offered" for name in self.left_out)])


def check_backend(
    backend: Backend, *, exact: bool = True, tolerance: float | None = None
) -> Conformance:
    """Hold a backend to the protocol; returns what was checked, all of it passed.

    Loads a pico Llama in float32 that is written for the purpose. An `exact` backend is to agree
    with transformers' own model entry by entry, within `tolerance` (1e-4); one that rounds weights
    or activations in norm (0.1). Raises BackendFault, an AssertionError, that lists every check
    that failed and why.
    """
    import torch

    from snt.testing.pico import write_pico

    tolerance = (1e-4 if exact else 0.1) if tolerance is None else tolerance
    outcomes: dict[str, str | None] = {}
    can = abilities_of(backend)
    with tempfile.TemporaryDirectory() as folder:
        directory = write_pico(Path(folder) / "pico")
        try:
            model = backend.load(directory, torch.float32)
            reference = reference_of(model, directory)
        except Exception as error:
            raise BackendFault(f"a pico Llama cannot be loaded: {_said(error)}") from error
        subject = Subject(backend, model, directory, reference, exact, tolerance)
        for one, ability in _CHECKS:
            if ability is None or ability in can:
                try:
                    one(subject)
                    outcomes[one.__name__] = None
                except Exception as error:  # a backend may fail in any way it likes
                    outcomes[one.__name__] = _said(error)
    left_out = tuple(one.__name__ for one, ability in _CHECKS if ability and ability not in can)
    found = Conformance(outcomes, left_out)
    if found.faults:
        raise BackendFault(f"{len(found.faults)} of {len(outcomes)} checks failed\n{found}")
    return found


def _said(error: Exception) -> str:
    if isinstance(error, BackendFault):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
