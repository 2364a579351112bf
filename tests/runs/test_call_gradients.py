"""Gradients of operations beside attention at the boundary: which arrays they belong to, and that nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qkverify.contract import describe
from qkverify.errors import ContractError, LawViolation, UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Bounded
from qkverify.runs.assertions import assert_gradients
from qkverify.runs.run import Run

TOKENS, TABLE, UPSTREAM = np.array([[0, 1]]), np.array([[1.0], [2.0]]), np.array([[[3.0], [5.0]]])


def run_of(function: Callable[..., Any], operation: str, **declared: Any) -> Run:
    return Run(describe(function, operation=operation, **{"arrays": "torch", **declared}), dtype="float64")


def test_integers_have_no_gradient_wherever_they_stand() -> None:
    def embedding(tokens: Any, table: Any) -> Any:
        return table[tokens] * 2

    gradients = run_of(embedding, "embedding").call_gradients(
        {"tokens": TOKENS, "table": TABLE}, upstream=UPSTREAM
    )
    assert {name: x.tolist() for name, x in gradients.items()} == {"table": [[6.0], [10.0]]}


def test_each_weight_of_a_layer_has_its_own_gradient() -> None:
    def layer(x: Any, weights: Any, *, heads: int, key_lengths: Any = None) -> Any:
        assert heads == 2
        assert key_lengths.tolist() == [1]
        return x * weights["a"] + weights["b"] * 7

    run = run_of(layer, "encoder_layer")
    one = np.ones((1, 2, 1))
    inputs = {"x": 3 * one, "weights": {"a": 5 * one, "b": one, "unused": one}}
    gradients = run.call_gradients(inputs, upstream=UPSTREAM, heads=2, key_lengths=np.array([1]))
    assert {name: x.ravel().tolist() for name, x in gradients.items()} == {
        "x": [15.0, 25.0], "a": [9.0, 15.0], "b": [21.0, 35.0], "unused": [0.0, 0.0]}  # fmt: skip


def test_a_function_of_its_own_gives_them_in_order() -> None:
    def pull(tokens: Any, table: Any, upstream: Any) -> tuple[Any]:
        rows = np.zeros_like(table)
        np.add.at(rows, tokens, upstream)
        return (rows,)

    run = run_of(lambda tokens, table: table[tokens], "embedding", arrays="numpy", vjp=pull)
    gradients = run.call_gradients({"tokens": TOKENS, "table": TABLE}, upstream=UPSTREAM)
    assert gradients["table"].tolist() == [[3.0], [5.0]]


class Writing(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, scores: Any, written: str) -> Any:
        context.save_for_backward(scores)
        context.written = written
        return scores.clone()

    @staticmethod
    def backward(context: Any, upstream: Any) -> Any:
        gradient = upstream.clone()
        if context.written == "upstream":
            upstream.mul_(2)
        if context.written == "scores":
            context.saved_tensors[0].detach().mul_(2)
        return gradient, None


@pytest.mark.parametrize("written", ["upstream", "scores", ""])
def test_what_was_given_is_not_written(written: str) -> None:
    run = run_of(lambda scores: Writing.apply(scores, written), "softmax")
    given = {"scores": np.ones(2)}
    if written:
        with pytest.raises(ContractError, match="wrote to an argument or to the upstream gradient"):
            run.call_gradients(given, upstream=np.ones(2))
    else:
        assert run.call_gradients(given, upstream=np.ones(2))["scores"].tolist() == [1.0, 1.0]
    assert given["scores"].tolist() == [1.0, 1.0]


def test_a_gradient_out_of_its_bound_is_named() -> None:
    run = run_of(lambda scores: scores * 1, "softmax")
    exact = {"a": Bounded([1.0], 0.1, run.precision), "b": Bounded([1.0], 0.1, run.precision)}
    assert_gradients(run, {"a": np.array([1.05]), "b": np.array([0.95])}, exact)
    with pytest.raises(LawViolation, match="gradient of b"):
        assert_gradients(run, {"a": np.array([1.05]), "b": np.array([1.5])}, exact)


def both(query: Any, key: Any, positions: Any) -> Any:
    return query * 2, key * 3


@pytest.mark.parametrize("arrays", ["torch", "jax", "numpy"])
def test_each_of_several_results_has_its_upstream(arrays: str) -> None:
    def pull(query: Any, key: Any, positions: Any, of_query: Any, of_key: Any) -> Any:
        return 2 * of_query, 3 * of_key

    pytest.importorskip(arrays, reason=f"needs {arrays}")
    declared = {"vjp": pull} if arrays == "numpy" else {}
    run = Run(describe(both, operation="rotary_pair", arrays=arrays, **declared), dtype="float32")
    one = np.ones((1, 1, 1, 1), np.float32)
    gradients = run.call_gradients(
        {"query": one, "key": one}, np.array([[0]], np.int32), upstream=(5 * one, 7 * one)
    )
    assert {name: x.item() for name, x in gradients.items()} == {"query": 10.0, "key": 21.0}


def test_a_result_of_no_keys_that_depends_on_nothing_has_gradients_of_zero() -> None:
    """A loop over tiles of keys that is never entered leaves `torch.zeros`, which torch does not differentiate."""

    def looping(query: Any, key: Any, value: Any) -> Any:
        output = torch.zeros(*query.shape[:3], value.shape[-1])
        for start in range(0, key.shape[2], 16):
            scores = query @ key[:, :, start : start + 16].mT
            output = output + torch.softmax(scores, -1) @ value[:, :, start : start + 16]
        return output

    arrays = {
        name: np.zeros((1, 1, count, 2), np.float32)
        for name, count in (("query", 3), ("key", 0), ("value", 0))
    }
    problem = Problem(**arrays, upstream=np.ones((1, 1, 3, 2), np.float32))
    gradients = Run(describe(looping, arrays="torch"), "cpu", "float32").gradient_values(problem)
    assert {name: x.shape for name, x in gradients.items()} == {name: x.shape for name, x in arrays.items()}
    assert not gradients["query"].any()

    def detached(query: Any, key: Any, value: Any) -> Any:
        return looping(query, key, value).detach()

    ones = {name: np.ones((1, 1, 3, 2), np.float32) for name in arrays}
    with pytest.raises(RuntimeError, match="does not require grad"):  # of keys that there are it is a mistake
        Run(describe(detached, arrays="torch"), "cpu", "float32").gradient_values(
            Problem(**ones, upstream=np.ones((1, 1, 3, 2), np.float32))
        )


def test_a_result_that_is_cut_off_has_no_influence() -> None:
    run, one = run_of(lambda query, key, positions: (query * 2, key.detach()), "rotary_pair"), np.ones(1)
    gradients = run.call_gradients({"query": one, "key": one}, np.array([[0]]), upstream=(one, one))
    assert {name: x.item() for name, x in gradients.items()} == {"query": 2.0, "key": 0.0}
    cut = run_of(lambda query, key, positions: (query.detach(), key.detach()), "rotary_pair")
    with pytest.raises(RuntimeError, match="does not require grad"):
        cut.call_gradients({"query": one, "key": one}, np.array([[0]]), upstream=(one, one))


def kept(query: Any, key: Any, value: Any, key_cache: Any, value_cache: Any, lengths: Any) -> Any:
    """The sum of all keys, in the place of attention; the second one is new."""
    key_cache[1] = key[0]
    return query * key_cache.sum()


CACHE = {"query": np.array([2.0]), "key": np.array([5.0]), "value": np.zeros(1), "key_cache": np.array([3.0, 9.0]),
         "value_cache": np.zeros(2)}  # fmt: skip
CACHES = ("key_cache", "value_cache")


def test_what_is_written_in_place_has_the_gradient_of_what_it_held() -> None:
    run = run_of(kept, "cached_attention")
    gradients = run.call_gradients(CACHE, np.array([1]), upstream=np.ones(1), written=CACHES)
    assert {name: x.tolist() for name, x in gradients.items()} == {
        "query": [8.0], "key": [2.0], "value": [0.0], "key_cache": [2.0, 0.0], "value_cache": [0.0, 0.0]}  # fmt: skip
    assert CACHE["key_cache"].tolist() == [3.0, 9.0]
    with pytest.raises(RuntimeError, match="in-place"):  # torch says so where nobody said that it is written
        run.call_gradients(CACHE, np.array([1]), upstream=np.ones(1))
    learnt = {name: x for name, x in CACHE.items() if name not in CACHES}
    rest = [CACHE[name].copy() for name in CACHES]
    gradients = run.call_gradients(learnt, *rest, np.array([1]), upstream=np.ones(1), written=CACHES)
    assert gradients["key"].tolist() == [2.0]
    with pytest.raises(ContractError, match="wrote to an argument"):
        run.call_gradients(learnt, *rest, np.array([1]), upstream=np.ones(1), written=CACHES[1:])


@pytest.mark.parametrize("arrays", ["torch", "jax"])
def test_what_is_served_need_not_be_differentiated(arrays: str) -> None:
    """Unless it says that it is."""
    jax = pytest.importorskip("jax", reason="needs jax") if arrays == "jax" else None

    def served(query: Any, key_pages: Any, value_pages: Any, page_table: Any, lengths: Any) -> Any:
        return query.detach() if jax is None else jax.lax.stop_gradient(query)

    given, rest = (
        dict.fromkeys(("query", "key_pages", "value_pages"), np.ones(1, np.float32)),
        (np.zeros(1), np.zeros(1)),
    )
    run = Run(describe(served, operation="paged_attention", arrays=arrays), dtype="float32")
    with pytest.raises(UnsupportedCase, match="has no gradient"):
        run.call_gradients(given, *rest, upstream=np.ones(1, np.float32))
    assert "gradients" not in run.used
    declared = Run(describe(served, operation="paged_attention", arrays="torch", differentiable=True))
    if arrays == "torch":
        with pytest.raises(RuntimeError, match="does not require grad"):
            declared.call_gradients(given, *rest, upstream=np.ones(1, np.float32))
