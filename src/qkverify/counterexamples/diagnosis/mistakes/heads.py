"""Heads and batch entries that read each other's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import (
    Arguments,
    Array,
    Edit,
    Mistake,
    first_for_all,
    output_of,
)
from qkverify.problem.attention_problem import Problem


def _reading(choose: Callable[[Problem], Array]) -> Edit:
    """Query heads read these key/value heads."""
    return lambda a, p: {**a, "key": a["key"][:, choose(p)], "value": a["value"][:, choose(p)]}


def _first_entry(*names: str) -> Edit:
    """Every batch entry reads these arrays of the first."""
    return lambda a, p: {**a, **{name: first_for_all(a[name], 0) for name in names}}


def _flat_taken_apart(a: Arguments, p: Problem) -> Any:
    exact = output_of(a)
    return exact.swapaxes(1, 2).reshape(exact.shape)


HEADS: tuple[Mistake, ...] = (
    Mistake("attention with the key heads tiled instead of repeated (h % G instead of h // group)",
            _reading(lambda p: np.arange(p.sizes["H"]) % p.sizes["G"])),
    Mistake("attention with the first key head for all", _reading(lambda p: np.zeros(p.sizes["H"], int))),
    Mistake("attention whose keys and values are repeated for the group along the sequence, not along the heads",
            lambda a, p: {**a, **{n: np.repeat(a[n], p.group, 2) for n in ("key", "value")}}),
    Mistake("attention stored as (B,Q,H,E) and read as (B,H,Q,E): a flat index is taken apart wrongly",
            output=_flat_taken_apart),
    Mistake("attention with the keys and values of the first batch entry for all",
            _first_entry("key", "value")),
    Mistake("attention of the first batch entry, for all",
            _first_entry("query", "key", "value")),
)  # fmt: skip
