"""Hypothesis strategies for attention problems; public, so that you can write laws of your own.

Hypothesis draws one string of bytes, which decides the *structure* (sizes, options, layouts, distributions) and seeds the
generator of the numbers (see `choices`); only of small arrays it decides every element, so that they shrink to what fits on
paper. What is drawn suits the run that is being checked: its dtype, the options that it offers, the sizes that it requires,
the edges of its tiles. Outside of a check every option is drawn, in float32.

Shrinking goes toward one batch entry, one head, one query, two keys, size one, no options and small whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from qkverify.contract import OPTIONS, Implementation, mask_forms
from qkverify.problem import activations, distributions
from qkverify.problem.attention_problem import LAYOUTS, SHARED_MEMORY, Problem
from qkverify.problem.byte_strategies import DIGITS, SEED, Choices, Recipe, strategy
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.runs.run import Run, active

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
    "Q": (300, 513, 1025), "K": (300, 513, 1025, 2049, 192, 320), "D": (80, 96, 128, 100, 129, 256), "E": (80, 96, 128, 129, 256),
}  # fmt: skip
PAIRED: Mapping[str, tuple[int, ...]] = {
    "QK": (129, 161, 127),
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
EACH_ITS_OWN = "each its own"
STRIDED = tuple(name for name in LAYOUTS if name not in ("contiguous", *SHARED_MEMORY))
SCALES = (1.0, 0.5, 2.0, 0.125, 0.3)  # zero has a law of its own
EXTREME_SCALES = (*SCALES * 4, 1e-6)
NEGATIVE_SCALES = (*EXTREME_SCALES, -1.0, -0.25, -0.3)
BIAS_EXTREMES = (
    *[""] * 24,
    "-inf",
    "-inf first",
    "-inf row",
    "low -100",
    "low -1e4",
    "low -inf",
    "moved 100",
    "moved -100",
    "moved -1e4",
)
SOFTCAPS = (1.0, 2.0, 0.5, 5.0, 30.0)
SIDES = tuple(
    (left, right)
    for right in (0, None, 1, 2, 8)
    for left in (0, 1, 2, 3, 40, None)
    if (left, right) != (None, None)
)
HEAD_SIZE_PAIRS = tuple(
    sorted(
        product(HEAD_SIZES, HEAD_SIZES),
        key=lambda de: (HEAD_SIZES.index(de[0]) + HEAD_SIZES.index(de[1]), de),
    )
)
SMALL_HEAD_SIZE_PAIRS = tuple(de for de in HEAD_SIZE_PAIRS if max(de) <= 16)
FEW_HEADS = tuple((heads, "") for heads in HEADS)
# (B, G, group), and the letter that is stretched beside them: three in ten problems, those that shrinking leaves first.
ALL_HEADS = (
    *((heads, "") for heads in (*HEADS, *MANY)),
    *(
        (heads, letter)
        for letter in STRETCHED
        for heads in ((1, 1, 1), (1, 1, 2), (2, 1, 1) if letter in "QK" else (2, 2, 1))
    ),
    *(((1, 1, group), letters) for letters in PAIRED for group in (1, 2)),
)
USUAL_SIZES = tuple(dict(zip("BGHQKDE", (*row, row[-1]), strict=True)) for row in USUAL)
COMPILED_SHORT = tuple(row for row in COMPILED if max(row) <= 33)


def _mixtures(names: Sequence[str], count: int) -> tuple[tuple[str, ...], ...]:
    """How query, key, value and upstream are filled: all alike, or one of them differently. Simple first."""
    alike = [(name,) * 4 for name in names]
    mixed = [(first, *[second] * 3) if turn % 2 else (second, first, second, second)
             for turn, (first, second) in enumerate(product(names, names)) if first != second]  # fmt: skip
    last = [("normal", "normal", name, "normal") for name in names] + [
        ("normal",) * 3 + (name,) for name in names
    ]
    return tuple((alike + last + mixed)[:count])


WILD_MIXTURES = _mixtures(distributions.NAMES, 400)
TAME_MIXTURES = _mixtures(TAME, 100)

# Numbers at the ends of formats and of the softmax, in one array while the others are ordinary: one problem in six. Scores of
# queries and keys near the end of a format have no bound, so that values and upstream alone are there.
_ENDS = (
    ("subnormal", 0),
    ("subnormal", 1),
    ("subnormal", 2),
    ("subnormal", 3),
    ("near the end", 2),
    ("near the end", 3),
)
_EXTREME = (
    ("one massive channel", "normal", "normal", "normal"), ("normal", "one massive channel", "normal", "normal"),
    ("one massive channel", "one massive channel", "normal", "normal"),
    ("powers of two", "powers of two", "normal", "normal"),
    *(tuple(name if i == place else "normal" for i in range(4)) for name, place in _ENDS),
)  # fmt: skip
EXTREME_MIXTURES = (*WILD_MIXTURES, *_EXTREME * (len(WILD_MIXTURES) // (5 * len(_EXTREME))))
# Scores far below zero, one problem in three: the empty half of a last tile then holds larger ones.
_FAR_BELOW = (("far below zero", "ones", "normal", "normal"), ("ones", "far below zero", "normal", "normal"))
HALF_TILE_MIXTURES = (*EXTREME_MIXTURES, *_FAR_BELOW * (len(EXTREME_MIXTURES) // 4))

# The decisions of one problem and the bytes that each takes (see `choices`).
ARRAYS = ("query", "key", "value", "upstream")
PLACED = ("query", "key", "value", "mask", "bias", "upstream", "key_lengths", "alibi_slopes", "sinks")
PLACES: Mapping[str, int] = {
    "heads": 1, "usual": 1, "empty batch": 1, **dict.fromkeys("GHBQKDE", 1), "head sizes": 2, "mixture": 2,
    **{f"use {name}": 1 for name in OPTIONS}, "mask axes": 1, "mask density": 1, "mask gap": 1, "bias": 2, "bias extreme": 1,
    "window": 1, "scale": 1, "softcap": 1, "layout": 1, "placed": 2, "mode": 1, "numbers": SEED,
    **dict.fromkeys((*ARRAYS[:3], "bias numbers"), DIGITS), "mask": 12, "key_lengths": 18, "alibi_slopes": 8, "sinks": 8,
}  # fmt: skip


def draw_sizes(
    choices: Choices, run: Run | None, fixed: Mapping[str, Any], *, zero: bool = False, long: bool = True
) -> dict[str, int]:
    """Sizes by dimension letter. `fixed` maps a letter to a number or to the letter that it equals."""
    requires = run is not None and run.implementation.requires
    compiles = run is not None and run.implementation.compiles
    slow = run is not None and not compiles and run.implementation.slow(run.device)
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
            # Where none fits, one that is there may: "E == D". Never beside those that fit: 1,025 queries, as many keys and a
            # head as wide are gigabytes.
            known = tuple(sorted({*sizes.values()} - {0}))
            accepted = (
                tuple(n for n in pool if run.implementation.accepts({**sizes, letter: n}) is None)
                for pool in (fitting, known)
            )
            fitting = next(filter(None, accepted), ())
            assume(fitting)
        if letter in pools and compiles:
            fitting = fitting[:1]  # every other one would be one more compilation
        empty = (
            zero
            and letter in "QK"
            and not (requires and run is not None and run.implementation.accepts({**sizes, letter: 0}))
        )
        zeros = _share_of_zero(letter, len(fitting)) if empty else 0
        sizes[letter] = choices.pick(letter, fitting + (0,) * zeros)

    pools: dict[str, tuple[int, ...]] = {}
    stretched = ""
    if compiles:
        sizes["B"], sizes["G"], group, *rest = choices.pick("heads", COMPILED if long else COMPILED_SHORT)
        pools = {
            letter: (n, *(LENGTHS if letter in "QK" else HEAD_SIZES))
            for letter, n in zip("QKDE", rest, strict=True)
        }
    else:
        candidates = FEW_HEADS if slow else ALL_HEADS
        if requires and run is not None and not fixed:
            candidates = _fitting_heads(candidates, run.implementation)
            assume(candidates)
        (sizes["B"], sizes["G"], group), stretched = choices.pick("heads", candidates)
        if stretched and (long or stretched in ("D", "E", "DE")):
            pools = {**dict.fromkeys("QKDE", NARROW), **dict.fromkeys(stretched, LARGE[stretched])}
    sizes["H"] = sizes["G"] * group
    for letter in "GHB":
        if letter in fixed:
            choose(letter, ())
    if "G" in fixed and "H" not in fixed:
        sizes["H"] = sizes["G"] * group
    if zero and choices.one_in("empty batch", 8):
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
        sizes["D"], sizes["E"] = choices.pick(
            "head sizes", HEAD_SIZE_PAIRS if short else SMALL_HEAD_SIZE_PAIRS
        )
    if requires and run is not None:
        assume(run.implementation.accepts(sizes) is None)
    return sizes


def _share_of_zero(letter: str, others: int) -> int:
    """How often zero stands among the lengths where it is generated: for the keys in half of all problems, since a row without
    keys is what a kernel can get wrong, and for the queries in a quarter. A handful of examples then meets both."""
    return max(1, others if letter == "K" else others // 3)


@lru_cache(maxsize=64)
def _fitting_heads(candidates: tuple[tuple[tuple[int, int, int], str], ...],
                   implementation: Implementation) -> tuple[tuple[tuple[int, int, int], str], ...]:  # fmt: skip
    """The heads that an implementation takes, those of one head a key head where it takes only these."""
    equal = tuple(dict.fromkeys(((b, g, 1), letters) for (b, g, _), letters in candidates))
    return tuple(
        ((b, g, group), letters)
        for (b, g, group), letters in dict.fromkeys((*candidates, *equal))
        if implementation.accepts({"B": b, "G": g, "H": g * group}) is None
    )


@lru_cache(maxsize=64)
def _lengths(tile: tuple[int, ...]) -> tuple[int, ...]:
    """Lengths with tile edges, those of the declared tile too; the short ones twice: four in five are short."""
    declared = {n for t in tile for n in (t - 1, t, t + 1, 2 * t, 2 * t + 1)} - {*LENGTHS, *TILE_EDGES}
    return (*LENGTHS, *LENGTHS, *TILE_EDGES, *sorted(declared))


@lru_cache(maxsize=4096)
def _at_most(lengths: tuple[int, ...], limit: int) -> tuple[int, ...]:
    return tuple(n for n in lengths if n <= limit)


def problems(
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
    extremes: bool = False,
) -> st.SearchStrategy[Problem]:
    """A Hypothesis strategy for attention problems: arrays, options and memory layouts that suit the run being checked.

    - `use`, `without`: options that every problem has, or that none has
    - `only`: the only options that a problem may have; by default all
    - `values`: "any", "identity" (then E = K, and the output is the weights) or "ones"
    - `keys`: "any" or "identity" (then D = K and the scale is 1, so the scores are the query)
    - `sizes`: `{"K": 1}` fixes a size, `{"H": "G"}` makes it equal to another
    - `upstream`: also generate an upstream gradient
    - `tame`: only numbers of moderate size
    - `layouts`: also generate memory layouts that are not contiguous
    - `zero`: also generate lengths of 0
    - `long`: also generate lengths above 33, at the edges of tiles
    - `usual`: only sizes that models have
    - `extremes`: also generate numbers at the ends of the format, one massive channel, scores far below zero, biases that hide
      keys (-inf, or finite) or shift whole rows, tiny scales, and negative ones (without causality and upstream
      gradient): each in one problem in 20 to 100
    """
    given = {"value": values, "key": keys}
    needed = (*use, "scale") if keys == "identity" else use
    scales = (
        EXTREME_SCALES if upstream else NEGATIVE_SCALES
    )  # gradients at negative ones have a law of their own
    chosen = partial(
        draw_options, use=needed, without=without, only=only, extremes=scales if extremes else ()
    )

    def make(choices: Choices) -> Problem:
        run = active()
        fixed = {**(choices.pick("usual", USUAL_SIZES) if usual else {}), **(sizes or {})}
        fixed |= {"E": "K"} if values == "identity" else {}
        fixed |= {"D": "K"} if keys == "identity" else {}
        s = draw_sizes(choices, run, fixed, zero=zero, long=long)
        dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
        mixture = choices.pick("mixture", _mixtures_of(s, tame=tame, extremes=extremes))
        arrays = _draw_arrays(
            choices, s, dtype, dict(zip(ARRAYS[: 3 + upstream], mixture, strict=False)), given
        )
        options = chosen(choices, run, s, dtype) | ({"scale": 1.0} if keys == "identity" else {})
        places = _draw_places(choices, (*arrays, *options)) if layouts else {}
        mode = "" if upstream or run is None else choices.pick("mode", run.framework.MODES)
        return Problem(**arrays, **options, layouts=places, mode=mode, **_semantics(run))

    return strategy(Recipe({**PLACES, "upstream": DIGITS} if upstream else PLACES, make))


def _mixtures_of(s: Mapping[str, int], *, tame: bool, extremes: bool) -> tuple[tuple[str, ...], ...]:
    """The mixtures of numbers that a problem of these sizes may have."""
    if tame or not extremes:
        return TAME_MIXTURES if tame else WILD_MIXTURES
    return HALF_TILE_MIXTURES if s["K"] % 128 == 64 else EXTREME_MIXTURES


def first_key_alone(run: Run, problem: Problem) -> Problem:
    """The first query and key of a problem, without options: what a short cut is written for."""
    assume(run.implementation.accepts({"Q": 1, "K": 1}) is None)
    cut = {name: getattr(problem, name)[:, :, :1] for name in ARRAYS[:3]}
    plain = {name: False if value is True else None for name, value in problem.options.items()
             if name not in run.implementation.always}  # fmt: skip
    return problem.replace(**cut, **plain)


def _draw_arrays(
    choices: Choices, s: Mapping[str, int], dtype: Any, fills: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, Any]:
    """The named arrays, filled as said; those that are `given` as "identity" or "ones" are that."""
    shapes = {"query": (s["B"], s["H"], s["Q"], s["D"]), "key": (s["B"], s["G"], s["K"], s["D"]),
              "value": (s["B"], s["G"], s["K"], s["E"]), "upstream": (s["B"], s["H"], s["Q"], s["E"])}  # fmt: skip

    def filled(name: str) -> np.ndarray:
        kind = given.get(name, "any")
        if kind == "any":
            return choices.array(name, fills[name], shapes[name]) * distributions.unit(fills[name], dtype)
        return np.broadcast_to(np.eye(s["K"]) if kind == "identity" else 1.0, shapes[name])

    return {name: np.ascontiguousarray(filled(name), dtype=dtype) for name in fills}


def _draw_places(choices: Choices, names: Sequence[str]) -> dict[str, str]:
    """The memory layout of some of the arrays: one other than contiguous for those that the bits of a number choose, or, in one
    of ten, a layout of its own for each."""
    layout = choices.pick("layout", (*["contiguous"] * 3, *STRIDED, EACH_ITS_OWN))
    if layout == "contiguous":
        return {}
    placed = [name for name in PLACED if name in names]
    which = choices.pick("placed", range(1, 2 ** len(PLACED)))
    if layout == EACH_ITS_OWN:
        step = 1 + which % (len(STRIDED) - 1)  # so that neighbours differ
        return {name: STRIDED[(which + i * step) % len(STRIDED)] for i, name in enumerate(placed)}
    return {name: layout for i, name in enumerate(placed) if which >> i & 1}


def _semantics(run: Run | None) -> dict[str, Any]:
    return {} if run is None else {name: run.semantics[name] for name in ("causal_alignment", "empty_rows")}


REAL_LENGTHS = (1, 2, 5, 16, 33, 64, 65, 128)


def real_problems(*, upstream: bool = False) -> st.SearchStrategy[Problem]:
    """Neighbouring heads of a trained model on a stretch of its text (see `activations`), with the options causal and scale.

    As many queries as keys, or the last few of them; the upstream gradient is standard normal.
    """

    def make(choices: Choices) -> Problem:
        run = active()
        few = run is not None and (run.implementation.compiles or run.implementation.slow(run.device))
        heads = choices.pick("H", (1, 2) if few else (1, 2, 3, activations.HEADS))
        keys = choices.pick("K", (16,) if few else REAL_LENGTHS)
        queries = keys if few else choices.pick("Q", [n for n in (1, 5, keys) if n <= keys])
        sizes = {"B": 1, "H": heads, "G": heads, "Q": queries, "K": keys,
                 "D": activations.SIZE, "E": activations.SIZE}  # fmt: skip
        assume(run is None or run.implementation.accepts(sizes) is None)
        head = choices.pick("head", range(activations.HEADS - heads + 1))
        start = choices.pick("start", range(activations.STORED_TOKENS - keys + 1))
        window = (None, slice(head, head + heads), slice(start, start + keys))
        dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
        cut: dict[str, Any] = {
            name: array[window].astype(dtype) for name, array in activations.stored().items()
        }
        cut["query"] = cut["query"][:, :, keys - queries :]
        if upstream:
            cut["upstream"] = choices.array("upstream", "normal", cut["query"].shape).astype(dtype)
        options = draw_options(choices, run, sizes, dtype, only=("causal", "scale"))
        return Problem(**cut, **options, **_semantics(run))

    return strategy(Recipe({**PLACES, "head": 1, "start": 2}, make))


def draw_options(choices: Choices, run: Run | None, s: Mapping[str, int], dtype: Any, *, use: Sequence[str] = (),
                 without: Sequence[str] = (), only: Sequence[str] | None = None,
                 extremes: Sequence[float] = ()) -> dict[str, Any]:  # fmt: skip
    """Options in use, each drawn on its own: their combinations are where bugs live. With `extremes`, the scale is one of these,
    and a bias may hide keys or shift rows."""
    offered = set(OPTIONS) if run is None else run.implementation.offers
    wanted = [name for name in OPTIONS
              if name in use or (name in offered and name not in without and name != "return_lse"
                                 and (only is None or name in only))]  # fmt: skip
    always = () if run is None else run.implementation.always
    use = (*use, *(name for name in always if name in wanted))
    chosen = [name for name in wanted if name in use or choices.one_in(f"use {name}", 2)]
    if run is not None:
        chosen = [
            name for name in chosen if name in use or run.implementation.refuses(s, {name: True}) is None
        ]
        for first, second in run.implementation.exclusive:
            if first in chosen and second in chosen:
                chosen.remove(second if second not in use else first)
    if "mask" in chosen and "bias" in chosen and run is not None and run.one_parameter():
        chosen.remove("bias" if "bias" not in use else "mask")
    draws = OPTION_DRAWS
    if run is not None and (form := run.implementation.mask_form):
        letters = mask_forms.axes_of(form)
        own = {"mask": partial(_draw_mask, letters=letters)}
        own |= {"bias": partial(_draw_bias, letters=letters)} if run.one_parameter() else {}
        draws = {**OPTION_DRAWS, **own}
    options = {name: draws[name](choices, s, dtype) for name in chosen}
    return _made_extreme(choices, options, extremes) if extremes else options


@cache
def _axes(letters: str = mask_forms.FULL) -> tuple[tuple[str, int], ...]:
    """The axes that a mask or bias has in full, of `letters`, and how many it has at all. Simple first: what is seen by all."""
    kept = [
        "".join(letter for letter, keep in zip("BHQ", bits, strict=True) if keep)
        for bits in product((0, 1), repeat=3)
    ]
    whole = [(letters + "K", 4) for letters in sorted(kept, key=len)]
    fewer = [("QK", 2), ("HQK", 3), ("HK", 3), ("QK", 3), ("K", 2), ("BQ", 4), ("Q", 4), ("BHQ", 4)]
    return tuple(axes for axes in (*whole, *fewer) if set(axes[0]) <= set(letters))


def _broadcastable(axes: tuple[str, int], s: Mapping[str, int]) -> tuple[int, ...]:
    """A shape that broadcasts to (B,H,Q,K): the named axes in full, the others of length one or not there."""
    letters, rank = axes
    return tuple(s[letter] if letter in letters else 1 for letter in "BHQK")[4 - rank :]


def _draw_mask(
    choices: Choices, s: Mapping[str, int], dtype: Any, letters: str = mask_forms.FULL
) -> np.ndarray:
    """A quarter or half of it False; sometimes a row of no keys, or keys at the start or end that no query sees, or what looks
    like a causal mask or like padding and is, or is not.

    All True for zero bytes. Two of three that span several blocks of 64 queries and keys are constant in each of them.
    """
    axes = _axes(letters)
    if min(s["Q"], s["K"]) > BLOCK:  # more often with both of these axes
        axes += tuple(each for each in axes if {"Q", "K"} <= set(each[0]))
    shape = _broadcastable(choices.pick("mask axes", axes), s)
    mask = ~choices.flags("mask", shape, choices.pick("mask density", (4, 4, 4, 4, 2)))
    several_blocks = min((*shape[-2:], *[0] * (2 - len(shape)))) > BLOCK
    gap, half = choices.pick("mask gap", BLOCK_GAPS if several_blocks else MASK_GAPS), mask.shape[-1] // 2
    if gap == "blocks":
        return _blocks(choices, shape)
    if gap == "row" and mask.shape[-2]:
        mask[..., 0, :] = False
    elif gap in ("start", "end"):
        mask[..., slice(half) if gap == "start" else slice(half, None)] = False
    elif gap and gap != "row":
        queries, keys = mask.shape[-2:]
        mask[...] = (
            np.tri(queries, keys, keys - queries, dtype=bool) if "future" in gap else np.arange(keys) < half
        )
        if (
            "nearly" in gap and mask.size
        ):  # one element is the other way round, far from the first and last row
            mask[..., queries // 2, half] ^= True
    return np.asarray(mask)


def _blocks(choices: Choices, shape: tuple[int, ...]) -> np.ndarray:
    """A mask that is constant in blocks of 64 queries and keys, a third of which are hidden, and the one in the lower left."""
    queries, keys = (np.arange(n) // BLOCK for n in shape[-2:])
    blocks = choices.generator.integers(0, 3, size=(queries[-1] + 1, keys[-1] + 1)) > 0
    blocks[-1, 0] = False
    return np.array(np.broadcast_to(blocks[queries[:, None], keys], shape))


def _draw_bias(
    choices: Choices, s: Mapping[str, int], dtype: Any, letters: str = mask_forms.FULL
) -> np.ndarray:
    fill, axes = choices.pick("bias", _biases(letters))
    return choices.array("bias numbers", fill, _broadcastable(axes, s)).astype(dtype)


def _made_extreme(choices: Choices, options: dict[str, Any], scales: Sequence[float]) -> dict[str, Any]:
    """With a bias that hides keys or shifts rows, in one of four, and a scale of these."""
    if "bias" in options:
        options["bias"] = _extreme_bias(options["bias"], choices.pick("bias extreme", BIAS_EXTREMES))
    if "scale" in options:
        # Negative ones with causality have laws of their own: whatever calls torch's flash attention is wrong there.
        options["scale"] = choices.pick("scale", EXTREME_SCALES if "causal" in options else scales)
    return options


def _extreme_bias(bias: np.ndarray, kind: str) -> np.ndarray:
    """A bias, changed in place: -inf or a low number in some places, or everything moved by one number."""
    keys = bias.shape[-1]
    places = np.arange(bias.size).reshape(bias.shape) % 3 == 1  # a third of it, in no pattern of the axes
    if kind == "-inf":
        bias[places] = -np.inf
    elif kind == "-inf first":
        bias[..., : keys // 2] = -np.inf
    elif kind == "-inf row" and bias.ndim > 1:
        bias[..., 0, :] = -np.inf
    elif kind.startswith("low"):
        finfo: Any = ml_dtypes.finfo  # the lowest number of float32 in float64 too: bounds are computed there
        lowest = max(float(finfo(bias.dtype).min), float(finfo(np.float32).min))
        bias[places] = max(float(kind.partition(" ")[2]), lowest)
    elif kind.startswith("moved"):
        bias += bias.dtype.type(float(kind.partition(" ")[2]))
    return bias


def _draw_lengths(choices: Choices, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    """Lengths from K downward, one for each batch entry: K for zero bytes."""
    return (s["K"] - choices.digits("key_lengths", (s["B"],), s["K"] + 1)).astype(np.int32)


def _draw_slopes(choices: Choices, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    slopes = SLOPES[choices.digits("alibi_slopes", (s["H"],))]
    return np.asarray(slopes, np.float64 if dtype is np.float64 else np.float32)


def _draw_sinks(choices: Choices, s: Mapping[str, int], dtype: Any) -> np.ndarray:
    sinks = SINKS[choices.digits("sinks", (s["H"],))]
    return np.asarray(sinks, np.float64 if dtype is np.float64 else np.float32)


MASK_GAPS = (*[""] * 10, *["row"] * 2, "start", "end", "future", "nearly the future", "nearly the end")
BLOCK = 64  # queries or keys of a tile
BLOCK_GAPS = (*MASK_GAPS, *["blocks"] * (2 * len(MASK_GAPS)))
SLOPES = np.array(
    [0.5, 0.25, 1 / 3, 2**-0.5, 1 / 16, 0.1, 1 / 256, 0.9]
)  # all but three have a full mantissa
SINKS = np.array([0.0, 3.0, -3.0, 1 / 3, 6.0, -0.7, 9.1, -6.0])


@cache
def _biases(letters: str) -> tuple[tuple[str, tuple[str, int]], ...]:
    """How a bias is filled and which axes it has, simple first."""
    axes = _axes(letters)
    return tuple(sorted(product(TAME, axes), key=lambda fa: TAME.index(fa[0]) + axes.index(fa[1])))


OPTION_DRAWS: Mapping[str, Callable[[Choices, Mapping[str, int], Any], Any]] = {
    "mask": _draw_mask,
    "bias": _draw_bias,
    "causal": lambda choices, s, dtype: True,
    "window": lambda choices, s, dtype: choices.pick("window", SIDES),
    "scale": lambda choices, s, dtype: choices.pick("scale", SCALES),
    "softcap": lambda choices, s, dtype: choices.pick("softcap", SOFTCAPS),
    "alibi_slopes": _draw_slopes,
    "key_lengths": _draw_lengths,
    "sinks": _draw_sinks,
    "return_lse": lambda choices, s, dtype: True,
}
