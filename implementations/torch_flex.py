"""torch.nn.attention.flex_attention: attention whose scores and visible keys are said by two small functions.

eager     torch runs the functions as they stand and holds every score: what flex_attention does where it is
          not compiled. On a CPU it has no gradients.
compiled  torch.compile writes Triton kernels around them, forward and backward, of heads of 16 numbers or more.

The functions are what a person would write for each option, in the order of the contract: scale, softcap, bias
and slopes modify the score, whatever hides keys is a mask of blocks. Numbers are handed over as tensors, because
torch compiles anew for each value of a plain one; the default scale is torch's own.

Causal is aligned bottom-right. A query that sees no key gives zeros. NaN in unseen keys and values is read.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from qkverify import Finding, implementation

# What calls this is one of several processes already; torch would add a pool of compilers, one a core, to each of them.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

Window = tuple[int | None, int | None]
Modify = Callable[..., Tensor]  # (score, batch entry, head, query, key) -> score
Visible = Callable[..., Tensor]  # (batch entry, head, query, key) -> whether the query sees the key
ONE_AT_A_TIME = threading.RLock()  # whether and how torch compiles is one setting for all threads
COMPILATIONS = 10_000  # torch's own limit is eight: what comes after them would run uncompiled, or not at all


def eager(*arguments: Any, **keywords: Any) -> Any:
    with ONE_AT_A_TIME, torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(*arguments, **keywords)


def compiled(*arguments: Any, **keywords: Any) -> Any:
    limits = {"recompile_limit": COMPILATIONS, "accumulated_recompile_limit": COMPILATIONS}
    with ONE_AT_A_TIME, torch._dynamo.config.patch(limits):
        return compiled_once()(*arguments, **keywords)


@functools.cache
def compiled_once() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def attention_by(run: Callable[..., Any]) -> Callable[..., Any]:
    """The attention of flex_attention as `run` calls it."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, *,
        mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False,
        window: Window | None = None, scale: float | None = None, softcap: float | None = None,
        alibi_slopes: Tensor | None = None, key_lengths: Tensor | None = None, return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        (batch, heads, queries, _), (_, groups, keys, _) = query.shape, key.shape
        ahead = keys - queries  # the last query stands at the last key
        scores = torch.promote_types(query.dtype, torch.float32)
        number = functools.partial(torch.tensor, dtype=scores, device=query.device)

        modify: list[Modify] = []
        if scale is not None:
            modify.append(scaled(number(scale)))
        if softcap is not None and softcap < torch.inf:
            modify.append(capped(number(softcap)))
        if bias is not None:
            modify.append(biased(bias))
        if alibi_slopes is not None:
            modify.append(sloped(alibi_slopes, ahead))

        blocks = None
        if mask is None and key_lengths is None:
            if causal or window is not None:
                blocks = blocks_by_position(causal, window, queries, keys, str(query.device))
        else:
            visible = by_position(causal, window, ahead)
            if mask is not None:
                visible.append(allowed(mask))
            if key_lengths is not None:
                visible.append(within(key_lengths))
            blocks = create_block_mask(all_of(visible), batch, heads, queries, keys, device=str(query.device))

        returned = run(
            query, key, value, score_mod=in_turn(modify), block_mask=blocks,
            scale=None if scale is None else 1.0, enable_gqa=heads != groups,
            return_aux=AuxRequest(lse=True) if return_lse else None,
        )  # fmt: skip
        return (returned[0], returned[1].lse) if return_lse else returned

    return attention


def scaled(scale: Tensor) -> Modify:
    return lambda score, b, h, i, j: score * scale


def capped(softcap: Tensor) -> Modify:
    return lambda score, b, h, i, j: softcap * torch.tanh(score / softcap)


def at(array: Tensor, *positions: Tensor) -> Tensor:
    """The element of an array that broadcasts to (B,H,Q,K).

    Not by `array.expand`: in a compiled function torch 2.11 to 2.13 give a view that is captured no gradient.
    """
    indices = positions[-array.ndim :]
    return array[tuple(p if size > 1 else p * 0 for p, size in zip(indices, array.shape, strict=True))]


def biased(bias: Tensor) -> Modify:
    return lambda score, *positions: score + at(bias, *positions)


def sloped(slopes: Tensor, ahead: int) -> Modify:
    return lambda score, b, h, i, j: score - slopes[h] * (j - i - ahead).abs()


def in_turn(modify: list[Modify]) -> Modify | None:
    """One function that applies all of them, the first one first; None where there is none."""
    if not modify:
        return None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        for step in modify:
            score = step(score, b, h, i, j)
        return score

    return score_mod


def by_position(causal: bool, window: Window | None, ahead: int) -> list[Visible]:
    left, right = window or (None, None)
    visible: list[Visible] = []
    if causal:
        visible.append(lambda b, h, i, j: j <= i + ahead)
    if left is not None:
        visible.append(lambda b, h, i, j: j >= i + ahead - left)
    if right is not None:
        visible.append(lambda b, h, i, j: j <= i + ahead + right)
    return visible


def allowed(mask: Tensor) -> Visible:
    return lambda *positions: at(mask, *positions)


def within(lengths: Tensor) -> Visible:
    return lambda b, h, i, j: j < lengths[b]


def all_of(visible: list[Visible]) -> Visible:
    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        inside = j >= 0
        for condition in visible:
            inside = inside & condition(b, h, i, j)
        return inside

    return mask_mod


@functools.lru_cache(maxsize=64)
def blocks_by_position(
    causal: bool, window: Window | None, queries: int, keys: int, device: str
) -> BlockMask:
    """Which blocks are computed depends on positions alone here: as in a model, it is found out once for all calls."""
    mask = all_of(by_position(causal, window, keys - queries))
    return create_block_mask(mask, None, None, queries, keys, device=device)


HALF = ("float16", "bfloat16")

SIZES = ("B >= 1", "Q >= 1", "K >= 1")
LOST_LSE = Finding(
    "reports/findings/torch-flex-log-sum-exp-of-lowest-number-is-lost",
    sentence="torch's flex_attention loses the log-sum-exp of a row whose scores are the lowest number",
)

for name, run, declared in (
    ("eager", eager, {
        "dtypes": ("float64", "float32", *HALF),
        "requires": SIZES,
        "precision": dict.fromkeys(HALF, "eager"),
        "masked_values": "read",
        "differentiable": False,
        "findings": {
            f"lowest_number_in_log_sum_exp[cpu-{dtype}]": LOST_LSE
            for dtype in ("float64", "float32", "bfloat16")  # the lowest number of float16 is far from float32's
        },
        "effort": {"cpu": 0.25},  # preparing a mask of blocks takes ten milliseconds
    }),
    ("compiled", compiled, {
        "dtypes": ("float32", *HALF),
        "devices": ("cuda",),
        "requires": (*SIZES, "D >= 16", "E >= 16"),
        "precision": dict.fromkeys(HALF, "fused"),
        "delta": "output",
        "compiles": True,
        "effort": {"cuda": 0.1},
    }),
):  # fmt: skip
    implementation(
        name=f"torch_flex-{name}",
        summary=f"torch's flex_attention, {name}",
        arrays="torch",
        causal_alignment="bottom-right",
        empty_rows="zero",
        lse="natural",
        **declared,
    )(attention_by(run))
