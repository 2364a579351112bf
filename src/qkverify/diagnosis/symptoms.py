"""What is wrong without being a variant of the reference: strides, memory, digits, and where the wrong elements are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qkverify.diagnosis.fitting import Observation, agrees, fits
from qkverify.diagnosis.further import SIZES, filled, letters
from qkverify.diagnosis.mistakes.variants import TILES
from qkverify.diagnosis.observing import Observer, fresh
from qkverify.problems import Problem
from qkverify.rounding import FORMATS, Format, Precision

REPEATS = 8  # calls of one problem that show whether its result varies

SUBJECTS: Mapping[str, str] = {
    "output": "The result is",
    "lse": "The log-sum-exp is",
    "gradients": "The gradients are",
}


def mode(observer: Observer, problem: Problem, aspect: str) -> str:
    """Right while gradients are recorded."""
    if not problem.mode or not observer.right(problem.replace(mode=""), aspect):
        return ""
    return f"{SUBJECTS[aspect]} right while gradients are recorded and wrong under {problem.mode}: another path is taken there."


def layouts(observer: Observer, problem: Problem, aspect: str) -> str:
    """Right once every array is contiguous: strides are misread."""
    laid = [n for n, layout in problem.layouts.items() if layout != "contiguous"]
    if not laid or not observer.right(problem.replace(layouts={}), aspect):
        return ""
    alone = [n for n in laid if not observer.right(problem.replace(layouts={n: problem.layouts[n]}), aspect)]
    named = " or ".join(f"the {n} as {problem.layouts[n]!r}" for n in alone or laid)
    return f"{SUBJECTS[aspect]} right where every array is contiguous and wrong with {named}: strides are misread."


def varies(observer: Observer, problem: Problem, aspect: str) -> str:
    """Right and wrong results of one problem."""
    results = [one for _ in range(REPEATS) if (one := observer.observe(problem, aspect)) is not None]
    if len({one.right for one in results}) < 2:
        return ""
    return "The same call gives different results from one time to the next, right and wrong ones."


def lse_switch(observer: Observer, problem: Problem, aspect: str) -> str:
    """Right only with, or only without, the log-sum-exp asked for."""
    if aspect != "output" or not observer.run.offers("return_lse"):
        return ""
    if not observer.right(problem.replace(return_lse=not problem.return_lse), aspect):
        return ""
    with_it, without = ("wrong", "right") if problem.return_lse else ("right", "wrong")
    return f"The result is {with_it} where the log-sum-exp is asked for and {without} where it is not."


def written(observer: Observer) -> str:
    """Arguments that the call has changed."""
    names = " and ".join(sorted(observer.written))
    return f"The call writes into its argument {names}." if names else ""


def remembered(observer: Observer, aspect: str) -> str:
    """The result of a call is right for an array of the call before it, of the same sizes."""
    names = [n for n, x in observer.problem.options.items() if isinstance(x, np.ndarray)]
    rng = np.random.default_rng(1)
    for name in names:
        before, now = (
            filled(observer.run, observer.problem, (2, 2, 2, 3, 11, 3, 3), rng, observer.problem.options)
            for _ in "ab"
        )
        stale = now.replace(**{name: getattr(before, name)})
        first, then = observer.observe(stale, aspect), observer.observe(now, aspect)
        if first is None or then is None or then.right or not first.right:
            continue
        if fits(observer.run, then, first.expected):
            return f"The result is that of the {name} of an earlier call with the same sizes."
    return ""


def digits(observer: Observer, aspect: str) -> str:
    """Rounded to a coarser format throughout: wrong without any option, never far, and right where nothing rounds."""
    if aspect != "output":
        return ""
    plain = [one for p in _plain(observer) if (one := observer.observe(p, "output")) is not None]
    exact = [one for p in _plain(observer, exact=True) if (one := observer.observe(p, "output")) is not None]
    wrong = sum(not one.right for one in plain)
    if 2 * wrong < len(plain) or not exact or not all(one.right for one in exact):
        return ""
    declared, narrow = observer.run.precision, FORMATS[observer.run.dtype].unit > FORMATS["float32"].unit
    for coarse in (observer.run.dtype,) if narrow else ("float32", "float16", "bfloat16"):
        coarser = fresh(observer.run)
        coarser.precision = _coarser(declared, FORMATS[coarse].unit)
        if FORMATS[coarse].unit > declared.accumulate.unit and all(
            fits(observer.run, one, {"output": coarser.bound(one.subject)[0]}) is not False for one in plain
        ):
            return f"The result is as far off as sums would be that are kept in {coarse}."
    return ""


def _plain(observer: Observer, exact: bool = False) -> Iterator[Problem]:
    """Problems without options; with `exact` of equal scores and whole numbers, whose mean no format rounds."""
    rng = np.random.default_rng(2)
    for sizes in SIZES:
        sizes = (*sizes[:4], 4, *sizes[5:]) if exact else sizes
        if observer.run.implementation.accepts(letters(sizes)) is None:
            p = filled(observer.run, observer.problem, sizes, rng, {})
            yield p.replace(query=0 * p.query, value=np.rint(p.value)) if exact else p


def place(observer: Observer, seen: Sequence[Observation], aspect: str) -> str:
    """Where the wrong elements are, if that is simple."""
    wrong = [one for one in seen if not one.right]
    if len(wrong) >= 2 and aspect == "output" and all(_only_empty_rows(one) for one in wrong):
        return "Only the rows of queries that see no key are wrong."
    differ = [one.subject.sizes["D"] != one.subject.sizes["E"] for one in seen]
    if not any(one.got for one in wrong) and differ == [not one.right for one in seen]:
        return "The result has the wrong shape exactly where values are of another size than keys."
    tile = next((t for t in TILES if _only_parts_of_tiles(observer, seen[0].subject, t, aspect)), None)
    if tile is None:
        return ""
    return f"{SUBJECTS[aspect]} right where the number of keys is a multiple of {tile} and wrong elsewhere."


def _only_parts_of_tiles(observer: Observer, problem: Problem, tile: int, aspect: str) -> bool:
    """Whether, all else equal, whole tiles of keys give right results, and all other numbers of keys wrong ones."""
    rng = np.random.default_rng(3)
    for keys in (tile, tile + 1, 2 * tile, 2 * tile - 1, 3 * tile, 3 * tile // 2, 5 * tile, 5 * tile + 2):
        sizes = (2, 2, 2, 3, keys, 3, 4)
        one = observer.observe(filled(observer.run, problem, sizes, rng, problem.options), aspect)
        if one is None or one.right != (keys % tile == 0):
            return False
    return True


def _only_empty_rows(one: Observation) -> bool:
    if not one.got:
        return False
    right = agrees(one.got["output"], one.expected["output"]).all(-1)
    return bool((right | ~one.subject.some_visible).all())


def _coarser(declared: Precision, unit: float) -> Precision:
    """The same formats with fewer digits."""

    def rounded(f: Format) -> Format:
        return replace(f, unit=max(unit, f.unit))

    return replace(declared, operand=rounded(declared.operand), accumulate=rounded(declared.accumulate),
                   elementwise=rounded(declared.elementwise), output=rounded(declared.output))  # fmt: skip
