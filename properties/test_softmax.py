"""Softmax, read out of a fused kernel: with V = I the output is the weights, with K = I and scale 1 the scores are the query."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.problem import distributions
from qkverify.problem.byte_strategies import EDGES
from qkverify.reference.softmax import softmax as reference_softmax
from qkverify.reference.softmax import softmax_jacobian, softmax_vjp
from qkverify.rounding import EXACT, Bounded
from qkverify.runs import exact_gradients
from qkverify.runs.assertions import (
    assert_at_least,
    assert_at_most,
    assert_gradients,
    assert_identical,
    assert_true,
    assert_within_bound,
)
from qkverify.strategies.attention_problems import problems
from qkverify.strategies.exact_changes import shifted
from qkverify.verification.laws import law

weights = problems(values="identity", without=("sinks",))
softmaxes = problems(values="identity", keys="identity", only=("scale",), long=False)


@law("A row of attention weights sums to one, or to nothing where no key is visible.", source="softmax definition; Illustrated Transformer, part 2",
     problem=weights)  # fmt: skip
def test_rows_sum_to_one(run, problem):
    total = run(problem).sum(-1)
    assert_within_bound(total, run.exact(problem).sum(-1), what="row sum")


@law("Every attention weight lies between 0 and 1.", source="softmax definition", problem=weights)
def test_weights_lie_in_unit_interval(run, problem):
    output = run(problem)
    visible_rows = output[problem.some_visible]
    assert_at_least(visible_rows, 0.0, what="weight")
    assert_at_most(visible_rows, 1.0, what="weight")


@law("Adding a constant to all scores of a row changes no weight.", source="softmax definition: exp(s + c) / sum exp(s + c)", needs="bias",
     problem=problems(values="identity", only=("bias",), use=("bias",), long=False), shift=(1.0, -1.0, 8.0, 100.0, -100.0, 1e4, -1e4))  # fmt: skip
def test_shift_invariance(run, problem, shift):
    back, moved = shifted(problem.bias, shift)
    assert_within_bound(run(problem.replace(bias=moved)), run(problem.replace(bias=back)), what="weight")


@law(
    "Reordering the scores of a row reorders its weights likewise.",
    source="softmax definition",
    problem=softmaxes,
    seed=range(100),
)
def test_permutation_equivariance(run, problem, seed):
    order = np.random.default_rng(seed).permutation(problem.sizes["K"])
    permuted = problem.replace(query=problem.query[..., order])
    assert_within_bound(run(permuted), run(problem)[..., order], what="weight")


@law(
    "A larger score never gets a smaller weight.",
    source="softmax is increasing in its own score",
    problem=softmaxes,
)
def test_order_is_kept(run, problem):
    order = np.argsort(problem.query.astype(np.float64), axis=-1, kind="stable")
    output = run(problem)
    ordered = type(output)(
        np.take_along_axis(output.value, order, -1), np.take_along_axis(output.errors, order, -1)
    )
    assert_at_least(ordered[..., 1:] - ordered[..., :-1], 0.0, what="step between ordered weights")


@law("Equal scores share the weight equally: n of them get 1/n each.", source="softmax definition",
     problem=problems(values="identity", only=(), long=False), level=(0.0, 1.0, -1.0, 30.0, -30.0))  # fmt: skip
def test_equal_scores_share_equally(run, problem, level):
    same = problem.replace(query=np.full_like(problem.query, level), key=np.ones_like(problem.key))
    assert_within_bound(run(same), 1.0 / problem.sizes["K"], what="weight")


def largest_score_of_ones(problem):
    """The largest score that queries of ones and minus ones can have, or one."""
    sums = np.abs(problem.key.astype(np.float64)).sum(-1).max(initial=0.0)
    scale = max(problem.sizes["D"], 1) ** -0.5 if problem.scale is None else abs(problem.scale)
    return max(float(sums * scale), 1.0)


@law("Scores up to the limit of the dtype give finite weights.", source="softmax is shifted by its maximum; bugs of kernels without the shift",
     problem=softmaxes, exponent=(0.25, 0.5, 0.9), sign=(1.0, -1.0))  # fmt: skip
def test_large_scores_do_not_overflow(run, problem, exponent, sign):
    limit = run.precision.elementwise.huge**exponent
    limit = min(limit, run.precision.output.huge**exponent)
    limit = min(limit, run.precision.largest_score / largest_score_of_ones(problem))
    large = problem.replace(
        query=(sign * limit * np.sign(problem.query.astype(np.float64) + 0.25)).astype(run.numpy_dtype)
    )
    assert_true(
        np.isfinite(run.values(large).astype(np.float64)),
        f"scores of {sign * limit:.3g} give weights that are not finite",
    )
    assert_within_bound(run(large), run.exact(large), what="weight")


@law("Scores that are all very negative still give weights that sum to one.", source="softmax is shifted by its maximum",
     problem=softmaxes, level=(-10.0, -100.0, -1000.0, -30000.0))  # fmt: skip
def test_very_negative_scores_do_not_underflow_to_nan(run, problem, level):
    low = problem.replace(
        query=(np.clip(problem.query.astype(np.float64), -4, 4) + level).astype(run.numpy_dtype)
    )
    assert_within_bound(run(low).sum(-1), 1.0, what="row sum")


@law("A single visible key gets all the weight, whatever its score.", source="softmax of one number: s - max(s) is zero exactly",
     problem=problems(values="identity", sizes={"K": 1}, without=("sinks",)), magnitude=(1.0, 1e3, 1e5, 1e8))  # fmt: skip
def test_single_key_gets_all(run, problem, magnitude):
    """The score cancels before anything is computed from it, so the bound is that of a score of zero."""
    limit = np.sqrt(min(run.precision.elementwise.huge, run.precision.output.huge)) / 16 / problem.sizes["D"]
    largest = max(float(np.abs(x.astype(np.float64)).max(initial=0.0)) for x in (problem.query, problem.key))
    factor = min(magnitude, limit / max(largest, 1.0))
    score = largest * largest_score_of_ones(problem)
    factor = min(factor, np.sqrt(run.precision.largest_score / max(score, 1.0)))
    loud = {
        name: (getattr(problem, name).astype(np.float64) * factor).astype(run.numpy_dtype)
        for name in ("query", "key")
    }
    calm = problem.replace(query=np.zeros_like(problem.query))
    got = run.values(problem.replace(**loud)).astype(np.float64)
    assert_within_bound(
        Bounded(got, run.bound(calm)[0].errors, EXACT),
        np.where(problem.visible, 1.0, run.exact(calm)),
        what="weight",
    )


@law("The gradient of softmax is y_i (delta_ik - y_k).", source="notes on 'Attention is all you need': softmax gradient", needs="gradients",
     problem=problems(values="identity", keys="identity", only=("scale",), upstream=True, long=False, tame=True), row=range(64))  # fmt: skip
def test_jacobian_is_y_delta_minus_y(run, problem, row):
    one_hot = np.zeros_like(problem.upstream)
    one_hot[..., row % problem.sizes["K"]] = 1
    probed = problem.replace(upstream=one_hot)
    jacobian = softmax_jacobian(run.oracle(problem))[..., row % problem.sizes["K"], :]
    assert_within_bound(run.gradients(probed)["query"], jacobian, what="gradient of the score")


@law("The gradients of a softmax in its scores sum to zero.", source="rows of the Jacobian: y_i (1 - sum_k y_k) = 0", needs="gradients",
     problem=problems(values="identity", keys="identity", only=("scale",), upstream=True, long=False))  # fmt: skip
def test_jacobian_rows_sum_to_zero(run, problem):
    assert_within_bound(run.gradients(problem)["query"].sum(-1), 0.0, what="sum of score gradients")


@law("The Jacobian of softmax is symmetric and positive semidefinite.", source="diag(y) - y y^T is a covariance matrix", needs="gradients",
     problem=problems(values="identity", keys="identity", only=("scale",), upstream=True, tame=True, sizes={"B": 1, "H": 1, "G": 1, "Q": 1}, long=False),
     row=range(64), column=range(64))  # fmt: skip
def test_jacobian_is_symmetric_psd(run, problem, row, column):
    size = problem.sizes["K"]
    i, k = row % size, column % size
    rows = []
    for at in (i, k):
        one_hot = np.zeros_like(problem.upstream)
        one_hot[..., at] = 1
        rows.append(run.gradients(problem.replace(upstream=one_hot))["query"][0, 0, 0])
    assert_within_bound(rows[0][k : k + 1], rows[1][i : i + 1], what=f"J[{i}, {k}] against J[{k}, {i}]")
    direction = problem.upstream[0, 0, 0].astype(np.float64)
    along = run.gradients(problem)["query"][0, 0, 0]
    assert_at_least((along * direction).sum(keepdims=True), 0.0, what="v J v")


@law("Where softmax is saturated its gradient vanishes: no entry exceeds y (1 - y).", source="why attention is scaled by 1/sqrt(d_k); |y_i (delta - y_k)| <= y_i (1 - y_i)",
     needs="gradients", problem=problems(values="identity", keys="identity", only=("scale",), upstream=True, long=False),
     row=range(64))  # fmt: skip
def test_saturated_rows_have_vanishing_gradient(run, problem, row):
    at = row % problem.sizes["K"]
    one_hot = np.zeros_like(problem.upstream)
    one_hot[..., at] = 1
    y = run.oracle(problem)[..., at : at + 1]
    gradient = run.gradients(problem.replace(upstream=one_hot))["query"]
    ceiling = np.broadcast_to(y * (1.0 - y), gradient.shape)
    assert_at_most(gradient, ceiling, what="gradient")
    assert_at_least(gradient, -ceiling, what="gradient")


@law("Divided by sqrt(d), the scores of unit-variance queries and keys have unit variance, so weights do not depend on d systematically.",
     source="'Attention is all you need', section 3.2.1, footnote 4", problem=problems(only=(), tame=True, long=False),
     copies=(2, 4, 9))  # fmt: skip
def test_scaling_keeps_variance(run, problem, copies):
    """Repeating q and k along the head size multiplies q.k by `copies` and the default scale by copies^-1/2."""
    size = problem.sizes["D"]
    assume(
        run.implementation.accepts({**problem.sizes, "D": size * copies, "E": problem.sizes["E"] * copies})
        is None
    )
    wide = {
        name: np.concatenate([getattr(problem, name)] * copies, axis=-1) for name in ("query", "key", "value")
    }
    repeated = problem.replace(**wide, layouts={})
    narrow = np.concatenate([run.exact(problem.replace(scale=(copies / size) ** 0.5))] * copies, axis=-1)
    assert_within_bound(run(repeated), narrow)


# -- softmax as a function of its own: softmax(scores) along the last axis ---------------------------------------------


def scores_of(run, rows, size, fill, seed, level):
    """Scores of one, two or more axes: (n,), (rows,n), (2,rows,n)."""
    assume(rows * size <= 10_000)
    shape = {5: (2, 5, size), 1: (size,)}.get(rows, (rows, size))
    return (distributions.fill(fill, shape, seed) + level).astype(run.numpy_dtype)


def probabilities(run, scores):
    """softmax(scores) with its bound."""
    return run.within(
        run.call(scores, shape=scores.shape), np.positive(reference_softmax(run.bounded(scores)))
    )


alone = {"operation": "softmax", "rows": (1, 2, 3, 5, 7, 33, 64, 65, 129), "size": (1, 2, 3, 7, 16, *EDGES, 1024, 1025, 5000),
         "fill": distributions.NAMES, "seed": range(2**24), "level": (0.0, 1.0, -100.0, 100.0, 1000.0, -1000.0)}  # fmt: skip


@law("softmax(s) is exp(s_i) / sum_k exp(s_k) along the last axis.", source="softmax definition", **alone)
def test_softmax_agrees_with_formula(run, rows, size, fill, seed, level):
    scores = scores_of(run, rows, size, fill, seed, level)
    assert_within_bound(
        probabilities(run, scores), reference_softmax(scores.astype(np.float64)), what="probability"
    )


@law("The probabilities of a row sum to one.", source="softmax definition", **alone)
def test_softmax_sums_to_one(run, rows, size, fill, seed, level):
    assert_within_bound(
        probabilities(run, scores_of(run, rows, size, fill, seed, level)).sum(-1), 1.0, what="row sum"
    )


@law(
    "A score of minus infinity takes no weight, exactly, and the others share as if it were not there.",
    source="softmax of masked scores",
    **alone,
)
def test_softmax_of_minus_infinity(run, rows, size, fill, seed, level):
    scores = scores_of(run, rows, size, fill, seed, level)
    hidden = np.random.default_rng(seed).random(scores.shape) < 0.3
    hidden[..., seed % size] = False  # every row keeps one
    masked = np.where(hidden, -np.inf, scores).astype(run.numpy_dtype)
    shares = probabilities(run, masked)
    assert_identical(shares.value[hidden], np.zeros(int(hidden.sum())), what="weight of a masked score")
    assert_within_bound(
        shares[~hidden], reference_softmax(masked.astype(np.float64))[~hidden], what="probability"
    )


@law(
    "A NaN among the scores makes its row NaN, and no other row.",
    source="IEEE 754-2019, section 6.2: what went wrong before shows; guards against empty rows that hide it",
    **alone,
)
def test_softmax_passes_nan_on(run, rows, size, fill, seed, level):
    scores = scores_of(run, rows, size, fill, seed, level)
    spoilt = scores.copy()
    spoilt.reshape(-1)[seed % scores.size] = np.nan
    broken = np.isnan(spoilt.astype(np.float64)).any(-1, keepdims=True) & np.ones(scores.shape, bool)
    exact = np.positive(reference_softmax(run.bounded(scores)))
    got = run.call(spoilt, shape=scores.shape)
    assert_true(
        np.isnan(got.astype(np.float64)[broken]), "the scores have a NaN, and the probabilities have none"
    )
    assert_within_bound(run.within(got, exact)[~broken], exact.value[~broken], what="probability")


@law(
    "The gradient of the scores is y_i (g_i - sum_k y_k g_k), y the probabilities and g the upstream gradient.",
    source="softmax gradient y_i (delta_ik - y_k), times g",
    needs="gradients",
    **alone,
)
def test_softmax_gradient_agrees_with_formula(run, rows, size, fill, seed, level):
    scores = scores_of(run, rows, size, fill, seed, level)
    upstream = distributions.fill("normal", scores.shape, seed + 1).astype(run.numpy_dtype)
    gradients = run.call_gradients({"scores": scores}, upstream=upstream)
    assert_gradients(run, gradients, exact_gradients.OF["softmax"](run, upstream, scores))


@law("Where n scores are equal, their gradient is the upstream gradient less its mean, over n.", source="softmax gradient with y = 1/n: y_i (g_i - sum_k y_k g_k)",
     needs="gradients", operation="softmax", rows=(1, 2, 3, 5), size=(2, 4, 1, 8, 16, 32, 64, 128, 256), score=(0.0, 1.0, -30.0), level=(0.0, 1.0, -3.0, 100.0),
     seed=range(1000))  # fmt: skip
def test_softmax_gradient_of_equal_scores(run, rows, size, score, level, seed):
    """n is a power of two, so that every format holds 1/n: nothing is lost where it is stored, and the mean must be kept."""
    scores = np.full((rows, size), score, dtype=run.numpy_dtype)
    upstream = (np.random.default_rng(seed).standard_normal(scores.shape) + level).astype(run.numpy_dtype)
    y = reference_softmax(run.bounded(scores, run.gradient_precision))
    exact = np.positive(softmax_vjp(y, run.bounded(upstream, run.gradient_precision)))
    assert_gradients(run, run.call_gradients({"scores": scores}, upstream=upstream), {"scores": exact})
