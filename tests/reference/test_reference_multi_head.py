"""reference.multi_head_attention head by head, and the three variants of self-attention, against 50 digits.

Inputs and weight matrices are small integers, so every projection is exact and only the attention rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf

from qkverify.reference import (
    from_embeddings,
    from_queries_and_keys,
    from_queries_keys_and_values,
    merge_heads,
    multi_head_attention,
    split_heads,
)

from .reference_oracles import DIGITS, U, attention_by_words, bounds, off


def integers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed + sum(shape)).integers(-2, 3, shape).astype(np.float64)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": np.tri(3, 3, 1, dtype=bool)}], ids=str)
def test_heads_attend_on_their_own_columns_and_are_added_up_by_w_o(
    key_heads: int, options: dict[str, Any]
) -> None:
    heads, size, width = 4, 2, 5
    x, w_q, w_o = integers(2, 3, width), integers(width, heads * size), integers(heads * size, width, seed=1)
    w_k, w_v = (integers(width, key_heads * size, seed=seed) for seed in (2, 3))
    got = multi_head_attention(x, w_q, w_k, w_v, w_o, heads=heads, key_heads=key_heads, **options)
    with mp.workdps(DIGITS):
        exact, limit = np.full(x.shape, mpf(0)), np.zeros(x.shape)
        for h in range(heads):
            columns = slice(h * size, (h + 1) * size)
            g = h * key_heads // heads
            shared = slice(g * size, (g + 1) * size)
            inputs = [(x @ w)[:, None] for w in (w_q[:, columns], w_k[:, shared], w_v[:, shared])]
            output = attention_by_words(*inputs, **options)[0][:, 0]
            exact = exact + output @ w_o[columns].astype(object)
            bound, magnitude = bounds(*inputs, **options)[0][:, 0], np.abs(output).astype(float)
            limit += bound @ np.abs(w_o[columns]) + heads * size * U * (magnitude + bound) @ np.abs(
                w_o[columns]
            )
        assert off(got, exact, limit * (1 + heads * size * U)) <= 1


def test_keys_and_values_come_from_the_context() -> None:
    x, context, eye = integers(2, 3, 4), integers(2, 5, 4), np.eye(4)
    got = multi_head_attention(x, eye, eye, eye, eye, heads=2, context=context)
    assert got.shape == (2, 3, 4)
    alone = [
        multi_head_attention(x[:, i : i + 1], eye, eye, eye, eye, heads=2, context=context) for i in range(3)
    ]
    limit = 2 * bounds(*(split_heads(y, 2) for y in (x, context, context)))[0]
    assert (np.abs(got - np.concatenate(alone, axis=1)) <= merge_heads(limit)).all()


def test_splitting_and_merging_undo_each_other() -> None:
    x = integers(2, 3, 8)
    assert (merge_heads(split_heads(x, 4)) == x).all()
    assert (split_heads(x, 4)[1, 2] == x[1, :, 4:6]).all()


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_that_do_not_divide_the_size_are_named(heads: int) -> None:
    with pytest.raises(ValueError, match=rf"\(2, 3, 8\).*{heads} heads"):
        split_heads(np.zeros((2, 3, 8)), heads)


def words(query: Any, key: Any, value: Any, scale: Any, own_word: bool = True) -> Any:
    """sum_j exp(q_i . k_j scale) v_j / sum_j exp(q_i . k_j scale), for one sequence (L,D), (L,D), (L,E)."""
    length = len(query)
    output = np.empty((length, value.shape[1]), dtype=object)
    for i in range(length):
        others = [j for j in range(length) if own_word or j != i]
        share = {j: mp.exp(scale * mp.fdot(query[i], key[j])) for j in others}
        output[i] = sum(share[j] * value[j].astype(object) for j in others) / mp.fsum(share.values())
    return output


def test_the_first_self_attention_mixes_the_embeddings_of_the_other_words() -> None:
    x = integers(1, 4, 3)
    inputs = [x[:, None]] * 3
    limit = bounds(*inputs, scale=1.0, mask=~np.eye(4, dtype=bool))[0][0, 0]
    with mp.workdps(DIGITS):
        assert off(from_embeddings(x)[0], words(x[0], x[0], x[0], mpf(1), own_word=False), limit) <= 1


def test_the_second_self_attention_mixes_the_keys() -> None:
    x, w_q, w_k = integers(1, 4, 3), integers(3, 4), integers(3, 4, seed=1)
    query, key = x @ w_q, x @ w_k
    limit = bounds(query[:, None], key[:, None], key[:, None])[0][0, 0]
    with mp.workdps(DIGITS):
        halved = words(query[0], key[0], key[0], mpf(1) / 2)  # keys of size 4: their scores are divided by 2
        assert off(from_queries_and_keys(x, w_q, w_k)[0], halved, limit) <= 1


def test_the_third_self_attention_mixes_the_values() -> None:
    x, w_q, w_k, w_v = integers(1, 4, 3), integers(3, 4), integers(3, 4, seed=1), integers(3, 2)
    query, key, value = x @ w_q, x @ w_k, x @ w_v
    limit = bounds(query[:, None], key[:, None], value[:, None])[0][0, 0]
    with mp.workdps(DIGITS):
        exact = words(query[0], key[0], value[0], mpf(1) / 2)
        assert off(from_queries_keys_and_values(x, w_q, w_k, w_v)[0], exact, limit) <= 1


def test_the_only_word_has_no_other_words() -> None:
    assert (from_embeddings(integers(1, 1, 3)) == 0).all()
