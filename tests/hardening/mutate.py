"""Bytes or JSON in, something like it out: random damage, and damage that knows the structure."""

from __future__ import annotations

import copy
import random
import struct
from typing import Any

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-308, "", "0", "../../escape",
    "/etc/passwd",
    "a" * 5000, "\x00", "é\U0001f600", "<script>alert(1)</script>", "%s{0}{model}", [], {}, [[]], [0] * 50,
    {"a": {"b": {}}}, "nan", "NaN", "Infinity", [None], ["x"], {"": 1}, {"../x": "0" * 64},
)  # fmt: skip


def content(chance: random.Random, before: bytes) -> bytes:
    """A few random alterations of some bytes: flips, extremes as integers, cuts, repetitions, insertions."""
    made = bytearray(before)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(made) + 1) if chance.random() < 0.6 else chance.randrange(min(len(made), 64) + 1)
        way = chance.randrange(8)
        if way == 0 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif way == 1 and at < len(made):
            made[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif way == 2:
            number = chance.choice(EXTREMES)
            width = chance.choice("HIQ")
            packed = struct.pack(chance.choice("<>") + width, number & (2 ** (8 * struct.calcsize(width)) - 1))
            made[at : at + len(packed)] = packed
        elif way == 3:
            del made[at:]
        elif way == 4:
            del made[at : at + chance.choice((1, 2, 4, 100))]
        elif way == 5:
            made[at:at] = made[at : at + chance.choice((1, 4, 64, 1000))] * chance.choice((1, 2, 50))
        elif way == 6:
            made[at:at] = chance.randbytes(chance.choice((1, 4, 30)))
        else:
            other = chance.randrange(len(made) + 1)
            made[at : at + 16] = made[other : other + 16]
    return bytes(made)


def tree(chance: random.Random, before: Any) -> Any:
    """A copy of a JSON value in which a part or two, at any depth, are another value, gone, or there twice."""
    made = copy.deepcopy(before)
    for _ in range(chance.choice((1, 1, 2))):
        places = list(_places(made))
        if not places:
            return chance.choice(VALUES)
        # Deep lists of numbers are most of a report: take a depth first, then a place in it.
        depth = chance.choice(sorted({depth for depth, _, _ in places}))
        _, holder, key = chance.choice([place for place in places if place[0] == depth])
        way = chance.random()
        if way < 0.7:
            holder[key] = copy.deepcopy(chance.choice(VALUES))
        elif way < 0.9:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[chance.choice(("", "more", "../x", "0"))] = holder[key]
    return made


def _places(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield depth, value, key
            yield from _places(value[key], depth + 1)
