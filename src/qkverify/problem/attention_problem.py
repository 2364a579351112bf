"""One attention problem, as data: the arrays in their storage dtype and memory layout, the options, the conventions.

A `Problem` knows its sizes, which keys are visible, how the reference is called on it, and how a person reads it. It never
changes: laws derive new problems with `replace`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qkverify.contract import OPTIONS, empty_rows
from qkverify.reference.masks import visible

Array = np.ndarray

TENSORS = ("query", "key", "value", "mask", "bias", "upstream")
PRINTED = 64  # an array of at most so many numbers is printed whole


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """query (B,H,Q,D), key (B,G,K,D), value (B,G,K,E) in the dtype under test; options as in `contract.OPTIONS`.

    `upstream` (B,H,Q,E) is the gradient that comes in from above, where a law needs one. `layouts` names the memory
    layout of each array (see `LAYOUTS`). `mode` says how a framework that records gradients is told not to ("no_grad",
    "inference_mode"). `causal_alignment` and `empty_rows` are the conventions it is judged by; `empty_row` is what the latter
    means here.
    """

    query: Array
    key: Array
    value: Array
    mask: Array | None = None
    bias: Array | None = None
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    scale: float | None = None
    softcap: float | None = None
    alibi_slopes: Array | None = None
    key_lengths: Array | None = None
    sinks: Array | None = None
    return_lse: bool = False
    upstream: Array | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    mode: str = ""
    causal_alignment: str = "bottom-right"
    empty_rows: str = "zero"

    def replace(self, **changes: Any) -> Problem:
        """The same problem with some of its fields changed."""
        return dataclasses.replace(self, **changes)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The dimension letters B, H, G, Q, K, D, E."""
        batch, heads, queries, size = self.query.shape
        return {"B": batch, "H": heads, "G": self.key.shape[1], "Q": queries, "K": self.key.shape[2], "D": size,
                "E": self.value.shape[3]}  # fmt: skip

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The options that are in use."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return int(self.query.shape[1] // max(self.key.shape[1], 1))

    @cached_property
    def visible(self) -> Array:
        """bool (B,H,Q,K): which keys each query may attend to. A bias of -inf hides a key too."""
        s = self.sizes
        may_attend = visible(s["B"], s["Q"], s["K"], causal=self.causal, window=self.window, mask=self.mask,
                       key_lengths=self.key_lengths, causal_alignment=self.causal_alignment)  # fmt: skip
        if self.bias is not None:
            may_attend = may_attend & ~np.isneginf(np.asarray(self.bias, dtype=np.float64))
        return np.broadcast_to(may_attend, (s["B"], s["H"], s["Q"], s["K"]))

    @property
    def some_visible(self) -> Array:
        """bool (B,H,Q): the rows that see at least one key."""
        return np.asarray(self.visible.any(-1))

    @cached_property
    def empty_row(self) -> str:
        """What a row that sees no key gets: a value of the convention, or UNDECIDED where the options in use differ in that.

        An option counts also where it hides nothing: it may lead an implementation along another path.
        """
        values = empty_rows.by_way(self.empty_rows)
        if not values:
            return self.empty_rows
        if self.sinks is not None:  # a sink takes all the weight of such a row
            return "zero"
        return empty_rows.of_ways(values, self.options)

    @property
    def judges_empty_rows(self) -> bool:
        """Whether it is known what its rows that see no key get."""
        return self.empty_row != empty_rows.UNDECIDED

    @property
    def reference_options(self) -> dict[str, Any]:
        """The keyword arguments of `reference.attention` for this problem."""
        return {**self.options, "causal_alignment": self.causal_alignment,
                "empty_rows": self.empty_row if self.judges_empty_rows else "zero"}  # fmt: skip

    def describe(self) -> str:
        """The problem as a person reads it: a line of sizes and options, then the numbers where they are few."""
        s = self.sizes
        words = [_count(s["B"], "batch entry"), _count(s["H"], "head")]
        if s["G"] != s["H"]:
            words.append(_count(s["G"], "key/value head"))
        words += [_count(s["Q"], "query"), _count(s["K"], "key"), f"size {s['D']}"]
        if s["E"] != s["D"]:
            words.append(f"value size {s['E']}")
        words += [
            _option(name, value)
            for name, value in self.options.items()
            if np.ndim(value) == 0 or name == "window"
        ]
        words += [f"{name} {layout}" for name, layout in self.layouts.items() if layout != "contiguous"]
        words += [f"under {self.mode}"] if self.mode else []
        lines = [", ".join(words)]
        for name in (*TENSORS, "key_lengths", "alibi_slopes", "sinks"):
            array = getattr(self, name)
            if array is not None:
                lines.append(f"{name} {show(array)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Problem({'; '.join(self.describe().splitlines())})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis would print every field of a dataclass, with all the numbers of its arrays."""
        printer.text(repr(self))


def show(array: Any) -> str:
    """An array as a person reads it: whole where small (leading axes of length one dropped), else its shape and range."""
    array = np.asarray(array)
    if array.size == 0:
        return f"empty, shape {array.shape}"
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.dtype != np.bool_:
        array = array.astype(np.float64) if array.dtype.kind not in "iu" else array
    if array.size > PRINTED:
        if array.dtype == np.bool_:
            return f"shape {array.shape}, {int(array.sum())} of {array.size} true"
        numbers = array[~np.isnan(array)]
        if not numbers.size:
            return f"shape {array.shape}, all NaN"
        return f"shape {array.shape}, from {numbers.min():.6g} to {numbers.max():.6g}"
    return str(_plain(array.tolist())).replace("'", "")


def _plain(nested: Any) -> Any:
    """Numbers in their shortest form: 1 for 1.0."""
    if isinstance(nested, list):
        return [_plain(x) for x in nested]
    if isinstance(nested, bool):
        return nested
    if isinstance(nested, float) and nested.is_integer() and abs(nested) < 1e9:
        return int(nested)
    return float(f"{nested:.7g}") if isinstance(nested, float) else nested


def _count(n: int, word: str) -> str:
    plural = {"batch entry": "batch entries", "query": "queries"}.get(word, word + "s")
    return f"{n} {word if n == 1 else plural}"


def _option(name: str, value: Any) -> str:
    return name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"


# Memory layouts: each takes a contiguous array and gives an equal view of some other buffer. What lies around the view is
# NaN (or True, or the largest integer), so that a kernel that reads past it shows.
LAYOUTS: dict[str, Callable[[Array], Array]] = {}
SHARED_MEMORY = ("overlapping rows", "batch of stride zero")  # right only for arrays whose numbers repeat so


def _layout(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    LAYOUTS[function.__name__.strip("_").replace("_", " ")] = function
    return function


def _filled(shape: tuple[int, ...], dtype: Any) -> Array:
    filler = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else True if dtype == np.bool_ else np.nan
    return np.full(shape, filler, dtype=dtype)


@_layout
def contiguous(x: Array) -> Array:
    return np.ascontiguousarray(x)


@_layout
def heads_after_length(x: Array) -> Array:
    """(B,H,L,D) seen through memory that holds (B,L,H,D), as a projection leaves it."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) if x.ndim == 4 else contiguous(x)


@_layout
def last_axes_swapped(x: Array) -> Array:
    return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2) if x.ndim >= 2 else contiguous(x)


@_layout
def every_second(x: Array) -> Array:
    buffer = _filled((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    view = buffer[..., ::2]
    view[...] = x
    return view


@_layout
def slice_of_longer(x: Array) -> Array:
    if x.ndim < 2:
        return contiguous(x)
    buffer = _filled((*x.shape[:-2], x.shape[-2] + 3, x.shape[-1] + 1), x.dtype)
    view = buffer[..., 1:-2, : x.shape[-1]]
    view[...] = x
    return view


@_layout
def offset(x: Array) -> Array:
    buffer = _filled((x.size + 8,), x.dtype)
    view = buffer[3 : 3 + x.size].reshape(x.shape)
    view[...] = x
    return view


@_layout
def backward(x: Array) -> Array:
    """Every axis runs backward through the memory: its strides are negative. A framework without such strides gets a copy."""
    return np.flip(np.ascontiguousarray(np.flip(x)))


@_layout
def rows_far_apart(x: Array) -> Array:
    """Rows spread over 2^17 numbers: offsets that 15 or 16 bits do not hold, without the memory of a long sequence."""
    rows = int(np.prod(x.shape[:-1]))
    if not rows or x.ndim < 2:
        return contiguous(x)
    buffer = _filled((*x.shape[:-1], max(x.shape[-1], 2**17 // rows)), x.dtype)
    view = buffer[..., : x.shape[-1]]
    view[...] = x
    return view


@_layout
def overlapping_rows(x: Array) -> Array:
    """Each row begins one number after the one before, in the same memory; only right for arrays that are such windows."""
    if x.ndim < 2 or not x.size:
        return contiguous(x)
    sequence = np.concatenate([x[..., 0], x[..., -1, 1:]], axis=-1)
    return np.lib.stride_tricks.sliding_window_view(np.ascontiguousarray(sequence), x.shape[-1], axis=-1)


@_layout
def batch_of_stride_zero(x: Array) -> Array:
    """Every batch entry is the same memory; only right for arrays whose entries are equal."""
    return np.broadcast_to(x[:1], x.shape) if x.ndim and x.shape[0] else x
