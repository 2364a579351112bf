"""The gradients of rotary embedding and of the embedding of words. Letters as in positions.py and embedding.py."""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.positions import angles, rotate
from qkverify.reference.sizes import Array


def rotary_vjp(
    positions: Array, upstream: Array, *, base: Array = 10000.0, layout: str = "interleaved"
) -> Array:
    """The gradient of sum(upstream * rotary(x, positions)) in x: turned back by the same angles. (..., L, D)."""
    angle = angles(positions, upstream.shape[-1], base)                     # (..., L, D/2)
    return rotate(upstream, stored(np.cos(angle)), -stored(np.sin(angle)), layout)  # (..., L, D)


def embedding_vjp(tokens: Array, words: int, upstream: Array, *, scale: Array | None = None) -> Array:
    """The gradient of sum(upstream * embedding(tokens, table)) in the table of so many words: (V,M).

    Each word gets sqrt(M) times the sum over all places where it stands; upstream (B,L,M), tokens (B,L).
    """
    size = upstream.shape[-1]
    places = np.where(np.arange(words)[:, None] == np.reshape(tokens, -1), 1.0, 0.0)  # (V,B*L)
    total = places @ stored(upstream * (size**0.5 if scale is None else scale)).reshape(-1, size)  # (V,M)
    return stored(total)
