"""The YAML of a recipe, which may be somebody else's: small, without bombs, faults in few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from snt.errors import FormatError

_LARGEST: Final = 64 * 1024
# An alias may hold aliases: nested, a few lines of them grow without bound.
_ALIASES: Final = 16
_CHARACTERS: Final = 300


def read_document(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds. Raises FormatError for any other content."""
    size = path.stat().st_size
    if size > _LARGEST:
        raise FormatError(f"{path}: {size:,} bytes are more than the {_LARGEST:,} of a recipe")
    try:
        text = path.read_text(encoding="utf-8")
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        document = yaml.safe_load(text) if aliases <= _ALIASES else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is no YAML: {shortened(error)}") from error
    # What the library's constructors of dates and numbers raise, and very deep nesting.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path} is no YAML that can be read ({type(error).__name__}: {shortened(error)})"
        ) from error
    if aliases > _ALIASES:
        raise FormatError(f"{path}: {aliases} aliases; a recipe may have {_ALIASES}")
    if not isinstance(document, dict):
        raise FormatError(f"{path}: a recipe is a mapping of names to settings")
    return document


def shortened(fault: object) -> str:
    """A fault's own words, as far as they tell."""
    text = str(fault)
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} …"
