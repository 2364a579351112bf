"""The pieces of multi-head attention, right."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.textbook import TEXTBOOK

Array = np.ndarray


def split(x: Array, heads: int) -> Array:
    """(B, L, H D) -> (B, H, L, D)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def project(x: Array, heads: int, *weights: Array) -> tuple[Array, ...]:
    """Query, key and value of every head, (B, H, L, D) each."""
    return tuple(split(x @ weight, heads) for weight in weights)


def attend(query: Array, key: Array, value: Array, causal: bool) -> Array:
    """(B, H, L, D), each head by itself."""
    return TEXTBOOK(Call(query, key, value, causal=causal))


def merge(x: Array) -> Array:
    """(B, H, L, D) -> (B, L, H D): the heads side by side."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def multi_head_attention(
    x: Array, w_q: Array, w_k: Array, w_v: Array, w_o: Array, *, heads: int, causal: bool = False
) -> Array:
    """x (B, L, M), weights (M, H D), (M, H D), (M, H E), (H E, M) -> (B, L, M)."""
    return merge(attend(*project(x, heads, w_q, w_k, w_v), causal)) @ w_o
