"""Parameters by which libraries vary a number that an operation's definition fixes: each call passes the definition's.

rotary(x, positions, theta=500000.0)   ->   theta=10000.0 is passed
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

BASE = 10000.0  # of the frequencies of positions
LAST_AXIS = "the size of x"  # stands for the size of the last axis of the first array of a call
_BASES = dict.fromkeys(
    ("base", "theta", "rope_theta", "rope_base", "rotary_base", "freq_base", "max_period"), BASE
)
_WHOLE = dict.fromkeys(("rotary_dim", "rot_dim", "rope_dim", "rotary_ndims"), LAST_AXIS)
FIXED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "positional_encoding": _BASES,
        "rotary": {**_BASES, **_WHOLE},
        "rotary_pair": {**_BASES, **_WHOLE},
        "embedding": {**_BASES, "padding_idx": None},
        "softmax": {"dim": -1, "axis": -1},
    }
)


def known(operation: str) -> frozenset[str]:
    """The names of such parameters, in lower case."""
    return frozenset(FIXED.get(operation, {}))


def constants(parameters: Mapping[str, inspect.Parameter], operation: str) -> dict[str, Any]:
    """Parameter -> what every call passes, of those whose own default would not do."""
    fixed = FIXED.get(operation, {})
    passed = {}
    for name, parameter in parameters.items():
        if name.lower() in fixed:
            value = fixed[name.lower()]
            neutral = (value, None) if value in (None, LAST_AXIS) else (value,)
            if parameter.default is inspect.Parameter.empty or parameter.default not in neutral:
                passed[name] = value
    return passed


def remarks(constants: Mapping[str, Any], operation: str) -> list[str]:
    """A sentence on each that is passed."""
    fixed = FIXED.get(operation, {})
    return [
        f"{name}={value} is passed, as in the definition of {operation}: other values are not verified"
        for name, value in constants.items()
        if name.lower() in fixed and value == fixed[name.lower()]
    ]
