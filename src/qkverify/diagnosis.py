"""What went wrong, in one sentence: a wrong result is compared with what well-known mistakes would give.

A mistake is a variant of the reference, and it is believed only if it predicts, within its own derived bound, what the
implementation returns on the counterexample and on a few dozen further problems made from it: wherever the mistake matters
the implementation is wrong in the same way, and everywhere else it is right. A mistake that shows on some problems only
("with causality") must be right about where. On the tiny problems that counterexamples shrink to, many mistakes give the same
numbers; the further problems tell them apart, with random arrays, sizes that all differ, options added and taken away.

Where no mistake fits, it is said where the wrong elements are if that is simple, and else nothing: rather silent than wrong.
The ugly spot: mistakes that fit all observations are named in the order of the table, which goes from special to general.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from qkverify.errors import ContractError
from qkverify.problems import Problem
from qkverify.reference.attention import attention, stored, with_sinks
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.reference.groups import per_key_head, per_query_head, summed_to
from qkverify.reference.masks import distance, offsets, visible
from qkverify.reference.multi_head import merge_heads, multi_head_attention, split_heads
from qkverify.reference.positions import angles, joined, positional_encoding, rotary, rotate
from qkverify.reference.scores import factor, products, scores
from qkverify.reference.softmax import largest, log_sum_exp, softmax
from qkverify.rounding import FORMATS, Bounded, Format, Precision
from qkverify.runs import Run

SECONDS = 1.0  # what a diagnosis may cost: no call of the implementation starts after that
TILES = (8, 16, 32, 64, 128)
SHOWN = 3  # observations that a mistake must explain and the reference does not
REPEATS = 8  # calls of one problem that show whether its result varies

Array = np.ndarray
Arguments = dict[str, Any]  # of the reference: query, key, value, upstream and the options, bounded
Parts = Mapping[str, Any]  # results by name: arrays as received, or Bounded as predicted
Edit = Callable[[Arguments, Problem], Arguments]
Compute = Callable[[Arguments, Problem], Any]


@dataclass(frozen=True, eq=False)
class Observation:
    """What came back on one problem (or one `Example` of another operation), and what should have."""

    subject: Any
    got: Parts
    expected: Parts
    right: bool


@dataclass(frozen=True)
class Mistake:
    """A variant of the reference. `text` completes "The result equals ...".

    edit      the reference with other arguments: for outputs, log-sum-exps and gradients alike
    output, lse, gradients   a computation of its own, for one of them
    needs     options that must be in use, all of them, for the mistake to matter
    among     options of which one must be in use
    """

    text: str
    edit: Edit | None = None
    output: Compute | None = None
    lse: Compute | None = None
    gradients: Compute | None = None
    needs: tuple[str, ...] = ()
    among: tuple[str, ...] = ()

    def matters(self, p: Problem) -> bool:
        used = p.options.keys()
        return used >= set(self.needs) and (not self.among or bool(used & set(self.among)))


def looks_like(run: Run) -> str:
    """The diagnosis of the example that failed last on a run, or nothing."""
    try:
        if run.implementation.operation != "attention":
            return _other_operation(run)
        until = time.perf_counter() + SECONDS
        with np.errstate(all="ignore"):
            found = (_sentence(run, problem, until) for problem in _wrong_first(run, until))
            return next((text for text in found if text), "")
    except Exception:  # a failure is worth more than its diagnosis
        return ""


def diagnose(run: Run, problem: Problem) -> str:
    """One sentence that says which well-known mistake explains what a run returns on a problem; empty when none does.

    The implementation is called again on the problem and on others made from it, for about a second; the run itself keeps
    its state.
    """
    try:
        return _sentence(run, problem, time.perf_counter() + SECONDS)
    except Exception:  # as above
        return ""


def _sentence(run: Run, problem: Problem, until: float) -> str:
    if time.perf_counter() > until:
        return ""
    with np.errstate(all="ignore"):
        return _Diagnosis(_fresh(run), problem, until).sentence()


# -- arguments and small variants of the reference ---------------------------------------------------------------------


def _arguments(run: Run, problem: Problem, precision: Precision) -> Arguments:
    """What the reference is called with, as `Run.bound` and `Run.gradient_bounds` do."""
    names = [n for n in ("query", "key", "value", "upstream") if getattr(problem, n) is not None]
    arrays = {name: run.bounded(getattr(problem, name), precision) for name in names}
    options = run._bounded_options(problem, precision)
    options.pop("return_lse", None)
    return {**arrays, **options}


def _but(**changes: Any) -> Edit:
    return lambda a, p: {**a, **changes}


def _by(name: str, change: Callable[[Any], Any]) -> Edit:
    return lambda a, p: {**a, name: change(a[name])}


def _scaled(scale: Callable[[Problem], float]) -> Edit:
    """Another scale: a plain number, as exact as the one it stands for."""
    return lambda a, p: {**a, "scale": Bounded(scale(p), a["scale"].error, a["scale"].precision)}


def _default(p: Problem) -> float:
    return factor(p.sizes["D"], None)


def _given(p: Problem) -> float:
    return _default(p) if p.scale is None else p.scale


def _seen(p: Problem, **changes: Any) -> Array:
    """bool (B,H,Q,K): what would be visible with some of the options changed."""
    names = ("causal", "window", "mask", "key_lengths", "causal_alignment")
    s, options = p.sizes, {name: getattr(p, name) for name in names}
    found = visible(s["B"], s["Q"], s["K"], **{**options, **changes})
    return np.broadcast_to(found, (s["B"], s["H"], s["Q"], s["K"]))


def _sees(seen: Callable[[Problem], Array]) -> Edit:
    """Other keys are visible than the options say."""
    return lambda a, p: {**a, "causal": False, "window": None, "key_lengths": None, "mask": seen(p)}


def _places(p: Problem) -> Array:
    """(Q,1): the key that stands at the place of each query."""
    start = 0 if p.causal_alignment == "top-left" else p.sizes["K"] - p.sizes["Q"]
    return np.arange(p.sizes["Q"])[:, None] + start


def _columns(p: Problem) -> Array:
    return np.arange(p.sizes["K"])


def _causal(limit: Callable[[Problem], Array]) -> Edit:
    """Causality with another last key for each row."""
    return _sees(lambda p: _seen(p, causal=False) & (_columns(p) <= limit(p)))


def _end_of_tile(tile: int) -> Callable[[Problem], Array]:
    return lambda p: _places(p) // tile * tile + tile - 1


def _whole_tiles(tile: int) -> Callable[[Problem], Array]:
    return lambda p: _seen(p) & (_columns(p) < p.sizes["K"] // tile * tile)


def _rounded_up(tile: int) -> Callable[[Array], Array]:
    return lambda lengths: -(-lengths // tile) * tile


def _window(change: Callable[[Any, Any], tuple[Any, Any]]) -> Edit:
    return lambda a, p: {**a, "window": change(*p.window)}  # type: ignore[misc]


def _lengths(change: Callable[[Array], Array]) -> Edit:
    return lambda a, p: {**a, "key_lengths": change(np.asarray(p.key_lengths))}


def _mask(change: Callable[[Array, Problem], Array]) -> Edit:
    return lambda a, p: {**a, "mask": change(np.asarray(p.mask), p)}


def _from_ends(p: Problem) -> Array:
    """(B,1,Q,1): the place of each query, counted from the end of its own sequence of keys."""
    ends = np.reshape(np.asarray(p.key_lengths), (-1, 1, 1, 1))
    return np.arange(p.sizes["Q"])[:, None] + ends - p.sizes["Q"]


def _within_window(places: Array, p: Problem) -> Array:
    left, right = (np.inf if side is None else side for side in p.window or (None, None))
    return (_columns(p) >= places - left) & (_columns(p) <= places + right)


def _heads(choose: Callable[[Problem], Array]) -> Edit:
    """Query heads read these key/value heads."""
    return lambda a, p: {**a, "key": a["key"][:, choose(p)], "value": a["value"][:, choose(p)]}


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


def _in_dtype(x: Array, p: Problem) -> Array:
    return x.astype(p.query.dtype).astype(np.float64)


def _query_rounded(a: Arguments, p: Problem) -> Arguments:
    q = a["query"]
    narrow = _in_dtype(_given(p) * q.value, p)
    return {**a, "query": Bounded(narrow, 0.0, q.precision, q.unit), "scale": 1.0}


def _logits(a: Arguments, **changes: Any) -> Any:
    """The reference's scores, (B,H,Q,K)."""
    names = (
        "mask",
        "bias",
        "causal",
        "window",
        "scale",
        "softcap",
        "alibi_slopes",
        "key_lengths",
        "causal_alignment",
    )
    a = {**a, **changes}
    return scores(a["query"], a["key"], **{name: a[name] for name in names if name in a})


NO_MASK: Mapping[str, Any] = {"mask": None, "causal": False, "window": None, "key_lengths": None}


def _averaged(a: Arguments, weights: Any) -> Any:
    return stored(weights @ per_query_head(a["value"], a["query"].shape[1]))


def _over_queries(shifted_by: int) -> Compute:
    """Weights normalised over the queries, their exponentials shifted by the largest score along an axis."""

    def compute(a: Arguments, p: Problem) -> Any:
        logits = _logits(a)
        e = np.exp(logits - largest(logits, shifted_by))
        total = np.sum(e, axis=-2, keepdims=True)
        return _averaged(a, e / np.where(total > 0, total, 1.0))

    return compute


def _masked_by(number: float) -> Compute:
    """Masked scores are set to a number that is not low enough."""
    return lambda a, p: _averaged(a, softmax(np.where(_seen(p), _logits(a, **NO_MASK), number)))


def _mask_after(a: Arguments, p: Problem) -> Any:
    return _averaged(a, softmax(_logits(a, **NO_MASK)) * np.where(_seen(p), 1.0, 0.0))


def _capped_last(masked: bool) -> Compute:
    """The softcap after bias and ALiBi; with `masked` after the mask as well, whose -inf becomes -softcap."""

    def compute(a: Arguments, p: Problem) -> Any:
        cap = a["softcap"]
        logits = cap * np.tanh(_logits(a, **NO_MASK, softcap=None) / cap)
        return _averaged(a, softmax(np.where(_seen(p), logits, -float(cap.value) if masked else -np.inf)))

    return compute


def _lowest_added(a: Arguments, p: Problem) -> Any:
    """Each reason to hide a key adds the lowest number: keys with two of them are at -inf, those with one are not."""
    reasons = [p.causal, p.mask is not None, p.key_lengths is not None, p.window is not None]
    alone: list[Arguments] = [
        {"causal": p.causal},
        {"mask": p.mask},
        {"key_lengths": p.key_lengths},
        {"window": p.window},
    ]
    hidden = np.sum(
        [~_seen(p, **{**NO_MASK, **one}) for one, used in zip(alone, reasons, strict=True) if used], 0
    )
    empty = ~p.some_visible[..., None]
    logits = np.where(empty, np.where(hidden == 1, 0.0, -np.inf), _logits(a))
    some = np.max(logits, axis=-1, keepdims=True, initial=-np.inf) > -np.inf
    return _averaged(a, np.where(some, softmax(logits), np.nan))


def _online(tile: int, numerator: Callable[..., Any], denominator: Callable[..., Any]) -> Compute:
    """Tile by tile, where sums over earlier tiles keep a wrong shift: a function of (maximum so far, final maximum)."""

    def compute(a: Arguments, p: Problem) -> Any:
        logits = _logits(a)
        peaks, last = np.where(np.isneginf(logits.value), 0.0, logits.errors), np.arange(logits.shape[-1])
        ends = np.minimum(last // tile * tile + tile - 1, last[-1])
        so_far: Any = Bounded(np.maximum.accumulate(logits.value, axis=-1)[..., ends],
                         np.maximum.accumulate(peaks, axis=-1)[..., ends], logits.precision)  # fmt: skip
        so_far = np.where(np.isfinite(so_far.value), so_far, 0.0)
        final = so_far[..., -1:]
        above = np.exp(logits - numerator(so_far, final))
        total = np.sum(np.exp(logits - denominator(so_far, final)), axis=-1, keepdims=True)
        return stored((above @ per_query_head(a["value"], p.sizes["H"])) / np.where(total > 0, total, 1.0))

    return compute


def _halves(a: Arguments, p: Problem) -> Any:
    """Two halves of the keys, each right, merged by 2^lse instead of e^lse."""
    logits, cut = _logits(a), p.sizes["K"] // 2
    value = per_query_head(a["value"], p.sizes["H"])
    parts = [(logits[..., :cut], value[:, :, :cut]), (logits[..., cut:], value[:, :, cut:])]
    lse = [log_sum_exp(x)[..., None] * math.log(2) for x, _ in parts]
    top = np.maximum(lse[0].value, lse[1].value)
    weight = [np.exp(x - np.where(np.isfinite(top), top, 0.0)) for x in lse]
    total = weight[0] + weight[1]
    merged = sum(w * (softmax(x) @ v) for w, (x, v) in zip(weight, parts, strict=True))
    return stored(merged / np.where(total > 0, total, 1.0))


def _overflowing(shift: Callable[[Array, Array], Array], what: str) -> Compute:
    """Exponentials without the right maximum: as the reference where they stay in range, NaN or infinite where not."""

    def compute(a: Arguments, p: Problem) -> Any:
        plain, logits = _logits(a), with_sinks(_logits(a), a.get("sinks"))
        huge = math.log(plain.precision.accumulate.huge)
        e = logits.value - shift(plain.value, logits.value)
        over = e > huge
        if what == "lse":
            exact = log_sum_exp(logits)
            return np.where(over.any(-1), np.inf, exact)
        e = np.where(over, np.inf, np.where(e < -huge, 0.0, np.exp(np.minimum(e, huge))))
        weights = (e / e.sum(-1, keepdims=True))[..., : plain.shape[-1]]
        value = per_query_head(a["value"], p.sizes["H"]).value
        exact = attention(**{k: v for k, v in a.items() if k != "upstream"})
        return np.where(over.any(-1)[..., None], weights @ value, exact)

    return compute


def _flat_taken_apart(a: Arguments, p: Problem) -> Any:
    exact = attention(**{k: v for k, v in a.items() if k != "upstream"})
    return exact.swapaxes(1, 2).reshape(exact.shape)


def _rows_unwritten(tile: int) -> Compute:
    def compute(a: Arguments, p: Problem) -> Any:
        rows = np.arange(p.sizes["Q"])[:, None] < p.sizes["Q"] // tile * tile
        return np.where(rows, attention(**{k: v for k, v in a.items() if k != "upstream"}), 0.0)

    return compute


def _lse(of: Callable[[Any], Any]) -> Compute:
    return lambda a, p: of(log_sum_exp(with_sinks(_logits(a), a.get("sinks"))))


def _backward(*, delta: str = "weights", capped: bool = True, scaled: bool = True, group: str = "sum", bias: str = "sum",
              masked: bool = True, empty: str = "") -> Compute:  # fmt: skip
    """The reference's backward pass with one step changed; `empty` is what a row that sees no key makes NaN."""

    def compute(a: Arguments, p: Problem) -> dict[str, Any]:
        s, upstream = p.sizes, a["upstream"]
        logits = _logits(a)
        lse = log_sum_exp(with_sinks(logits, a.get("sinks")))[..., None]
        shift = np.where(lse > -np.inf, lse, 0.0)
        weights = np.exp((logits if masked else _logits(a, **NO_MASK)) - shift)
        hollow = ~p.some_visible[..., None]
        weights = np.where(hollow, np.nan, weights) if empty == "weights" else weights
        d_weights = upstream @ np.swapaxes(per_query_head(a["value"], s["H"]), -1, -2)
        summed = np.exp(logits - largest(logits, -1)) if delta == "exponentials" else weights
        row = np.sum(summed * d_weights, axis=-1, keepdims=True)
        d_logits = weights * (d_weights if delta == "none" else d_weights - row)
        d_logits = np.where(hollow, np.nan, d_logits) if empty == "scores" else d_logits
        d_products = d_logits * a["scale"] if scaled else d_logits
        if capped and p.softcap is not None and np.isfinite(p.softcap):
            cap = np.tanh(products(a["query"], a["key"], a["scale"]) / a["softcap"])
            d_products = d_products * (1.0 - cap * cap)
        found = {
            "query": stored(d_products @ per_query_head(a["key"], s["H"])),
            "key": _gathered(d_products, a["query"], p, group),
            "value": _gathered(weights, upstream, p, group),
        }
        if p.bias is not None:
            found["bias"] = _bias_gradient(d_logits, p, bias)
        return found

    return compute


def _gathered(rows: Any, columns: Any, p: Problem, group: str) -> Any:
    """The gradient of keys or values, (B,G,K,.): over a group summed, averaged, or of its first or last head."""
    if group == "sum":
        return stored(per_key_head(rows, columns, p.sizes["G"]))
    if group == "mean":
        return stored(per_key_head(rows, columns, p.sizes["G"]) * (1.0 / p.group))
    each = per_key_head(rows, columns, p.sizes["H"])
    return stored(each[:, 0 if group == "first" else p.group - 1 :: p.group])


def _bias_gradient(d_logits: Any, p: Problem, bias: str) -> Any:
    shape = np.asarray(p.bias).shape
    if bias == "sum":
        return stored(summed_to(stored(d_logits), shape))
    aligned = (1,) * (4 - len(shape)) + shape
    return stored(d_logits[tuple(slice(0, n) for n in aligned)].reshape(*shape))


# -- the mistakes of attention -----------------------------------------------------------------------------------------

MASKING = ("causal", "window", "mask", "key_lengths")

MISTAKES: tuple[Mistake, ...] = (
    # causality
    Mistake("attention with causal aligned {other}; {declared} is declared",
            lambda a, p: {**a, "causal_alignment": _other(p)}, among=("causal", "window", "alibi_slopes")),
    Mistake("attention with causal aligned {other}; {declared} is declared",
            _sees(lambda p: _seen(p, causal=False) & _seen(p, mask=None, window=None, key_lengths=None,
                                                          causal_alignment=_other(p))), needs=("causal",)),
    Mistake("attention without causality", _but(causal=False), needs=("causal",)),
    Mistake("attention whose queries do not see their own position", _causal(lambda p: _places(p) - 1), needs=("causal",)),
    Mistake("attention whose queries see one key of the future", _causal(lambda p: _places(p) + 1), needs=("causal",)),
    Mistake("attention that sees the future and not the past",
            _sees(lambda p: _seen(p, causal=False) & (_columns(p) >= _places(p))), needs=("causal",)),
    Mistake("causal attention whose row numbers are divided by the heads of a group",
            _causal(lambda p: np.arange(p.sizes["Q"])[:, None] // p.group + _places(p)[0]), needs=("causal",)),
    Mistake("causal attention that counts from the end of each sequence instead of the end of the keys",
            _causal(_from_ends), needs=("causal", "key_lengths")),
    *(Mistake(f"causal attention that hides whole tiles of {t} keys only: a query sees all of its own tile",
              _causal(_end_of_tile(t)), needs=("causal",)) for t in TILES),
    # scale
    Mistake("attention without a scale (1 instead of 1 / sqrt(D))", _scaled(lambda p: 1.0 if p.scale is None else p.scale)),
    Mistake("attention without a scale", _scaled(lambda p: 1.0)),
    Mistake("attention with the default scale although another was given", _scaled(_default), needs=("scale",)),
    Mistake("attention with the scale 1 / D instead of 1 / sqrt(D)",
            _scaled(lambda p: 1.0 / max(p.sizes["D"], 1) if p.scale is None else p.scale)),
    Mistake("attention with the scale 1 / sqrt(H D), from the width of all heads, instead of 1 / sqrt(D)",
            _scaled(lambda p: max(p.sizes["H"] * p.sizes["D"], 1) ** -0.5 if p.scale is None else p.scale)),
    Mistake("attention with a scale from the size of the values, 1 / sqrt(E), instead of 1 / sqrt(D)",
            _scaled(lambda p: max(p.sizes["E"], 1) ** -0.5 if p.scale is None else p.scale)),
    Mistake("attention with a scale from the number of keys, 1 / sqrt(K), instead of 1 / sqrt(D)",
            _scaled(lambda p: max(p.sizes["K"], 1) ** -0.5 if p.scale is None else p.scale)),
    Mistake("attention whose scale is applied twice", _scaled(lambda p: _given(p) ** 2)),
    Mistake("attention divided by the scale instead of multiplied", _scaled(lambda p: 1.0 / _given(p))),
    Mistake("attention whose query is multiplied by the scale in its own dtype, and rounded there", _query_rounded),
    Mistake("attention with the same weight for every visible key",
            lambda a, p: {**a, "query": a["query"] * 0.0, "bias": None, "alibi_slopes": None}),
    # masks
    Mistake("attention with the mask inverted: True hides", _mask(lambda m, p: ~m), needs=("mask",)),
    Mistake("attention without the mask", _but(mask=None), needs=("mask",)),
    Mistake("attention whose mask (H,Q,K) is read as (B,Q,K)",
            _mask(lambda m, p: m[:, None] if m.ndim == 3 else m), needs=("mask",)),
    Mistake("attention whose mask (Q,K) is read as (B,K)",
            _mask(lambda m, p: m[:, None, None] if m.ndim == 2 else m), needs=("mask",)),
    Mistake("attention whose mask is read at b H + h although it does not hold every head of every batch entry",
            _mask(lambda m, p: _flat_heads(m, p)), needs=("mask",)),
    Mistake("attention with the mask of the first batch entry for all", _mask(lambda m, p: _first(m, 0)), needs=("mask",)),
    Mistake("attention with the mask of the first head for all", _mask(lambda m, p: _first(m, 1)), needs=("mask",)),
    Mistake("attention with the mask of the first query for all", _mask(lambda m, p: _first(m, 2)), needs=("mask",)),
    Mistake("attention with the mask transposed", _mask(lambda m, p: np.swapaxes(m, -1, -2)), needs=("mask",)),
    Mistake("attention whose weights are masked after the softmax and not normalised again", output=_mask_after, among=MASKING),
    Mistake("attention whose masked scores are 0 instead of -inf", output=_masked_by(0.0), among=MASKING),
    Mistake("attention whose masked scores are 1e-9 instead of -1e9", output=_masked_by(1e-9), among=MASKING),
    # padding
    Mistake("attention without the key lengths: padding is read", _but(key_lengths=None), needs=("key_lengths",)),
    Mistake("attention that reads one key of the padding", _lengths(lambda n: n + 1), needs=("key_lengths",)),
    Mistake("attention that misses the last key before the padding", _lengths(lambda n: n - 1), needs=("key_lengths",)),
    Mistake("attention with the length of the first batch entry for all",
            _lengths(lambda n: np.broadcast_to(n[:1], n.shape)), needs=("key_lengths",)),
    Mistake("attention with the longest of the lengths for all",
            _lengths(lambda n: np.broadcast_to(n.max(keepdims=True), n.shape)), needs=("key_lengths",)),
    *(Mistake(f"attention whose key lengths are rounded up to whole tiles of {t}",
              _lengths(_rounded_up(t)), needs=("key_lengths",)) for t in TILES),
    Mistake("attention whose padding mask is laid along the queries instead of the keys",
            _sees(lambda p: _seen(p, key_lengths=None) & (np.arange(p.sizes["Q"])[:, None] < _ends(p))), needs=("key_lengths",)),
    Mistake("attention whose padding is on the left",
            _sees(lambda p: _seen(p, key_lengths=None) & (_columns(p) >= p.sizes["K"] - _ends(p))), needs=("key_lengths",)),
    # windows
    Mistake("attention without the window", _but(window=None), needs=("window",)),
    Mistake("attention without the window's left side", _window(lambda left, right: (None, right)), needs=("window",)),
    Mistake("attention without the window's left side, unless that is 0",
            _window(lambda left, right: (left if left == 0 else None, right)), needs=("window",)),
    Mistake("attention without the window's right side", _window(lambda left, right: (left, None)), needs=("window",)),
    Mistake("attention without the window's right side, unless that is 0",
            _window(lambda left, right: (left, right if right == 0 else None)), needs=("window",)),
    Mistake("attention whose window is one key short on the left", _window(lambda left, right: (_more(left, -1), right)),
            needs=("window",)),
    Mistake("attention whose window is one key too long on the left", _window(lambda left, right: (_more(left, 1), right)),
            needs=("window",)),
    Mistake("attention whose window is one key short on the right", _window(lambda left, right: (left, _more(right, -1))),
            needs=("window",)),
    Mistake("attention whose window is one key too long on the right", _window(lambda left, right: (left, _more(right, 1))),
            needs=("window",)),
    Mistake("attention whose window excludes both of its edges",
            _window(lambda left, right: (_more(left, -1), _more(right, -1))), needs=("window",)),
    Mistake("attention with the sides of the window exchanged", _window(lambda left, right: (right, left)), needs=("window",)),
    Mistake("attention whose window is aligned {other}; {declared} is declared",
            _sees(lambda p: _seen(p, window=None) & _seen(p, causal=False, mask=None, key_lengths=None,
                                                          causal_alignment=_other(p))), needs=("window",)),
    Mistake("attention whose window counts from the end of each sequence instead of the end of the keys",
            _sees(lambda p: _seen(p, window=None) & _within_window(_from_ends(p), p)), needs=("window", "key_lengths")),
    Mistake("attention that sees every key", _but(**NO_MASK), among=MASKING),
    # heads and batch entries
    Mistake("attention with the key heads tiled instead of repeated (h % G instead of h // group)",
            _heads(lambda p: np.arange(p.sizes["H"]) % p.sizes["G"])),
    Mistake("attention with the first key head for all", _heads(lambda p: np.zeros(p.sizes["H"], int))),
    Mistake("attention whose keys and values are repeated for the group along the sequence, not along the heads",
            lambda a, p: {**a, **{n: np.repeat(a[n], p.group, 2) for n in ("key", "value")}}),
    Mistake("attention stored as (B,Q,H,E) and read as (B,H,Q,E): a flat index is taken apart wrongly",
            output=_flat_taken_apart),
    Mistake("attention with the keys and values of the first batch entry for all",
            lambda a, p: {**a, **{n: np.take(a[n], [0] * p.sizes["B"], 0) for n in ("key", "value")}}),
    Mistake("attention of the first batch entry, for all",
            lambda a, p: {**a, **{n: np.take(a[n], [0] * p.sizes["B"], 0) for n in ("query", "key", "value")}}),
    # bias, softcap, ALiBi, sinks
    Mistake("attention without the bias", _but(bias=None), needs=("bias",)),
    Mistake("attention whose bias is scaled too, added before the scale", lambda a, p: {**a, "bias": a["bias"] * a["scale"]},
            needs=("bias",)),
    Mistake("attention whose bias is subtracted", _by("bias", lambda b: -b), needs=("bias",)),
    Mistake("attention whose bias is taken for a mask, 0 where a key is visible",
            lambda a, p: {**a, "bias": None, "mask": a.get("mask", True) & (a["bias"].value == 0)}, needs=("bias",)),
    Mistake("attention whose bias is taken for a mask, 0 where a key is hidden",
            lambda a, p: {**a, "bias": None, "mask": a.get("mask", True) & (a["bias"].value != 0)}, needs=("bias",)),
    Mistake("attention with the bias of the first batch entry for all", _by("bias", lambda b: _first(b, 0)), needs=("bias",)),
    Mistake("attention with the bias of the first head for all", _by("bias", lambda b: _first(b, 1)), needs=("bias",)),
    Mistake("attention with the bias of the first query for all", _by("bias", lambda b: _first(b, 2)), needs=("bias",)),
    Mistake("attention without the softcap", _but(softcap=None), needs=("softcap",)),
    Mistake("attention with the softcap applied after bias and ALiBi", output=_capped_last(False), needs=("softcap",)),
    Mistake("attention with the softcap applied after the mask", output=_capped_last(True), needs=("softcap",)),
    Mistake("attention without ALiBi", _but(alibi_slopes=None), needs=("alibi_slopes",)),
    Mistake("attention with the sign of ALiBi flipped", _by("alibi_slopes", lambda x: -x), needs=("alibi_slopes",)),
    Mistake("attention with ALiBi's distances aligned {other}; {declared} is declared",
            _penalty(lambda p: distance(p.sizes["Q"], p.sizes["K"], _other(p))), needs=("alibi_slopes",)),
    Mistake("attention with ALiBi's distances signed: later keys are favoured",
            _penalty(lambda p: -offsets(p.sizes["Q"], p.sizes["K"], p.causal_alignment)), needs=("alibi_slopes",)),
    Mistake("attention with the slopes 2^(-8 h / H), h from 1, instead of those that were given",
            _slopes(lambda p: 2.0 ** (-8.0 * np.arange(1, p.sizes["H"] + 1) / p.sizes["H"])), needs=("alibi_slopes",)),
    Mistake("attention whose heads take the slope of the head before them, the first one 1",
            _slopes(lambda p: np.concatenate([[1.0], np.asarray(p.alibi_slopes)[:-1]])), needs=("alibi_slopes",)),
    Mistake("attention with the slope of the first head for all",
            _by("alibi_slopes", lambda x: np.take(x, [0] * x.size)), needs=("alibi_slopes",)),
    Mistake("attention without the sinks", _but(sinks=None), needs=("sinks",)),
    Mistake("attention with the sinks scaled too", lambda a, p: {**a, "sinks": a["sinks"] * a["scale"]}, needs=("sinks",)),
    Mistake("attention with the sink of the first head for all",
            _by("sinks", lambda x: np.take(x, [0] * x.size)), needs=("sinks",)),
    # rows without keys
    Mistake("attention that gives NaN to queries that see no key; {empty} is declared", _but(empty_rows="nan")),
    Mistake("attention that gives zero to queries that see no key; {empty} is declared", _but(empty_rows="zero")),
    Mistake("attention that gives the mean of all values to queries that see no key; {empty} is declared",
            _but(empty_rows="uniform")),
    Mistake("attention that adds the lowest number once for each reason to hide a key: where two meet they overflow to -inf",
            output=_lowest_added, among=MASKING),
    # the softmax
    Mistake("attention with the weights divided by their sum over the queries instead of the keys", output=_over_queries(-1)),
    Mistake("attention with the softmax over the queries instead of the keys", output=_over_queries(-2)),
    Mistake("attention whose softmax does not subtract the maximum: large scores overflow",
            output=_overflowing(lambda keys, every: np.zeros(()), "output"),
            lse=_overflowing(lambda keys, every: np.zeros(()), "lse")),
    Mistake("attention whose maximum leaves out the sink: a large one overflows",
            output=_overflowing(lambda keys, every: _peak(keys), "output"),
            lse=_overflowing(lambda keys, every: _peak(keys), "lse"), needs=("sinks",)),
    # tiles
    *(Mistake(f"attention without the last keys, those past the last whole tile of {t}",
              _sees(_whole_tiles(t))) for t in TILES),
    *(Mistake(f"attention whose last queries, those past the last whole tile of {t}, are left zero",
              output=_rows_unwritten(t)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys whose sum of weights is not rescaled when the maximum rises",
              output=_online(t, lambda now, end: end, lambda now, end: now)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys whose output is not rescaled when the maximum rises",
              output=_online(t, lambda now, end: now, lambda now, end: end)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys where nothing is rescaled when the maximum rises",
              output=_online(t, lambda now, end: now, lambda now, end: now)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys, rescaled by exp(new - old) instead of exp(old - new) when the maximum rises",
              output=_online(t, lambda now, end: now + now - end, lambda now, end: now + now - end)) for t in TILES),
    Mistake("attention over two halves of the keys that are merged as if their log-sum-exp were to base 2", output=_halves),
    # the log-sum-exp
    Mistake("the logarithm to base 2; the natural one is declared", lse=_lse(lambda x: x * (1.0 / math.log(2)))),
    Mistake("the log-sum-exp without the maximum added back", lse=lambda a, p: log_sum_exp(
        with_sinks(_logits(a), a.get("sinks")) - largest(with_sinks(_logits(a), a.get("sinks")), -1))),
    Mistake("the log-sum-exp with its sign flipped", lse=_lse(lambda x: -x)),
    Mistake("the sum of the exponentials without the logarithm", lse=_lse(np.exp)),
    # gradients
    Mistake("those without delta, the row's sum of weight times gradient", gradients=_backward(delta="none")),
    Mistake("those with delta taken before the weights are normalised", gradients=_backward(delta="exponentials")),
    Mistake("those without the derivative of the softcap", gradients=_backward(capped=False), needs=("softcap",)),
    Mistake("those without the scale", gradients=_backward(scaled=False)),
    Mistake("those of weights that are not masked again in the backward pass", gradients=_backward(masked=False), among=MASKING),
    Mistake("those where a key head gets the gradient of the first query head of its group, not the sum",
            gradients=_backward(group="first")),
    Mistake("those where a key head gets the gradient of the last query head of its group, not the sum",
            gradients=_backward(group="last")),
    Mistake("those where a key head gets the mean over its group, not the sum", gradients=_backward(group="mean")),
    Mistake("those where a broadcast bias gets the gradient of its first place, not the sum over all",
            gradients=_backward(bias="first"), needs=("bias",)),
    Mistake("those where the scores of a query that sees no key get NaN, and with them its query and every key",
            gradients=_backward(empty="scores")),
    Mistake("those where the weights of a query that sees no key are NaN, exp(-inf - -inf), and with them all gradients",
            gradients=_backward(empty="weights")),
)  # fmt: skip


def _other(p: Problem) -> str:
    return "top-left" if p.causal_alignment == "bottom-right" else "bottom-right"


def _ends(p: Problem) -> Array:
    return np.reshape(np.asarray(p.key_lengths), (-1, 1, 1, 1))


def _more(side: Any, by: int) -> Any:
    return None if side is None else side + by


def _peak(logits: Array) -> Array:
    peak = np.max(logits, axis=-1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(peak), peak, 0.0)


def _first(x: Any, axis: int) -> Any:
    """The first slice along one of the four axes for all, as far as the array has that axis."""
    own = axis - 4 + x.ndim
    return x if own < 0 else np.take(x, [0] * x.shape[own], own)


def _flat_heads(mask: Array, p: Problem) -> Array:
    flat = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    flat = flat.reshape(-1, *flat.shape[2:])
    b, h = p.sizes["B"], p.sizes["H"]
    return np.asarray(flat[np.arange(b * h).reshape(b, h) % max(len(flat), 1)])


# -- where a mistake shows ---------------------------------------------------------------------------------------------

Condition = tuple[str, Callable[[Any], bool]]  # "with causal": completes "..., the result equals ..."


def _uses(name: str) -> Callable[[Problem], bool]:
    return lambda p: name in p.options


CONDITIONS: tuple[Condition, ...] = (
    ("with causality", _uses("causal")),
    ("with a mask", _uses("mask")),
    ("with a bias", _uses("bias")),
    ("with a window", _uses("window")),
    ("with key lengths", _uses("key_lengths")),
    ("with a softcap", _uses("softcap")),
    ("with ALiBi", _uses("alibi_slopes")),
    ("with sinks", _uses("sinks")),
    ("with a given scale", _uses("scale")),
    ("where nothing else hides keys", lambda p: not {"mask", "causal", "key_lengths"} & p.options.keys()),
    ("with one query", lambda p: p.sizes["Q"] == 1),
    ("with one batch entry", lambda p: p.sizes["B"] == 1),
    ("with as many queries as keys", lambda p: p.sizes["Q"] == p.sizes["K"]),
    ("with grouped heads", lambda p: p.group > 1),
    ("with values of another size than the keys", lambda p: p.sizes["D"] != p.sizes["E"]),
    *((f"with a number of keys that is a multiple of {t}", lambda p, t=t: p.sizes["K"] % t == 0) for t in TILES),
)  # fmt: skip


def _either_way(conditions: Sequence[Condition]) -> Iterator[Condition]:
    for phrase, holds in conditions:
        yield phrase, holds
        opposite = phrase.replace("with ", "without ", 1) if "a number" not in phrase else ""
        yield OPPOSITES.get(phrase, opposite or phrase.replace("that is a", "that is no")), _negated(holds)


OPPOSITES: Mapping[str, str] = {
    "where nothing else hides keys": "where something else hides keys too",
    "with a given scale": "with the default scale",
    "with one query": "with several queries",
    "with one batch entry": "with several batch entries",
    "with as many queries as keys": "with another number of queries than keys",
    "with values of another size than the keys": "with values of the size of the keys",
    "with one position": "with several positions",
}


def _negated(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda subject: not holds(subject)


# -- comparing ---------------------------------------------------------------------------------------------------------


def _held(got: Array, predicted: Any) -> Array:
    """bool: where a result lies within the bound of a prediction; NaN equals NaN only."""
    value, error = (predicted.value, predicted.errors) if isinstance(predicted, Bounded) else (predicted, 0.0)
    found = np.asarray(got, np.float64)
    with np.errstate(invalid="ignore"):
        same = (found == value) | (np.isnan(found) & np.isnan(value))
        return np.asarray(same | (np.abs(found - value) <= error) | np.isposinf(error))


def _fits(run: Run, seen: Observation, predicted: Parts | None) -> bool | None:
    """Whether a prediction explains an observation; None where its bound is too wide to say so."""
    if not seen.got:  # a result of another shape
        return None
    if predicted is None:
        return False
    telling = seen.right
    for name, got in seen.got.items():
        if name not in predicted or np.shape(predicted[name]) != np.shape(got):
            return False
        target = Bounded(predicted[name].value, run.within(got, predicted[name]).errors)
        if not _held(got, target).all():
            return False
        known = np.isfinite(target.errors) | ~np.isfinite(target.value)
        telling = telling or bool((known & ~_held(got, seen.expected[name])).any())
    return True if telling else None


Predict = Callable[[Observation], Parts | None]


def _select(run: Run, seen: Sequence[Observation], mistakes: Sequence[tuple[str, Predict]],
            conditions: Sequence[Condition], until: float) -> tuple[str, str]:  # fmt: skip
    """The first mistake that explains every observation, and the condition under which it is made ("" for always).

    It must be made on `SHOWN` observations at least. One that is made under a condition must be excluded, too, where the
    condition does not hold.
    """
    conditional: list[tuple[str, str]] = []
    for text, predict in mistakes if seen[0].got else ():
        if time.perf_counter() > until:
            return "", ""
        explained: list[bool | None] = []
        for one in seen:
            explained.append(_fits(run, one, predict(one)))
            if explained[-1] is False and not one.right:
                break
        else:
            made = sum(fits is True and not one.right for fits, one in zip(explained, seen, strict=True))
            if made < SHOWN:
                continue
            if False not in explained:
                return text, ""
            conditional += [(text, phrase) for phrase, holds in _either_way(conditions)
                            if _separates([holds(one.subject) for one in seen], explained, seen)]  # fmt: skip
    texts, phrases = {text for text, _ in conditional}, {phrase for _, phrase in conditional}
    if len(phrases) == 1:
        return conditional[0]
    return (texts.pop(), "on some problems") if len(texts) == 1 else ("", "")


def _separates(inside: list[bool], explained: list[bool | None], seen: Sequence[Observation]) -> bool:
    """The mistake is made wherever the condition holds, and nowhere else although it would show there."""
    rows = list(zip(inside, explained, seen, strict=True))
    return (
        all(fits is not False if within else one.right for within, fits, one in rows)
        and sum(fits is False for within, fits, _ in rows if not within) >= 2
    )


# -- further problems --------------------------------------------------------------------------------------------------

# B, G, group, Q, K, D, E: all different; queries before, beside and after keys; whole tiles and parts of tiles.
SIZES = (
    (2, 2, 2, 5, 7, 3, 4), (1, 1, 3, 6, 6, 4, 4), (3, 3, 1, 6, 4, 2, 5), (2, 2, 3, 1, 9, 4, 3), (1, 2, 2, 1, 5, 3, 2),
    (2, 1, 2, 5, 24, 3, 3), (2, 1, 1, 21, 48, 2, 3), (1, 1, 2, 41, 37, 3, 2), (2, 1, 1, 4, 96, 2, 3), (2, 1, 1, 3, 128, 2, 2),
    (2, 2, 2, 2, 64, 3, 2), (1, 1, 1, 70, 150, 2, 3), (1, 2, 1, 4, 32, 4, 2), (2, 3, 1, 1, 80, 2, 2), (3, 3, 1, 3, 3, 2, 4),
    (2, 1, 2, 2, 2, 3, 2),
)  # fmt: skip
TOGGLED = (SIZES[0], SIZES[1])
ADDED: Mapping[str, Any] = {"causal": True, "window": (2, 1), "scale": 0.3, "softcap": 1.5}


def _further(run: Run, p: Problem) -> Iterator[Problem]:
    """Problems like this one: its sizes with random arrays, other sizes, options added, taken away and exchanged."""
    rng = np.random.default_rng(0)
    s = p.sizes
    own = (s["B"], s["G"], p.group, s["Q"], s["K"], s["D"], s["E"])
    quiet, loud = (own, own, *SIZES), (own, SIZES[0], own, SIZES[0])
    plan = [(sizes, p.options, False) for sizes in quiet] + [(sizes, p.options, True) for sizes in loud]
    plan += [(sizes, options, False) for sizes in (*TOGGLED, own) for options in _other_options(run, p)]
    for sizes, options, loudly in plan:
        if run.implementation.accepts(_letters(sizes)) is None:
            yield _filled(run, p, sizes, rng, options, loudly)


def _other_options(run: Run, p: Problem) -> Iterator[dict[str, Any]]:
    """Each offered option added or taken away; and each way of hiding keys in the place of another one."""
    offered = sorted(n for n in run.implementation.offers if n not in ("gradients", "return_lse"))
    for name in offered:
        kept = {n: x for n, x in p.options.items() if n != name}
        yield kept if name in p.options else {**kept, name: ADDED.get(name)}
        for other in offered:
            if name in p.options and {name, other} <= set(MASKING) and other not in p.options:
                yield {**kept, other: ADDED.get(other)}


def _letters(sizes: tuple[int, ...]) -> dict[str, int]:
    B, G, group, Q, K, D, E = sizes
    return {"B": B, "H": G * group, "G": G, "Q": Q, "K": K, "D": D, "E": E}


def _filled(run: Run, p: Problem, sizes: tuple[int, ...], rng: np.random.Generator, options: Mapping[str, Any],
            loud: bool = False) -> Problem:  # fmt: skip
    """A problem of given sizes with random arrays, and the options in the shapes that they have in `p`."""
    s, dtype = _letters(sizes), run.numpy_dtype

    def normal(*shape: int, times: float = 1.0) -> Array:
        return np.asarray((rng.standard_normal(shape) * times).astype(dtype))

    found: dict[str, Any] = {k: v for k, v in options.items() if np.ndim(v) == 0 or k == "window"}
    if options.get("window") is not None:
        found["window"] = tuple(side if side in (None, 0) and rng.random() < 0.7 else int(rng.integers(0, 5))
                                for side in options["window"])  # fmt: skip
    if "mask" in options:
        found["mask"] = rng.random(_broadcast(p, "mask", s, rng)) < 0.6
        found["mask"][..., -1:, :] &= found["mask"].shape[-2] < 3  # a row that sees nothing
    if "bias" in options:
        found["bias"] = normal(*_broadcast(p, "bias", s, rng))
        found["bias"][..., ::3] = 0
    if "alibi_slopes" in options:
        found["alibi_slopes"] = (2.0 ** -rng.permutation(np.arange(1, s["H"] + 1))).astype(dtype)
    if "sinks" in options:
        found["sinks"] = np.abs(normal(s["H"], times=500.0)) if loud else normal(s["H"])
    if "key_lengths" in options:
        found["key_lengths"] = rng.integers(0, s["K"] + 1, size=s["B"])
    times = float(max(s["D"], 1)) ** 0.25 * (20.0 if loud else 1.0)  # scores of unit variance, or large ones
    return Problem(
        query=normal(s["B"], s["H"], s["Q"], s["D"], times=times), key=normal(s["B"], s["G"], s["K"], s["D"], times=times),
        value=normal(s["B"], s["G"], s["K"], s["E"]), causal_alignment=p.causal_alignment, empty_rows=p.empty_rows,
        upstream=None if p.upstream is None else normal(s["B"], s["H"], s["Q"], s["E"]),
        **{k: v for k, v in found.items() if v is not None},
    )  # fmt: skip


def _broadcast(p: Problem, name: str, s: Mapping[str, int], rng: np.random.Generator) -> tuple[int, ...]:
    """A shape that broadcasts to (B,H,Q,K) as that of `p` does; where that is not to be seen, any."""
    full, given = (s["B"], s["H"], s["Q"], s["K"]), getattr(p, name)
    if given is None:
        return full
    own, aligned = (
        (p.sizes["B"], p.sizes["H"], p.sizes["Q"], p.sizes["K"])[4 - given.ndim :],
        full[4 - given.ndim :],
    )
    whole = [n > 1 or (m == 1 and rng.random() < 0.5) for n, m in zip(given.shape, own, strict=True)]
    return tuple(n if all_of_it else 1 for n, all_of_it in zip(aligned, whole, strict=True))


# -- attention ---------------------------------------------------------------------------------------------------------

ASPECTS: Mapping[str, str] = {"output": "the result equals {}", "lse": "the log-sum-exp equals {}",
                              "gradients": "the gradients are {}"}  # fmt: skip

SUBJECTS: Mapping[str, str] = {
    "output": "The result is",
    "lse": "The log-sum-exp is",
    "gradients": "The gradients are",
}


@dataclass
class _Diagnosis:
    """The observations on one problem and those made from it, and what they add up to."""

    run: Run
    problem: Problem
    until: float
    written: set[str] = field(default_factory=set)

    def sentence(self) -> str:
        aspect, seen = self._observations()
        if not seen or seen[0].right:
            return self._written()
        first = seen[0].subject
        if first.options.keys() != self.problem.options.keys():  # begin anew with what is wrong
            return _Diagnosis(self.run, first, self.until).sentence()
        plain = self._varies(first, aspect) or self._layouts(first, aspect) or self._lse_switch(first, aspect)
        if plain:
            return plain
        every = [
            (m.text.format(**self._words()), self._predicting(m, aspect))
            for m in MISTAKES
            if m.matters(first)
        ]
        text, where = _select(self.run, seen, every, CONDITIONS, self.until)
        if text:
            of = {"lse": "that of ", "gradients": "those of "}.get(aspect, "")
            those = of if "attention" in text.split()[:2] else ""
            return _capitalised(where, ASPECTS[aspect].format(those + text))
        return (
            self._written() or self._remembered(aspect) or self._digits(aspect) or self._place(seen, aspect)
        )

    def _words(self) -> dict[str, str]:
        p = self.problem
        return {"declared": p.causal_alignment, "other": _other(p), "empty": p.empty_rows}

    # -- observing

    def _observations(self) -> tuple[str, list[Observation]]:
        """What is wrong, and what came back on the problem and on those made from it; a wrong one first."""
        half = (time.perf_counter() + self.until) / 2
        own = {a: self._observe(self.problem, a) for a in ASPECTS if self._applies(a)}
        known = [one for one in own.values() if one is not None]
        for aspect, first in own.items():
            if first is not None and first.right and not all(one.right for one in known):
                continue  # another aspect of this very problem is wrong
            seen = [first]
            for made in _further(self.run, self.problem):
                if time.perf_counter() > half:
                    break
                seen.append(self._observe(made, aspect))
            found = [one for one in seen if one is not None]
            found.sort(key=lambda one: (one.right, not one.got))
            if found and not found[0].right:
                return aspect, found
        return "", []

    def _applies(self, aspect: str) -> bool:
        needed = {"output": True, "lse": self.run.offers("return_lse"),
                  "gradients": self.run.offers("gradients") and self.problem.upstream is not None}  # fmt: skip
        return bool(needed[aspect])

    def _observe(self, problem: Problem, aspect: str) -> Observation | None:
        """One call, or None where it raises. The implementation gets copies: it may write into its arguments.

        Raises TimeoutError, which ends the diagnosis, once the time is up.
        """
        if time.perf_counter() > self.until:
            raise TimeoutError
        names = [f.name for f in fields(problem) if isinstance(getattr(problem, f.name), np.ndarray)]
        lent = problem.replace(**{n: np.copy(getattr(problem, n)) for n in names})
        run = self.run
        try:
            if aspect == "output":
                got: Parts = {"output": run.values(lent)}
                expected: Parts = {"output": run.bound(problem)[0]}
            elif aspect == "lse":
                found = run.lse(lent)
                got, asked = {"lse": found.value}, problem.replace(return_lse=True)
                expected = {"lse": Bounded(run.bound(asked)[1].value, found.errors)}
            else:
                got, expected = run.gradient_values(lent), run.gradient_bounds(problem)
        except ContractError:
            return Observation(problem, {}, {}, False)
        except Exception:  # what the implementation refuses says nothing
            return None
        self.written |= {n for n in names if not _same(getattr(lent, n), getattr(problem, n))}
        return Observation(problem, got, expected, all(_held(got[n], expected[n]).all() for n in got))

    def _predicting(self, mistake: Mistake, aspect: str) -> Predict:
        def predict(seen: Observation) -> Parts | None:
            if not mistake.matters(seen.subject):
                return seen.expected
            try:
                return self._computed(mistake, seen.subject, aspect)
            except Exception:  # a variant that cannot be computed here predicts nothing
                return None

        return predict

    def _computed(self, mistake: Mistake, problem: Problem, aspect: str) -> Parts | None:
        run, special = self.run, getattr(mistake, aspect)
        precision = run.precision
        if aspect == "gradients":
            precision = run.gradient_precision.either_side(_given(problem))
        arguments = _arguments(run, problem, precision)
        if special is not None:
            found = special(arguments, problem)
            return found if aspect == "gradients" else {aspect: found}
        if mistake.edit is None:
            return None
        arguments = mistake.edit(arguments, problem)
        if aspect == "gradients":
            return attention_vjp(**arguments, delta=run.semantics["delta"])
        arguments.pop("upstream", None)
        output, lse = attention(**arguments, return_lse=True)
        return {aspect: output if aspect == "output" else lse}

    # -- what is no variant of the reference

    def _layouts(self, problem: Problem, aspect: str) -> str:
        """Right once every array is contiguous: strides are misread."""
        laid = [n for n, layout in problem.layouts.items() if layout != "contiguous"]
        if not laid or not self._right(problem.replace(layouts={}), aspect):
            return ""
        alone = [n for n in laid if not self._right(problem.replace(layouts={n: problem.layouts[n]}), aspect)]
        named = " or ".join(f"the {n} as {problem.layouts[n]!r}" for n in alone or laid)
        return f"{SUBJECTS[aspect]} right where every array is contiguous and wrong with {named}: strides are misread."

    def _varies(self, problem: Problem, aspect: str) -> str:
        results = [one for _ in range(REPEATS) if (one := self._observe(problem, aspect)) is not None]
        rights = {one.right for one in results}
        if len(rights) < 2:
            return ""
        return "The same call gives different results from one time to the next, right and wrong ones."

    def _lse_switch(self, problem: Problem, aspect: str) -> str:
        if aspect != "output" or not self.run.offers("return_lse"):
            return ""
        if not self._right(problem.replace(return_lse=not problem.return_lse), aspect):
            return ""
        with_it, without = ("wrong", "right") if problem.return_lse else ("right", "wrong")
        return f"The result is {with_it} where the log-sum-exp is asked for and {without} where it is not."

    def _right(self, problem: Problem, aspect: str) -> bool:
        found = self._observe(problem, aspect)
        return found is not None and found.right

    def _written(self) -> str:
        names = " and ".join(sorted(self.written))
        return f"The call writes into its argument {names}." if names else ""

    def _remembered(self, aspect: str) -> str:
        """The result of a call is right for an array of the call before it, of the same sizes."""
        names = [n for n, x in self.problem.options.items() if isinstance(x, np.ndarray)]
        rng = np.random.default_rng(1)
        for name in names:
            before, now = (
                _filled(self.run, self.problem, (2, 2, 2, 3, 11, 3, 3), rng, self.problem.options)
                for _ in "ab"
            )
            stale = now.replace(**{name: getattr(before, name)})
            first, then = self._observe(stale, aspect), self._observe(now, aspect)
            if first is None or then is None or then.right or not first.right:
                continue
            if _fits(self.run, then, first.expected):
                return f"The result is that of the {name} of an earlier call with the same sizes."
        return ""

    def _digits(self, aspect: str) -> str:
        """Rounded to a coarser format throughout: wrong without any option, never far, and right where nothing rounds."""
        plain = [one for p in self._plain() if (one := self._observe(p, "output")) is not None]
        exact = [one for p in self._plain(exact=True) if (one := self._observe(p, "output")) is not None]
        wrong = sum(not one.right for one in plain)
        if aspect != "output" or 2 * wrong < len(plain) or not exact or not all(one.right for one in exact):
            return ""
        declared, narrow = self.run.precision, FORMATS[self.run.dtype].unit > FORMATS["float32"].unit
        for coarse in (self.run.dtype,) if narrow else ("float32", "float16", "bfloat16"):
            coarser = _fresh(self.run)
            coarser.precision = _coarser(declared, FORMATS[coarse].unit)
            if FORMATS[coarse].unit > declared.accumulate.unit and all(
                _fits(self.run, one, {"output": coarser.bound(one.subject)[0]}) is not False for one in plain
            ):
                return f"The result is as far off as sums would be that are kept in {coarse}."
        return ""

    def _plain(self, exact: bool = False) -> Iterator[Problem]:
        """Problems without options; with `exact` of equal scores and whole numbers, whose mean no format rounds."""
        rng = np.random.default_rng(2)
        for sizes in SIZES:
            sizes = (*sizes[:4], 4, *sizes[5:]) if exact else sizes
            if self.run.implementation.accepts(_letters(sizes)) is None:
                p = _filled(self.run, self.problem, sizes, rng, {})
                yield p.replace(query=0 * p.query, value=np.rint(p.value)) if exact else p

    def _place(self, seen: Sequence[Observation], aspect: str) -> str:
        """Where the wrong elements are, if that is simple."""
        wrong = [one for one in seen if not one.right]
        if len(wrong) >= 2 and aspect == "output" and all(self._only_empty_rows(one) for one in wrong):
            return "Only the rows of queries that see no key are wrong."
        differ = [one.subject.sizes["D"] != one.subject.sizes["E"] for one in seen]
        if not any(one.got for one in wrong) and differ == [not one.right for one in seen]:
            return "The result has the wrong shape exactly where values are of another size than keys."
        found = [t for t in TILES if self._only_parts_of_tiles(seen[0].subject, t, aspect)]
        return (
            f"{SUBJECTS[aspect]} right where the number of keys is a multiple of {found[0]} and wrong elsewhere."
            if found
            else ""
        )

    def _only_parts_of_tiles(self, problem: Problem, tile: int, aspect: str) -> bool:
        """Whether, all else equal, whole tiles of keys give right results, and all other numbers of keys wrong ones."""
        rng = np.random.default_rng(3)
        for keys in (tile, tile + 1, 2 * tile, 2 * tile - 1, 3 * tile, 3 * tile // 2, 5 * tile, 5 * tile + 2):
            sizes = (2, 2, 2, 3, keys, 3, 4)
            one = self._observe(_filled(self.run, problem, sizes, rng, problem.options), aspect)
            if one is None or one.right != (keys % tile == 0):
                return False
        return True

    def _only_empty_rows(self, one: Observation) -> bool:
        if not one.got:
            return False
        held = _held(one.got["output"], one.expected["output"]).all(-1)
        return bool((held | ~one.subject.some_visible).all())


def _coarser(declared: Precision, unit: float) -> Precision:
    """The same formats with fewer digits."""

    def rounded(f: Format) -> Format:
        return replace(f, unit=max(unit, f.unit))

    return replace(declared, operand=rounded(declared.operand), accumulate=rounded(declared.accumulate),
                   elementwise=rounded(declared.elementwise), output=rounded(declared.output))  # fmt: skip


def _capitalised(where: str, text: str) -> str:
    """A sentence, with its condition in front."""
    others = "they are" if text.startswith("the gradients") else "it is"
    whole = f"{where} {text}; otherwise {others} right." if where else f"{text}."
    return whole[:1].upper() + whole[1:]


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _fresh(run: Run) -> Run:
    """The same run with a state of its own."""
    other = copy.copy(run)
    other.problems, other.failing, other._cache = [], {}, {}
    return other


def _wrong_first(run: Run, until: float) -> list[Problem]:
    """The problems of the example that failed last, those with a wrong result before the others."""
    distinct, run = {id(p): p for p in run.problems}.values(), _fresh(run)

    def right(p: Problem) -> bool:
        diagnosis = _Diagnosis(run, p, until)
        own = [diagnosis._observe(p, aspect) for aspect in ASPECTS if diagnosis._applies(aspect)]
        return all(one is None or one.right for one in own)

    return sorted(distinct, key=right)


# -- other operations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One call of another operation: positional arguments, options, the shape of the result."""

    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Operation:
    """Another operation: examples to try, the reference, its mistakes, and what these may depend on.

    Reference and mistakes are called with the base of the frequencies, the bounded arguments and the options.
    """

    examples: Callable[[Run], list[Example]]
    exact: Callable[..., Any]
    mistakes: tuple[tuple[str, Callable[..., Any]], ...]
    conditions: tuple[Condition, ...] = ()


def _other_operation(run: Run) -> str:
    """The diagnosis of another operation: its mistakes compared on examples of its own."""
    operation = OTHERS.get(run.implementation.operation)
    if operation is None:
        return ""
    run, until = _fresh(run), time.perf_counter() + SECONDS
    with np.errstate(all="ignore"):
        found = [_called(run, operation, example) for example in operation.examples(run)]
        seen = sorted([one for one in found if one is not None], key=lambda one: one.right)
        if not seen or seen[0].right:
            return ""
        mistakes = [(text, _calling(run, compute)) for text, compute in operation.mistakes]
        text, where = _select(run, seen, mistakes, operation.conditions, until)
    return _capitalised(where, f"the result equals {text}") if text else ""


def _called(run: Run, operation: _Operation, example: Example) -> Observation | None:
    lent = [np.copy(x) if isinstance(x, np.ndarray) else x for x in example.arguments]
    taken = {n: x for n, x in example.options.items() if run.offers_parameter(n)}
    expected = _calling(run, operation.exact)(Observation(example, {}, {}, True))
    try:
        got = run.call(*lent, shape=example.shape, **taken)
    except Exception:  # what the implementation refuses says nothing
        return None
    if expected is None:
        return None
    bound = Bounded(expected["result"].value, run.within(got, expected["result"]).errors)
    return Observation(example, {"result": got}, {"result": bound}, bool(_held(got, bound).all()))


def _calling(run: Run, compute: Callable[..., Any]) -> Predict:
    def predict(seen: Observation) -> Parts | None:
        given = [run.bounded(x) if isinstance(x, np.ndarray) and x.dtype == run.numpy_dtype else x
                 for x in seen.subject.arguments]  # fmt: skip
        try:
            return {"result": compute(Bounded(10000.0, 0.0, run.precision), *given, **seen.subject.options)}
        except Exception:  # a variant that cannot be computed here predicts nothing
            return None

    return predict


def _normal(run: Run, seed: int, *shape: int, times: float = 1.0) -> Array:
    return np.asarray((np.random.default_rng(seed).standard_normal(shape) * times).astype(run.numpy_dtype))


def _softmax_examples(run: Run) -> list[Example]:
    shapes = [
        ((3, 4), 1.0),
        ((5, 2), 1.0),
        ((1, 3), 1.0),
        ((3, 3), 1.0),
        ((4, 7), 500.0),
        ((6, 5), 500.0),
        ((5, 3), 500.0),
        ((2, 9), 500.0),
    ]
    return [Example((_normal(run, i, *n, times=t),), {}, n) for i, (n, t) in enumerate(shapes)]


def _unshifted(base: Any, x: Bounded) -> Any:
    """As the reference where nothing overflows."""
    e = np.where(x.value > math.log(x.precision.accumulate.huge), np.inf, np.exp(np.minimum(x.value, 0.0)))
    return np.where(np.isinf(e).any(-1, keepdims=True), e / e.sum(-1, keepdims=True), stored(softmax(x)))


def _encoding_examples(run: Run) -> list[Example]:
    return [Example((length, dim), {"layout": layout}, (length, dim))
            for length, dim in ((5, 2), (7, 4), (3, 8), (9, 6), (20, 16))
            for layout in ("interleaved", "concatenated")]  # fmt: skip


def _encoded(
    sine: Callable[[int, Array], Any], cosine: Callable[[int, Array], Any], start: int = 0
) -> Callable[..., Any]:
    """The encoding whose frequencies are base^-exponent, the exponents functions of (dim, even columns)."""

    def compute(base: Any, length: int, dim: int, layout: str = "interleaved") -> Any:
        position = (np.arange(length) + start)[:, None]
        even = np.arange(0, dim, 2)
        angle = [position / base ** of(dim, even) for of in (sine, cosine)]
        return stored(joined(np.sin(angle[0]), np.cos(angle[1]), layout))

    return compute


def _powers_of_e(dim: int, even: Array) -> Array:
    """-log(10000) / 2 dim // 2 is floored, to a whole number: the exponents to base 10000 of e^(even * that number)."""
    return even * (math.log(10000.0) / (2 * dim) * -1 // 2) / -math.log(10000.0)


def _exchanged(base: Any, length: int, dim: int, layout: str = "interleaved") -> Any:
    """exponent^(1 / base) instead of (1 / base)^exponent."""
    frequencies = (np.arange(0, dim, 2) / dim) ** (1 / base.value)
    angle = Bounded(np.arange(length)[:, None], 0.0, base.precision) * frequencies
    return stored(joined(np.sin(angle), np.cos(angle), layout))


def _other_layout(layout: str, second: str) -> str:
    return second if layout == "interleaved" else "interleaved"


def _rotary_examples(run: Run) -> list[Example]:
    shapes = [(2, 3, 5, 4), (2, 2, 1, 8), (3, 1, 1, 6), (1, 2, 4, 2), (2, 4, 3, 6), (1, 3, 1, 4)]
    return [Example((_normal(run, i, *n), np.arange(n[2]) + 3), {"layout": layout}, n)
            for i, n in enumerate(shapes) for layout in ("interleaved", "half")]  # fmt: skip


def _turned(base: Any, x: Any, positions: Array, layout: str = "interleaved", sign: float = 1.0) -> Any:
    return rotary(x, sign * positions.astype(np.float64), base=base, layout=layout)


def _turned_by_head(base: Any, x: Any, positions: Array, layout: str = "interleaved") -> Any:
    return _turned(base, x, np.arange(x.shape[1])[:, None] + 0 * positions, layout)


def _mixed_tables(base: Any, x: Any, positions: Array, layout: str = "interleaved") -> Any:
    """Angles laid out for the other layout than the one by which the columns are paired."""
    half, angle = x.shape[-1] // 2, angles(positions.astype(np.float64), x.shape[-1], base)
    table = joined(angle, angle, _other_layout(layout, "half"))
    cut = (
        (slice(0, None, 2), slice(1, None, 2))
        if layout == "interleaved"
        else (slice(half), slice(half, None))
    )
    (a, b), (one, two) = [x[..., c] for c in cut], [table[..., c] for c in cut]
    return stored(joined(a * np.cos(one) - b * np.sin(one), b * np.cos(two) + a * np.sin(two), layout))


def _multi_head_examples(run: Run) -> list[Example]:
    sizes = [(2, 3, 5, 2), (3, 2, 4, 3), (1, 2, 7, 5), (2, 4, 3, 3), (4, 2, 1, 2), (2, 2, 2, 2)]
    found = []
    for i, (batch, heads, length, size) in enumerate(sizes):
        width = heads * size
        weights = [_normal(run, 10 * i + j, width, width, times=width**-0.5) for j in range(4)]
        x = _normal(run, 10 * i + 9, batch, length, width)
        found += [Example((x, *weights), {"heads": heads, "causal": c}, x.shape) for c in (False, True)]
    return [e for e in found if run.offers_parameter("causal") or not e.options["causal"]]


def _multi_head(split: Callable[[Any, int], Any] = split_heads, merge: Callable[[Any], Any] = merge_heads,
                between: Callable[[Any], Any] = lambda x: x, **changes: Any) -> Callable[..., Any]:  # fmt: skip
    """Multi-head attention with one step changed."""

    def compute(
        base: Any, x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, *, heads: int, causal: bool
    ) -> Any:
        query, key, value = (split(stored(x @ w), heads) for w in (w_q, w_k, w_v))
        options = {"causal": causal, **{n: of(x) if callable(of) else of for n, of in changes.items()}}
        return stored(merge(between(attention(query, key, value, **options))) @ w_o)

    return compute


def _as_it_lies(x: Any, heads: int) -> Any:
    return x.reshape(x.shape[0], heads, x.shape[1], x.shape[2] // heads)


def _exchange_batch_and_heads(x: Any) -> Any:
    batch, heads, *rest = x.shape
    return x.reshape(heads, batch, *rest).swapaxes(0, 1)


OTHERS: Mapping[str, _Operation] = {
    "softmax": _Operation(_softmax_examples, lambda base, x: stored(softmax(x)), (
        ("a softmax over the second last axis instead of the last", lambda base, x: stored(softmax(x, axis=-2))),
        ("a softmax over all axes at once", lambda base, x: stored(softmax(x.reshape(1, x.size)).reshape(*x.shape))),
        ("a softmax that does not subtract the maximum: large scores overflow", _unshifted),
        ("a softmax of the scores with their sign flipped", lambda base, x: stored(softmax(-x))),
    )),
    "positional_encoding": _Operation(
        _encoding_examples, lambda base, n, dim, **o: positional_encoding(n, dim, base=base, **o), (
            ("an encoding whose frequencies have the base 1000 instead of 10000",
             lambda base, n, dim, **o: positional_encoding(n, dim, base=base * 0.1, **o)),
            ("an encoding with the exponent 2 i / dim for every column i: sine and cosine of a pair differ",
             _encoded(lambda dim, even: 2 * even / dim, lambda dim, even: 2 * (even + 1) / dim)),
            ("an encoding whose cosines have the exponents 1, 3, 5, ... over dim instead of 0, 2, 4, ...",
             _encoded(lambda dim, even: even / dim, lambda dim, even: (even + 1) / dim)),
            ("an encoding with the exponents i / dim of the pair i instead of 2 i / dim",
             _encoded(lambda dim, even: even / 2 / dim, lambda dim, even: even / 2 / dim)),
            ("an encoding with the exponents 2 i / (dim - 2) of the pair i instead of 2 i / dim",
             _encoded(lambda dim, even: even / max(dim - 2, 1), lambda dim, even: even / max(dim - 2, 1))),
            ("an encoding whose exponents are rounded down to whole numbers: the frequencies are powers of e",
             _encoded(_powers_of_e, _powers_of_e)),
            ("an encoding with exponent^(1 / base) in the place of (1 / base)^exponent", _exchanged),
            ("an encoding that counts positions from 1",
             _encoded(lambda dim, even: even / dim, lambda dim, even: even / dim, start=1)),
            ("an encoding in the other layout, interleaved or in halves",
             lambda base, n, dim, layout: positional_encoding(n, dim, base=base, layout=_other_layout(layout, "concatenated"))),
        )),
    "rotary": _Operation(
        _rotary_examples, _turned, (
            ("a rotation in the other direction", lambda base, x, at, layout: _turned(base, x, at, layout, sign=-1.0)),
            ("a rotation that pairs the columns of the other layout, neighbours or halves",
             lambda base, x, at, layout: _turned(base, x, at, _other_layout(layout, "half"))),
            ("a rotation whose table of angles is laid out for neighbours and whose pairs for halves, or the other way round",
             _mixed_tables),
            ("a rotation by the number of the head instead of the position", _turned_by_head),
            ("a rotation that counts positions from 0", lambda base, x, at, **o: _turned(base, x, at - at[:1], **o)),
            ("the rotation of the first batch entry, for all",
             lambda base, x, at, **o: _turned(base, np.take(x, [0] * x.shape[0], 0), at, **o)),
            ("its argument, not rotated", lambda base, x, at, **o: rotate(x, np.ones(1), np.zeros(1), **o)),
        ), (("with one position", lambda e: e.shape[2] == 1), ("with one batch entry", lambda e: e.shape[0] == 1))),
    "multi_head_attention": _Operation(
        _multi_head_examples, lambda base, *a, **o: multi_head_attention(*a, **o), (
            ("multi-head attention whose heads are merged without a transpose: (B,H,L,D) is read as (B,L,H D) as it lies",
             _multi_head(merge=lambda x: x.reshape(x.shape[0], x.shape[2], -1))),
            ("multi-head attention whose heads are split without a transpose: (B,L,H D) is read as (B,H,L,D) as it lies",
             _multi_head(_as_it_lies)),
            ("multi-head attention that takes batch entries and heads for each other before it merges them",
             _multi_head(between=_exchange_batch_and_heads)),
            ("multi-head attention without causality", _multi_head(causal=False)),
            ("multi-head attention with the scale of the model's width instead of a head's",
             _multi_head(scale=lambda x: x.shape[-1] ** -0.5)),
            ("multi-head attention without a scale", _multi_head(scale=1.0)),
        ), (("with causality", lambda e: e.options["causal"]), ("with one batch entry", lambda e: e.shape[0] == 1))),
}  # fmt: skip
