"""Multi-head attention as one operation: multi_head_attention(x, w_q, w_k, w_v, w_o, *, heads, ...).

x (B,L,M), w_q, w_k, w_v (M, heads * D), w_o (heads * D, M) -> (B,L,M). The sizes are pairwise different, because a wrong
reshape is invisible where two of them agree.
"""

from __future__ import annotations

import numpy as np

from qkverify.laws import law
from qkverify.reference.multi_head import multi_head_attention as reference
from qkverify.verdict import assert_within_bound

given = {"operation": "multi_head_attention", "batch": (1, 2, 3), "heads": (1, 2, 3, 4, 8, 12),
         "length": (1, 2, 3, 5, 7, 17, 65), "size": (1, 2, 3, 5, 8, 64), "causal": (False, True), "seed": range(1000)}  # fmt: skip


def draw(run, batch, heads, length, size, seed):
    """x and the four weight matrices; seed 0 gives small whole numbers."""
    rng = np.random.default_rng(seed)
    width = heads * size

    def numbers(*shape):
        filled = rng.integers(-2, 3, size=shape) if seed < 10 else rng.standard_normal(shape)
        return filled.astype(run.numpy_dtype)

    return numbers(batch, length, width), *[numbers(width, width) for _ in range(4)]


def output(run, arrays, heads, causal):
    """The operation's result with its bound."""
    options = {"causal": True} if causal and run.offers_parameter("causal") else {}
    exact = reference(
        *[run.bounded(x) for x in arrays], heads=heads, causal_alignment="bottom-right", **options
    )
    return run.within(run.call(*arrays, shape=arrays[0].shape, heads=heads, **options), exact), options


@law(
    "Multi-head attention projects, splits into heads, attends in each, concatenates and projects again.",
    source="'Attention is all you need', section 3.2.2",
    **given,
)
def test_multi_head_agrees_with_reference(run, batch, heads, length, size, causal, seed):
    arrays = draw(run, batch, heads, length, size, seed)
    found, options = output(run, arrays, heads, causal)
    assert_within_bound(found, reference(*[x.astype(np.float64) for x in arrays], heads=heads, **options))


@law(
    "A sequence gives the same alone as in its batch.",
    source="batch entries are independent",
    **given,
    b=range(3),
)
def test_multi_head_batch_independence(run, batch, heads, length, size, causal, seed, b):
    x, *weights = draw(run, batch, heads, length, size, seed)
    b %= batch
    together, _ = output(run, (x, *weights), heads, causal)
    alone, _ = output(run, (x[b : b + 1], *weights), heads, causal)
    assert_within_bound(alone, together[b : b + 1])


@law(
    "Without a mask, reordering the tokens reorders the output likewise.",
    source="self-attention has no notion of order without positions",
    **given,
)
def test_multi_head_token_permutation(run, batch, heads, length, size, causal, seed):
    x, *weights = draw(run, batch, heads, length, size, seed)
    order = np.random.default_rng(seed).permutation(length)
    straight, _ = output(run, (x, *weights), heads, False)
    permuted, _ = output(run, (np.ascontiguousarray(x[:, order]), *weights), heads, False)
    assert_within_bound(permuted, straight[:, order])


@law(
    "Reordering the heads in all four weight matrices changes nothing.",
    source="heads are summed in the projection",
    **given,
)
def test_multi_head_permutation_of_heads(run, batch, heads, length, size, causal, seed):
    x, w_q, w_k, w_v, w_o = draw(run, batch, heads, length, size, seed)
    order = np.random.default_rng(seed).permutation(heads)
    columns = (order[:, None] * size + np.arange(size)).reshape(-1)
    turned = (
        x,
        *[np.ascontiguousarray(w[:, columns]) for w in (w_q, w_k, w_v)],
        np.ascontiguousarray(w_o[columns]),
    )
    assert_within_bound(
        output(run, turned, heads, causal)[0], output(run, (x, w_q, w_k, w_v, w_o), heads, causal)[0]
    )


@law(
    "Weights that were overwritten in place, as an optimizer does, are read anew.",
    source="transposed weights cached by the object",
    **given,
)
def test_multi_head_weights_are_read_anew(run, batch, heads, length, size, causal, seed):
    x, *weights = draw(run, batch, heads, length, size, seed)
    output(run, (x, *weights), heads, causal)
    for w in weights:
        w *= -2
    found, options = output(run, (x, *weights), heads, causal)
    assert_within_bound(
        found,
        reference(x.astype(np.float64), *[w.astype(np.float64) for w in weights], heads=heads, **options),
    )


@law("The size of a head comes from the weights, not from the tokens: heads may be narrower or wider than M / heads.", source="head sizes of their own: Gemma, T5", **given,
     width=(1, 3, 4, 9))  # fmt: skip
def test_multi_head_sizes_of_their_own(run, batch, heads, length, size, causal, seed, width):
    rng = np.random.default_rng(seed)
    shapes = (batch, length, width), *[(width, heads * size)] * 3, (heads * size, width)
    arrays = [rng.integers(-2, 3, shape).astype(run.numpy_dtype) for shape in shapes]
    found, options = output(run, arrays, heads, causal)
    assert_within_bound(found, reference(*[x.astype(np.float64) for x in arrays], heads=heads, **options))
