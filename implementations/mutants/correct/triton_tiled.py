"""Attention tile by tile as a small Triton kernel, in steps (Triton's tutorial 06 and Milakov and Gimelshein 2018).

Each program takes one tile of the queries of one head through the tiles of its keys. It is run by Triton's interpreter and
never compiled: the steps are an argument of the kernel, so that a mutant can replace one. Everything is float32, and the
inputs are contiguous. What is ugly: the interpreter patches triton.language while it runs, so one thread at a time.
"""

import dataclasses
import math
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.textbook import Step

TILE = 16  # queries, and keys, of a tile
HIGHEST, SUM = tl.standard._elementwise_max, tl.standard._sum_combine  # tl.max and tl.sum exist compiled only
ONE_AT_A_TIME = threading.RLock()


def place(program, heads, tiles):
    """(batch entry, head, tile of queries) of a program."""
    return program // (heads * tiles), program // tiles % heads, program % tiles


def used(length, keys):
    """How many keys are read, of the `length` of this batch entry and the `keys` there are."""
    return length


def end(causal, first, queries, keys, length):
    """Where the keys end that some query of the tile sees, its first one being `first`."""
    return min(length, max(first + TILE + keys - queries, 0)) if causal else length


def inside(columns, length):
    """Which columns of a tile are keys at all."""
    return columns < length


def past(rows, columns, queries, keys, group):
    """Which keys are not later than their query."""
    return columns[None, :] <= rows[:, None] + (keys - queries)


def cap_then_hide(scores, inside, cap):
    """c tanh(s / c), tanh by an exponential; then no column that is no key."""
    if cap is not None:
        tail = tl.exp(-2 * tl.abs(scores / cap))
        scores = tl.where(scores < 0, -cap, cap) * (1 - tail) / (1 + tail)
    return tl.where(inside, scores, float("-inf"))


def rescale(old, new):
    """What the sums so far are worth when the maximum rises from `old` to `new`."""
    return tl.exp(old - new)


def carry(carried, factor):
    return carried * factor


def written(seen, rows, queries):
    """Which rows are stored; `seen`: whether they saw a key."""
    return rows < queries


@dataclass(frozen=True)
class TritonTiled:
    """Every step of the kernel; calling it attends."""

    place: Step = place
    used: Step = used
    end: Step = end
    inside: Step = inside
    past: Step = past
    cap_then_hide: Step = cap_then_hide
    rescale: Step = rescale
    carry_total: Step = carry
    carry_output: Step = carry
    written: Step = written

    def but(self, **steps: Step) -> "TritonTiled":
        """The same kernel with some steps exchanged."""
        return dataclasses.replace(self, **steps)

    def __call__(self, call: Call) -> torch.Tensor:
        if call.key.shape != (call.B, call.G, call.K, call.D) or call.value.shape[:3] != call.key.shape[:3]:
            raise ValueError("query (B,H,Q,D), key (B,G,K,D) and value (B,G,K,E) do not fit together")
        query, key, value = (x.contiguous() for x in (call.query, call.key, call.value))
        cap = None if call.softcap is None or math.isinf(call.softcap) else call.softcap
        lengths = torch.full((call.B,), call.K) if call.key_lengths is None else call.key_lengths.contiguous()
        output = query.new_full((call.B, call.H, call.Q, call.E), 7)  # memory that nobody wrote
        blocks = [max(16, 1 << (size - 1).bit_length()) for size in (call.D, call.E)]
        scale = max(call.D, 1) ** -0.5 if call.scale is None else float(call.scale)
        sizes = (call.H, call.G, call.Q, call.K, call.D, call.E)
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of NaN
            KERNEL[(call.B * call.H * -(-call.Q // TILE),)](
                query, key, value, output, lengths, *sizes, scale, cap, call.causal, *blocks, self
            )
        return output


def kernel(
    query, key, value, output, lengths, H: tl.constexpr, G: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    D: tl.constexpr, E: tl.constexpr, scale: tl.constexpr, cap: tl.constexpr, causal: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, steps: tl.constexpr,
):  # fmt: skip
    """Program (batch entry, head, tile of queries): its rows of the output."""
    batch, head, tile = steps.place(tl.program_id(0), H, (Q + TILE - 1) // TILE)
    rows, d, e = tile * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    query_head, shared = batch * H + head, batch * G + head // (H // G)
    length = steps.used(tl.load(lengths + batch).to(tl.int32), K)
    here = (rows[:, None] < Q) & (d[None, :] < D)
    q = tl.load(query + (query_head * Q + rows[:, None]) * D + d[None, :], mask=here, other=0.0)  # (TILE, D)
    peak = tl.full((TILE,), float("-inf"), tl.float32)
    total, summed = tl.full((TILE,), 0.0, tl.float32), tl.full((TILE, BLOCK_E), 0.0, tl.float32)
    for start in range(0, steps.end(causal, tile * TILE, Q, K, length), TILE):
        columns = start + tl.arange(0, TILE)
        there = columns < length
        key_rows = (shared * K + columns) * D
        k = tl.load(key + key_rows[None, :] + d[:, None], mask=there[None, :] & (d[:, None] < D), other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale  # (TILE, TILE)
        scores = steps.cap_then_hide(scores, steps.inside(columns, length)[None, :], cap)
        if causal:
            scores = tl.where(steps.past(rows, columns, Q, K, H // G), scores, float("-inf"))
        old, peak = peak, tl.maximum(peak, tl.reduce(scores, 1, HIGHEST))
        top = tl.where(peak == float("-inf"), 0.0, peak)
        weights, factor = tl.exp(scores - top[:, None]), steps.rescale(old, top)
        value_rows = (shared * K + columns) * E
        v = tl.load(
            value + value_rows[:, None] + e[None, :], mask=there[:, None] & (e[None, :] < E), other=0.0
        )
        total = steps.carry_total(total, factor) + tl.reduce(weights, 1, SUM)
        summed = steps.carry_output(summed, factor[:, None]) + tl.dot(weights, v, input_precision="ieee")
    result = summed / tl.where(total == 0, 1.0, total)[:, None]  # an empty row is zero
    stored = steps.written(total > 0, rows, Q)[:, None] & (e[None, :] < E)
    tl.store(output + (query_head * Q + rows[:, None]) * E + e[None, :], result, mask=stored)


KERNEL: Any = InterpretedFunction(kernel)
TRITON_TILED = TritonTiled()

# What the mutants and the control of this kernel declare. The interpreter takes some hundredths of a second a call; a tile
# of queries is multiplied with values that only its other queries see, so NaN in one of them gets through.
INTERPRETED: dict[str, Any] = {
    "base": TRITON_TILED,
    "arrays": "torch",
    "dtypes": ("float32",),
    "effort": {"cpu": 0.2},
    "tile": TILE,
    "masked_values": "read",
}
