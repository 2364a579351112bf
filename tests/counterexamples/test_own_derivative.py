"""A wrong gradient is put down to the output if it is that output's derivative, and else to the backward pass."""

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.counterexamples.causes import causes
from qkverify.counterexamples.own_derivative import follows_own_output
from qkverify.problem.attention_problem import Problem
from qkverify.verification.checking import Cell, checked, law_book, prepare

torch = pytest.importorskip("torch")


class Halved(torch.autograd.Function):
    """The identity, with half its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / 2


def core(q, k, v, scale):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v


def default(q, scale):
    return q.shape[-1] ** -0.5 if scale is None else scale


def right(q, k, v, *, scale=None):
    return core(q, k, v, default(q, scale))


def without_scale(q, k, v, *, scale=None):
    return core(q, k, v, 1.0)


def scale_ignored(q, k, v, *, scale=None):
    return core(q, k, v, q.shape[-1] ** -0.5)


def values_of_first_head(q, k, v, *, scale=None):
    return core(q, k, v[:, :1].expand(v.shape), default(q, scale))


def values_halved(q, k, v, *, scale=None):
    return core(q, k, Halved.apply(v), default(q, scale))


def without_scale_and_values_halved(q, k, v, *, scale=None):
    return core(q, k, Halved.apply(v), 1.0)


def causal_strict(q, k, v, *, causal=False):
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(k.shape[2] - q.shape[2]) & causal
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, -torch.inf)
    return torch.softmax(scores, -1) @ v


def cell_of(function):
    implementation = describe(
        function, arrays="torch", dtypes=("float32",), requires=("B >= 1", "K >= 1", "Q >= 1")
    )
    return Cell(implementation, "cpu", "float32")


def a_problem():
    generator = np.random.default_rng(1)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    arrays = {"query": normal(2, 4, 3, 8), "key": normal(2, 2, 5, 8), "value": normal(2, 2, 5, 4)}
    return Problem(**arrays, upstream=normal(2, 4, 3, 4))


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (without_scale, True),
        (values_of_first_head, True),
        (values_halved, False),
        (without_scale_and_values_halved, False),
        (right, None),  # there is nothing to tell apart
    ],
)
def test_gradients_are_held_against_differences_of_the_output(function, answer):
    run, problem = prepare(cell_of(function)), a_problem()
    got, exact = run.gradient_values(problem), run.gradient_bounds(problem)
    assert follows_own_output(run, problem, got, exact) is answer


def test_an_output_of_more_keys_than_the_problem_shows_is_rounded_as_such():
    """By the problem the only key gets all the weight, without an error; the function averages three, and rounds."""
    run, one = prepare(cell_of(causal_strict)), np.ones((1, 1, 1, 1), np.float32)
    value = np.float32([0, 1, 0, 0]).reshape(1, 1, 4, 1)
    problem = Problem(
        query=one, key=0 * value, value=value, causal=True, causal_alignment="top-left", upstream=one
    )
    got, exact = run.gradient_values(problem), run.gradient_bounds(problem)
    assert follows_own_output(run, problem, got, exact) is True


def test_it_stays_unknown_where_the_output_is_not_finite():
    run, problem = prepare(cell_of(without_scale)), a_problem()
    got, exact = run.gradient_values(problem), run.gradient_bounds(problem)
    spoilt = problem.replace(value=problem.value * np.float32("nan"))
    with np.errstate(invalid="ignore"):
        assert follows_own_output(run, spoilt, got, exact) is None


VALUES = ("agrees_with_reference", "vjp_agrees_with_reference", "double_backward")


def blocks(function, names=VALUES, examples=10):
    laws = [law for law in law_book() if law.name in names]
    return causes(checked(cell_of(function), laws, examples=examples))


@pytest.mark.parametrize("function", [scale_ignored, values_of_first_head])
def test_gradients_of_a_wrong_output_stand_in_its_block(function, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    groups = blocks(function)
    assert [set(cause.laws) for cause in groups] == [set(VALUES)]
    assert groups[0].first.law == "agrees_with_reference"


def test_a_second_mistake_in_the_backward_pass_is_a_cause_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    groups = blocks(without_scale_and_values_halved, VALUES[:2], examples=20)
    said = [(cause.first.law, cause.first.counterexample.diagnosis) for cause in groups]
    assert said == [
        ("agrees_with_reference", "The result equals attention without a scale."),
        ("vjp_agrees_with_reference", ""),
    ]


CALLS = ("agrees_with_reference", "inputs_are_not_written", "same_call_twice")


def test_laws_broken_by_a_call_that_writes_to_its_arguments_are_one_cause(monkeypatch, tmp_path):
    def in_place(q, k, v, *, scale=None):
        q *= default(q, scale)
        return core(q, k, v, 1.0)

    monkeypatch.chdir(tmp_path)
    groups = blocks(in_place, CALLS)
    assert [cause.first.counterexample.diagnosis for cause in groups] == [
        "The call writes into its argument query."
    ]
    assert len(groups[0].laws) > 1


def test_what_is_wrong_even_on_copies_is_not_put_down_to_writing(monkeypatch, tmp_path):
    def in_place_and_wrong(q, k, v, *, scale=None):
        q *= 1.0
        return core(q, k, v, 1.0)

    monkeypatch.chdir(tmp_path)
    assert "writes" not in blocks(in_place_and_wrong, VALUES[:1])[0].text()
