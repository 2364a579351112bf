"""Gradients: against the reference, against differences, and by what they must add up to."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.runs.assertions import assert_identical, assert_within_bound
from qkverify.runs.hidden_value_corruption import poisoned, unseen
from qkverify.strategies.attention_problems import problems, real_problems
from qkverify.strategies.exact_changes import scaled
from qkverify.verification.laws import law

anything = problems(upstream=True)


def assert_gradients_are_right(run, problem):
    exact = run.exact_gradients(problem)
    for name, gradient in run.gradients(problem).items():
        assert_within_bound(gradient, exact[name], what=f"gradient of {name}")


@law("The gradients are those of softmax(Q K^T * scale) V: dS = P (dP - rowsum(P dP)), summed over all that shares an input.",
     source="FlashAttention, appendix B.2; softmax gradient y_i (delta_ik - y_k)", needs="gradients",
     problem=problems(upstream=True, extremes=True), weight=2.0)  # fmt: skip
def test_vjp_agrees_with_reference(run, problem):
    assert_gradients_are_right(run, problem)


@law("The gradients are right on the queries, keys and values of a trained model.", source="all-MiniLM-L6-v2, first layer, on a page of text: qkverify.problem.activations",
     needs="gradients", problem=real_problems(upstream=True), weight=0.2)  # fmt: skip
def test_vjp_agrees_on_real_activations(run, problem):
    assert_gradients_are_right(run, problem)


@law("The gradients are also right with a scale of zero or below.", source="d S / d Q = scale K, whatever its sign", needs=("gradients", "scale"),
     problem=problems(upstream=True, without=("scale",), tame=True, long=False), scale=(-1.0, -0.25, 0.0), dtypes=("float64", "float32"), weight=0.5)  # fmt: skip
def test_gradients_at_scales_not_positive(run, problem, scale):
    """In full precision, where a sign is all that can be wrong."""
    assert_gradients_are_right(run, problem.replace(scale=scale))


@law("Twice the upstream gradient gives twice the gradients: powers of two exactly.", source="a vector-Jacobian product is linear", needs="gradients", problem=problems(upstream=True, tame=True, long=False),
     factor=(2.0, -1.0, 0.5, -2.0))  # fmt: skip
def test_linear_in_upstream(run, problem, factor):
    larger = problem.replace(upstream=scaled(problem.upstream, factor))
    once, often = run.gradients(problem), run.gradients(larger)
    for name in once:
        assert_within_bound(often[name], once[name] * factor, what=f"gradient of {name}")


@law(
    "An upstream gradient of zero gives gradients of exactly zero.",
    source="a vector-Jacobian product is linear",
    needs="gradients",
    exact=True,
    problem=anything,
)
def test_zero_upstream_gives_zero(run, problem):
    silent = problem.replace(upstream=np.zeros_like(problem.upstream))
    assume(run.in_range(silent))
    for name, gradient in run.gradient_values(silent).items():
        assert_identical(gradient, np.zeros_like(gradient), what=f"gradient of {name}")


@law(
    "The gradient of the values is the transposed weights times the upstream gradient.",
    source="O = P V",
    needs="gradients",
    problem=problems(upstream=True, without=("sinks",), long=False, sizes={"E": "K"}),
)
def test_value_gradient_is_weights_transposed(run, problem):
    s = problem.sizes
    gradient = run.gradients(problem)["value"]
    eye = np.broadcast_to(np.eye(s["K"], dtype=run.numpy_dtype), problem.value.shape)
    weights = run(problem.replace(value=eye, layouts={}))
    rows = weights.reshape(s["B"], s["G"], -1, s["K"]).swapaxes(-1, -2)
    upstream = problem.upstream.astype(np.float64).reshape(s["B"], s["G"], -1, s["E"])
    assert_within_bound(gradient, rows @ upstream, what="gradient of value")


@law("If all values are equal, scores have no influence: the gradients of queries and keys vanish.", source="delta: dP - rowsum(P dP) = 0", needs="gradients",
     problem=problems(values="ones", upstream=True, without=("sinks",), long=False))  # fmt: skip
def test_equal_values_give_no_score_gradient(run, problem):
    gradients = run.gradients(problem)
    for name in ("query", "key"):
        assert_within_bound(gradients[name], 0.0, what=f"gradient of {name}")


@law("Moving every key by the same vector changes no weight, so the key gradients of a head sum to zero along the query.", source="softmax is shift invariant", needs="gradients",
     problem=problems(upstream=True, only=("scale", "causal", "mask", "bias", "key_lengths"), tame=True, sizes={"Q": 1}, long=False))  # fmt: skip
def test_score_gradients_sum_to_zero(run, problem):
    """With one query the score gradient of key j is dK_j . q / (|q|^2 scale): their sum vanishes, head by head."""
    assume(problem.group == 1)
    total = run.gradients(problem)["key"].sum(axis=2)
    assert_within_bound(total, 0.0, what="sum of key gradients")


@law("Adding a constant to all scores of a row changes no gradient.", source="softmax is shift invariant, and so is its derivative", needs=("gradients", "bias"),
     problem=problems(upstream=True, only=("bias", "scale", "causal"), use=("bias",), tame=True, long=False), shift=(1.0, -1.0, 8.0, 100.0, -100.0, 1e4, -1e4))  # fmt: skip
def test_gradient_shift_invariance(run, problem, shift):
    """The bias is the shift alone, which every format holds: a bias beside it would be rounded."""
    zero = np.zeros_like(problem.bias)
    plain, shifted = (run.gradients(problem.replace(bias=x)) for x in (zero, np.full_like(zero, shift)))
    for name in ("query", "key", "value"):
        assert_within_bound(shifted[name], plain[name], what=f"gradient of {name}")


@law("A key or value that no query sees gets zero gradient, exactly, whatever it holds.", source="masked attention", needs=("gradients", "mask"), exact=True,
     problem=problems(upstream=True, use=("mask",)))  # fmt: skip
def test_masked_keys_get_zero_gradient(run, problem):
    s = problem.sizes
    visible = problem.visible.reshape(s["B"], s["G"], s["H"] // s["G"], s["Q"], s["K"]).any(axis=(2, 3))
    assume(problem.empty_row == "zero" or problem.some_visible.all())
    assume(run.in_range(problem))
    gradients = run.gradient_values(problem)
    for name in ("key", "value"):
        assert_identical(
            gradients[name][~visible], np.zeros_like(gradients[name][~visible]), what=f"gradient of {name}"
        )


@law("The gradient of a bias that was broadcast is the sum over what it was broadcast to.", source="gradient of broadcasting", needs=("gradients", "bias"),
     problem=problems(upstream=True, use=("bias",), only=("bias", "scale", "causal"), long=False),
     when=lambda run: "its vjp gives no gradient of the bias" if run.implementation.vjp else None)  # fmt: skip
def test_gradient_of_broadcast_bias_is_summed(run, problem):
    gradients = run.gradients(problem)
    assume("bias" in gradients)
    assert_within_bound(gradients["bias"], run.exact_gradients(problem)["bias"], what="gradient of bias")


@law("The memory layout of the upstream gradient does not matter.", source="strides assumed contiguous in backward kernels", needs="gradients", problem=problems(upstream=True, layouts=False, long=False),
     layout=("heads after length", "last axes swapped", "every second", "slice of longer", "offset"))  # fmt: skip
def test_non_contiguous_upstream(run, problem, layout):
    straight, placed = run.gradients(problem), run.gradients(problem.replace(layouts={"upstream": layout}))
    for name in straight:
        assert_within_bound(placed[name], straight[name], what=f"gradient of {name}")


@law("Constant upstream gradients of all ones in one column give that column's value sums: <g, J x> = <J^T g, x> for the linear part.",
     source="adjoint identity; O is linear in V", needs="gradients", problem=problems(upstream=True, tame=True, long=False))  # fmt: skip
def test_adjoint_identity_in_values(run, problem):
    """<upstream, attention(V)> = <dV, V>, entry by entry of the batch: the two sides come from different code."""
    axes = (1, 2, 3)
    left = (run(problem) * problem.upstream.astype(np.float64)).sum(axis=axes)
    right = (run.gradients(problem)["value"] * problem.value.astype(np.float64)).sum(axis=axes)
    assume(problem.empty_row == "zero" or problem.some_visible.all())
    assert_within_bound(left, right, what="inner product")


@law(
    "Asking for gradients does not change the output.",
    source="another kernel for training than for inference",
    needs="gradients",
    problem=anything,
)
def test_output_is_the_same_while_training(run, problem):
    output, _ = run.output_and_gradients(problem)
    assert_within_bound(run.within(output, run.bound(problem)[0]), run.exact(problem))


@law("A backward pass belongs to its own forward pass, whatever was computed between the two.", source="what is kept for the backward pass, kept in one place for all calls",
     needs="gradients", problem=problems(upstream=True, long=False, tame=True), factor=(-1.0, 2.0, 0.0))  # fmt: skip
def test_backward_belongs_to_its_forward(run, problem, factor):
    between = problem.replace(
        query=(problem.query.astype(np.float64) * factor).astype(run.numpy_dtype), layouts={}
    )
    bounds = run.gradient_bounds(problem)
    for name, gradient in run.gradients_of(problem, between=between).items():
        assert_within_bound(
            run.within(gradient, bounds[name]), bounds[name].value, what=f"gradient of {name}"
        )


@law("The gradient of the log-sum-exp by the scores is the weights, and so by query and key.", source="d logsumexp / d s = softmax(s)", needs="lse_gradient",
     problem=problems(only=("scale", "causal", "softcap", "mask", "window"), use=("return_lse",), tame=True, long=False), seed=range(100))  # fmt: skip
def test_gradient_of_lse(run, problem, seed):
    upstream = np.random.default_rng(seed).integers(-2, 3, problem.query.shape[:3]).astype(run.numpy_dtype)
    assume(problem.some_visible.all())
    exact = run.lse_gradient_bounds(problem, upstream)
    for name, gradient in run.lse_gradients(problem, upstream).items():
        assert_within_bound(run.within(gradient, exact[name]), exact[name].value, what=f"gradient of {name}")


@law("An upstream gradient of stride zero, along the last axis or along all, is what it is when written out.", source="output.sum().backward(), output.mean(-1)",
     needs="gradients", problem=problems(upstream=True, layouts=False, long=False), axes=(4, 1, 2))  # fmt: skip
def test_upstream_of_stride_zero(run, problem, axes):
    """`axes` counts the trailing axes that are expanded."""
    kept = problem.upstream[(..., *(slice(0, 1),) * axes)]
    spread = problem.replace(upstream=np.broadcast_to(kept, problem.upstream.shape))
    exact, got = run.gradient_bounds(spread), run.gradient_values(spread)
    for name in ("query", "key", "value"):
        assert_within_bound(run.within(got[name], exact[name]), exact[name].value, what=f"gradient of {name}")


@law("The gradients of one forward pass are the same when they are asked for again.", source="what is kept for the backward pass is changed by it; retain_graph",
     needs="gradients", problem=problems(upstream=True, long=False, tame=True), weight=0.5)  # fmt: skip
def test_backward_twice(run, problem):
    exact = run.gradient_bounds(problem)
    for time, gradients in zip(("first", "second"), run.repeated_gradients(problem), strict=True):
        for name, gradient in gradients.items():
            assert_within_bound(
                run.within(gradient, exact[name]), exact[name].value, what=f"{time} gradient of {name}"
            )


@law("Returned gradients do not change when others are computed.", source="one workspace for the gradients of all calls", needs="gradients", exact=True,
     problem=problems(upstream=True, long=False, layouts=False, tame=True), factor=(-2.0, 3.0), weight=0.5)  # fmt: skip
def test_gradients_are_kept(run, problem, factor):
    later = problem.replace(
        upstream=(problem.upstream.astype(np.float64) * factor + 1).astype(run.numpy_dtype)
    )
    before, after = run.kept_gradients(problem, later)
    for name, gradient in after.items():
        assert_identical(gradient, before[name], what=f"gradient of {name}")


@law("If an input is overwritten between the two passes, an error is raised, or the gradients do not change.", source="a saved argument that is read again in the backward pass",
     needs="gradients", problem=problems(upstream=True, long=False, layouts=False, tame=True, without=("sinks",)),
     name=("key_lengths", "mask", "bias", "query", "key", "value"), weight=0.5)  # fmt: skip
def test_overwritten_between_the_passes(run, problem, name):
    assume(getattr(problem, name) is not None)
    exact = run.gradient_bounds(problem)
    for other, gradient in run.gradients_of_overwritten(problem, name).items():
        assert_within_bound(
            run.within(gradient, exact[other]), exact[other].value, what=f"gradient of {other}"
        )


@law("Which inputs ask for a gradient does not change the gradients that the others get.", source="gradients returned in the wrong places where one is not needed",
     needs="gradients", problem=problems(upstream=True, long=False, tame=True), wanted=(("key", "value"), ("query",), ("value",), ("key",), ("query", "value")))  # fmt: skip
def test_gradients_of_some_inputs(run, problem, wanted):
    exact = run.gradient_bounds(problem)
    for name, gradient in run.gradients_of(problem, wanted).items():
        assert_within_bound(run.within(gradient, exact[name]), exact[name].value, what=f"gradient of {name}")


@law("Gradients pass through views of query, key, value and bias.", source="pytorch/pytorch#162228: a bias that is captured by a compiled function",
     needs="gradients", problem=problems(upstream=True, long=False, tame=True))  # fmt: skip
def test_gradients_through_views(run, problem):
    exact = run.gradient_bounds(problem)
    for name, gradient in run.gradient_values(problem, views=True).items():
        assert_within_bound(run.within(gradient, exact[name]), exact[name].value, what=f"gradient of {name}")


@law("The gradient of the values is differentiable again: <dV, W> has the gradients that attention over the values W has.", source="<P^T g, W> = <g, P W>; gradient penalties",
     needs="gradients", dtypes=("float64", "float32"), seed=range(100),
     problem=problems(upstream=True, tame=True, long=False, only=("scale", "causal", "mask", "bias", "softcap", "window")))  # fmt: skip
def test_double_backward(run, problem, seed):
    direction = np.random.default_rng(seed).integers(-2, 3, problem.value.shape).astype(run.numpy_dtype)
    assume(problem.some_visible.all())
    exact = run.gradient_bounds(problem.replace(value=direction))
    for name, gradient in run.second_gradients(problem, direction).items():
        assert_within_bound(
            run.within(gradient, exact[name]),
            exact[name].value,
            what=f"second derivative by value and {name}",
        )


@law("Axes of length zero have gradients of length zero, and nothing else of them is left.", source="empty sequences in the backward pass", needs="gradients",
     problem=problems(upstream=True, zero=True, long=False, layouts=False, without=("sinks",)), weight=0.5)  # fmt: skip
def test_gradients_of_empty_axes(run, problem):
    exact = run.gradient_bounds(problem) if problem.sizes["K"] else None
    for name, gradient in run.gradient_values(problem).items():
        if exact is not None:
            assert_within_bound(
                run.within(gradient, exact[name]), exact[name].value, what=f"gradient of {name}"
            )
        else:
            assert_identical(gradient, np.zeros_like(gradient), what=f"gradient of {name}")


@law("The numbers in invisible keys and values do not influence any gradient.", source="zero times NaN in the backward pass", needs=("gradients", "mask"), exact=True,
     problem=problems(upstream=True, use=("mask",), long=False, layouts=False), which=range(6))  # fmt: skip
def test_hidden_keys_do_not_reach_gradients(run, problem, which):
    hidden = unseen(problem)
    assume(hidden.any() and (problem.empty_row == "zero" or problem.some_visible.all()))
    clean = poisoned(run, problem, hidden, which).replace(
        key=np.where(hidden[..., None], 0, problem.key), value=np.where(hidden[..., None], 0, problem.value)
    )
    spoilt = poisoned(run, problem, hidden, which)
    before, after = run.gradient_values(clean), run.gradient_values(spoilt)
    bounds = run.gradient_bounds(clean)
    for name in ("query", "key", "value"):
        if np.isfinite(spoilt.value[hidden]).all() and run.adds_in_order:
            assert_identical(after[name], before[name], what=f"gradient of {name}")
        else:  # NaN may be cleaned away by a path that sums in another order
            first, second = (run.within(gradients[name], bounds[name]) for gradients in (before, after))
            assert_within_bound(second, first, what=f"gradient of {name}")


@law("Asking for the log-sum-exp does not change the gradients.", source="an output beside another cuts the graph", needs=("gradients", "return_lse"),
     problem=problems(upstream=True, long=False, tame=True))  # fmt: skip
def test_gradients_do_not_depend_on_return_lse(run, problem):
    exact = run.gradient_bounds(problem)
    _, gradients = run.output_and_gradients(problem.replace(return_lse=True))
    for name, got in gradients.items():
        assert_within_bound(run.within(got, exact[name]), exact[name].value, what=f"gradient of {name}")


@law("Gradients of calls of the sizes that models have are right.", source="the fast paths are taken here", needs="gradients",
     problem=problems(usual=True, tame=True, only=("causal", "scale"), upstream=True), weight=0.4)  # fmt: skip
def test_usual_gradients(run, problem):
    assert_gradients_are_right(run, problem)
