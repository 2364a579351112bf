"""Laws of attention that is merged from two sets of keys."""

from __future__ import annotations

import numpy as np

from qkverify.problem.byte_strategies import EDGES, stretched
from qkverify.runs import exact_merge
from qkverify.runs.assertions import assert_gradients, assert_true, assert_within_bound
from qkverify.strategies.exact_changes import shifted
from qkverify.strategies.operation_spec import Source
from qkverify.strategies.operations import OPERATION_SPECS
from qkverify.verification.laws import law

sizes = stretched({"L": EDGES, "E": EDGES}, E=(2, 1, 3, 4, 8), L=(2, 1, 3, 5), H=(1, 2, 3), B=(1, 2))
merging = {
    "operation": "merged_attention",
    "shape": sizes,
    "apart": (0.0, 10.0, -30.0, 200.0),
    "seed": range(1000),
}


class Sizes:
    """What a call is drawn from: small whole numbers for seeds below 10."""

    def __init__(self, shape, seed, empty):
        self.__dict__.update(shape, seed=seed, empty=empty, fill="whole" if seed < 10 else "normal")


def drawn(run, shape, seed, apart=0.0, empty=False):
    """The output and the log-sum-exp of both sides by name; those of the second are further by so much."""
    s = Sizes(shape, seed, empty)
    given, _ = OPERATION_SPECS["merged_attention"].draw(s, Source(np.dtype(run.numpy_dtype), s, 0))
    return {**given, "lse_b": given["lse_b"] + given["lse_b"].dtype.type(apart)}


def merged(run, given):
    """Output and log-sum-exp with their bounds, and the exact ones, by name."""
    exact = exact_merge.merged(run, *given.values(), **run.meant())
    shapes = {name: part.value.shape for name, part in exact.items()}
    got = run.call_parts(*given.values(), shapes=shapes)
    return {name: run.within(x, exact[name]) for name, x in zip(exact, got, strict=True)}, exact


def assert_merged(run, given, wanted=None):
    """Both parts are the exact ones, or those wanted."""
    got, exact = merged(run, given)
    for name, part in got.items():
        assert_within_bound(part, exact[name].value if wanted is None else wanted[name], what=name)


@law("Two partial attentions are merged by the shares exp(lse) of their sum; the merged log-sum-exp is its logarithm.",
     source="softmax over two sets of keys; FlashAttention, section 3.1", **merging, empty=(False, True))  # fmt: skip
def test_merged_agrees_with_reference(run, shape, apart, seed, empty):
    assert_merged(run, drawn(run, shape, seed, apart, empty))


@law("It does not matter which side comes first.", source="a sum of two", **merging)
def test_merged_sides_may_be_exchanged(run, shape, apart, seed):
    given = drawn(run, shape, seed, apart)
    (o_a, lse_a, o_b, lse_b), (straight, _) = given.values(), merged(run, given)
    assert_merged(run, {"o_a": o_b, "lse_a": lse_b, "o_b": o_a, "lse_b": lse_a}, straight)


@law("A side that has seen no key changes nothing, whichever it is; two of them give an output of zero and -inf.",
     source="exp(-inf) = 0; -inf - -inf is NaN", **merging, side=(("b",), ("a",), ("a", "b")))  # fmt: skip
def test_merged_with_nothing_is_what_it_was(run, shape, apart, seed, side):
    given = drawn(run, shape, seed, apart)
    for name in side:
        given |= {
            f"o_{name}": np.zeros_like(given["o_a"]),
            f"lse_{name}": np.full_like(given["lse_a"], -np.inf),
        }
    other = {"a": "b", "b": "a"}[side[0]]
    assert_merged(
        run,
        given,
        {"output": given[f"o_{other}"].astype(np.float64), "lse": given[f"lse_{other}"].astype(np.float64)},
    )


@law("A constant added to both log-sum-exps changes no output, however large, and is added to the merged one.",
     source="shares do not see it; exponentials of large numbers overflow", **merging, constant=(100, -100, 2000, -2000))  # fmt: skip
def test_merged_output_ignores_a_constant(run, shape, apart, seed, constant):
    given = drawn(run, shape, seed, apart)
    (a, above), (b, beyond) = (shifted(given[name], constant) for name in ("lse_a", "lse_b"))
    straight, _ = merged(run, {**given, "lse_a": a, "lse_b": b})
    moved, _ = merged(run, {**given, "lse_a": above, "lse_b": beyond})
    assert_true(np.isfinite(moved["output"].value), "finite log-sum-exps give an output that is not finite")
    assert_within_bound(moved["output"], straight["output"])


@law("The gradients of merged attention, in both outputs and both log-sum-exps, are those of its formula by the chain rule.",
     source="d share_a / d lse_a = share_a share_b; d lse / d lse_a = share_a", needs="gradients", **merging)  # fmt: skip
def test_merged_gradients_agree_with_reference(run, shape, apart, seed):
    given = drawn(run, shape, seed, apart)
    other = drawn(run, shape, seed + 1000)
    upstream = other["o_a"], other["lse_a"]
    got = run.call_gradients(given, upstream=upstream)
    assert_gradients(run, got, exact_merge.gradients(run, upstream, *given.values(), **run.meant()))
