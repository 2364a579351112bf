"""Multi-head attention as one operation: multi_head_attention(x, w_q, w_k, w_v, w_o, *, heads, ...).

x (B,L,M), w_q, w_k, w_v (M, heads * D), w_o (heads * D, M) -> (B,L,M). The sizes are pairwise different, because a wrong
reshape is invisible where two of them agree.
"""

from __future__ import annotations

import numpy as np

from qkverify.problem.byte_strategies import EDGES, stretched
from qkverify.reference.multi_head import multi_head_attention as reference
from qkverify.reference.multi_head_vjp import multi_head_vjp
from qkverify.rounding import Bounded
from qkverify.runs.assertions import assert_gradients, assert_within_bound
from qkverify.verification.laws import law

sizes = stretched(
    {"length": EDGES, "size": (16, 24, 31, 33, 64, 65, 128), "heads": (8, 12, 16, 17, 33), "batch": (7, 33, 65)},
    batch=(1, 2, 3), heads=(1, 2, 3, 4, 6), length=(1, 2, 3, 5, 7, 17), size=(1, 2, 3, 4, 5, 8),
)  # fmt: skip
given = {
    "operation": "multi_head_attention",
    "sizes": sizes,
    "causal": (False, True),
    "seed": range(1000),
}


def draw(run, sizes, seed):
    """x and the four weight matrices; seeds below 10 give small whole numbers, those from 500 on scores of unit variance."""
    rng = np.random.default_rng(seed)
    width = sizes["heads"] * sizes["size"]

    def numbers(*shape, deviation=1.0):
        filled = rng.integers(-2, 3, size=shape) if seed < 10 else rng.standard_normal(shape) * deviation
        return filled.astype(run.numpy_dtype)

    deviation = 1.0 if seed < 500 else width**-0.5
    x = numbers(sizes["batch"], sizes["length"], width)
    return x, *[numbers(width, width, deviation=deviation) for _ in range(4)]


def output(run, arrays, heads, causal):
    """The operation's result with its bound."""
    options = run.given(causal=causal)
    exact = reference(
        *[run.bounded(x) for x in arrays], heads=heads, causal_alignment="bottom-right", **options
    )
    return run.within(run.call(*arrays, shape=arrays[0].shape, heads=heads, **options), exact), options


@law(
    "Multi-head attention projects, splits into heads, attends in each, concatenates and projects again.",
    source="'Attention is all you need', section 3.2.2",
    **given,
)
def test_multi_head_agrees_with_reference(run, sizes, causal, seed):
    arrays = draw(run, sizes, seed)
    projected, options = output(run, arrays, sizes["heads"], causal)
    assert_within_bound(
        projected, reference(*[x.astype(np.float64) for x in arrays], heads=sizes["heads"], **options)
    )


@law(
    "A sequence gives the same alone as in its batch.",
    source="batch entries are independent",
    **given,
    b=range(3),
)
def test_multi_head_batch_independence(run, sizes, causal, seed, b):
    x, *weights = draw(run, sizes, seed)
    b %= sizes["batch"]
    together, _ = output(run, (x, *weights), sizes["heads"], causal)
    alone, _ = output(run, (x[b : b + 1], *weights), sizes["heads"], causal)
    assert_within_bound(alone, together[b : b + 1])


@law(
    "Without a mask, reordering the tokens reorders the output likewise.",
    source="self-attention has no notion of order without positions",
    **given,
)
def test_multi_head_token_permutation(run, sizes, causal, seed):
    x, *weights = draw(run, sizes, seed)
    order = np.random.default_rng(seed).permutation(sizes["length"])
    straight, _ = output(run, (x, *weights), sizes["heads"], False)
    permuted, _ = output(run, (np.ascontiguousarray(x[:, order]), *weights), sizes["heads"], False)
    assert_within_bound(permuted, straight[:, order])


@law(
    "Reordering the heads in all four weight matrices changes nothing.",
    source="heads are summed in the projection",
    **given,
)
def test_multi_head_permutation_of_heads(run, sizes, causal, seed):
    x, w_q, w_k, w_v, w_o = draw(run, sizes, seed)
    size = sizes["size"]
    order = np.random.default_rng(seed).permutation(sizes["heads"])
    columns = (order[:, None] * size + np.arange(size)).reshape(-1)
    turned = (
        x,
        *[np.ascontiguousarray(w[:, columns]) for w in (w_q, w_k, w_v)],
        np.ascontiguousarray(w_o[columns]),
    )
    assert_within_bound(
        output(run, turned, sizes["heads"], causal)[0],
        output(run, (x, w_q, w_k, w_v, w_o), sizes["heads"], causal)[0],
    )


@law(
    "Weights that were overwritten in place, as an optimizer does, are read anew.",
    source="transposed weights cached by the object",
    **given,
)
def test_multi_head_weights_are_read_anew(run, sizes, causal, seed):
    x, *weights = draw(run, sizes, seed)
    output(run, (x, *weights), sizes["heads"], causal)
    for w in weights:
        w *= -2
    projected, options = output(run, (x, *weights), sizes["heads"], causal)
    assert_within_bound(
        projected,
        reference(
            x.astype(np.float64), *[w.astype(np.float64) for w in weights], heads=sizes["heads"], **options
        ),
    )


@law("The size of a head comes from the weights, not from the tokens: heads may be narrower or wider than M / heads.", source="head sizes of their own: Gemma, T5", **given,
     width=(1, 3, 4, 9))  # fmt: skip
def test_multi_head_sizes_of_their_own(run, sizes, causal, seed, width):
    rng = np.random.default_rng(seed)
    inner = sizes["heads"] * sizes["size"]
    shapes = (sizes["batch"], sizes["length"], width), *[(width, inner)] * 3, (inner, width)
    arrays = [rng.integers(-2, 3, shape).astype(run.numpy_dtype) for shape in shapes]
    projected, options = output(run, arrays, sizes["heads"], causal)
    assert_within_bound(
        projected, reference(*[x.astype(np.float64) for x in arrays], heads=sizes["heads"], **options)
    )


@law(
    "The gradients, in the tokens and in all four weight matrices, are those of attention between those of the projections.",
    source="the chain rule; FlashAttention, appendix B.2",
    needs="gradients",
    weight=0.5,
    **given,
)
def test_multi_head_gradients_agree_with_reference(run, sizes, causal, seed):
    """Either way to rowsum(dP P), from the weights or from the output, stays within the larger of their bounds."""
    arrays = dict(zip(("x", "w_q", "w_k", "w_v", "w_o"), draw(run, sizes, seed), strict=True))
    upstream = np.random.default_rng(seed + 1).standard_normal(arrays["x"].shape).astype(run.numpy_dtype)
    options = run.given(causal=causal)
    number = sizes["size"] ** -0.5
    precision = run.gradient_precision.either_side(number)
    scale = Bounded(number, number * precision.accumulate.unit, precision)
    inputs = [run.bounded(x, precision) for x in (*arrays.values(), upstream)]
    by_weights, by_output = (
        multi_head_vjp(*inputs, heads=sizes["heads"], scale=scale, delta=delta, **options)
        for delta in ("weights", "output")
    )
    exact = {
        name: Bounded(x.value, np.maximum(x.errors, by_output[name].errors), precision)
        for name, x in by_weights.items()
    }
    gradients = run.call_gradients(arrays, upstream=upstream, heads=sizes["heads"], **options)
    assert_gradients(run, gradients, exact)
