"""Random damage to bytes and to structures, of which much is small and some is extreme."""

import copy
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 0.5, -0.5, 5.0, 1e308, -1e308, 1e-320, 2**31, 2**63, -(2**63) - 1, 10**400,
    float("nan"), float("inf"), "", " ", "0", "nan", "true", "???", "${seed}", "${oc.env:HOME}", "${", "a,b", "a\nb",
    "\x1b[31mred\x1b[0m", "\x07\x00", "\ud800", "\u202eleft", "<script>alert(1)</script>", "| a | `b` |", "../../etc",
    "/dev/zero", "ä" * 300, "x" * 200_000, [], [1, 2], [[]], ["a"] * 2000, {}, {"a": 1}, {"_target_": "kd.none"},
)  # fmt: skip


def nested(depth: int, of: Any = 1, mapping: bool = False) -> Any:
    """Return lists or mappings in one another."""
    for _ in range(depth):
        of = {"a": of} if mapping else [of]
    return of


def strange(rng: random.Random) -> Any:
    """Return a value of any kind."""
    if rng.random() < 0.05:
        return nested(rng.choice((3, 50, 400)), mapping=rng.random() < 0.5)
    return copy.deepcopy(rng.choice(STRANGE))


def structure(rng: random.Random, value: Any) -> Any:
    """Return a copy of plain values with one to three places changed, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.02:
            return strange(rng)
        _change(rng, value)
    return value


def _change(rng: random.Random, value: Any) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if not (isinstance(inner, dict | list) and inner and rng.random() < 0.7):
            break
        value = inner
    how = rng.randrange(5)
    if how == 0:
        del value[key]
    elif how == 1 and isinstance(value, dict):
        value[rng.choice(("new", "", "a.b", "\x1b[2J", "T", 5, "x" * 5000))] = strange(rng)
    elif how == 2 and type(value[key]) in (int, float):
        value[key] = rng.choice((-1, 2, 1000, 10**9, 0.1)) * value[key] + rng.choice((0, 1, -1))
    else:
        value[key] = strange(rng)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with some flipped, replaced, cut, moved, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        place = rng.randrange(len(changed))
        if rng.random() < 0.3:  # headers are where it matters
            place = rng.randrange(min(64, len(changed)))
        length = rng.choice((1, 2, 4, 16, 256))
        how = rng.randrange(8)
        if how <= 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif how == 2:
            changed[place : place + length] = bytes(rng.randrange(256) for _ in range(length))
        elif how == 3:
            changed[place : place + length] = rng.choice((b"\0", b"\xff")) * length
        elif how == 4:
            del changed[place:]
        elif how == 5:
            del changed[place : place + length]
        elif how == 6:
            changed[place:place] = changed[place : place + length]
        else:
            changed[place:place] = bytes(rng.randrange(256) for _ in range(length))
    return bytes(changed)
