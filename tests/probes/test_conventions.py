"""What an implementation chose is found out by small examples; what is declared is believed and held to."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from qkverify.contract import describe, registry
from qkverify.probes import conventions, fast_exponential
from qkverify.rounding import Precision
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, check, law_book, prepare

from ..rounding.simulated_arithmetic import cubic_exponential


def attention(query, key, value, *, mask=None, return_lse=False, lowest=-np.inf, base=1.0):
    """One head a key head; a hidden score is `lowest`, the log-sum-exp is divided by `base`."""
    scores = query.astype(np.float64) @ np.swapaxes(key, -1, -2).astype(np.float64) * query.shape[-1] ** -0.5
    scores = scores if mask is None else np.where(mask, scores, lowest)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    output = (weights @ value / np.where(total == 0, 1, total)).astype(query.dtype)
    lse = (
        np.where(
            total > 0, np.log(np.where(total > 0, total, 1)) + np.where(np.isneginf(top), 0, top), -np.inf
        )
        / base
    )
    return (output, lse[..., 0]) if return_lse else output


def kernel(**fixed):
    def attention_(query, key, value, *, mask=None, return_lse=False):
        return attention(query, key, value, mask=mask, return_lse=return_lse, **fixed)

    attention_.__name__ = "attention"
    return attention_


def cell(function, dtype="float64", **declared):
    implementation = describe(
        function,
        arrays="numpy",
        dtypes=(dtype,),
        requires=("G == H", "K >= 1"),
        differentiable=False,
        **declared,
    )
    return Cell(implementation, "cpu", dtype)


def verdict(at, name="log_sum_exp_is_right"):
    law = next(law for law in law_book() if law.name == name)
    return check(law, prepare(at), max_examples=60, seed=1, database=None).outcome


@pytest.mark.parametrize(("lowest", "expected"), [(-np.inf, "-inf"), (-1e30, "finite")])
def test_the_log_sum_exp_of_an_empty_row_is_found_out_and_held_to(lowest, expected):
    at = cell(kernel(lowest=lowest))
    choice = conventions.detect(at.implementation, "cpu", "float64")["empty_lse"]
    assert (choice.value, choice.how) == (expected, "detected")
    assert verdict(at) == "passed"


def test_a_finite_log_sum_exp_breaks_what_is_declared():
    assert verdict(cell(kernel(lowest=-1e30), empty_lse="-inf", empty_rows="uniform")) == "failed"


def test_base_two_is_right_where_it_is_declared_and_wrong_where_nothing_is():
    assert verdict(cell(kernel(base=np.log(2)), lse="base2")) == "passed"
    assert verdict(cell(kernel(base=np.log(2)))) == "failed"
    assert verdict(cell(kernel(), lse="base2")) == "failed"


def test_bits_are_compared_where_that_is_declared_and_only_there():
    """Right, and two calls differ in the last bits: nobody promised that they would not."""
    calls = []

    def attention(query, key, value):
        calls.append(1)
        output = kernel()(query, key, value)
        return output if len(calls) < 20 or len(calls) % 2 else np.nextafter(output, np.float32(np.inf))

    choices = conventions.detect(cell(attention, "float32").implementation, "cpu", "float32")
    assert choices["deterministic"] == choices["batch_invariant"] == conventions.Choice("yes", "detected")
    assert {"deterministic", "batch_invariant"}.isdisjoint(conventions.settled(choices))
    calls[:] = [1] * 20
    assert verdict(cell(attention, "float32"), "same_call_twice") == "passed"
    assert verdict(cell(attention, "float32", deterministic=True), "same_call_twice") == "failed"


def rounded_backward(query, key, value, upstream):
    """The scores, and the weights' gradient, stored in bfloat16 on the way: coarser than the forward pass."""
    q, k, v, g = (x.astype(np.float64) for x in (query, key, value, upstream))
    scores = (q @ np.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5).astype(ml_dtypes.bfloat16).astype(np.float64)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = (g @ np.swapaxes(v, -1, -2)).astype(ml_dtypes.bfloat16).astype(np.float64)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    gradients = d_scores @ k, np.swapaxes(d_scores, -1, -2) @ q, np.swapaxes(weights, -1, -2) @ g
    return tuple(x.astype(query.dtype) for x in gradients)


def test_gradients_may_round_more_than_the_output():
    function = kernel()
    implementation = describe(
        function, arrays="numpy", dtypes=("bfloat16",), requires=("G == H", "K >= 1"), vjp=rounded_backward
    )
    choices = conventions.detect(implementation, "cpu", "bfloat16")
    assert (choices["precision"].value, choices["gradient_precision"].value) == ("fused", "eager")
    assert choices["delta"].value == "weights"
    run = prepare(Cell(implementation, "cpu", "bfloat16"))
    assert run.gradient_precision.elementwise.unit > run.precision.elementwise.unit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("offered", [True, False], ids=["with a scale", "without"])
@pytest.mark.parametrize(("stored", "expected"), [("scores", "eager"), ("weights", "fused")])
def test_scores_stored_in_half_precision_are_found_out(dtype, offered, stored, expected):
    """Small scores do not show it: what they lose is no more than the rounding of the weights."""

    def plain(query, key, value):
        return scaled(query, key, value)

    def scaled(query, key, value, *, scale=None):
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        scores = q @ np.swapaxes(k, -1, -2) * np.float32(q.shape[-1] ** -0.5 if scale is None else scale)
        if stored == "scores":
            scores = scores.astype(query.dtype).astype(np.float32)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        if stored == "weights":
            weights = weights.astype(query.dtype).astype(np.float32)
        return (weights @ v / total).astype(query.dtype)

    choices = conventions.detect(cell(scaled if offered else plain, dtype).implementation, "cpu", dtype)
    assert (choices["precision"].value, choices["precision"].how) == (expected, "detected")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["before the division", "after it", "not at all"])
@pytest.mark.parametrize(
    ("exponential", "expected"), [(np.exp, "fused"), (cubic_exponential, "fused-fast-exp")]
)
def test_a_fast_exponential_is_found_out(dtype, stored, exponential, expected):
    """Whatever else is rounded, and in the dtype where its error is a thirtieth of a rounding as well."""

    def attention(query, key, value):
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        scores = q @ np.swapaxes(k, -1, -2) * np.float32(q.shape[-1] ** -0.5)
        weights = exponential(scores - scores.max(-1, keepdims=True)).astype(np.float32)
        total = weights.sum(-1, keepdims=True)
        if stored == "after it":
            return ((weights / total).astype(query.dtype).astype(np.float32) @ v).astype(query.dtype)
        if stored == "before the division":
            weights = weights.astype(query.dtype).astype(np.float32)
        return (weights @ v / total).astype(query.dtype)

    choices = conventions.detect(cell(attention, dtype).implementation, "cpu", dtype)
    assert (choices["precision"].value, choices["precision"].how) == (expected, "detected")
    assert conventions.precisions_of(choices, dtype)["precision"] == Precision.named(expected, dtype)


def attending(operation, exponential):
    """A fused kernel of an operation: float32 inside, with this exponential."""

    def attend(query, key, value, visible=True):
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        scores = np.where(visible, q @ np.swapaxes(k, -1, -2) * np.float32(q.shape[-1] ** -0.5), -80)
        weights = exponential(scores - scores.max(-1, keepdims=True)).astype(np.float32)
        weights = np.where(visible, weights, np.float32(0))
        return (weights @ v / weights.sum(-1, keepdims=True)).astype(query.dtype)

    def last(query, key, value, lengths):
        place = lengths[:, None, None, None] - query.shape[2] + np.arange(query.shape[2])[:, None]
        return attend(query, key, value, np.arange(key.shape[2]) <= place)

    def packed_attention(query, key, value, query_starts, key_starts):
        assert len(query_starts) == 2
        return attend(*(x.swapaxes(0, 1) for x in (query, key, value))).swapaxes(0, 1)

    def cached_attention(query, key, value, key_cache, value_cache, lengths):
        for b, n in enumerate(lengths):
            key_cache[b, :, n : n + key.shape[2]], value_cache[b, :, n : n + key.shape[2]] = key[b], value[b]
        return last(query, key_cache, value_cache, lengths + key.shape[2])

    def paged_attention(query, key_pages, value_pages, page_table, lengths):
        flat = (
            x[page_table].reshape(len(lengths), -1, *x.shape[2:]).swapaxes(1, 2)
            for x in (key_pages, value_pages)
        )
        return last(query, *flat, lengths)

    def multi_head_attention(x, w_q, w_k, w_v, w_o, *, heads):
        return attend(x @ w_q, x @ w_k, x @ w_v) @ w_o

    return {
        f.__name__: f for f in (packed_attention, cached_attention, paged_attention, multi_head_attention)
    }[operation]


@pytest.mark.parametrize("operation", sorted(set(fast_exponential.OF) - {"attention"}))
def test_a_fast_exponential_is_found_out_wherever_it_attends(operation):
    for exponential, expected in ((np.exp, None), (cubic_exponential, "fused-fast-exp")):
        implementation = describe(attending(operation, exponential), arrays="numpy", dtypes=("float16",))
        choices = conventions.detect(implementation, "cpu", "float16")
        assert implementation.operation == operation
        assert choices == ({"precision": conventions.Choice(expected, "detected")} if expected else {})
        assert prepare(Cell(implementation, "cpu", "float16")).precision == Precision.named(
            expected or "fused", "float16"
        )
        assert conventions.detect(implementation, "cpu", "float32") == {}
        declared = describe(
            attending(operation, exponential), arrays="numpy", dtypes=("float16",), precision="fused"
        )
        assert conventions.detect(declared, "cpu", "float16") == {}


@pytest.mark.parametrize("name", ["torch_packed", "torch_cached", "torch_paged"])
def test_torchs_fused_attention_is_found_out_in_what_calls_it(name):
    implementation = replace(registry.find(name)[0], precision={})
    assert conventions.detect(implementation, "cpu", "float16")["precision"].value == "fused-fast-exp"


def test_what_is_declared_for_a_device_is_not_asked_for():
    implementation = cell(
        kernel(), "float16", precision={"float16": "eager", "float16-cpu": "fused-fast-exp"}
    ).implementation
    choices = conventions.detect(implementation, "cpu", "float16")
    assert choices["precision"] == conventions.Choice("fused-fast-exp", "declared")
    assert Run(implementation, "cpu", "float16").precision == Precision.fused_fast_exp("float16")


def flash_backward(query, key, value, upstream):
    """What a fused backward pass does that keeps the output only: delta is the sum of upstream times the rounded output."""
    q, k, v, g = (x.astype(np.float64) for x in (query, key, value, upstream))
    scores = q @ np.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    delta = (g * (weights @ v).astype(query.dtype).astype(np.float64)).sum(-1, keepdims=True)
    d_scores = weights * (g @ np.swapaxes(v, -1, -2) - delta) * q.shape[-1] ** -0.5
    gradients = d_scores @ k, np.swapaxes(d_scores, -1, -2) @ q, np.swapaxes(weights, -1, -2) @ g
    return tuple(x.astype(query.dtype) for x in gradients)


def test_delta_of_the_stored_output_is_found_out():
    implementation = describe(
        kernel(), arrays="numpy", dtypes=("bfloat16",), requires=("G == H", "K >= 1"), vjp=flash_backward
    )
    choices = conventions.detect(implementation, "cpu", "bfloat16")
    assert (choices["gradient_precision"].value, choices["delta"]) == (
        "fused",
        conventions.Choice("output", "detected"),
    )
    assert conventions.settled(choices)["delta"] == "output"


@pytest.mark.parametrize(
    ("added", "expected"), [(True, "uniform with gradients"), (False, "uniform")], ids=["added", "replaced"]
)
def test_a_row_that_sees_no_key_may_pass_gradients_on(added, expected):
    torch = pytest.importorskip("torch", reason="needs torch")

    def attention(query, key, value, *, mask=None, causal=False):
        scores = query @ key.mT * query.shape[-1] ** -0.5
        lowest = torch.finfo(scores.dtype).min
        if causal:
            past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
            mask = past if mask is None else past & mask
        if mask is not None:
            scores = scores + torch.where(mask, 0.0, lowest) if added else scores.masked_fill(~mask, lowest)
        return torch.softmax(scores, -1) @ value

    implementation = describe(attention, arrays="torch", dtypes=("float32",), requires=("G == H", "K >= 1"))
    at = Cell(implementation, "cpu", "float32")
    choice = conventions.detect(implementation, "cpu", "float32")["empty_rows"]
    assert (choice.value, choice.how) == (expected, "detected")
    assert verdict(at, "vjp_agrees_with_reference") == "passed"
    other = ({"uniform", "uniform with gradients"} - {expected}).pop()
    wrong = Cell(
        replace(implementation, semantics={**implementation.semantics, "empty_rows": other}), "cpu", "float32"
    )
    assert verdict(wrong, "vjp_agrees_with_reference") == "failed"
