"""The sizes at which operations other than attention are timed: two for each, a short one and a long one.

They are those of models that people run: the width, heads and vocabulary of the transformer (base) of "Attention Is All You Need"
(arXiv:1706.03762, table 3), the heads of Llama 3 8B (arXiv:2407.21783, table 3) where operations belong to models of today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from qkverify.strategies.operation_cases import OPERATION_SPECS, Given, Source

Draw = Callable[[SimpleNamespace, Source], tuple[Given, Given]]


@dataclass(frozen=True)
class OperationCase:
    """One call to time. `sizes` are what `draw` reads; `shown` are those that a person is told."""

    operation: str
    name: str
    sizes: Mapping[str, Any]
    shown: Mapping[str, int]
    draw: Draw


LAYER = {"B": 1, "H": 8, "D": 64, "F": 2048, "norm_first": False, "eps": 1e-5, "padded": False}
GROUPED = {"G": 8, "H": 4, "D": 128, "E": 128, "scale": None}  # H query heads share a key/value head


def _one_more_token(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """Decoding: each of B sequences appends one token to a cache that holds L."""
    arrays = {
        "query": new(s.B, s.G * s.H, 1, s.D),
        "key": new(s.B, s.G, 1, s.D),
        "value": new(s.B, s.G, 1, s.E),
    }
    caches = {"key_cache": new(s.B, s.G, s.L + 1, s.D), "value_cache": new(s.B, s.G, s.L + 1, s.E)}
    return {**arrays, **caches, "lengths": np.full(s.B, s.L, np.int32)}, {"scale": s.scale}


def _one_more_token_in_pages(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """Decoding: each of B sequences has L tokens in pages of P, in any order."""
    width = -(-s.L // s.P)
    pools = {"key_pages": new(s.B * width, s.P, s.G, s.D), "value_pages": new(s.B * width, s.P, s.G, s.E)}
    table = np.argsort(new(s.B * width).astype(np.float64)).reshape(s.B, width).astype(np.int32)
    query = new(s.B, s.G * s.H, 1, s.D)
    return {"query": query, **pools, "page_table": table, "lengths": np.full(s.B, s.L, np.int32)}, {
        "scale": s.scale
    }


def _cases(
    operation: str, short: Mapping[str, Any], long: Mapping[str, Any], draw: Draw | None = None
) -> list[OperationCase]:
    made = draw or OPERATION_SPECS[operation].draw
    return [
        OperationCase(operation, name, {"fill": "normal", "seed": 0, **sizes},
                      {letter: n for letter, n in sizes.items() if type(n) is int}, made)
        for name, sizes in (("short", short), ("long", long))
    ]  # fmt: skip


def _at(
    lengths: tuple[int, int], sizes: Mapping[str, Any], letters: str = "L"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sizes at a short and at a long length of what these letters stand for."""
    short, long = ({**sizes, **dict.fromkeys(letters, length)} for length in lengths)
    return short, long


OPERATION_CASES: Mapping[str, list[OperationCase]] = {
    cases[0].operation: cases
    for cases in (
        _cases("softmax", *_at((128, 512), {"B": 8}, "LK")),
        _cases("multi_head_attention", *_at((64, 256), {"B": 1, "H": 8, "D": 64, "causal": False})),
        _cases("positional_encoding", *_at((128, 1024), {"D": 512, "layout": "interleaved"})),
        _cases("rotary", *_at((128, 1024), {"B": 1, "H": 8, "D": 128, "layout": "half"})),
        _cases("rotary_pair", *_at((64, 512), {"B": 1, "G": 8, "H": 4, "D": 128, "layout": "half"})),
        _cases(
            "embedding",
            *_at((128, 1024), {"B": 1, "D": 512, "V": 8000, "layout": "interleaved", "padded": False}),
        ),
        _cases("alibi_slopes", {"H": 8}, {"H": 112}),
        _cases("feed_forward", *_at((64, 256), {"B": 1, "M": 512, "F": 2048})),
        _cases("encoder_layer", *_at((64, 256), LAYER)),
        _cases("decoder_layer", *_at((64, 256), LAYER, "LK")),
        _cases("cross_entropy", *_at((32, 128), {"K": 37000, "smoothing": 0.1})),
        _cases("packed_attention", *_at((32, 128), {**GROUPED, "B": 4, "causal": True}, "LK")),
        _cases("cached_attention", *_at((512, 2048), {**GROUPED, "B": 1}), _one_more_token),
        _cases("paged_attention", *_at((512, 2048), {**GROUPED, "B": 1, "P": 16}), _one_more_token_in_pages),
    )
}
