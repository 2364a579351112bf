"""A convolution over positions, causal, of width k: position t sums k products of a neighbour with its own (d,d) matrix.

A stack of them connects the first input with the last output. Neighbours side by side need n / k layers for that; when layer l
(from 0) takes neighbours k^l apart, log_k n are enough. That is what the source says, and its table has the second. Both are
here; they do the same work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.rounding import Bounded
from qkverify.timing.complexity.layer import Layer, Sizes, Span, normal

ORDER = 40


def inputs(sizes: Sizes, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The sequence (n,d), and a matrix for each neighbour, the farthest first, (k,d,d)."""
    n, d, k = sizes["n"], sizes["d"], sizes["k"]
    return normal(n, d, rng=rng), normal(k, d, d, rng=rng, scale=(k * d) ** -0.5)


def gap(sizes: Sizes) -> int:
    """Positions from one neighbour to the next."""
    return sizes.get("dilation", 1)


def definition(x: Bounded, weights: Bounded, sizes: Sizes) -> Any:
    """One sum of up to k d terms for each element, in any order: (n,d), (k,d,d) -> (n,d). Before the beginning is nothing."""
    k, rows = sizes["k"], []
    for t in range(sizes["n"]):
        there = [(i, t - (k - 1 - i) * gap(sizes)) for i in range(k)]
        terms = np.concatenate([x[s][:, None] * weights[i] for i, s in there if s >= 0])
        rows.append(terms.sum(axis=0))
    return np.stack(rows)


def with_numpy(x: Any, weights: Any, sizes: Sizes) -> Any:
    n, k = sizes["n"], sizes["k"]
    padded = np.concatenate([np.zeros(((k - 1) * gap(sizes), sizes["d"]), np.float32), x])
    output = padded[:n] @ weights[0]  # (n,d)
    for i in range(1, k):
        output = output + padded[i * gap(sizes) :][:n] @ weights[i]
    return output


def with_torch(x: Any, weights: Any, sizes: Sizes) -> Any:
    """torch's conv1d: features first, weights as (d out,d in,k)."""
    import torch
    from torch.nn.functional import conv1d, pad

    padded = pad(x.T, ((sizes["k"] - 1) * gap(sizes), 0))[None]  # (1,d,n + padding)
    with torch.backends.cudnn.flags(allow_tf32=False):  # cuDNN would round the inputs to 11 bits unasked
        return conv1d(padded, weights, dilation=gap(sizes))[0].T  # (n,d)


def for_torch(x: Any, weights: Any) -> tuple[Any, Any]:
    return x, weights.permute(2, 1, 0).contiguous()


def whole(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def layers_to_reach(sizes: Sizes) -> int:
    """The smallest L with k^L >= n."""
    return next(depth for depth in range(1, sizes["n"] + 1) if sizes["k"] ** depth >= sizes["n"])


def dilated(sizes: Sizes, depth: int) -> Mapping[str, int]:
    return {**sizes, "dilation": sizes["k"] ** depth}


CONTIGUOUS = Layer(
    name="convolution",
    formula="k n d²",
    exponents={"k": 1, "n": 1, "d": 2},
    steps="1",
    path="n / k",
    steps_at=lambda sizes: 1,
    path_at=lambda sizes: whole(sizes["n"] - 1, sizes["k"] - 1),
    inputs=inputs,
    definition=definition,
    numpy=with_numpy,
    torch=with_torch,
    for_torch=for_torch,
    check_at=({"n": 6, "d": 3, "k": 3}, {"n": 3, "d": 5, "k": 4}, {"n": 9, "d": 2, "k": 2, "dilation": 3}),
    spans={
        "n": Span(16, {"d": 128, "k": 3}),
        "d": Span(16, {"n": 256, "k": 3}),
        "k": Span(1, {"n": 256, "d": 128}, multiple=1),
    },
)
DILATED = replace(
    CONTIGUOUS,
    name="dilated convolution",
    path="logₖ n",
    path_at=layers_to_reach,
    deeper=dilated,
    check_at=({"n": 9, "d": 3, "k": 2, "dilation": 4}, {"n": 11, "d": 2, "k": 3, "dilation": 3}),
    spans={"n": Span(16, {"d": 128, "k": 3, "dilation": 9})},  # the third layer of a stack
)
LAYERS = (CONTIGUOUS, DILATED)
