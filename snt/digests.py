"""Digests of JSON values: keys of finished work."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def key_of(*parts: Any) -> str:
    """A SHA-256 of JSON values, the same for equal ones; others count as they print."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
