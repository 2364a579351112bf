"""Laws of the cross entropy with smoothed labels."""

from __future__ import annotations

import numpy as np

from qkverify.problem.byte_strategies import EDGES
from qkverify.properties.layers.layer_calls import seeds, tokens_of
from qkverify.runs import exact_losses
from qkverify.runs.assertions import (
    assert_within_bound,
)
from qkverify.strategies.exact_changes import shifted
from qkverify.strategies.operation_keywords import optional
from qkverify.verification.laws import law

loss = {
    "operation": "cross_entropy", "tokens": (1, 2, 3, 6, 17, *EDGES), "classes": (2, 4, 5, 11, *EDGES),
    "smoothing": optional("smoothing", 0.0, 0.1, 0.5, 1.0, 0.3), "magnitude": (1, 10, 100), "seed": seeds,
}  # fmt: skip


def scored(run, tokens, classes, magnitude, seed):
    """Scores (N,C) in the dtype under test, targets (N) and an upstream gradient (N)."""
    rng = np.random.default_rng(seed)
    scores = tokens_of(run, tokens, classes, seed=seed) * run.numpy_dtype(magnitude)
    upstream = tokens_of(run, tokens, seed=seed, other=1)
    return scores, rng.integers(0, classes, tokens), upstream


def losses(run, scores, targets, smoothing):
    """The losses (N) with their bound, and the exact ones."""
    exact = exact_losses.cross_entropy(run, scores, targets, smoothing=smoothing)
    got = run.call(scores, targets, shape=targets.shape, **run.given(smoothing=smoothing))
    return run.within(got, exact), exact.value


def gradient(run, scores, targets, upstream, smoothing):
    """The gradient of sum(upstream * losses) in the scores with its bound, and the exact one."""
    exact = exact_losses.gradient(run, upstream, scores, targets, smoothing=smoothing)
    options = run.given(smoothing=smoothing)
    got = run.call_gradients({"scores": scores}, targets, upstream=upstream, **options)
    return run.within(got["scores"], exact), exact.value


@law(
    "The loss is the cross entropy to a target of 1 - smoothing on its class, and smoothing / C on every class.",
    source="'Attention is all you need', section 5.4; Szegedy et al. 2016, section 7",
    **loss,
)
def test_label_smoothing_agrees_with_reference(run, tokens, classes, smoothing, magnitude, seed):
    scores, targets, _ = scored(run, tokens, classes, magnitude, seed)
    assert_within_bound(*losses(run, scores, targets, smoothing), what="loss")


@law(
    "The gradient of the loss in the scores is softmax - target.",
    source="d/ds_k of log sum exp(s) - sum_k t_k s_k, for a target that sums to one",
    needs="gradients",
    **loss,
)
def test_label_smoothing_gradient_is_softmax_minus_target(run, tokens, classes, smoothing, magnitude, seed):
    given = scored(run, tokens, classes, magnitude, seed)
    assert_within_bound(*gradient(run, *given, smoothing), what="gradient")


@law(
    "The gradient of each token sums to zero over the classes.",
    source="the softmax and the target both sum to one",
    needs="gradients",
    **loss,
)
def test_label_smoothing_gradient_sums_to_zero(run, tokens, classes, smoothing, magnitude, seed):
    gradients, _ = gradient(run, *scored(run, tokens, classes, magnitude, seed), smoothing)
    assert_within_bound(gradients.sum(-1), 0.0, what="sum of a gradient")


@law(
    "Without smoothing the loss is minus the logarithm of the target's probability.",
    source="cross entropy with a one-hot target",
    **{name: drawn for name, drawn in loss.items() if name != "smoothing"},
)
def test_smoothing_zero_is_plain_cross_entropy(run, tokens, classes, magnitude, seed):
    scores, targets, _ = scored(run, tokens, classes, magnitude, seed)
    wide = scores.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    plain = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(tokens), targets]
    assert_within_bound(losses(run, scores, targets, 0.0)[0], plain, what="loss")


@law(
    "A constant added to all scores of a token changes no loss, however large.",
    source="softmax is shift invariant",
    **loss,
    constant=(1, -7, 500, 2000),
)
def test_loss_ignores_a_constant(run, tokens, classes, smoothing, magnitude, seed, constant):
    """Added to scores of which every sum is a number of the dtype."""
    scores, targets, _ = scored(run, tokens, classes, magnitude, seed)
    scores, above = shifted(scores, constant)
    straight, _ = losses(run, scores, targets, smoothing)
    moved, _ = losses(run, above, targets, smoothing)
    assert_within_bound(moved, straight, what="loss")
