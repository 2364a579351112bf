"""Restricted self-attention: every position looks at the r positions around it, and no score beyond is ever computed.

The windows are views of the padded keys and values, one copy of which is all the memory that they take in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qkverify.rounding import Bounded
from qkverify.timing.complexity.layer import Layer, Sizes, Span
from qkverify.timing.complexity.layers.convolution import whole
from qkverify.timing.complexity.layers.self_attention import attended, inputs

ORDER = 50


def reach(sizes: Sizes) -> tuple[int, int]:
    """How many positions to the left and to the right are seen: r with the position itself."""
    left = sizes["r"] // 2
    return left, sizes["r"] - 1 - left


def definition(query: Bounded, key: Bounded, value: Bounded, sizes: Sizes) -> Any:
    """Position by position, over the neighbours that there are: (n,d) three times -> (n,d)."""
    left, right = reach(sizes)
    near = [slice(max(0, i - left), i + right + 1) for i in range(sizes["n"])]
    return np.stack([attended(query[i], key[near[i]], value[near[i]]) for i in range(sizes["n"])])


def outside(sizes: Sizes) -> np.ndarray:
    """-inf where a window reaches past an end of the sequence, else 0: (n,1,r)."""
    place = np.arange(sizes["n"])[:, None] - reach(sizes)[0] + np.arange(sizes["r"])  # (n,r)
    beyond = (place < 0) | (place >= sizes["n"])
    return np.where(beyond, np.float32(-np.inf), np.float32(0))[:, None]


def with_numpy(query: Any, key: Any, value: Any, sizes: Sizes) -> Any:
    (left, right), d = reach(sizes), sizes["d"]
    before, after = np.zeros((left, d), np.float32), np.zeros((right, d), np.float32)
    keys, values = (
        sliding_window_view(np.concatenate([before, x, after]), sizes["r"], axis=0, subok=True)  # (n,d,r)
        for x in (key, value)
    )
    scores = query[:, None] @ keys * d**-0.5 + outside(sizes)  # (n,1,r)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights @ values.swapaxes(1, 2) / weights.sum(axis=-1, keepdims=True))[:, 0]  # (n,d)


def with_torch(query: Any, key: Any, value: Any, sizes: Sizes) -> Any:
    import torch
    from torch.nn.functional import pad

    left, right = reach(sizes)
    keys, values = (pad(x, (0, 0, left, right)).unfold(0, sizes["r"], 1) for x in (key, value))  # (n,d,r)
    place = torch.arange(sizes["n"], device=query.device)[:, None] - left
    place = place + torch.arange(sizes["r"], device=query.device)  # (n,r)
    scores = (query[:, None] @ keys)[:, 0] * sizes["d"] ** -0.5  # (n,r)
    scores = scores.masked_fill((place < 0) | (place >= sizes["n"]), float("-inf"))
    return (torch.softmax(scores, -1)[:, None] @ values.mT)[:, 0]  # (n,d)


LAYERS = (
    Layer(
        name="restricted attention",
        formula="r n d",
        exponents={"r": 1, "n": 1, "d": 1},
        factor=2,
        steps="1",
        path="n / r",
        steps_at=lambda sizes: 2,
        path_at=lambda sizes: whole(
            sizes["n"] - 1, reach(sizes)[0]
        ),  # forwards a layer reaches as far as it sees back
        inputs=inputs,
        sequences=3,
        definition=definition,
        numpy=with_numpy,
        torch=with_torch,
        check_at=({"n": 7, "d": 3, "r": 3}, {"n": 6, "d": 5, "r": 4}, {"n": 3, "d": 2, "r": 9}),
        spans={
            "n": Span(16, {"d": 128, "r": 32}),
            "d": Span(16, {"n": 256, "r": 32}),
            "r": Span(16, {"n": 512, "d": 256}),
        },
    ),
)
