"""JSON that says of itself whether it is whole: with a digest of its entries, so that no changed figure is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST = "digest"


def seal(entries: Mapping[str, Any]) -> str:
    """The digest of JSON-ready entries, but for that of `digest` itself.

    It is the SHA-256, in hexadecimal, of the other entries as canonical JSON: keys sorted, no spaces, characters that
    are not of ASCII as `\\uXXXX`, numbers as they stand in the file.
    """
    rest = json.loads(json.dumps({name: value for name, value in entries.items() if name != DIGEST}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_digest(entries: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready entries with their digest."""
    return {**entries, DIGEST: seal(entries)}


def unsealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries without their digest.

    Raises:
        ValueError: if they have one that is not theirs.
    """
    if DIGEST in entries and entries[DIGEST] != seal(entries):
        raise ValueError("it has been altered: its digest is not that of its entries")
    return {name: value for name, value in entries.items() if name != DIGEST}
