"""Self-attention: every position looks at every position, softmax(Q Kᵀ / √d) V, two products of n² d multiply-adds."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.rounding import Bounded
from qkverify.timing.complexity.layer import Layer, Sizes, Span, normal

ORDER = 20


def inputs(sizes: Sizes, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Query, key and value, (n,d) each. Three arrays: of one array times itself BLAS computes only the half."""
    return tuple(normal(sizes["n"], sizes["d"], rng=rng) for _ in range(3))


def attended(query: Bounded, keys: Bounded, values: Bounded) -> Any:
    """One position by the formula: (d), (m,d), (m,d) -> (d)."""
    scale = Bounded(float(query.shape[0]), 0.0, query.precision) ** -0.5
    scores = np.stack([(query * keys[j]).sum() for j in range(len(keys))]) * scale  # (m)
    weights = np.exp(scores - np.max(scores))  # (m)
    return (weights[:, None] * values).sum(axis=0) / weights.sum()  # (d)


def definition(query: Bounded, key: Bounded, value: Bounded, sizes: Sizes) -> Any:
    """Position by position: (n,d) three times -> (n,d)."""
    return np.stack([attended(query[i], key, value) for i in range(sizes["n"])])


def with_numpy(query: Any, key: Any, value: Any, sizes: Sizes) -> Any:
    scores = query @ key.T * sizes["d"] ** -0.5  # (n,n)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (n,n)
    return weights @ value / weights.sum(axis=-1, keepdims=True)  # (n,d)


def with_torch(query: Any, key: Any, value: Any, sizes: Sizes) -> Any:
    import torch

    return torch.softmax(query @ key.T * sizes["d"] ** -0.5, -1) @ value  # (n,d)


LAYERS = (
    Layer(
        name="self-attention",
        formula="n² d",
        exponents={"n": 2, "d": 1},
        factor=2,
        steps="1",
        path="1",
        steps_at=lambda sizes: 2,  # the scores, then the output
        path_at=lambda sizes: 1,  # from a value to the output
        inputs=inputs,
        sequences=3,
        definition=definition,
        numpy=with_numpy,
        torch=with_torch,
        check_at=({"n": 5, "d": 3}, {"n": 9, "d": 17}),
        spans={"n": Span(16, {"d": 128}), "d": Span(16, {"n": 128})},
    ),
)
