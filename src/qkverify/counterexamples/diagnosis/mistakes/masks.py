"""Keys hidden one by one: masks, padding, and what becomes of queries that see no key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import (
    MASKING,
    NO_MASK,
    TILES,
    Arguments,
    Array,
    Compute,
    Edit,
    Mistake,
    averaged,
    but,
    columns,
    ends,
    first_for_all,
    logits_of,
    rows,
    seen,
    sees,
)
from qkverify.problem.attention_problem import Problem
from qkverify.reference.softmax import softmax


def _mask(change: Callable[[Array, Problem], Array]) -> Edit:
    return lambda a, p: {**a, "mask": change(np.asarray(p.mask), p)}


def _flat_heads(mask: Array, p: Problem) -> Array:
    flat = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    flat = flat.reshape(-1, *flat.shape[2:])
    b, h = p.sizes["B"], p.sizes["H"]
    return np.asarray(flat[np.arange(b * h).reshape(b, h) % max(len(flat), 1)])


def _masked_by(number: float) -> Compute:
    """Masked scores are set to a number that is not low enough."""
    return lambda a, p: averaged(a, softmax(np.where(seen(p), logits_of(a, **NO_MASK), number)))


def _mask_after(a: Arguments, p: Problem) -> Any:
    return averaged(a, softmax(logits_of(a, **NO_MASK)) * np.where(seen(p), 1.0, 0.0))


def _lengths(change: Callable[[Array], Array]) -> Edit:
    return lambda a, p: {**a, "key_lengths": change(np.asarray(p.key_lengths))}


def _rounded_up(tile: int) -> Callable[[Array], Array]:
    return lambda lengths: -(-lengths // tile) * tile


def _lowest_added(a: Arguments, p: Problem) -> Any:
    """Each reason to hide a key adds the lowest number: keys with two of them are at -inf, those with one are not."""
    reasons = [name for name in MASKING if name in p.options]
    hidden = np.sum([~seen(p, **{**NO_MASK, name: getattr(p, name)}) for name in reasons], 0)
    empty = ~p.some_visible[..., None]
    logits = np.where(empty, np.where(hidden == 1, 0.0, -np.inf), logits_of(a))
    any_key = np.max(logits, axis=-1, keepdims=True, initial=-np.inf) > -np.inf
    return averaged(a, np.where(any_key, softmax(logits), np.nan))


MASKS: tuple[Mistake, ...] = (
    Mistake("attention with the mask inverted: True hides", _mask(lambda m, p: ~m), needs=("mask",)),
    Mistake("attention without the mask", but(mask=None), needs=("mask",)),
    Mistake("attention whose mask (H,Q,K) is read as (B,Q,K)",
            _mask(lambda m, p: m[:, None] if m.ndim == 3 else m), needs=("mask",)),
    Mistake("attention whose mask (Q,K) is read as (B,K)",
            _mask(lambda m, p: m[:, None, None] if m.ndim == 2 else m), needs=("mask",)),
    Mistake("attention whose mask is read at b H + h although it does not hold every head of every batch entry",
            _mask(_flat_heads), needs=("mask",)),
    Mistake("attention with the mask of the first batch entry for all", _mask(lambda m, p: first_for_all(m, 0)), needs=("mask",)),
    Mistake("attention with the mask of the first head for all", _mask(lambda m, p: first_for_all(m, 1)), needs=("mask",)),
    Mistake("attention with the mask of the first query for all", _mask(lambda m, p: first_for_all(m, 2)), needs=("mask",)),
    Mistake("attention with the mask transposed", _mask(lambda m, p: np.swapaxes(m, -1, -2)), needs=("mask",)),
    Mistake("attention whose weights are masked after the softmax and not normalised again", output=_mask_after, among=MASKING),
    Mistake("attention whose masked scores are 0 instead of -inf", output=_masked_by(0.0), among=MASKING),
    Mistake("attention whose masked scores are 1e-9 instead of -1e9", output=_masked_by(1e-9), among=MASKING),
)  # fmt: skip


PADDING: tuple[Mistake, ...] = (
    Mistake("attention without the key lengths: padding is read", but(key_lengths=None), needs=("key_lengths",)),
    Mistake("attention that reads one key of the padding", _lengths(lambda n: n + 1), needs=("key_lengths",)),
    Mistake("attention that misses the last key before the padding", _lengths(lambda n: n - 1), needs=("key_lengths",)),
    Mistake("attention with the length of the first batch entry for all",
            _lengths(lambda n: np.broadcast_to(n[:1], n.shape)), needs=("key_lengths",)),
    Mistake("attention with the longest of the lengths for all",
            _lengths(lambda n: np.broadcast_to(n.max(keepdims=True), n.shape)), needs=("key_lengths",)),
    *(Mistake(f"attention whose key lengths are rounded up to whole tiles of {t}",
              _lengths(_rounded_up(t)), needs=("key_lengths",)) for t in TILES),
    Mistake("attention whose padding mask is laid along the queries instead of the keys",
            sees(lambda p: seen(p, key_lengths=None) & (rows(p) < ends(p))), needs=("key_lengths",)),
    Mistake("attention whose padding is on the left",
            sees(lambda p: seen(p, key_lengths=None) & (columns(p) >= p.sizes["K"] - ends(p))), needs=("key_lengths",)),
)  # fmt: skip


EMPTY_ROWS: tuple[Mistake, ...] = (
    Mistake("attention that gives NaN to queries that see no key; {empty} is declared", but(empty_rows="nan")),
    Mistake("attention that gives zero to queries that see no key; {empty} is declared", but(empty_rows="zero")),
    Mistake("attention that gives the mean of all values to queries that see no key; {empty} is declared",
            but(empty_rows="uniform")),
    Mistake("attention that adds the lowest number once for each reason to hide a key: where two meet they overflow to -inf",
            output=_lowest_added, among=MASKING),
)  # fmt: skip
