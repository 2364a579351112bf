"""A query that sees no key may get one thing or another by what hides its keys: found out for each way, and held to."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from qkverify.contract import describe, empty_rows
from qkverify.errors import UsageError
from qkverify.probes import conventions
from qkverify.problem.attention_problem import Problem
from qkverify.reference.masks import visible
from qkverify.verification.checking import Cell, check, info, law_book, prepare

LAWS = ("agrees_with_reference", "fully_masked_rows_follow_policy", "causal_equals_explicit_mask", "window_equals_explicit_mask",
        "all_true_mask_is_neutral", "masks_compose")  # fmt: skip


def kernel(values, *offered):
    """NumPy attention whose rows that see no key get `values[way]` of the first way that is in use."""
    fill = {"zero": 0.0, "nan": np.nan}

    def computed(query, key, value, **options):
        key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
        b, h, q, k = *query.shape[:3], key.shape[2]
        scale = options.pop("scale", None)
        bias = options.pop("bias", None)
        allowed = np.broadcast_to(visible(b, q, k, **options), (b, h, q, k))
        scores = (
            query.astype(np.float64)
            @ key.swapaxes(-1, -2)
            * (query.shape[-1] ** -0.5 if scale is None else scale)
        )
        scores = np.where(allowed, scores + (0 if bias is None else bias), -np.inf)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
        total = weights.sum(-1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
        used = [way for way in empty_rows.WAYS if way in options or (way == "bias" and bias is not None)]
        if used:
            weights = np.where(np.isneginf(top), fill.get(values[used[0]], 1 / max(k, 1)), weights)
        with np.errstate(invalid="ignore"):
            return (weights @ value).astype(query.dtype)

    code = (
        f"def attention(query, key, value, *, scale=None, {', '.join(f'{name}=None' for name in offered)}):\n"
    )
    given = ", ".join(f"{name}={name}" for name in offered)
    code += f"    options = {{n: x for n, x in dict({given}).items() if x is not None and x is not False}}\n"
    code += "    return computed(query, key, value, scale=scale, **options)\n"
    names = {"computed": computed}
    exec(code, names)
    return names["attention"]


def cell(function, **declared):
    implementation = describe(
        function, arrays="numpy", dtypes=("float64",), requires=("K >= 1",), differentiable=False, **declared
    )
    return Cell(implementation, "cpu", "float64")


def outcomes(at, examples=60):
    laws = [law for law in law_book() if law.name in LAWS]
    return {law.name: check(law, prepare(at), max_examples=examples, seed=2, database=None) for law in laws}


def failed(at):
    return {name: verdict.reason for name, verdict in outcomes(at).items() if verdict.outcome == "failed"}


PAIRS = [(a, b) for a, b in itertools.combinations(empty_rows.WAYS, 2)]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_two_ways_that_differ_are_both_found_out_and_held_to(pair):
    values = {pair[0]: "zero", pair[1]: "nan"}
    at = cell(kernel(values, *pair))
    choice = conventions.detect(at.implementation, "cpu", "float64")["empty_rows"]
    assert (choice.value, choice.how) == (f"nan ({pair[1]}), zero ({pair[0]})", "detected")
    assert failed(at) == {}
    assert info(at.implementation, {"empty_rows": choice}, {}).semantics["empty_rows"].value == choice.value


@pytest.mark.parametrize("value", ["zero", "nan", "uniform"])
def test_one_value_for_all_stays_one_word(value):
    at = cell(kernel(dict.fromkeys(empty_rows.WAYS, value), *empty_rows.WAYS))
    assert conventions.detect(at.implementation, "cpu", "float64")["empty_rows"].value == value
    assert failed(at) == {}


def test_three_values_of_five_ways():
    values = {"mask": "uniform", "bias": "nan", "key_lengths": "zero", "causal": "zero", "window": "nan"}
    at = cell(kernel(values, *empty_rows.WAYS))
    expected = "nan (bias, window), uniform (mask), zero (key_lengths, causal)"
    assert conventions.detect(at.implementation, "cpu", "float64")["empty_rows"].value == expected
    assert failed(at) == {}


def test_a_way_declared_otherwise_is_broken():
    values, law = {"mask": "zero", "bias": "nan"}, "fully_masked_rows_follow_policy"
    for declared in ("zero", {"bias": "zero"}, {"mask": "nan"}):
        assert law in failed(cell(kernel(values, "mask", "bias"), empty_rows=declared))
    assert failed(cell(kernel(values, "mask", "bias"), empty_rows=values)) == {}


def test_a_way_that_is_not_declared_is_found_out():
    at = cell(kernel({"mask": "zero", "bias": "nan"}, "mask", "bias"), empty_rows={"mask": "zero"})
    choice = conventions.detect(at.implementation, "cpu", "float64")["empty_rows"]
    assert (choice.value, choice.how) == ("nan (bias), zero (mask)", "declared")


def test_a_declaration_by_way_is_checked():
    def attention(query, key, value, *, mask=None):
        return value

    with pytest.raises(UsageError, match="unknown way to hide keys 'lengths'"):
        describe(attention, empty_rows={"lengths": "zero"})
    with pytest.raises(UsageError, match="unknown empty_rows 'zeros'"):
        describe(attention, empty_rows={"mask": "zeros"})
    with pytest.raises(UsageError, match="for packed_attention, give one value"):
        describe(attention, operation="packed_attention", empty_rows={"mask": "zero", "window": "nan"})
    assert describe(attention, empty_rows={"mask": "zero"}).semantics["empty_rows"] == "zero (mask)"


def problem(**options):
    query = np.zeros((1, 1, 2, 1))
    return Problem(query=query, key=np.zeros((1, 1, 3, 1)), value=np.ones((1, 1, 3, 1)), **options)


def test_a_row_hidden_in_several_ways_that_differ_is_not_judged():
    convention = "nan (bias), uniform (causal), zero (mask, key_lengths)"
    mask = np.array([[[[True] * 3, [False] * 3]]])
    bias = np.where(mask, 0.0, -np.inf)
    assert problem(mask=mask, empty_rows=convention).empty_row == "zero"
    assert problem(bias=bias, empty_rows=convention).empty_row == "nan"
    lengths = np.array([0])
    assert problem(mask=mask, key_lengths=lengths, empty_rows=convention).empty_row == "zero"
    assert problem(mask=mask, bias=bias, empty_rows=convention).empty_row == empty_rows.UNDECIDED
    assert problem(bias=bias, sinks=np.zeros(1), empty_rows=convention).empty_row == "zero"
    assert (
        problem(mask=mask, window=(0, 0), empty_rows=convention).empty_row == empty_rows.UNDECIDED
    )  # nobody knows of windows
    assert problem(mask=mask, empty_rows="nan").empty_row == "nan"


def test_no_value_is_accepted_for_a_row_that_sees_keys():
    """What is not judged is the row that sees none, and no other."""
    function = kernel({"mask": "zero", "bias": "nan"}, "mask", "bias")

    def attention(query, key, value, *, mask=None, bias=None):
        output = function(query, key, value, mask=mask, bias=bias)
        both = mask is not None and bias is not None
        return output * 2 if both else output

    at = cell(attention)
    assert (
        conventions.detect(at.implementation, "cpu", "float64")["empty_rows"].value
        == "nan (bias), zero (mask)"
    )
    assert "agrees_with_reference" in failed(at)


@pytest.mark.parametrize("values", [{"mask": "nan", "causal": "zero"}, {"mask": "uniform", "causal": "zero"}])
def test_gradients_are_judged_by_the_way_too(values):
    torch = pytest.importorskip("torch", reason="needs torch")

    def attention(query, key, value, *, mask=None, causal=False):
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(
            key.shape[2] - query.shape[2] if causal else 10**6
        )
        visible = past if mask is None else past & mask
        weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1)
        empty = ~visible.any(-1, keepdim=True)
        weights = torch.where(empty, 0.0, weights.masked_fill(empty, 0.0))
        if mask is not None:
            weights = torch.where(empty, torch.nan if values["mask"] == "nan" else 1 / key.shape[2], weights)
        return weights @ value

    implementation = describe(attention, arrays="torch", dtypes=("float64",), requires=("K >= 1",))
    at = Cell(implementation, "cpu", "float64")
    choice = conventions.detect(implementation, "cpu", "float64")["empty_rows"]
    assert choice.value == empty_rows.joined(values)
    law = next(law for law in law_book() if law.name == "vjp_agrees_with_reference")
    assert check(law, prepare(at), max_examples=60, seed=1, database=None).outcome == "passed"
    if values["mask"] == "nan":  # a NaN that is passed on is natural, and nothing is said of it
        return
    wrong = Cell(
        replace(implementation, semantics={"empty_rows": "zero"}),
        "cpu",
        "float64",
    )
    assert check(law, prepare(wrong), max_examples=60, seed=1, database=None).outcome == "failed"


def test_the_nan_of_a_row_may_reach_gradients_and_no_others_of_another_head():
    """softmax of nothing but -inf is NaN in torch, and its backward pass multiplies by it: the commonest attention there is."""
    torch = pytest.importorskip("torch", reason="needs torch")

    def attention(query, key, value, *, mask=None, causal=False):
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if causal:
            past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
            scores = scores.masked_fill(~past, -torch.inf)
        return torch.softmax(scores, -1) @ value

    law = next(law for law in law_book() if law.name == "vjp_agrees_with_reference")
    implementation = describe(attention, arrays="torch", dtypes=("float64",), requires=("K >= 1",))
    at = Cell(implementation, "cpu", "float64")
    assert conventions.detect(implementation, "cpu", "float64")["empty_rows"].value == "nan"
    assert check(law, prepare(at), max_examples=100, seed=1, database=None).outcome == "passed"
    run = prepare(at)
    mask = np.ones((1, 2, 2, 2), bool)
    mask[0, 0, 0] = False
    arrays = {name: np.ones((1, 2, 2, 1)) for name in ("query", "key", "value", "upstream")}
    errors = {
        n: x.errors for n, x in run.gradient_bounds(Problem(**arrays, mask=mask, empty_rows="nan")).items()
    }
    assert np.isposinf(errors["query"]).tolist() == [[[[True], [False]], [[False], [False]]]]
    for name in ("key", "value"):
        assert np.isposinf(errors[name]).all(axis=(0, 2, 3)).tolist() == [True, False]
        assert np.isfinite(errors[name]).all(axis=(0, 2, 3)).tolist() == [False, True]


def filled(*, added):
    """Causality of -inf, and a mask that fills in a finite number; or both of one finite number, which `added` adds up."""

    def attention(query, key, value, *, mask=None, causal=False):
        key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
        scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5
        ahead = ~np.tri(*scores.shape[-2:], dtype=bool)
        if added:
            scores = scores + (-1e9 * ahead if causal else 0) + (0 if mask is None else -1e9 * ~mask)
        else:
            scores = np.where(ahead & causal, -np.inf, scores)
            scores = (
                scores
                if mask is None
                else np.where(mask, scores, np.where(np.isneginf(scores), scores, -1e9))
            )
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ value

    return attention


@pytest.mark.parametrize(("added", "values"), [
    (False, {"mask": "uniform", "mask with causal": "undecided"}),
    (True, "undecided"),  # -1e9 added in float64 leaves the differences of scores
])  # fmt: skip
def test_rows_that_two_ways_hide_together_are_not_judged_by_what_each_gives_alone(added, values):
    """`scores.masked_fill(ahead, -inf)`, then `masked_fill(~mask, -1e9)`: the mean of the values that causality leaves."""
    at = cell(filled(added=added))
    detected = conventions.detect(at.implementation, "cpu", "float64")["empty_rows"].value
    assert detected == (values if isinstance(values, str) else empty_rows.spelled(values))
    assert failed(at) == {}
    assert "agrees_with_reference" in failed(cell(filled(added=added), empty_rows="uniform"))
    if not added:
        assert failed(cell(filled(added=added), empty_rows=values)) == {}


def test_what_two_ways_give_together_may_only_be_left_open():
    with pytest.raises(UsageError, match="mask with causal"):
        describe(lambda query, key, value: query, empty_rows={"mask with causal": "zero"})


@pytest.mark.parametrize(("later", "outcome"), [(0, "passed"), (1, "failed")])
def test_a_row_without_keys_that_is_the_mean_of_all_values_passes_its_gradient_on_to_all(later, outcome):
    """Causality that fills in -1e9 and is aligned bottom-right, as many write it; `later` keys too many are seen."""
    torch = pytest.importorskip("torch", reason="needs torch")

    def attention(query, key, value, *, causal=False):
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if causal:
            past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(key.shape[2] - query.shape[2] + later)
            scores = scores.masked_fill(~past, -1e9)
        return torch.softmax(scores, -1) @ value

    law = next(law for law in law_book() if law.name == "causal_gradient_ignores_future")
    implementation = describe(attention, arrays="torch", dtypes=("float64",), requires=("G == H",))
    run = prepare(Cell(implementation, "cpu", "float64"))
    assert run.semantics["empty_rows"] == ("undecided" if later else "uniform")
    assert check(law, run, max_examples=30, seed=1, database=None).outcome == outcome
