"""The sizes that must match. Letters as in attention.py."""

from __future__ import annotations

from typing import Any

Array = Any  # a float64 ndarray, or a duck array like qkverify.rounding.Bounded: NEP 13 and 18 have no type


def check_sizes(query: Array, key: Array, value: Array) -> None:
    """ValueError, naming the shapes, unless they are (B,H,Q,D), (B,G,K,D) and (B,G,K,E) and G divides H."""
    q, k, v = query.shape, key.shape, value.shape
    if not len(q) == len(k) == len(v) == 4:
        raise ValueError(f"query {q}, key {k} and value {v} must have four axes: batch, heads, length, size")
    if q[0] != k[0] or q[3] != k[3]:
        raise ValueError(f"query {q} and key {k} must agree in the first and the last axis (batch, size)")
    if k[:3] != v[:3]:
        raise ValueError(f"key {k} and value {v} must agree in all but the last axis (batch, heads, length)")
    if k[1] != q[1] and (k[1] == 0 or q[1] % k[1]):
        raise ValueError(f"query {q} and key {k}: the query heads must be a multiple of the key heads")


def check_broadcasts(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """ValueError, naming the two shapes, unless `array` broadcasts to `shape` without enlarging it."""
    given = array.shape
    tail = shape[len(shape) - len(given) :]
    if len(given) > len(shape) or any(n not in (1, m) for n, m in zip(given, tail, strict=True)):
        raise ValueError(f"{name} {given} does not broadcast to {shape}")
