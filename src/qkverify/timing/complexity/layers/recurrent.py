"""A recurrent layer, genuinely step by step: h_t = tanh(x_t W + h_{t-1} U), two products of d² multiply-adds in each step.

Libraries take the products with W out of the loop, which changes the constant and neither the exponents nor the n steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.rounding import Bounded
from qkverify.timing.complexity.layer import Layer, Sizes, Span, normal

ORDER = 30


def inputs(sizes: Sizes, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The sequence (n,d), and two matrices (d,d) whose products keep the size of what they are given."""
    n, d = sizes["n"], sizes["d"]
    return (
        normal(n, d, rng=rng),
        normal(d, d, rng=rng, scale=d**-0.5),
        normal(d, d, rng=rng, scale=d**-0.5),
    )


def definition(x: Bounded, inward: Bounded, onward: Bounded, sizes: Sizes) -> Any:
    """One sum of 2 d terms for each element of each state, in any order: (n,d), (d,d), (d,d) -> (n,d)."""
    state, states = Bounded(np.zeros(sizes["d"]), 0.0, x.precision), []
    for t in range(sizes["n"]):
        terms = np.concatenate([x[t][:, None] * inward, state[:, None] * onward])  # (2 d,d)
        state = np.tanh(terms.sum(axis=0))
        states.append(state)
    return np.stack(states)


def with_numpy(x: Any, inward: Any, onward: Any, sizes: Sizes) -> Any:
    state, states = np.zeros(sizes["d"], np.float32), []
    for t in range(sizes["n"]):
        state = np.tanh(x[t] @ inward + state @ onward)  # (d)
        states.append(state)
    return np.stack(states)  # (n,d)


def with_torch(x: Any, inward: Any, onward: Any, sizes: Sizes) -> Any:
    import torch

    state, states = x.new_zeros((1, sizes["d"])), []
    for row in x.split(1):  # (1,d)
        state = torch.tanh(row @ inward + state @ onward)
        states.append(state)
    return torch.cat(states)  # (n,d)


LAYERS = (
    Layer(
        name="recurrent",
        formula="n d²",
        exponents={"n": 1, "d": 2},
        factor=2,
        steps="n",
        path="n",
        steps_at=lambda sizes: sizes["n"],
        path_at=lambda sizes: sizes["n"],
        inputs=inputs,
        definition=definition,
        numpy=with_numpy,
        torch=with_torch,
        check_at=({"n": 4, "d": 3}, {"n": 3, "d": 9}),
        spans={"n": Span(16, {"d": 128}), "d": Span(16, {"n": 16})},
    ),
)
