"""The mistakes of an embedding of words and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import (
    BASE,
    IN_HALVES,
    Array,
    Example,
    OperationKind,
    normal,
    other_layout,
    rounded,
    with_option,
)
from qkverify.reference.attention import stored
from qkverify.reference.embedding import embedding
from qkverify.reference.positions import angles, joined
from qkverify.runs.run import Run

WORDS = 11  # of the vocabulary


def _examples(run: Run) -> list[Example]:
    """tokens (B,L), table (V,M), padding (B); what stands in the padding is not judged."""
    sizes = [(2, 5, 4), (1, 7, 6), (3, 3, 2), (2, 9, 16), (3, 4, 10), (2, 1, 8)]
    examples = []
    for i, (batch, length, size) in enumerate(sizes):
        rng, table = np.random.default_rng(i), normal(run, i, WORDS, size)
        tokens, padding = rng.integers(0, WORDS, (batch, length)), rng.integers(0, length, batch)
        told, shape = {**BASE, "scale": rounded(run, size**0.5)}, (batch, length, size)
        kept = np.broadcast_to((np.arange(length) >= padding[:, None])[..., None], shape)
        for layout in ("interleaved", "concatenated"):
            examples.append(Example((tokens, table), {"layout": layout}, shape, told))
            if run.offers_parameter("padding"):
                options = {"layout": layout, "padding": padding}
                examples.append(Example((tokens, table), options, shape, told, judged=kept))
    return examples


def _embedded(
    at: Callable[[Array, Any], Array] = lambda tokens, first: np.maximum(np.arange(tokens.shape[1]) - first, 0),
    put: Callable[[Any, Any, Any], Any] = lambda words, scale, places: stored(words * scale) + places,
    layout: Callable[[str], str] = lambda layout: layout,
) -> Callable[..., Any]:  # fmt: skip
    """The embedding with another position of each token, another sum of words and places, or another layout."""
    chosen = layout

    def compute(
        tokens: Array, table: Any, *, scale: Any, base: Any, padding: Any = None, layout: str = "interleaved"
    ) -> Any:
        angle = angles(at(tokens, 0 if padding is None else padding[:, None]), table.shape[-1], base)
        places = stored(joined(np.sin(angle), np.cos(angle), chosen(layout)))
        return stored(put(np.take(table, tokens, axis=0), scale, places))

    return compute


def _counted_from_the_row(tokens: Array, first: Any) -> Array:
    return np.asarray(np.arange(tokens.shape[1]) + 0 * np.asarray(first))


KIND = OperationKind(_examples, embedding, (
    ("an embedding that counts positions from the start of the row, padding included", _embedded(_counted_from_the_row)),
    ("an embedding whose words are not scaled by sqrt(d)", _embedded(put=lambda words, scale, places: words + places)),
    ("an embedding whose positions are scaled by sqrt(d), as the words are",
     _embedded(put=lambda words, scale, places: (words + places) * scale)),
    ("an embedding whose positions are scaled by sqrt(d) instead of the words",
     _embedded(put=lambda words, scale, places: words + places * scale)),
    ("an embedding whose words are scaled twice, by d in all",
     _embedded(put=lambda words, scale, places: words * (scale * scale) + places)),
    ("an embedding whose words are divided by sqrt(d) instead of multiplied",
     _embedded(put=lambda words, scale, places: words / scale + places)),
    ("an embedding without positions", _embedded(put=lambda words, scale, places: words * scale)),
    ("an embedding whose positions are subtracted", _embedded(put=lambda words, scale, places: words * scale - places)),
    ("an embedding that counts positions from 1",
     _embedded(lambda tokens, first: np.maximum(np.arange(tokens.shape[1]) - first, 0) + 1)),
    ("an embedding that counts positions from the end of the row",
     _embedded(lambda tokens, first: np.arange(tokens.shape[1])[::-1] + 0 * np.asarray(first))),
    ("an embedding with the padding of the first batch entry for all",
     _embedded(lambda tokens, first: np.maximum(np.arange(tokens.shape[1]) - np.broadcast_to(first, (len(tokens), 1))[:1], 0))),
    ("an embedding with the number of the word for its position", _embedded(lambda tokens, first: tokens)),
    ("an embedding whose positions are in the other layout, interleaved or in halves",
     _embedded(layout=lambda layout: other_layout(layout, "concatenated"))),
), (("with padding", with_option("padding")), IN_HALVES))  # fmt: skip
