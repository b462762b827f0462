"""Pico models: real architectures of a few thousand parameters, with a chat template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snt.testing.pico import TEMPLATE as TEMPLATE
from snt.testing.pico import byte_tokenizer as byte_tokenizer
from snt.testing.pico import write_pico


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """Nothing may ask the Hub, and tables have room. For modules that run commands."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.setenv("COLUMNS", "100")
        yield


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model directory that tests must not write to."""
    return write_pico(tmp_path_factory.mktemp("models") / "pico")
