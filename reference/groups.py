"""Grouped queries: H = G * group query heads share G key/value heads, h reads h // (H // G)."""

from __future__ import annotations

import numpy as np

from qkverify.reference.sizes import Array


def per_query_head(shared: Array, heads: int) -> Array:
    """Each key/value head once for every query head that reads it: (B,G,K,D) -> (B,H,K,D)."""
    return shared if shared.shape[1] == heads else np.repeat(shared, heads // shared.shape[1], axis=1)


def per_key_head(rows: Array, columns: Array, shared: int) -> Array:
    """rows^T columns, summed over all queries of the heads in a group: (B,H,Q,K) and (B,H,Q,D) -> (B,G,K,D).

    A sum of products: an implementation may make one long sum of it, or store the product of each head first.
    """
    rows, columns = grouped(rows, shared), grouped(columns, shared)                     # (B,G,H/G,Q,.)
    return np.sum(np.swapaxes(rows, -1, -2) @ columns, axis=2)                          # (B,G,K,.)


def grouped(array: Array, shared: int) -> Array:
    """The heads of a group along an axis of their own: (B,H,Q,D) -> (B,G,H/G,Q,D)."""
    batch, heads, queries, size = array.shape
    return np.reshape(array, (batch, shared, heads // max(shared, 1), queries, size))


def summed_to(array: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which an array of this shape was broadcast: the gradient of that."""
    aligned = (1,) * (array.ndim - len(shape)) + tuple(shape)
    repeated = tuple(axis for axis, size in enumerate(aligned) if size == 1 and array.shape[axis] != 1)
    return np.reshape(np.sum(array, axis=repeated, keepdims=True) if repeated else array, shape)
