"""Seeds and identifiers, derived by hashing."""

import hashlib
import json
from typing import Any


def derive(*parts: int | str) -> int:
    """Return a seed in [0, 2^32) that depends on every part: distinct purposes and epochs get unrelated random streams.

    Sums and products of small seeds coincide (seed 1 epoch 2, seed 2 epoch 1); a hash does not.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def digest(settings: Any) -> str:
    """Return 16 hex digits that depend on every value of plain JSON settings, and not on the order of their keys."""
    # A temperature of 4 and one of 4.0 are the same.
    numbers_alike = json.loads(json.dumps(settings), parse_int=float)
    text = json.dumps(numbers_alike, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
