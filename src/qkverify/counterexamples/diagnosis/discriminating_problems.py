"""Further problems, made from one: they tell mistakes apart that give the same numbers on a tiny problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qkverify.contract import OPTIONS
from qkverify.counterexamples.diagnosis.mistakes.variants import MASKING
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

Array = np.ndarray


# B, G, group, Q, K, D, E: all different; queries before, beside and after keys; whole tiles and parts of tiles.
SIZES = (
    (2, 2, 2, 5, 7, 3, 4), (1, 1, 3, 6, 6, 4, 4), (3, 3, 1, 6, 4, 2, 5), (2, 2, 3, 1, 9, 4, 3), (1, 2, 2, 1, 5, 3, 2),
    (2, 1, 2, 5, 24, 3, 3), (2, 1, 1, 21, 48, 2, 3), (1, 1, 2, 41, 37, 3, 2), (2, 1, 1, 4, 96, 2, 3), (2, 1, 1, 3, 128, 2, 2),
    (2, 2, 2, 2, 64, 3, 2), (1, 1, 1, 70, 150, 2, 3), (1, 2, 1, 4, 32, 4, 2), (2, 3, 1, 1, 80, 2, 2), (3, 3, 1, 3, 3, 2, 4),
    (2, 1, 2, 2, 2, 3, 2),
)  # fmt: skip
TOGGLED = (SIZES[0], SIZES[1])
ADDED: Mapping[str, Any] = {"causal": True, "window": (2, 1), "scale": 0.3, "softcap": 1.5}


def further(run: Run, p: Problem) -> Iterator[Problem]:
    """Problems like this one: its sizes with random arrays, other sizes, options added, taken away and exchanged."""
    rng = np.random.default_rng(0)
    s = p.sizes
    unchanged = (s["B"], s["G"], p.group, s["Q"], s["K"], s["D"], s["E"])
    quiet, loud = (unchanged, unchanged, *SIZES), (unchanged, SIZES[0], unchanged, SIZES[0])
    plan = [(sizes, p.options, False) for sizes in quiet] + [(sizes, p.options, True) for sizes in loud]
    plan += [(sizes, options, False) for sizes in (*TOGGLED, unchanged) for options in other_options(run, p)]
    for sizes, options, loudly in plan:
        if run.implementation.accepts(letters(sizes)) is None:
            yield filled(run, p, sizes, rng, options, loudly)


def other_options(run: Run, p: Problem) -> Iterator[dict[str, Any]]:
    """Each offered option added or taken away; and each way of hiding keys in the place of another one."""
    offered = sorted(n for n in run.implementation.offers if n in OPTIONS and n != "return_lse")
    for name in offered:
        kept = {n: x for n, x in p.options.items() if n != name}
        yield kept if name in p.options else {**kept, name: ADDED.get(name)}
        if name == "scale" and name in p.options:  # a scale of 1, or of -1, is like none
            yield {**kept, name: ADDED[name]}
            yield {**kept, name: -ADDED[name]}
        for other in offered:
            if name in p.options and {name, other} <= set(MASKING) and other not in p.options:
                yield {**kept, other: ADDED.get(other)}


def letters(sizes: tuple[int, ...]) -> dict[str, int]:
    B, G, group, Q, K, D, E = sizes
    return {"B": B, "H": G * group, "G": G, "Q": Q, "K": K, "D": D, "E": E}


def filled(run: Run, p: Problem, sizes: tuple[int, ...], rng: np.random.Generator, options: Mapping[str, Any],
            loud: bool = False) -> Problem:  # fmt: skip
    """A problem of given sizes with random arrays, and the options in the shapes that they have in `p`."""
    s, dtype = letters(sizes), run.numpy_dtype

    def normal(*shape: int, times: float = 1.0) -> Array:
        return np.asarray((rng.standard_normal(shape) * times).astype(dtype))

    chosen: dict[str, Any] = {k: v for k, v in options.items() if np.ndim(v) == 0 or k == "window"}
    if options.get("window") is not None:
        chosen["window"] = tuple(side if side in (None, 0) and rng.random() < 0.7 else int(rng.integers(0, 5))
                                for side in options["window"])  # fmt: skip
    if "mask" in options:
        chosen["mask"] = rng.random(_broadcast(p, "mask", s, rng)) < 0.6
        chosen["mask"][..., -1:, :] &= chosen["mask"].shape[-2] < 3  # a row that sees nothing
    if "bias" in options:
        chosen["bias"] = normal(*_broadcast(p, "bias", s, rng))
        chosen["bias"][..., ::3] = 0
    if "alibi_slopes" in options:
        chosen["alibi_slopes"] = (2.0 ** -rng.permutation(np.arange(1, s["H"] + 1))).astype(dtype)
    if "sinks" in options:
        chosen["sinks"] = np.abs(normal(s["H"], times=500.0)) if loud else normal(s["H"])
    if "key_lengths" in options:
        chosen["key_lengths"] = rng.integers(0, s["K"] + 1, size=s["B"])
    times = float(max(s["D"], 1)) ** 0.25 * (20.0 if loud else 1.0)  # scores of unit variance, or large ones
    return Problem(
        query=normal(s["B"], s["H"], s["Q"], s["D"], times=times), key=normal(s["B"], s["G"], s["K"], s["D"], times=times),
        value=normal(s["B"], s["G"], s["K"], s["E"]), causal_alignment=p.causal_alignment, empty_rows=p.empty_rows,
        upstream=None if p.upstream is None else normal(s["B"], s["H"], s["Q"], s["E"]),
        **{k: v for k, v in chosen.items() if v is not None},
    )  # fmt: skip


def _broadcast(p: Problem, name: str, s: Mapping[str, int], rng: np.random.Generator) -> tuple[int, ...]:
    """A shape that broadcasts to (B,H,Q,K) as that of `p` does; where that is not to be seen, any."""
    full, given = (s["B"], s["H"], s["Q"], s["K"]), getattr(p, name)
    if given is None:
        return full
    axes_of_p, aligned = (
        (p.sizes["B"], p.sizes["H"], p.sizes["Q"], p.sizes["K"])[4 - given.ndim :],
        full[4 - given.ndim :],
    )
    whole = [n > 1 or (m == 1 and rng.random() < 0.5) for n, m in zip(given.shape, axes_of_p, strict=True)]
    return tuple(n if all_of_it else 1 for n, all_of_it in zip(aligned, whole, strict=True))
