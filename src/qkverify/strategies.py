"""Hypothesis strategies for attention problems; public, so that you can write laws of your own.

Hypothesis draws the *structure* (sizes, options, layouts, distributions, a seed for each array) and NumPy fills the arrays
from the seeds: drawing every element costs more than all the rest of a check. What is drawn suits the run that is being
checked: its dtype, the options that it offers, the sizes that it requires, the edges of its tiles. Outside of a check every
option is drawn, in float32.

Shrinking goes toward one batch entry, one head, one query, two keys, size one, no options and small whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from qkverify import distributions
from qkverify.contract import OPTIONS
from qkverify.problems import LAYOUTS, Problem
from qkverify.runs import NUMPY_DTYPES, Run, active

Draw = Callable[[st.SearchStrategy[Any]], Any]

SMALL = (1, 2, 3)
HEADS = tuple(
    sorted(product(SMALL, SMALL, SMALL), key=lambda bgr: (bgr[0] * bgr[1] * bgr[2], bgr))
)  # B, G, group
HEAD_SIZES = (1, 2, 3, 4, 5, 8, 16, 7, 13, 17, 32, 33, 64)
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33)
TILE_EDGES = (63, 64, 65, 127, 128, 129, 160, 191, 257)
PAIRS = 16_000  # (query, key) pairs of one problem, all heads: keeps an example near a millisecond

TAME = ("digits", "counting", "ones", "one-hot", "normal", "uniform", "ties", "sparse")
_seeds = st.integers(0, distributions.SEEDS - 1)
_tame_fills = st.sampled_from(TAME)
_places = st.integers(1, 63)
_layouts = st.sampled_from(
    ["contiguous"] * 3 + [name for name in LAYOUTS if name not in ("contiguous", "batch of stride zero")]
)
_scales = st.sampled_from((1.0, 0.5, 2.0, 0.125, 0.3))  # zero has a law of its own
_softcaps = st.sampled_from((1.0, 2.0, 0.5, 5.0, 30.0))
_sides = st.sampled_from(
    [
        (left, right)
        for right in (0, None, 1, 2, 8)
        for left in (0, 1, 2, 3, 40, None)
        if (left, right) != (None, None)
    ]
)
_shapes = st.integers(0, 7)
_pairs = sorted(
    product(HEAD_SIZES, HEAD_SIZES), key=lambda de: (HEAD_SIZES.index(de[0]) + HEAD_SIZES.index(de[1]), de)
)
_head_sizes = st.sampled_from(_pairs)
_small_head_sizes = st.sampled_from([de for de in _pairs if max(de) <= 16])
_heads = st.sampled_from(HEADS)


def _mixtures(names: Sequence[str], count: int) -> st.SearchStrategy[tuple[str, ...]]:
    """How query, key, value and upstream are filled: all alike, or one of them differently. Simple first."""
    alike = [(name,) * 4 for name in names]
    mixed = [(one, *[other] * 3) if turn % 2 else (other, one, other, other)
             for turn, (one, other) in enumerate(product(names, names)) if one != other]  # fmt: skip
    last = [("normal", "normal", name, "normal") for name in names] + [
        ("normal",) * 3 + (name,) for name in names
    ]
    return st.sampled_from((alike + last + mixed)[:count])


_wild_mixtures = _mixtures(distributions.NAMES, 400)
_tame_mixtures = _mixtures(TAME, 100)


@lru_cache(maxsize=512)
def _pool(candidates: tuple[int, ...]) -> st.SearchStrategy[int]:
    return st.sampled_from(candidates)


def draw_sizes(
    draw: Draw, run: Run | None, fixed: Mapping[str, Any], *, zero: bool = False, long: bool = True
) -> dict[str, int]:
    """Sizes by dimension letter. `fixed` maps a letter to a number or to the letter that it equals."""
    requires = run is not None and run.implementation.requires
    if run is not None and run.implementation.effort.get(run.device, 1.0) < 1:
        long = False  # an interpreted kernel takes a second for what a compiled one does in a microsecond
    lengths = LENGTHS + (
        (*LENGTHS, *TILE_EDGES, *_tile_edges(run)) if long else ()
    )  # twice: four in five are short
    sizes: dict[str, int] = {}

    def choose(letter: str, candidates: Sequence[int]) -> None:
        rule = fixed.get(letter)
        if rule is not None:
            sizes[letter] = sizes[rule] if isinstance(rule, str) else int(rule)
            return
        fitting = tuple(candidates)
        if requires and run is not None:
            known = tuple(sorted({*sizes.values()} - set(fitting)))
            fitting = tuple(
                n for n in fitting + known if run.implementation.accepts({**sizes, letter: n}) is None
            )
            assume(fitting)
        sizes[letter] = draw(_pool(fitting + ((0,) if zero and letter in "QK" else ())))

    sizes["B"], sizes["G"], group = draw(_heads)
    sizes["H"] = sizes["G"] * group
    for letter in "GHB":
        if letter in fixed:
            choose(letter, ())
    if "G" in fixed and "H" not in fixed:
        sizes["H"] = sizes["G"] * group
    if zero and draw(_shapes) == 7:
        sizes["B"] = 0
    if requires and run is not None and run.implementation.accepts(sizes) is not None:
        sizes["H"] = sizes["G"]
        assume(run.implementation.accepts(sizes) is None)
    rows = max(sizes["B"] * sizes["H"], 1)
    choose("Q", [n for n in lengths if n * rows <= PAIRS // 4])
    choose("K", [n for n in (2, *lengths) if n * sizes["Q"] * rows <= PAIRS])
    short = rows * (sizes["Q"] + sizes["K"]) <= 600
    if "D" in fixed or "E" in fixed or requires:
        for letter in "ED" if "E" in fixed and fixed["E"] != "D" else "DE":
            choose(letter, [n for n in HEAD_SIZES if n <= 16 or short])
    else:
        sizes["D"], sizes["E"] = draw(_head_sizes if short else _small_head_sizes)
    if requires and run is not None:
        assume(run.implementation.accepts(sizes) is None)
    return sizes


def _tile_edges(run: Run | None) -> tuple[int, ...]:
    tile = run.implementation.tile if run is not None else ()
    return tuple(
        sorted({n for t in tile for n in (t - 1, t, t + 1, 2 * t, 2 * t + 1)} - {*LENGTHS, *TILE_EDGES})
    )


@st.composite
def problems(
    draw: Draw,
    *,
    use: Sequence[str] = (),
    without: Sequence[str] = (),
    only: Sequence[str] | None = None,
    values: str = "any",
    keys: str = "any",
    sizes: Mapping[str, Any] | None = None,
    upstream: bool = False,
    tame: bool = False,
    layouts: bool = True,
    zero: bool = False,
    long: bool = True,
) -> Problem:
    """One attention problem.

    use      options that must be in use                 without / only   options that must not / that alone may be
    values   "any", "identity" (E = K: the output is the weights) or "ones"
    keys     "any" or "identity" (D = K and scale 1: the scores are the query)
    sizes    {"K": 1} fixes a size, {"H": "G"} makes it equal to another
    upstream draw an upstream gradient as well           tame             moderate numbers only
    layouts  draw memory layouts                         zero             lengths of 0 as well
    long     tile edges beyond 33 as well
    """
    run = active()
    dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
    fixed = dict(sizes or {})
    if values == "identity":
        fixed["E"] = "K"
    if keys == "identity":
        fixed["D"] = "K"
        use = (*use, "scale")
    s = draw_sizes(draw, run, fixed, zero=zero, long=long)
    shapes = {"query": (s["B"], s["H"], s["Q"], s["D"]), "key": (s["B"], s["G"], s["K"], s["D"]),
              "value": (s["B"], s["G"], s["K"], s["E"]), "upstream": (s["B"], s["H"], s["Q"], s["E"])}  # fmt: skip
    if not upstream:
        del shapes["upstream"]
    given: dict[str, np.ndarray] = {}
    if keys == "identity":
        given["key"] = np.broadcast_to(np.eye(s["K"]), shapes["key"])
    if values != "any":
        given["value"] = np.broadcast_to(np.eye(s["K"]) if values == "identity" else 1.0, shapes["value"])
    mixture = draw(_tame_mixtures if tame else _wild_mixtures)
    arrays: dict[str, Any] = {
        name: np.ascontiguousarray(
            given[name] if name in given else distributions.fill(fill, shape, draw(_seeds)), dtype=dtype
        )
        for (name, shape), fill in zip(shapes.items(), mixture, strict=False)
    }
    options = draw_options(draw, run, s, dtype, use=use, without=without, only=only)
    if keys == "identity":
        options["scale"] = 1.0
    places = {}
    if layouts and (layout := draw(_layouts)) != "contiguous":
        placed: list[str] = [
            name
            for name in ("query", "key", "value", "mask", "bias", "upstream")
            if name in arrays or name in options
        ]
        which = draw(_places)
        places = {name: layout for i, name in enumerate(placed) if which >> i & 1}
    semantics: dict[str, Any] = (
        {} if run is None else {n: run.semantics[n] for n in ("causal_alignment", "empty_rows")}
    )
    return Problem(**arrays, **options, layouts=places, **semantics)


def draw_array(
    draw: Draw, shape: tuple[int, ...], dtype: Any, fills: st.SearchStrategy[str] = _tame_fills
) -> np.ndarray:
    """An array of one of the distributions, rounded to `dtype`."""
    return distributions.fill(draw(fills), shape, draw(_seeds)).astype(dtype)


def draw_options(draw: Draw, run: Run | None, s: Mapping[str, int], dtype: Any, *, use: Sequence[str] = (),
                 without: Sequence[str] = (), only: Sequence[str] | None = None) -> dict[str, Any]:  # fmt: skip
    """Options in use, each drawn on its own: their combinations are where bugs live."""
    offered = set(OPTIONS) if run is None else run.implementation.offers
    wanted = [name for name in OPTIONS
              if name in use or (name in offered and name not in without and name != "return_lse"
                                 and (only is None or name in only))]  # fmt: skip
    # Three options a draw: a boolean each costs more than the bound, and one integer for all of them shrinks badly.
    bits = [
        bool(drawn >> i & 1) for drawn in (draw(_shapes) for _ in range(0, len(wanted), 3)) for i in range(3)
    ]
    chosen = [name for name, bit in zip(wanted, bits, strict=False) if name in use or bit]
    if run is not None:
        for one, other in run.implementation.exclusive:
            if one in chosen and other in chosen:
                chosen.remove(other if other not in use else one)
    if "mask" in chosen and "bias" in chosen and run is not None and _one_parameter(run):
        chosen.remove("bias" if "bias" not in use else "mask")
    return {name: OPTION_DRAWS[name](draw, s, dtype) for name in chosen}


def _one_parameter(run: Run) -> bool:
    names = run.implementation.parameters
    return names.get("mask") == names.get("bias")


def _broadcastable(draw: Draw, s: Mapping[str, int]) -> tuple[int, ...]:
    """(B,H,Q,K) with some of the first three axes of length one."""
    kept = draw(_shapes)
    return (*(s[letter] if kept >> i & 1 else 1 for i, letter in enumerate("BHQ")), s["K"])


def draw_mask(draw: Draw, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    """True where the digit of the seed is 0: all true for seed 0; about a quarter false; sometimes a row of no keys."""
    shape = _broadcastable(draw, s)
    seed = draw(_seeds)
    mask = (
        distributions.digits(shape, seed, base=4) != 3
        if seed % 5
        else distributions.digits(shape, seed, base=2) == 0
    )
    if seed % 7 == 6 and mask.shape[2]:
        mask[..., 0, :] = False
    return np.asarray(mask)


def _draw_bias(draw: Draw, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    return draw_array(draw, _broadcastable(draw, s), dtype, _tame_fills)


def _draw_window(draw: Draw, s: Mapping[str, int], dtype: Any) -> tuple[int | None, int | None]:
    sides: tuple[int | None, int | None] = draw(_sides)
    return sides


def _draw_lengths(draw: Draw, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    """Lengths from K downward, one for each batch entry: K for seed 0."""
    hidden = distributions.digits((s["B"],), draw(_seeds), base=s["K"] + 1)
    return (s["K"] - hidden).astype(np.int32)


def _draw_slopes(draw: Draw, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    slopes = np.exp2(-1.0 - distributions.digits((s["H"],), draw(_seeds)))
    return slopes.astype(np.float64 if dtype is np.float64 else np.float32)


def _draw_sinks(draw: Draw, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    sinks = 3.0 * distributions.DIGITS[distributions.digits((s["H"],), draw(_seeds))]
    return np.asarray(sinks, np.float64 if dtype is np.float64 else np.float32)


OPTION_DRAWS: Mapping[str, Callable[[Draw, Mapping[str, int], Any], Any]] = {
    "mask": draw_mask,
    "bias": _draw_bias,
    "causal": lambda draw, s, dtype: True,
    "window": _draw_window,
    "scale": lambda draw, s, dtype: draw(_scales),
    "softcap": lambda draw, s, dtype: draw(_softcaps),
    "alibi_slopes": _draw_slopes,
    "key_lengths": _draw_lengths,
    "sinks": _draw_sinks,
    "return_lse": lambda draw, s, dtype: True,
}
