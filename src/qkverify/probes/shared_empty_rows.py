"""Rows whose keys are hidden by two options, each hiding a part of them.

Where each option alone leaves the mean of all values, because it fills in a finite number, the two together may leave the mean of
some: of those that the option hides whose number is the larger. It is a convention like the others, and no law judges such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.contract import empty_rows, mask_forms
from qkverify.probes.small_problems import is_mean
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

# Of three keys and the first of three queries: options that can hide the first keys, and options that can hide the others.
FIRST, OTHERS = ("mask", "bias", "key_lengths"), ("mask", "bias", "key_lengths", "causal", "window")


def differing(run: Run, alone: Mapping[str, str | None], make: Callable[..., Problem]) -> list[str]:
    """The pairs of options, "mask with causal", that together do not give what each gives alone: the mean of all values.

    `alone` has what each gives, None where it cannot hide all keys of a row. `make(**options)` is a problem of three queries
    and keys, zero scores, values 1, 2 and 4.
    """
    apart = []
    for pair in empty_rows.PAIRS:
        first, other = pair.split(" with ")
        values = {alone[way] for way in (first, other) if alone.get(way)}
        if first not in FIRST or {first, other} - set(alone) or not _mean_alone(values):
            continue
        if not all(_gives_mean(run, make, options) for options in _hidden_by(run, first, other)):
            apart.append(pair)
    return apart


def _mean_alone(values: set[str | None]) -> bool:
    return len(values) == 1 and all(value is not None and value.startswith("uniform") for value in values)


def _hidden_by(run: Run, first: str, other: str) -> Sequence[dict[str, Any]]:
    """Options that hide all three keys from the first query: once each a part of its own, once with a key that both hide."""
    rest = _hiding(run, other, (1, 2))
    if first == "key_lengths":
        return ({"key_lengths": np.array([0], np.int32), **rest},)
    return tuple({**_hiding(run, first, keys), **rest} for keys in ((0,), (0, 1)))


def _hiding(run: Run, option: str, keys: Sequence[int]) -> dict[str, Any]:
    visible = np.ones((1, 1, 3, 3), bool)
    visible[..., list(keys)] = False
    if "Q" not in mask_forms.axes_of(run.implementation.mask_form):
        visible = visible[:, :, :1]
    options: dict[str, Any] = {
        "mask": visible,
        "bias": np.where(visible, 0.0, -np.inf).astype(run.numpy_dtype),
        "key_lengths": np.array([1], np.int32),
        "causal": True,
        "window": (0, 0),
    }
    return {option: options[option]}


def _gives_mean(run: Run, make: Callable[..., Problem], options: Mapping[str, Any]) -> bool:
    """Also where the function raises or refuses: the laws see that."""
    problem = make(causal_alignment=run.semantics["causal_alignment"], **options)
    try:
        output = float(run.values(problem)[0, 0, 0, 0].astype(np.float64))
    except Exception:
        return True
    return is_mean(output, problem.value[0, 0, :, 0])
