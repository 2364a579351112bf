"""Sizes that a function raises for are found out, said once, and not asked for again; a wrong result is no limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.verification.checking import Cell, check, conventions_of, law_book, prepare, verify


def attention(query, key, value):
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(max(query.shape[-1], 1) ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
    return weights @ value / weights.sum(-1, keepdims=True)


def grouped(query, key, value):
    group = query.shape[1] // key.shape[1]
    return attention(query, key.repeat(group, 1), value.repeat(group, 1))


def sizes(query, key, value):
    _, H, Q, D = query.shape
    return {
        "B": query.shape[0],
        "H": H,
        "G": key.shape[1],
        "Q": Q,
        "K": key.shape[2],
        "D": D,
        "E": value.shape[3],
    }


def limited(rule):
    """Attention that raises unless the sizes keep a rule."""

    def attention_(query, key, value):
        if not eval(rule, {}, sizes(query, key, value)):
            raise ValueError(f"not {rule}")
        return grouped(query, key, value)

    return describe(attention_, arrays="numpy", dtypes=("float32",), differentiable=False)


def test_heads_that_must_be_equal_are_found_beside_one_that_broadcasts():
    implementation = probes.fitted(
        describe(attention, arrays="numpy", dtypes=("float32",), differentiable=False)
    )
    assert implementation.requires[0] == "G == H or G == 1"
    said = "heads must be equal, or there is implementation key/value head (G == H or G == 1), else it raises ValueError"
    assert implementation.remarks[0].startswith(said)
    assert not verify(implementation, profile="glance").failures


@pytest.mark.parametrize(("rule", "expected"), [
    ("G == H", {"G == H"}),
    ("E == D", {"E == D"}),
    ("Q == K", {"Q == K"}),
    ("Q <= K", {"Q <= K"}),
    ("K >= 1 and Q >= 1", {"Q >= 1", "K >= 1"}),
    ("B >= 1", {"B >= 1"}),
    ("K % 64 == 0", {"K % 64 == 0"}),
    ("Q % 128 == 0 and K % 16 == 0", {"Q % 128 == 0", "K % 16 == 0"}),
    ("D & (D - 1) == 0 and D >= 16", {"D & (D - 1) == 0", "D >= 16"}),
    ("D % 8 == 0 and E == D", {"D % 8 == 0", "E == D"}),
    ("H & (H - 1) == 0", {"H & (H - 1) == 0"}),
    ("D <= 128", {"D <= 128"}),
    ("K <= 1024", {"K <= 1024"}),
    ("True", set()),
])  # fmt: skip
def test_a_limit_is_inferred_where_the_function_raises(rule, expected):
    implementation = probes.fitted(limited(rule))
    assert set(implementation.inferred) >= expected
    assert set(implementation.inferred) - expected <= {"K >= 1", "B >= 1", "Q >= 1"}
    assert not verify(implementation, profile="glance").failures


def test_a_wrong_result_is_no_limit():
    def attention_(query, key, value):
        if query.shape[1] != key.shape[1]:
            return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
        return attention(query, key, value)

    implementation = probes.fitted(
        describe(attention_, arrays="numpy", dtypes=("float32",), differentiable=False)
    )
    assert not {"G == H", "G == H or G == 1"} & set(implementation.inferred)
    assert verify(implementation, profile="quick").failures


def test_a_single_size_that_raises_is_no_limit():
    def attention_(query, key, value):
        if key.shape[2] == 3:
            raise RuntimeError("a bug of three keys")
        return grouped(query, key, value)

    implementation = probes.fitted(
        describe(attention_, arrays="numpy", dtypes=("float32",), differentiable=False)
    )
    assert not any("K %" in rule or "K ==" in rule for rule in implementation.inferred)
    assert verify(implementation, profile="quick").failures


def test_what_is_declared_is_not_second_guessed():
    implementation = probes.fitted(
        describe(attention, arrays="numpy", dtypes=("float32",), requires=("K >= 1",))
    )
    assert (implementation.requires, implementation.inferred) == (("K >= 1",), ())


def test_a_causal_call_may_need_as_many_queries_as_keys():
    def attention_(query, key, value, *, causal=False):
        scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
        if causal:
            length = query.shape[2]
            scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)  # raises unless Q == K
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights @ value / weights.sum(-1, keepdims=True)

    implementation = probes.fitted(
        describe(attention_, arrays="numpy", dtypes=("float32",), differentiable=False)
    )
    assert implementation.requires_with == {"causal": ("Q == K",)}
    assert "Q == K" not in implementation.requires
    assert implementation.refuses({"Q": 2, "K": 3}, {"causal": True}) == "Q == K"
    assert implementation.refuses({"Q": 2, "K": 3}, {}) is None
    assert not verify(implementation, profile="glance").failures


def test_what_is_too_long_may_be_left_out_by_a_function_that_nobody_declared():
    def looped(query, key, value):
        output = np.empty((*query.shape[:3], value.shape[3]), query.dtype)
        for entry in range(query.shape[0]):
            output[entry] = grouped(
                query[entry : entry + 1], key[entry : entry + 1], value[entry : entry + 1]
            )[0]
        return output

    law = next(law for law in law_book() if law.name == "mismatched_sizes_raise")
    undeclared = probes.fitted(describe(looped, arrays="numpy", dtypes=("float32",), differentiable=False))
    at = Cell(undeclared, "cpu", "float32")
    assert conventions_of(at)["mismatched_sizes"].value == "cut"
    assert check(law, prepare(at), max_examples=50, seed=1, database=None).outcome == "passed"
    declared = Cell(replace(undeclared, declared=True), "cpu", "float32")
    assert check(law, prepare(declared), max_examples=50, seed=1, database=None).outcome == "failed"
