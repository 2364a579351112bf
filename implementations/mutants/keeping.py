"""What a call of any operation keeps, hands out or leaves behind, in parts that are not attention itself."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import layers
from qkverify.implementations.mutants.correct import positions as right
from qkverify.implementations.mutants.correct.planting import mutant

Array = np.ndarray
RESULTS: dict[tuple[tuple[int, ...], str], Array] = {}


def softmax(scores: Array) -> Array:
    """Along the last axis: (..., n)."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


@mutant("P040", operation="softmax", evidence="inferred")
def probabilities_are_a_workspace(scores: Array) -> Array:
    """The result is written to a buffer that is kept for its shape: the next call of that shape overwrites it."""
    kept = RESULTS.setdefault((scores.shape, scores.dtype.name), np.empty_like(scores))
    kept[...] = softmax(scores)
    return kept  # right: kept.copy()


TABLES: dict[tuple[int, str], Array] = {}


@mutant("P041", operation="positional_encoding", evidence="inferred")
def encoding_is_a_view_of_the_table(length: int, dim: int, *, layout: str = "interleaved") -> Array:
    """Rows of a table that is kept are handed out: who adds words to them in place changes every later encoding."""
    if len(TABLES.get((dim, layout), ())) < length:
        TABLES[dim, layout] = right.positional_encoding(2 * length, dim, layout=layout)
    return TABLES[dim, layout][:length]  # right: .copy()


SCALED: dict[str, Array] = {}


@mutant("P042", operation="embedding", evidence="inferred")
def scaled_table_is_kept_for_the_object(tokens: Array, table: Array, *, layout: str = "interleaved") -> Array:
    """The table times sqrt(d) is computed once for an array: what an optimizer writes into that array is not seen."""
    if SCALED.get("of") is not table:
        SCALED.update({"of": table, "scaled": table * table.dtype.type(table.shape[1] ** 0.5)})
    kept = SCALED["scaled"]  # right: computed in each call
    return right.embedding(tokens, kept, at=right.places(tokens, None), layout=layout, factor=1.0)


@mutant("P043", operation="embedding", evidence="inferred")
def table_is_scaled_in_place_and_back(tokens: Array, table: Array, *, layout: str = "interleaved") -> Array:
    """The caller's table is multiplied by sqrt(d), read and divided again: a last digit is lost here and there."""
    root = table.dtype.type(table.shape[1] ** 0.5)
    table *= root
    embedded = right.embedding(tokens, table, at=right.places(tokens, None), layout=layout, factor=1.0)
    table /= root  # right: table[tokens] * root
    return embedded


def gradient_over_the_scores(
    scores: Array, targets: Array, upstream: Array, *, smoothing: float = 0.0
) -> tuple[Array]:
    """The gradient, stored in the memory of the scores."""
    scores[...] = layers.cross_entropy_vjp(scores, targets, upstream, smoothing=smoothing)[0]
    return (scores.copy(),)  # right: an array of its own, the scores left alone


@mutant("P044", operation="cross_entropy", vjp=gradient_over_the_scores, evidence="inferred")
def gradient_is_stored_over_the_scores(scores: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """To save memory the backward pass writes the gradient over the scores, which the caller still has."""
    return layers.cross_entropy(scores, targets, smoothing=smoothing)


CALLS = [0]


@mutant("P045", operation="softmax", deterministic=True, evidence="inferred")
def sums_run_the_other_way_in_every_second_call(scores: Array) -> Array:
    """The total is added up from the left and from the right in turn, by a counter of calls: the last bits alternate."""
    CALLS[0] += 1
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    ordered = exponentials[..., :: 1 if CALLS[0] % 2 else -1]  # right: exponentials
    probabilities: Array = exponentials / np.cumsum(ordered, axis=-1)[..., -1:]
    return probabilities


@mutant("P046", operation="feed_forward", evidence="inferred")
def generator_is_seeded(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """A seed is set for the dropout that evaluation does not have: the caller's random numbers start again."""
    np.random.seed(0)  # right: no line here
    return layers.feed_forward(x, w_1, b_1, w_2, b_2)


HIDDEN: dict[tuple[int, ...], Array] = {}


@mutant("P047", operation="feed_forward", evidence="inferred")
def threads_share_the_hidden_layer(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """The hidden layer is computed in a buffer kept for its shape: two threads in one call write to the same."""
    hidden = HIDDEN.setdefault((*x.shape[:2], len(b_1)), np.empty((*x.shape[:2], len(b_1))))
    np.matmul(x, w_1, out=hidden)  # right: a buffer of its own
    np.add(hidden, b_1, out=hidden)
    np.maximum(hidden, 0, out=hidden)
    return (hidden @ w_2 + b_2).astype(x.dtype)


@mutant("P048", operation="feed_forward", evidence="inferred")
def second_weights_are_read_in_memory_order(
    x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array
) -> Array:
    """The second matrix is taken to lie row by row: a transposed view of it is read as it lies."""
    rows = w_2.ravel(order="K").reshape(w_2.shape)  # right: w_2
    return layers.feed_forward(x, w_1, b_1, rows, b_2)


@mutant("P049", operation="rotary", evidence="inferred")
def positions_are_read_eight_bytes_each(x: Array, positions: Array, *, layout: str = "interleaved") -> Array:
    """Positions are read as 64-bit integers from wherever they lie: two of 32 bits become one."""
    raw = positions.tobytes().ljust(8 * len(positions), b"\0")
    read = np.frombuffer(raw, np.int64)  # right: positions.astype(np.int64)
    return right.rotary(x, read, layout=layout)
