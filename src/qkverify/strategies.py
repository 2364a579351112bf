"""Hypothesis strategies for attention problems; public, so that you can write laws of your own.

Hypothesis draws the *structure* (sizes, options, layouts, distributions, a seed for each array) and NumPy fills the arrays
from the seeds: drawing every element costs more than all the rest of a check. What is drawn suits the run that is being
checked: its dtype, the options that it offers, the sizes that it requires, the edges of its tiles. Outside of a check every
option is drawn, in float32.

Shrinking goes toward one batch entry, one head, one query, two keys, size one, no options and small whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from qkverify import activations, distributions
from qkverify.contract import OPTIONS
from qkverify.problems import LAYOUTS, Problem
from qkverify.runs import NUMPY_DTYPES, Run, active

Draw = Callable[[st.SearchStrategy[Any]], Any]

SMALL = (1, 2, 3)
NARROW = (1, 2, 3, 4, 5, 8)  # the other sizes where one is stretched
HEADS = tuple(
    sorted(product(SMALL, SMALL, SMALL), key=lambda bgr: (bgr[0] * bgr[1] * bgr[2], bgr))
)  # B, G, group
HEAD_SIZES = (1, 2, 3, 4, 5, 8, 16, 7, 13, 17, 32, 33, 64)
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33)
TILE_EDGES = (63, 64, 65, 127, 128, 129, 160, 191, 257)
PAIRS = 8_500  # (query, key) pairs of one problem, all heads: keeps an example near a millisecond

# One dimension far larger than the others, as real models have it: what is right for few need not be right for many. The
# length of an axis decides which kernel runs, how often its loops turn and what a counter of few bits holds.
STRETCHED: Mapping[str, tuple[int, ...]] = {
    "Q": (300, 513, 1025), "K": (300, 513, 1025, 2049), "D": (80, 96, 128, 100, 129, 256), "E": (80, 96, 128, 129, 256),
}  # fmt: skip
PAIRED: Mapping[str, tuple[int, ...]] = {
    "QK": (129, 193, 127, 257),
    "DE": (128, 64, 96, 256),
}  # as in self-attention, in models
LARGE = {**STRETCHED, **PAIRED}
MANY = (
    (5, 1, 1),
    (1, 5, 1),
    (1, 1, 5),
    (1, 8, 1),
    (1, 1, 8),
    (9, 1, 1),
    (2, 1, 7),
    (1, 12, 1),
    (1, 2, 8),
    (1, 1, 16),
    (1, 33, 1),
)

# What models call: heads of 64 or 128, self-attention over a few tiles, one query over a long cache. B, G, H, Q, K, D = E.
USUAL = (
    (1, 1, 1, 64, 64, 64), (1, 2, 4, 65, 65, 64), (1, 1, 1, 129, 129, 64), (1, 2, 4, 129, 129, 64), (1, 2, 6, 193, 193, 64),
    (2, 1, 1, 130, 130, 128), (1, 1, 1, 257, 257, 64), (1, 2, 4, 128, 128, 128), (1, 1, 1, 130, 257, 64),
    (1, 1, 1, 257, 130, 64), (1, 1, 4, 1, 513, 128), (2, 2, 8, 1, 1025, 64),
)  # fmt: skip

# A framework that compiles every operation anew for every size gets few sizes: B, G, group, Q, K, D, E.
COMPILED = ((1, 1, 1, 1, 2, 1, 1), (1, 1, 1, 2, 2, 1, 1), (1, 1, 1, 2, 3, 2, 1), (1, 1, 2, 3, 5, 4, 3), (2, 2, 2, 5, 3, 3, 4),
            (2, 1, 3, 9, 8, 8, 5), (2, 3, 1, 17, 16, 5, 8), (1, 2, 2, 65, 33, 8, 8), (3, 2, 1, 33, 65, 16, 16))  # fmt: skip

TAME = ("digits", "counting", "ones", "one-hot", "normal", "uniform", "ties", "sparse")
_seeds = st.integers(0, distributions.SEEDS - 1)
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
_few_heads = st.sampled_from([(heads, "") for heads in HEADS])
# (B, G, group), and the letter that is stretched beside them: a fifth of all problems, those that shrinking leaves first.
_heads = st.sampled_from(
    [(heads, "") for heads in (*HEADS, *MANY)]
    + [(heads, letter) for letter in STRETCHED for heads in ((1, 1, 1), (1, 1, 2), (2, 2, 1))]
    + [((1, 1, group), letters) for letters in PAIRED for group in (1, 2)]
)
_compiled = st.sampled_from(COMPILED)
_usual = st.sampled_from([dict(zip("BGHQKDE", (*row, row[-1]), strict=True)) for row in USUAL])
_compiled_short = st.sampled_from([row for row in COMPILED if max(row) <= 33])


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
    compiles = run is not None and run.framework.COMPILES
    slow = run is not None and not compiles and run.implementation.effort.get(run.device, 1.0) < 1
    if slow:
        long = False  # an interpreted kernel takes a second for what a compiled one does in a microsecond
    lengths = _lengths(run.implementation.tile if run is not None else ()) if long else LENGTHS
    sizes: dict[str, int] = {}

    def choose(letter: str, candidates: Sequence[int]) -> None:
        rule = fixed.get(letter)
        if rule is not None:
            sizes[letter] = sizes[rule] if isinstance(rule, str) else int(rule)
            return
        fitting = tuple(candidates)  # a tuple stays what it is
        if requires and run is not None:
            known = tuple(sorted({*sizes.values()} - {0, *fitting}))
            fitting = tuple(
                n for n in fitting + known if run.implementation.accepts({**sizes, letter: n}) is None
            )
            assume(fitting)
        sizes[letter] = draw(_pool(fitting + ((0,) if zero and letter in "QK" else ())))

    pools: dict[str, tuple[int, ...]] = {}
    stretched = ""
    if compiles:
        sizes["B"], sizes["G"], group, *rest = draw(_compiled if long else _compiled_short)
        pools = {letter: (n,) for letter, n in zip("QKDE", rest, strict=True)}
    else:
        (sizes["B"], sizes["G"], group), stretched = draw(_few_heads if slow else _heads)
        if stretched and (long or stretched in ("D", "E", "DE")):
            pools = {**dict.fromkeys("QKDE", NARROW), **dict.fromkeys(stretched, LARGE[stretched])}
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
    choose("Q", pools.get("Q") or _at_most(lengths, max(PAIRS // (4 * rows), 1)))
    choose("K", pools.get("K") or _at_most((2, *lengths), PAIRS // max(sizes["Q"] * rows, 1)))
    short = rows * (sizes["Q"] + sizes["K"]) <= 400
    if "D" in fixed or "E" in fixed or requires or pools:
        for letter in "ED" if "E" in fixed and fixed["E"] != "D" else "DE":
            choose(letter, pools.get(letter) or [n for n in HEAD_SIZES if n <= 16 or short])
    else:
        sizes["D"], sizes["E"] = draw(_head_sizes if short else _small_head_sizes)
    if requires and run is not None:
        assume(run.implementation.accepts(sizes) is None)
    return sizes


@lru_cache(maxsize=64)
def _lengths(tile: tuple[int, ...]) -> tuple[int, ...]:
    """Lengths with tile edges, those of the declared tile too; the short ones twice: four in five are short."""
    declared = {n for t in tile for n in (t - 1, t, t + 1, 2 * t, 2 * t + 1)} - {*LENGTHS, *TILE_EDGES}
    return (*LENGTHS, *LENGTHS, *TILE_EDGES, *sorted(declared))


@lru_cache(maxsize=4096)
def _at_most(lengths: tuple[int, ...], limit: int) -> tuple[int, ...]:
    return tuple(n for n in lengths if n <= limit)


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
    usual: bool = False,
) -> Problem:
    """One attention problem.

    use      options that must be in use                 without / only   options that must not / that alone may be
    values   "any", "identity" (E = K: the output is the weights) or "ones"
    keys     "any" or "identity" (D = K and scale 1: the scores are the query)
    sizes    {"K": 1} fixes a size, {"H": "G"} makes it equal to another
    upstream draw an upstream gradient as well           tame             moderate numbers only
    layouts  draw memory layouts                         zero             lengths of 0 as well
    long     tile edges beyond 33 as well                usual            sizes that models have (USUAL), and no others
    """
    run = active()
    dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
    fixed = {**(draw(_usual) if usual else {}), **(sizes or {})}
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
    source = Source(draw)
    arrays: dict[str, Any] = {
        name: np.ascontiguousarray(given[name] if name in given else source.array(fill, shape), dtype=dtype)
        for (name, shape), fill in zip(shapes.items(), mixture, strict=False)
    }
    options = draw_options(source, run, s, dtype, use=use, without=without, only=only)
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


REAL_LENGTHS = (1, 2, 5, 16, 33, 64, 65, 128)


@st.composite
def real_problems(draw: Draw, *, upstream: bool = False) -> Problem:
    """Neighbouring heads of a trained model on a stretch of its text (see `activations`), with the options causal and scale.

    As many queries as keys, or the last few of them; the upstream gradient is standard normal.
    """
    run = active()
    few = run is not None and (run.framework.COMPILES or run.implementation.effort.get(run.device, 1.0) < 1)
    heads = draw(st.sampled_from((1, 2) if few else (1, 2, 3, activations.HEADS)))
    keys = draw(st.sampled_from((16,) if few else REAL_LENGTHS))
    queries = keys if few else draw(st.sampled_from([n for n in (1, 5, keys) if n <= keys]))
    sizes = {"B": 1, "H": heads, "G": heads, "Q": queries, "K": keys,
             "D": activations.SIZE, "E": activations.SIZE}  # fmt: skip
    assume(run is None or run.implementation.accepts(sizes) is None)
    head = draw(st.integers(0, activations.HEADS - heads))
    start = draw(st.integers(0, activations.STORED_TOKENS - keys))
    window = (None, slice(head, head + heads), slice(start, start + keys))
    dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
    cut: dict[str, Any] = {name: array[window].astype(dtype) for name, array in activations.stored().items()}
    cut["query"] = cut["query"][:, :, keys - queries :]
    if upstream:
        cut["upstream"] = Source(draw).array("normal", cut["query"].shape).astype(dtype)
    options = draw_options(Source(draw), run, sizes, dtype, only=("causal", "scale"))
    semantics: dict[str, Any] = (
        {} if run is None else {n: run.semantics[n] for n in ("causal_alignment", "empty_rows")}
    )
    return Problem(**cut, **options, **semantics)


class Source:
    """What one problem is drawn from: Hypothesis for the structure, one generator for the numbers.

    An array of digits has an integer of its own, so that its elements shrink one by one. All others come out of the one
    generator: a draw costs as much as the arithmetic of a small bound.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self._generator: np.random.Generator | None = None

    def array(self, fill: str, shape: tuple[int, ...]) -> np.ndarray:
        """A float64 array of the named distribution."""
        if fill == "digits":
            return distributions.fill(fill, shape, self.draw(_seeds))
        if fill in distributions.UNSEEDED:
            return distributions.fill(fill, shape, 0)
        if self._generator is None:
            self._generator = np.random.default_rng(self.draw(_seeds))
        return distributions.fill(fill, shape, self._generator)

    def digits(self, shape: tuple[int, ...], base: int = 8) -> np.ndarray:
        """Integers in [0, base), all zero in the simplest case."""
        return distributions.digits(shape, self.draw(_seeds), base)


def draw_options(source: Source, run: Run | None, s: Mapping[str, int], dtype: Any, *, use: Sequence[str] = (),
                 without: Sequence[str] = (), only: Sequence[str] | None = None) -> dict[str, Any]:  # fmt: skip
    """Options in use, each drawn on its own: their combinations are where bugs live."""
    offered = set(OPTIONS) if run is None else run.implementation.offers
    wanted = [name for name in OPTIONS
              if name in use or (name in offered and name not in without and name != "return_lse"
                                 and (only is None or name in only))]  # fmt: skip
    # Three options a draw: a boolean each costs more than the bound, and one integer for all of them shrinks badly.
    bits = [
        bool(drawn >> i & 1)
        for drawn in (source.draw(_shapes) for _ in range(0, len(wanted), 3))
        for i in range(3)
    ]
    chosen = [name for name, bit in zip(wanted, bits, strict=False) if name in use or bit]
    if run is not None:
        for one, other in run.implementation.exclusive:
            if one in chosen and other in chosen:
                chosen.remove(other if other not in use else one)
    if "mask" in chosen and "bias" in chosen and run is not None and run.one_parameter():
        chosen.remove("bias" if "bias" not in use else "mask")
    return {name: OPTION_DRAWS[name](source, s, dtype) for name in chosen}


@cache
def _axes() -> tuple[tuple[str, int], ...]:
    """The axes that a mask or bias has in full, of "BHQK", and how many it has at all. Simple first: what is seen by all."""
    kept = [
        "".join(letter for letter, keep in zip("BHQ", bits, strict=True) if keep)
        for bits in product((0, 1), repeat=3)
    ]
    whole = [(letters + "K", 4) for letters in sorted(kept, key=len)]
    fewer = [("QK", 2), ("HQK", 3), ("HK", 3), ("QK", 3), ("K", 2), ("BQ", 4), ("Q", 4), ("BHQ", 4)]
    return (*whole, *fewer)


def _broadcastable(axes: tuple[str, int], s: Mapping[str, int]) -> tuple[int, ...]:
    """A shape that broadcasts to (B,H,Q,K): the named axes in full, the others of length one or not there."""
    letters, rank = axes
    return tuple(s[letter] if letter in letters else 1 for letter in "BHQK")[4 - rank :]


def _draw_mask(source: Source, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    """True where the digit of the seed is 0: all true for seed 0; about a quarter false; sometimes a row of no keys, or
    whole stretches of keys that no query sees, at the start or at the end."""
    shape = _broadcastable(source.draw(_masks), s)
    seed = source.draw(_seeds)
    mask = (
        distributions.digits(shape, seed, base=4) != 3
        if seed % 5
        else distributions.digits(shape, seed, base=2) == 0
    )
    if seed % 7 == 6 and mask.shape[-2]:
        mask[..., 0, :] = False
    elif seed % 7 == 5:
        half = mask.shape[-1] // 2
        mask[..., *((slice(half),) if seed % 2 else (slice(half, None),))] = False
    return np.asarray(mask)


def _draw_bias(source: Source, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    fill, axes = source.draw(_biases)
    return source.array(fill, _broadcastable(axes, s)).astype(dtype)


def _draw_window(source: Source, s: Mapping[str, int], dtype: Any) -> tuple[int | None, int | None]:
    sides: tuple[int | None, int | None] = source.draw(_sides)
    return sides


def _draw_lengths(source: Source, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    """Lengths from K downward, one for each batch entry: K for seed 0."""
    return (s["K"] - source.digits((s["B"],), s["K"] + 1)).astype(np.int32)


def _draw_slopes(source: Source, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    slopes = np.exp2(-1.0 - source.digits((s["H"],)))
    return slopes.astype(np.float64 if dtype is np.float64 else np.float32)


def _draw_sinks(source: Source, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    sinks = 3.0 * distributions.DIGITS[source.digits((s["H"],))]
    return np.asarray(sinks, np.float64 if dtype is np.float64 else np.float32)


_masks = st.sampled_from(_axes())
_biases = st.sampled_from(
    sorted(product(TAME, _axes()), key=lambda fa: TAME.index(fa[0]) + _axes().index(fa[1]))
)

OPTION_DRAWS: Mapping[str, Callable[[Source, Mapping[str, int], Any], Any]] = {
    "mask": _draw_mask,
    "bias": _draw_bias,
    "causal": lambda source, s, dtype: True,
    "window": _draw_window,
    "scale": lambda source, s, dtype: source.draw(_scales),
    "softcap": lambda source, s, dtype: source.draw(_softcaps),
    "alibi_slopes": _draw_slopes,
    "key_lengths": _draw_lengths,
    "sinks": _draw_sinks,
    "return_lse": lambda source, s, dtype: True,
}
