"""The operations that a function may compute: what stands first in its signature, what comes back, what it means.

Letters: B batch, H query heads, G key/value heads, Q queries, K keys, L tokens, D key size, E value size, M width of the
model, F inner width; T and S the query and key rows of all sequences together. `qkverify list operations` prints this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Operation:
    """`parameters` are required and come in this order; `options` are keyword parameters that laws put to use where a
    function has them (those of attention are `contract.OPTIONS`). Both map a name to its shape or meaning. `rules` are
    what else it is held to where that is not plain. `defaults` are the options whose value is a choice of the function where
    it is not given: what it may be, the usual one first. `probes` find out which one it is."""

    computes: str
    parameters: Mapping[str, str]
    returns: str
    options: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    defaults: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    differentiable: bool = True  # False where nothing is given that a gradient could belong to


_SERVING = {"causal, scale, softcap": "as for attention"}
_SERVED = "a result without gradients offers none; who gives only some of them declares differentiable=False"
_LAYER_WEIGHTS = "a mapping: w_q, w_k, w_v, w_o (M,M), w_1 (M,F), b_1 (F,), w_2 (F,M), b_2, gain_1, shift_1, gain_2, shift_2 (M,)"
_ENCODINGS = {"layout": ("interleaved", "concatenated")}
_ROTATIONS = {"layout": ("interleaved", "half")}
_LAYER_DEFAULTS = {"norm_first": (False, True), "eps": (1e-5, 1e-6, 1e-12)}
_LAYER_OPTIONS = {
    "heads": "required", "norm_first": "normalise before each sublayer instead of after it",
    "eps": "added to the variance, inside of the root",
}  # fmt: skip

DESCRIBED: Mapping[str, Operation] = MappingProxyType({
    "attention": Operation(
        "softmax(Q K^T * scale) V for each head, with the options that it offers",
        {"query": "(B,H,Q,D)", "key": "(B,G,K,D)", "value": "(B,G,K,E)"}, "(B,H,Q,E)",
        rules=("sizes that do not fit one another raise an error: nothing is read past an end, nothing broadcast by chance",
               "gradients are those of the output, and of the log-sum-exp too unless lse_gradient=False is declared"),
    ),
    "softmax": Operation("softmax over the last axis", {"scores": "(..., n)"}, "(..., n)"),
    "multi_head_attention": Operation(
        "projections, attention in each head, concatenation, projection",
        {"x": "(B,L,M)", "w_q": "(M,H*D)", "w_k": "(M,H*D)", "w_v": "(M,H*D)", "w_o": "(H*D,M)"}, "(B,L,M)",
        {"heads": "required", "causal": "True or False"},
    ),
    "positional_encoding": Operation(
        "sines and cosines of p / 10000^(2i/dim)", {"length": "L", "dim": "M"}, "(L,M)",
        {"layout": '"interleaved" (sine and cosine are neighbours) or "concatenated"', "dtype, device": "of the result"},
        defaults=_ENCODINGS,
        differentiable=False,
    ),
    "rotary": Operation(
        "each pair of x turned by position / 10000^(2i/D)", {"x": "(B,H,L,D)", "positions": "(L,)"}, "(B,H,L,D)",
        {"layout": '"interleaved" or "half": which elements are a pair'}, defaults=_ROTATIONS,
    ),
    "rotary_pair": Operation(
        "query and key turned by the positions of each entry",
        {"query": "(B,H,L,D)", "key": "(B,G,L,D)", "positions": "(B,L)"}, "the two, turned",
        {"layout": "as for rotary"}, ("a vjp of its own takes an upstream gradient for each of the two",),
        _ROTATIONS,
    ),
    "embedding": Operation(
        "sqrt(M) table[token] + the encoding of its position", {"tokens": "(B,L)", "table": "(V,M)"}, "(B,L,M)",
        {"padding": "(B,): so many tokens at the start of a row are none; positions count from the first that is one",
         "layout": "as for positional_encoding"},
        defaults=_ENCODINGS,
    ),
    "alibi_slopes": Operation(
        "the slopes of ALiBi, any number of heads", {"heads": "H"}, "(H,)", differentiable=False
    ),
    "packed_attention": Operation(
        "attention of sequences that lie after one another",
        {"query": "(T,H,D)", "key": "(S,G,D)", "value": "(S,G,E)",
         "query_starts": "(n+1,): where each sequence begins, and the end", "key_starts": "(n+1,)"}, "(T,H,E)",
        {**_SERVING, "longest_query, longest_key": "the longest sequence"},
    ),
    "cached_attention": Operation(
        "new tokens are appended to a cache, which is written, and attend to it causally",
        {"query": "(B,H,Q,D), the new tokens", "key": "(B,G,Q,D)", "value": "(B,G,Q,E)", "key_cache": "(B,G,room,D)",
         "value_cache": "(B,G,room,E)", "lengths": "(B,): tokens in the cache before the call"}, "(B,H,Q,E)", _SERVING,
        ("gradients are those by query, key and value, and by the caches as they were before the call", _SERVED),
    ),
    "paged_attention": Operation(
        "causal attention over a cache in pages",
        {"query": "(B,H,Q,D), the last tokens", "key_pages": "(pages,rows,G,D)", "value_pages": "(pages,rows,G,E)",
         "page_table": "(B,.): the pages of each entry in order", "lengths": "(B,): all its tokens, the queries' own among them"},
        "(B,H,Q,E)", _SERVING,
        ("gradients are those by the query and by the pages, summed where several entries have a page", _SERVED),
    ),
    "feed_forward": Operation(
        "relu(x w_1 + b_1) w_2 + b_2",
        {"x": "(B,L,M)", "w_1": "(M,F)", "b_1": "(F,)", "w_2": "(F,M)", "b_2": "(M,)"}, "(B,L,M)",
    ),
    "encoder_layer": Operation(
        "self-attention and feed-forward, each added to its input and normalised",
        {"x": "(B,L,M)", "weights": _LAYER_WEIGHTS}, "(B,L,M)",
        {**_LAYER_OPTIONS, "key_lengths": "(B,): tokens that are no padding"}, defaults=_LAYER_DEFAULTS,
    ),
    "decoder_layer": Operation(
        "causal self-attention, attention to the memory, feed-forward",
        {"x": "(B,L,M)", "memory": "(B,K,M)",
         "weights": f"{_LAYER_WEIGHTS}, and cross_w_q, cross_w_k, cross_w_v, cross_w_o (M,M), gain_3, shift_3 (M,)"}, "(B,L,M)",
        {**_LAYER_OPTIONS, "memory_lengths": "(B,): tokens of the memory that are no padding"}, defaults=_LAYER_DEFAULTS,
    ),
    "cross_entropy": Operation(
        "the loss of each token; 1 - smoothing of it for the target, the rest spread over all classes",
        {"scores": "(N,C)", "targets": "(N,)"}, "(N,)", {"smoothing": "0 if it is not given"},
    ),
})  # fmt: skip


def word(value: Any) -> str:
    """A value of `defaults` as it is printed: yes, no, half, 1e-06."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
