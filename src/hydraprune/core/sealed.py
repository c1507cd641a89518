"""JSON that says of itself how it is laid out, and has a digest, so that no changed figure is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST, SCHEMA = "digest", "schema"
VERSION = 1
"""Of the layout of our files; one that does not say its version is of this one, as files were before they said it."""


class NewerError(ValueError):
    """What is read was written by a later version of the package."""


def seal(entries: Mapping[str, Any]) -> str:
    """The digest of JSON-ready entries, but for that of `digest` itself.

    It is the SHA-256, in hexadecimal, of the other entries as canonical JSON: keys sorted, no spaces, characters that
    are not of ASCII as `\\uXXXX`, numbers as they stand in the file.
    """
    rest = json.loads(json.dumps({name: value for name, value in entries.items() if name != DIGEST}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_digest(entries: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready entries with the version of their layout and their digest."""
    entries = {**entries, SCHEMA: VERSION}
    return {**entries, DIGEST: seal(entries)}


def unsealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries without their version and digest.

    Raises:
        NewerError: if this package does not know their layout.
        ValueError: if they have a digest that is not theirs, or no number for a version.
    """
    if DIGEST in entries and entries[DIGEST] != seal(entries):
        raise ValueError("it has been altered: its digest is not that of its entries")
    version = entries.get(SCHEMA, VERSION)
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(f"its {SCHEMA} is {version!r}, and no number")
    if version > VERSION:
        raise NewerError(f"its {SCHEMA} is {version} and this hydraprune knows {VERSION}; install a newer hydraprune")
    return {name: value for name, value in entries.items() if name not in (DIGEST, SCHEMA)}
