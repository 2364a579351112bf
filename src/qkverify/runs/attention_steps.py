"""Attention without options, step by step, as rules about its errors need it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qkverify.problem.attention_problem import Problem

Array = np.ndarray


@dataclass(frozen=True)
class Steps:
    """Attention without options, step by step, and its gradients, in float64. One key head for each query head."""

    query: Array
    key: Array
    value: Array
    upstream: Array  # (B,H,Q,E); empty if no gradients are wanted
    scale: float
    scores: Array  # (B,H,Q,K)
    weights: Array  # (B,H,Q,K)

    @classmethod
    def of(cls, problem: Problem) -> Steps:
        query, key, value = (np.asarray(x, np.float64) for x in (problem.query, problem.key, problem.value))
        upstream = np.asarray(problem.upstream if problem.upstream is not None else (), np.float64)
        scale = problem.sizes["D"] ** -0.5 if problem.scale is None else problem.scale
        scores = query @ turned(key) * scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return cls(query, key, value, upstream, scale, scores, weights / weights.sum(-1, keepdims=True))

    def mean(self, x: Array) -> Array:
        """The mean over keys by weight: (B,H,Q,K) -> (B,H,Q,1)."""
        return np.asarray((self.weights * x).sum(-1, keepdims=True))

    @property
    def d_weights(self) -> Array:
        """The gradient of the weights, (B,H,Q,K)."""
        return np.asarray(self.upstream @ turned(self.value))


def turned(x: Array) -> Array:
    """The last two axes exchanged."""
    return x.swapaxes(-1, -2)
