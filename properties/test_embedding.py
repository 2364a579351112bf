"""What enters the first layer, and rotary embeddings of query and key in one call: every token has its own position.

    embedding(tokens, table, *, padding, layout)        tokens (B,L), table (V,M), padding (B) -> (B,L,M)
    rotary_pair(query, key, positions, *, layout)       query (B,H,L,D), key (B,G,L,D), positions (B,L) -> the two, turned

`padding` counts the tokens at the start of a row that are none: positions count from the first one that is.
"""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.problem.byte_strategies import EDGES
from qkverify.runs import exact_gradients, exact_positions
from qkverify.runs.assertions import assert_gradients, assert_within_bound
from qkverify.strategies.operation_keywords import optional
from qkverify.verification.laws import law

layouts = optional("layout", "interleaved", "concatenated")
seeds = range(1000)
WORDS = (11, 3, *EDGES)  # of the vocabulary


def offering(name):
    """Where a law speaks of a keyword that need not be there."""
    return lambda run: None if run.offers_parameter(name) else f"not offered: {name}"


# -- embedding -------------------------------------------------------------------------------------------------------


def drawn(run, batch, length, size, seed):
    """tokens (B,L) and table (V,M); small whole numbers for seeds below ten."""
    assume(batch * length * size <= 16_000)
    rng, count = np.random.default_rng(seed), WORDS[seed % len(WORDS)]
    numbers = rng.integers(-2, 3, (count, size)) if seed < 10 else rng.standard_normal((count, size))
    return rng.integers(0, count, (batch, length)), numbers.astype(run.numpy_dtype)


def embedded(run, tokens, table, **options):
    """The embedding (B,L,M) with its bound, and the exact one."""
    exact = exact_positions.embedding(run, tokens, table, **options)
    return run.within(run.call(tokens, table, shape=exact.shape, **run.given(**options)), exact), exact.value


words = {
    "operation": "embedding",
    "batch": (1, 2, 3, 4, 33, 65),
    "length": (1, 2, 3, 5, 8, 17, *EDGES),
    "size": (2, 4, 6, 10, 16, 18, 24, 62, 64, 66, 72, 126, 130),
    "layout": layouts,
    "seed": seeds,
}


@law(
    "A word counts sqrt(d) times its row of the table.",
    source="'Attention is all you need', section 3.4",
    **words,
)
def test_embedding_is_scaled_by_sqrt_d(run, batch, length, size, layout, seed):
    """The encoding of the positions drops out: it is what a table of zeros gives."""
    tokens, table = drawn(run, batch, length, size, seed)
    output, alone = (embedded(run, tokens, x, layout=layout)[0] for x in (table, np.zeros_like(table)))
    assert_within_bound(output - alone, table[tokens].astype(np.float64) * size**0.5, what="word")


@law(
    "A sequence behind padding is embedded as it is alone: positions count from its first token.",
    source="left-padded batches, huggingface/transformers#22161",
    when=offering("padding"),
    **words,
)
def test_embedding_left_padding(run, batch, length, size, layout, seed):
    tokens, table = drawn(run, batch, length, size, seed)
    padding = np.random.default_rng(seed + 1).integers(0, length, batch)
    output, _ = embedded(run, tokens, table, layout=layout, padding=padding)
    for b, first in enumerate(padding):
        alone, _ = embedded(run, tokens[b : b + 1, first:], table, layout=layout)
        assert_within_bound(output[b, first:], alone[0], what="embedding behind the padding")


@law(
    "An embedding is sqrt(d) times the row of the word, plus the encoding of the position.",
    source="'Attention is all you need', sections 3.4 and 3.5",
    **words,
)
def test_embedding_agrees_with_formula(run, batch, length, size, layout, seed):
    output, exact = embedded(run, *drawn(run, batch, length, size, seed), layout=layout)
    assert_within_bound(output, exact, what="embedding")


@law(
    "The gradient of a word's row is sqrt(d) times the sum of the upstream gradients of all places where the word stands.",
    source="the transpose of a lookup is a scatter-add",
    needs="gradients",
    **words,
    padded=(False, True),
)
def test_embedding_gradient_sums_over_places(run, batch, length, size, layout, seed, padded):
    tokens, table = drawn(run, batch, length, size, seed)
    rng = np.random.default_rng(seed + 1)
    upstream = rng.standard_normal((*tokens.shape, size)).astype(run.numpy_dtype)
    options = run.given(layout=layout, padding=rng.integers(0, length, batch) if padded else None)
    gradients = run.call_gradients({"tokens": tokens, "table": table}, upstream=upstream, **options)
    assert_gradients(run, gradients, exact_gradients.OF["embedding"](run, upstream, tokens, table))


# -- rotary, query and key in one call -------------------------------------------------------------------------------

rope = {
    "operation": "rotary_pair",
    "heads": ((1, 1), (2, 2), (2, 1), (4, 2), (6, 3)),  # H, G
    "batch": (1, 2, 3),
    "length": (1, 2, 3, 5, 17, 33, 64, 65, 129),
    "size": (2, 4, 6, 8, 18, 24, 64, 66, 72, 128),
    "layout": optional("layout", "interleaved", "half"),
    "seed": seeds,
}


def query_and_key(run, heads, batch, length, size, seed):
    """query (B,H,L,D), key (B,G,L,D) of sizes that the function takes, and positions (B,L), anywhere up to 999."""
    rng = np.random.default_rng(seed)
    letters = {"B": batch, "H": heads[0], "G": heads[1], "Q": length, "K": length, "D": size}
    assume(length * size <= 129 * 64 and run.implementation.accepts(letters) is None)
    query, key = (rng.standard_normal((batch, n, length, size)).astype(run.numpy_dtype) for n in heads)
    return query, key, rng.integers(0, 8 if seed < 500 else 1000, (batch, length))


def turned(run, query, key, positions, layout):
    """Query and key, each with its bound, and the exact ones."""
    exact = [exact_positions.rotary(run, x, positions[:, None], layout=layout) for x in (query, key)]
    shapes = {"query": query.shape, "key": key.shape}
    parts = run.call_parts(query, key, positions, shapes=shapes, **run.given(layout=layout))
    return [run.within(got, x) for got, x in zip(parts, exact, strict=True)], [x.value for x in exact]


@law(
    "The turned query does not depend on the key, nor the turned key on the query.",
    source="RoFormer: f_q and f_k are functions of one vector and its position each; hpcaitech/ColossalAI#6429",
    **rope,
)
def test_rotary_pair_keeps_query_and_key_apart(run, heads, batch, length, size, layout, seed):
    query, key, at = query_and_key(run, heads, batch, length, size, seed)
    (turned_query, turned_key), _ = turned(run, query, key, at, layout)
    assert_within_bound(
        turned(run, query, -key, at, layout)[0][0], turned_query, what="query beside another key"
    )
    assert_within_bound(
        turned(run, -query, key, at, layout)[0][1], turned_key, what="key beside another query"
    )


@law(
    "Rotary turns each pair of query and key by the position of its own token in its own sequence.",
    source="RoFormer, section 3.2.2",
    **rope,
)
def test_rotary_pair_agrees_with_formula(run, heads, batch, length, size, layout, seed):
    outputs, exact = turned(run, *query_and_key(run, heads, batch, length, size, seed), layout)
    assert_within_bound(outputs[0], exact[0], what="query")
    assert_within_bound(outputs[1], exact[1], what="key")


@law(
    "The gradients of query and key are the upstream gradients of their turned forms, turned back by the same angles.",
    source="a rotation's transpose is its inverse, and neither depends on the other",
    needs="gradients",
    **rope,
)
def test_rotary_pair_gradients_turn_back(run, heads, batch, length, size, layout, seed):
    query, key, at = query_and_key(run, heads, batch, length, size, seed)
    rng = np.random.default_rng(seed + 1)
    above = tuple(rng.standard_normal(x.shape).astype(run.numpy_dtype) for x in (query, key))
    exact = [exact_positions.rotary_gradient(run, at[:, None], x, layout=layout) for x in above]
    gradients = run.call_gradients(
        {"query": query, "key": key}, at, upstream=above, **run.given(layout=layout)
    )
    assert_gradients(run, gradients, dict(zip(("query", "key"), exact, strict=True)))
