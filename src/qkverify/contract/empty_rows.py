"""What a query that sees no key gets, which in some implementations depends on what hides its keys.

The convention `empty_rows` is one value for all, "zero", or a value for each way of hiding: "nan (bias), zero (key_lengths)".
onnxruntime, for one, gives NaN where a bias of -inf hides every key, and the mean of all values where `key_lengths` do.

Two ways that agree alone may differ together, where each hides a part of the keys: a mask that fills in -1e9 beside causality
that fills in -inf leaves the mean of some values. "undecided (mask with causal), uniform (mask)" says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import combinations

WAYS = ("mask", "bias", "key_lengths", "causal", "window")  # options that hide keys
UNDECIDED = "undecided"  # what a row gets where several ways are in use that differ: no law judges it
PAIRS = tuple(f"{a} with {b}" for a, b in combinations(WAYS, 2))


def joined(values: Mapping[str, str]) -> str:
    """The convention of a value for each way: that value alone where all agree."""
    return next(iter(values.values())) if len(set(values.values())) == 1 else spelled(values)


def spelled(values: Mapping[str, str]) -> str:
    """The convention that says a value of these ways alone."""
    ways = {
        value: [way for way in (*WAYS, *PAIRS) if values.get(way) == value]
        for value in sorted(set(values.values()))
    }
    return ", ".join(f"{value} ({', '.join(those)})" for value, those in ways.items())


def by_way(convention: str) -> dict[str, str]:
    """The value for each way; nothing where one value holds for all."""
    parts = re.findall(r"([a-z ]+) \(([^)]*)\)", convention)
    return {way: value.strip() for value, ways in parts for way in ways.split(", ")}


def value_of(convention: str, way: str) -> str:
    """The value for one way of hiding."""
    values = by_way(convention)
    return values.get(way, UNDECIDED) if values else convention


def of_ways(values: Mapping[str, str], used: Collection[str]) -> str:
    """What a row gets where these ways are in use; UNDECIDED where they differ, alone or together."""
    met = {values.get(way, UNDECIDED) for way in WAYS if way in used}
    if any(way in values and used_together(way, used) for way in PAIRS):
        return UNDECIDED
    return met.pop() if len(met) == 1 else UNDECIDED if met else "zero"


def used_together(pair: str, used: Collection[str]) -> bool:
    """Whether both ways of a pair, "mask with causal", are in use."""
    return all(way in used for way in pair.split(" with "))
