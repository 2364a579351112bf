"""What enters the first layer: "Attention is all you need", sections 3.4 and 3.5.

Letters: B batch, L length, V words of the vocabulary, M model size.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.positions import angles, joined
from qkverify.reference.sizes import Array


def embedding(
    tokens: Array, table: Array, *, padding: Array | None = None, layout: str = "interleaved",
    scale: Array | None = None, base: Array = 10000.0,
) -> Array:  # fmt: skip
    """sqrt(M) table[token] + PE(position): tokens (B,L) int, table (V,M) -> (B,L,M).

    The first padding (B) tokens of a sequence are none; positions count from the first that is one, and what
    stands before it is at position 0.
    """
    size = table.shape[-1]
    first = 0 if padding is None else padding[:, None]                      # (B,1)
    angle = angles(np.maximum(np.arange(tokens.shape[1]) - first, 0), size, base)  # (L,M/2) or (B,L,M/2)
    places = stored(joined(np.sin(angle), np.cos(angle), layout))           # (L,M) or (B,L,M)
    words = np.take(table, tokens, axis=0) * (size**0.5 if scale is None else scale)  # (B,L,M)
    return stored(stored(words) + places)                                   # (B,L,M)
