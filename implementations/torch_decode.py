"""The forms of attention that servers need, each as one masked call of torch's scaled_dot_product_attention.

Dimension letters as in numpy_decode.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qkverify import implementation

DECLARED = {"arrays": "torch", "dtypes": ("float32", "float16", "bfloat16"), "devices": ("cpu", "cuda"),
            "precision": {"float16": "fused", "bfloat16": "fused",
                          "float16-cpu": "fused-fast-exp", "bfloat16-cpu": "fused-fast-exp",
                          "float16-gradients": "eager", "bfloat16-gradients": "eager"},
            "causal_alignment": "bottom-right", "empty_rows": "zero", "masked_values": "read",
            "differentiable": True}  # fmt: skip


@implementation(
    name="torch_packed", summary="all sequences in one call: a mask keeps each to itself", **DECLARED
)
def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, *,
    causal: bool = False, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """query (T,H,D), key (S,G,D), value (S,G,E) -> (T,H,E)."""
    query_starts, key_starts = (
        query_starts.long(),
        key_starts.long(),
    )  # differences of unsigned ones would wrap
    (q_sequence, q_place), (k_sequence, k_place) = (
        places(query_starts, len(query)),
        places(key_starts, len(key)),
    )
    allowed = q_sequence[:, None] == k_sequence
    if causal:
        later = (key_starts.long().diff() - query_starts.long().diff())[
            q_sequence
        ]  # the last query stands at the last key
        allowed = allowed & (k_place <= (q_place + later)[:, None])
    return masked(
        query.transpose(0, 1)[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None], allowed, scale
    )[0].transpose(0, 1)


def places(starts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """For each row the number of its sequence and its place in it."""
    starts = starts.long()  # differences of unsigned numbers would wrap
    sequence = torch.repeat_interleave(
        torch.arange(len(starts) - 1, device=starts.device), starts.diff(), output_size=rows
    )
    return sequence, torch.arange(rows, device=starts.device) - starts[sequence]


@implementation(
    name="torch_cached", summary="new tokens scattered into the cache, then one masked call", **DECLARED
)
def cached_attention(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, lengths: Tensor, *,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """query (B,H,Q,D), key (B,G,Q,D), value (B,G,Q,E), caches (B,G,M,.), lengths (B,) -> (B,H,Q,E); the caches are written."""
    place = lengths.long()[:, None] + torch.arange(query.shape[2], device=query.device)  # (B,Q)
    for cache, new in ((key_cache, key), (value_cache, value)):
        cache.scatter_(2, place[:, None, :, None].expand(new.shape), new)
    return seeing_up_to(query, key_cache, value_cache, place, scale)


@implementation(
    name="torch_paged", summary="the pages of each entry gathered, then one masked call", **DECLARED
)
def paged_attention(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, page_table: Tensor, lengths: Tensor, *,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """query (B,H,Q,D), pages (N,P,G,.), page_table (B,.), lengths (B,) -> (B,H,Q,E)."""
    key, value = (pool[page_table.long()].flatten(1, 2).transpose(1, 2) for pool in (key_pages, value_pages))
    queries = query.shape[2]
    place = lengths.long()[:, None] - queries + torch.arange(queries, device=query.device)
    return seeing_up_to(query, key, value, place, scale)


def seeing_up_to(query: Tensor, key: Tensor, value: Tensor, place: Tensor, scale: float | None) -> Tensor:
    """Each query sees the keys up to its own place, (B,Q)."""
    allowed = torch.arange(key.shape[2], device=query.device) <= place[:, None, :, None]
    return masked(query, key, value, allowed, scale)


def masked(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float | None) -> Tensor:
    """One new token of query heads that share a key head is as many rows of one head, so that keys are read once."""
    heads, groups = query.shape[1], key.shape[1]
    if query.shape[2] == 1 and heads > groups > 0:
        rows = query.unflatten(1, (groups, heads // groups)).squeeze(3)
        output = scaled_dot_product_attention(rows, key, value, attn_mask=allowed, scale=scale)
        return output.flatten(1, 2).unsqueeze(2)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=scale, enable_gqa=heads != groups
    )
