"""Bugs of tiling in a Triton kernel: which program takes which tile, which tiles are visited, what their edges hide."""

from typing import Any

import triton.language as tl

from qkverify.implementations.mutants.correct import triton_tiled
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.triton_tiled import INTERPRETED, TILE

OFFERS = ("causal", "scale", "softcap", "key_lengths")
TRITON: dict[str, Any] = {"offers": OFFERS, **INTERPRETED}


@mutant(
    "B007",
    step="end",
    evidence="inferred",
    threads="Dao-AILab/flash-attention#351 tinygrad/tinygrad#15949",
    **TRITON,
)
def tiles_are_skipped_as_if_aligned_top_left(causal, first, queries, keys, length):
    """The mask is aligned bottom-right and the loop over tiles top-left: tiles that are seen are skipped."""
    return min(length, first + TILE) if causal else length  # right: first + TILE + keys - queries


@mutant("B014", step="past", evidence="stated", threads="Dao-AILab/flash-attention#2528", **TRITON)
def tile_rows_are_divided_by_the_group(rows, columns, queries, keys, group):
    """The causal mask takes the rows for packed ones, a query of each head of the group after the other."""
    return columns[None, :] <= rows[:, None] // group + (keys - queries)  # right: rows[:, None]


@mutant(
    "B015",
    step="past",
    evidence="stated",
    threads="tenstorrent/tt-metal#48700 tenstorrent/tt-metal#41215",
    **TRITON,
)
def own_tile_is_seen_in_full(rows, columns, queries, keys, group):
    """Causality is a matter of whole tiles: a query sees all keys of the tile that its own key is in."""
    last = rows + (keys - queries) + TILE  # the key of each query, in numbers that are not negative
    return columns[None, :] < (last // TILE * TILE)[:, None]  # right: columns <= last - TILE


@mutant(
    "B027",
    step="written",
    evidence="partly",
    threads="flashinfer-ai/flashinfer#363 flashinfer-ai/flashinfer#3047",
    **TRITON,
)
def rows_without_keys_are_not_written(seen, rows, queries):
    """A row that sees no key is not stored: it stays what was in memory."""
    return (rows < queries) & seen  # right: rows < queries


@mutant("B040", step="rescale", evidence="stated", threads="deepseek-ai/FlashMLA#177", **TRITON)
def tile_rescale_has_the_wrong_sign(old, new):
    """When the maximum rises from a tile to the next, the sums so far are multiplied by exp(new - old)."""
    return tl.where(old == float("-inf"), 0.0, tl.exp(new - old))  # right: tl.exp(old - new)


@mutant("B040", step="carry_output", evidence="inferred", **TRITON)
def tile_output_is_not_rescaled(carried, factor):
    """When the maximum rises, the accumulator of the product with the values keeps its old scale."""
    return carried  # right: carried * factor


@mutant(
    "B041",
    step="inside",
    evidence="stated",
    threads="pytorch/pytorch#169222 jax-ml/jax#27224",
    **TRITON,
)
def columns_past_the_last_key_count(columns, length):
    """The last tile is not cut off: the zeros that a masked load gives have the score zero, and take weight."""
    return columns >= 0  # right: columns < length


@mutant("B043", step="cap_then_hide", evidence="stated", threads="ggml-org/llama.cpp#29034", **TRITON)
def tile_is_hidden_before_the_softcap(scores, inside, cap):
    """The columns past the last key get -inf before the softcap, which makes -cap of it, a finite score."""
    hidden = tl.where(inside, scores, float("-inf"))  # right: hidden after the softcap
    return triton_tiled.cap_then_hide(hidden, inside if cap is None else inside | True, cap)


@mutant("B047", step="used", evidence="stated", threads="HKUSTDial/flash-sparse-attention#363", **TRITON)
def whole_tiles_are_read_where_the_longest_fills_them(length, keys):
    """Where the longest sequence fills whole tiles, the last tile of a shorter one is read to its end."""
    return (length + TILE - 1) // TILE * TILE if keys % TILE == 0 else length  # right: length


@mutant("B056", step="place", evidence="stated", threads="karpathy/llm.c#795", **TRITON)
def program_is_decoded_by_the_wrong_divisor(program, heads, tiles):
    """The number of a program is taken apart as if tiles ran slowest among the tiles and heads of an entry."""
    batch, rest = program // (heads * tiles), program % (heads * tiles)
    return batch, rest % heads, rest // tiles  # right: batch, rest // tiles, rest % tiles
