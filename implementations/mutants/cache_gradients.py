"""The backward pass through a cache and through pages. The forward pass of these is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkverify.implementations import numpy_decode, torch_decode
from qkverify.implementations.mutants.correct.planting import mutant

Array = np.ndarray
READ: dict[str, Any] = {"masked_values": "read", "empty_rows": "zero", "causal_alignment": "bottom-right"}
WIDE: dict[str, Any] = {"arrays": "torch", "dtypes": ("float32",), **READ}


@mutant("D052", operation="cached_attention", evidence="partly", **WIDE,
        threads="huggingface/transformers#43897 huggingface/transformers#43041")  # fmt: skip
def cache_is_written_without_gradients(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, lengths: Tensor, *,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """The update of the cache is decorated with no_grad: new tokens are read out of it and learn nothing."""
    place = lengths.long()[:, None] + torch.arange(query.shape[2])
    with torch.no_grad():  # right: without
        for cache, new in ((key_cache, key), (value_cache, value)):
            cache.scatter_(2, place[:, None, :, None].expand(new.shape), new)
    return torch_decode.seeing_up_to(query, key_cache, value_cache, place, scale)


@mutant("D053", operation="cached_attention", evidence="inferred", **WIDE)
def held_tokens_are_cut_off(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, lengths: Tensor, *,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """The cache is detached at the beginning of a call, and a learnt prefix gets no gradient."""
    caches = key_cache.detach(), value_cache.detach()  # right: as they are
    return torch_decode.cached_attention(query, key, value, *caches, lengths, scale=scale)


def _cached_vjp(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array,
    upstream: Array, *, scale: float | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    given = query, key, value, key_cache, value_cache, lengths
    gradients = numpy_decode.cached_attention_vjp(*given, upstream, scale=scale)
    for new, held in ((gradients[1], gradients[3]), (gradients[2], gradients[4])):
        for b, n in enumerate(lengths.astype(int)):
            held[b, :, n : n + new.shape[2]] = new[b]  # right: zero
    return gradients


@mutant("D054", operation="cached_attention", evidence="inferred", vjp=_cached_vjp, masked_values="read")
def what_is_written_over_gets_the_gradient_of_what_replaced_it(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """The gradient of the cache is that of the cache after the call, new tokens and all."""
    return numpy_decode.cached_attention(query, key, value, key_cache, value_cache, lengths, scale=scale)


def _last_sequence_wins(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, upstream: Array, *,
    scale: float | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    d_query, *d_pools = (np.zeros_like(x) for x in (query, key_pages, value_pages))
    rows = key_pages.shape[1]
    for b, n in enumerate(lengths.astype(int)):
        entry = slice(b, b + 1)
        given = query[entry], key_pages, value_pages, page_table[entry], lengths[entry], upstream[entry]
        d_query[entry], *found = numpy_decode.paged_attention_vjp(*given, scale=scale)
        at = np.arange(n)
        place = page_table[b].astype(int)[at // rows], at % rows
        for pool, own in zip(d_pools, found, strict=True):
            pool[place] = own[place]  # right: pool[place] += own[place]
    return d_query, *d_pools


@mutant(
    "D055", operation="paged_attention", evidence="inferred", vjp=_last_sequence_wins, masked_values="read"
)
def shared_page_learns_from_the_last_sequence(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """Gradients are written to the pages, and not added to them: of a page that two sequences have, one is lost."""
    return numpy_decode.paged_attention(query, key_pages, value_pages, page_table, lengths, scale=scale)


def _on_top_of_what_is_there(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, upstream: Array, *,
    scale: float | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    given = query, key_pages, value_pages, page_table, lengths
    d_query, *d_pools = numpy_decode.paged_attention_vjp(*given, upstream, scale=scale)
    read, rows = np.zeros(key_pages.shape[:2], bool), key_pages.shape[1]
    for entry, n in zip(page_table.astype(int), lengths.astype(int), strict=True):
        read[entry[np.arange(n) // rows], np.arange(n) % rows] = True
    for gradient, pool in zip(d_pools, (key_pages, value_pages), strict=True):
        gradient[~read] = pool[~read]  # right: zero
    return d_query, *d_pools


@mutant(
    "D056",
    operation="paged_attention",
    evidence="inferred",
    vjp=_on_top_of_what_is_there,
    masked_values="read",
)
def gradients_of_pages_are_not_cleared(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """The gradient's pages are taken from the pool as they are, and rows that nobody has keep what lay there."""
    return numpy_decode.paged_attention(query, key_pages, value_pages, page_table, lengths, scale=scale)
