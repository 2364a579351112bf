"""A window without an end on one side, as the function under test writes it; and names of options as libraries write them."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.verification.checking import verify


def windowed(query, key, left, right):
    """Which keys are seen; a side is None or a number."""
    distance = np.arange(key.shape[2]) - np.arange(query.shape[2])[:, None] - key.shape[2] + query.shape[2]
    seen = np.ones(distance.shape, bool)
    seen &= True if left is None else distance >= -left
    return seen & (True if right is None else distance <= right)


def attend(query, key, value, seen, scale=None):
    scores = (
        query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5 if scale is None else scale)
    )
    scores = np.where(seen, scores, -np.inf)
    largest = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    total = weights.sum(-1, keepdims=True)
    return weights @ value / np.where(total == 0, 1, total)


def minus_one(query, key, value, *, window_size=(-1, -1)):
    left, right = window_size
    return attend(
        query, key, value, windowed(query, key, left if left >= 0 else None, right if right >= 0 else None)
    )


def numbers_alone(query, key, value, *, window=None):
    if window is None:
        return attend(query, key, value, windowed(query, key, None, None))
    left, right = window
    return attend(query, key, value, windowed(query, key, left + 0, right + 0))


def none_is_open(query, key, value, *, window=None):
    return attend(query, key, value, windowed(query, key, *(window or (None, None))))


def fitted(function):
    return probes.fitted(describe(function, arrays="numpy", dtypes=("float32",), differentiable=False))


@pytest.mark.parametrize(
    ("function", "open_side", "remark"),
    [
        (minus_one, -1, "an open side of window_size is -1, as in its default"),
        (numbers_alone, 2**30, "window does not take None for an open side"),
        (none_is_open, None, ""),
    ],
)
def test_an_open_side_is_passed_as_the_function_takes_it(function, open_side, remark):
    implementation = fitted(function)
    assert implementation.open_side == open_side
    assert (
        (remark in "\n".join(implementation.remarks))
        if remark
        else not any("open side" in r for r in implementation.remarks)
    )
    name = implementation.parameters["window"]
    assert implementation.keywords({"window": (3, None)})[name] == (3, open_side)


def test_the_laws_of_windows_hold_of_each():
    for function in (minus_one, numbers_alone):
        laws = ["window_edges_are_exact", "agrees_with_reference", "masks_compose"]
        verify(function, dtypes=["float32"], profile="glance", laws=laws).raise_for_failures()


def test_the_names_of_libraries_are_known():
    """transformers' eager attention, and its sinks."""

    def attention(query, key, value, *, scaling=None):
        return attend(query, key, value, windowed(query, key, None, None), scaling)

    def with_sinks(query, key, value, *, scaling=None, position_bias=None, s_aux=None):
        return query

    implementation = fitted(attention)
    assert implementation.parameters == {"scale": "scaling"}
    assert implementation.unknown == ()
    assert set(describe(with_sinks).parameters) == {"scale", "bias", "sinks"}
