"""What enters the first layer: scaled words plus positions. tokens (B, L), table (V, M), padding (B)."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.positions import embedding, places

Array = np.ndarray


@mutant("B119", operation="embedding", evidence="partly", threads="huggingface/transformers#22161")
def positions_count_from_the_padding(
    tokens: Array, table: Array, *, padding: Array | None = None, layout: str = "interleaved"
) -> Array:
    """Positions are counted from the start of the row, padding included: a sequence changes by what stands before it."""
    at = places(tokens, None)  # right: places(tokens, padding)
    return embedding(tokens, table, at=at, layout=layout)


@mutant("A020", operation="embedding", evidence="inferred")
def words_are_not_scaled(
    tokens: Array, table: Array, *, padding: Array | None = None, layout: str = "interleaved"
) -> Array:
    """The rows of the table are added as they are: beside an encoding of norm sqrt(M / 2) they hardly count."""
    factor = 1.0  # right: table.shape[1] ** 0.5
    return embedding(tokens, table, at=places(tokens, padding), layout=layout, factor=factor)


@mutant("A021", operation="embedding", evidence="inferred")
def positions_are_scaled_with_the_words(
    tokens: Array, table: Array, *, padding: Array | None = None, layout: str = "interleaved"
) -> Array:
    """The factor multiplies the sum of word and encoding."""
    size = table.shape[1]
    summed = embedding(tokens, table, at=places(tokens, padding), layout=layout, factor=1.0)
    return summed * table.dtype.type(size**0.5)  # right: only the words
