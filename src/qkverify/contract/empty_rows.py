"""What a query that sees no key gets, which in some implementations depends on what hides its keys.

The convention `empty_rows` is one value for all, "zero", or a value for each way of hiding: "nan (bias), zero (key_lengths)".
onnxruntime, for one, gives NaN where a bias of -inf hides every key, and the mean of all values where `key_lengths` do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

WAYS = ("mask", "bias", "key_lengths", "causal", "window")  # options that hide keys
UNDECIDED = "undecided"  # what a row gets where several ways are in use that differ: no law judges it


def joined(values: Mapping[str, str]) -> str:
    """The convention of a value for each way: that value alone where all agree."""
    return next(iter(values.values())) if len(set(values.values())) == 1 else spelled(values)


def spelled(values: Mapping[str, str]) -> str:
    """The convention that says a value of these ways alone."""
    ways = {
        value: [way for way in WAYS if values.get(way) == value] for value in sorted(set(values.values()))
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
