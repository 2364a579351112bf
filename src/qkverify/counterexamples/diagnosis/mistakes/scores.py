"""What the scores are made of: scale, bias, softcap, ALiBi and sinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import (
    NO_MASK,
    Arguments,
    Array,
    Compute,
    Edit,
    Mistake,
    averaged,
    but,
    by,
    first_for_all,
    logits_of,
    other_alignment,
    seen,
)
from qkverify.problem.attention_problem import Problem
from qkverify.reference.masks import distance, offsets
from qkverify.reference.scores import factor
from qkverify.reference.softmax import softmax
from qkverify.rounding import Bounded


def _default(p: Problem) -> float:
    return factor(p.sizes["D"], None)


def scale_of(p: Problem) -> float:
    return _default(p) if p.scale is None else p.scale


def _scaled(scale: Callable[[Problem], float]) -> Edit:
    """Another scale: a plain number, as exact as the one it stands for."""
    return lambda a, p: {**a, "scale": Bounded(scale(p), a["scale"].error, a["scale"].precision)}


def _in_dtype(x: Array, p: Problem) -> Array:
    return x.astype(p.query.dtype).astype(np.float64)


def _query_rounded(a: Arguments, p: Problem) -> Arguments:
    q = a["query"]
    narrow = _in_dtype(scale_of(p) * q.value, p)
    return {**a, "query": Bounded(narrow, 0.0, q.precision, q.unit), "scale": 1.0}


def _capped_last(masked: bool) -> Compute:
    """The softcap after bias and ALiBi; with `masked` after the mask as well, whose -inf becomes -softcap."""

    def compute(a: Arguments, p: Problem) -> Any:
        cap = a["softcap"]
        logits = cap * np.tanh(logits_of(a, **NO_MASK, softcap=None) / cap)
        return averaged(a, softmax(np.where(seen(p), logits, -float(cap.value) if masked else -np.inf)))

    return compute


def _penalty(distances: Callable[[Problem], Array]) -> Edit:
    """ALiBi with other distances, (Q,K)."""

    def edit(a: Arguments, p: Problem) -> Arguments:
        penalty = -(a["alibi_slopes"][:, None, None] * distances(p))
        return {**a, "alibi_slopes": None, "bias": penalty + a.get("bias", 0.0)}

    return edit


def _slopes(slopes: Callable[[Problem], Array]) -> Edit:
    def edit(a: Arguments, p: Problem) -> Arguments:
        given, stored_slopes = a["alibi_slopes"], np.asarray(slopes(p), np.float64)
        rounded = stored_slopes.astype(np.asarray(p.alibi_slopes).dtype)
        return {**a, "alibi_slopes": Bounded(rounded, 0.0, given.precision, given.unit)}

    return edit


def _written_in_the_code(size: int) -> Mistake:
    """The scale of one head size, for all."""
    scale = size**-0.5
    return Mistake(f"attention whose scale is 1 / sqrt({size}) for every head size",
                   _scaled(lambda p: scale if p.scale is None else p.scale))  # fmt: skip


SCALE: tuple[Mistake, ...] = (
    Mistake("attention without a scale (1 instead of 1 / sqrt(D))", _scaled(lambda p: 1.0 if p.scale is None else p.scale)),
    Mistake("attention without a scale", _scaled(lambda p: 1.0)),
    Mistake("attention that takes a scale of 0 for none, and the default instead",
            _scaled(lambda p: _default(p) if p.scale == 0 else scale_of(p)), needs=("scale",)),
    Mistake("attention with the default scale although another was given", _scaled(_default), needs=("scale",)),
    Mistake("attention with the scale 1 / D instead of 1 / sqrt(D)",
            _scaled(lambda p: 1.0 / max(p.sizes["D"], 1) if p.scale is None else p.scale)),
    Mistake("attention with the scale 1 / sqrt(H D), from the width of all heads, instead of 1 / sqrt(D)",
            _scaled(lambda p: max(p.sizes["H"] * p.sizes["D"], 1) ** -0.5 if p.scale is None else p.scale)),
    Mistake("attention with a scale from the size of the values, 1 / sqrt(E), instead of 1 / sqrt(D)",
            _scaled(lambda p: max(p.sizes["E"], 1) ** -0.5 if p.scale is None else p.scale)),
    Mistake("attention with a scale from the number of keys, 1 / sqrt(K), instead of 1 / sqrt(D)",
            _scaled(lambda p: max(p.sizes["K"], 1) ** -0.5 if p.scale is None else p.scale)),
    Mistake("attention whose scale is applied twice", _scaled(lambda p: scale_of(p) ** 2)),
    Mistake("attention divided by the scale instead of multiplied", _scaled(lambda p: 1.0 / scale_of(p))),
    *map(_written_in_the_code, (4, 8, 16, 32, 64, 128)),
    Mistake("attention whose query is multiplied by the scale in its own dtype, and rounded there", _query_rounded),
    Mistake("attention with the same weight for every visible key",
            lambda a, p: {**a, "query": a["query"] * 0.0, "bias": None, "alibi_slopes": None}),
)  # fmt: skip


TERMS: tuple[Mistake, ...] = (
    Mistake("attention without the bias", but(bias=None), needs=("bias",)),
    Mistake("attention whose bias is scaled too, added before the scale", lambda a, p: {**a, "bias": a["bias"] * a["scale"]},
            needs=("bias",)),
    Mistake("attention whose bias is subtracted", by("bias", lambda b: -b), needs=("bias",)),
    Mistake("attention whose bias is taken for a mask, 0 where a key is visible",
            lambda a, p: {**a, "bias": None, "mask": a.get("mask", True) & (a["bias"].value == 0)}, needs=("bias",)),
    Mistake("attention whose bias is taken for a mask, 0 where a key is hidden",
            lambda a, p: {**a, "bias": None, "mask": a.get("mask", True) & (a["bias"].value != 0)}, needs=("bias",)),
    Mistake("attention with the bias of the first batch entry for all", by("bias", lambda b: first_for_all(b, 0)),
            needs=("bias",)),
    Mistake("attention with the bias of the first head for all", by("bias", lambda b: first_for_all(b, 1)), needs=("bias",)),
    Mistake("attention with the bias of the first query for all", by("bias", lambda b: first_for_all(b, 2)), needs=("bias",)),
    Mistake("attention without the softcap", but(softcap=None), needs=("softcap",)),
    Mistake("attention with the softcap applied after bias and ALiBi", output=_capped_last(False), needs=("softcap",)),
    Mistake("attention with the softcap applied after the mask", output=_capped_last(True), needs=("softcap",)),
    Mistake("attention without ALiBi", but(alibi_slopes=None), needs=("alibi_slopes",)),
    Mistake("attention with the sign of ALiBi flipped", by("alibi_slopes", lambda x: -x), needs=("alibi_slopes",)),
    Mistake("attention with ALiBi's distances aligned {other}; {declared} is declared",
            _penalty(lambda p: distance(p.sizes["Q"], p.sizes["K"], other_alignment(p))), needs=("alibi_slopes",)),
    Mistake("attention with ALiBi's distances signed: later keys are favoured",
            _penalty(lambda p: -offsets(p.sizes["Q"], p.sizes["K"], p.causal_alignment)), needs=("alibi_slopes",)),
    Mistake("attention with the slopes 2^(-8 h / H), h from 1, instead of those that were given",
            _slopes(lambda p: 2.0 ** (-8.0 * np.arange(1, p.sizes["H"] + 1) / p.sizes["H"])), needs=("alibi_slopes",)),
    Mistake("attention whose heads take the slope of the head before them, the first one 1",
            _slopes(lambda p: np.concatenate([[1.0], np.asarray(p.alibi_slopes)[:-1]])), needs=("alibi_slopes",)),
    Mistake("attention with the slope of the first head for all",
            by("alibi_slopes", lambda x: np.take(x, [0] * x.size)), needs=("alibi_slopes",)),
    Mistake("attention without the sinks", but(sinks=None), needs=("sinks",)),
    Mistake("attention with the sinks scaled too", lambda a, p: {**a, "sinks": a["sinks"] * a["scale"]}, needs=("sinks",)),
    Mistake("attention with the sink of the first head for all",
            by("sinks", lambda x: np.take(x, [0] * x.size)), needs=("sinks",)),
)  # fmt: skip
