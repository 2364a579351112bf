"""What is wrong without being a variant of the reference: strides, memory, digits, and where the wrong elements are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.claims import Claim, Observation
from qkverify.counterexamples.diagnosis.discriminating_problems import SIZES, filled, letters, other_options
from qkverify.counterexamples.diagnosis.fitting import SHOWN, agrees, fits
from qkverify.counterexamples.diagnosis.mistakes.variants import TILES
from qkverify.counterexamples.diagnosis.observing import Observer, fresh
from qkverify.probes import looser_models
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import FORMATS, Format, Precision
from qkverify.runs.run import Run

REPEATS = 8  # calls of one problem that show whether its result varies
ROUNDED = 0.25  # of a worst-case bound: roundings of its own format reach a tenth, those of the next finer one a fifth

SUBJECTS: Mapping[str, str] = {
    "output": "The result is",
    "lse": "The log-sum-exp is",
    "gradients": "The gradients are",
}


def mode(observer: Observer, problem: Problem, aspect: str) -> Claim | None:
    """Right while gradients are recorded."""
    if not problem.mode or not observer.right(problem.replace(mode=""), aspect):
        return None
    text = f"{SUBJECTS[aspect]} right while gradients are recorded and wrong under {problem.mode}: another path is taken there."
    return Claim(text, aspect, lambda observation: not observation.right and not observation.subject.mode)


def layouts(observer: Observer, problem: Problem, aspect: str) -> Claim | None:
    """Right once every array is contiguous: strides are misread."""
    laid = [n for n, layout in problem.layouts.items() if layout != "contiguous"]
    if not laid or not observer.right(problem.replace(layouts={}), aspect):
        return None
    alone = [n for n in laid if not observer.right(problem.replace(layouts={n: problem.layouts[n]}), aspect)]
    named = " or ".join(f"the {n} as {problem.layouts[n]!r}" for n in alone or laid)
    text = f"{SUBJECTS[aspect]} right where every array is contiguous and wrong with {named}: strides are misread."
    return Claim(
        text, aspect, lambda observation: not observation.right and not _strided(observation.subject)
    )


def _strided(problem: Problem) -> bool:
    return any(layout != "contiguous" for layout in problem.layouts.values())


def varies(observer: Observer, problem: Problem, aspect: str) -> Claim | None:
    """Right and wrong results of one problem."""
    results = [
        observation for _ in range(REPEATS) if (observation := observer.observe(problem, aspect)) is not None
    ]
    if len({observation.right for observation in results}) < 2:
        return None
    return watched(
        "The same call gives different results from one time to the next, right and wrong ones.", aspect
    )


def watched(text: str, aspect: str) -> Claim:
    """A claim about calls that were made, and about no others."""
    return Claim(text, aspect, lambda observation: False, direct=True)


def lse_switch(observer: Observer, problem: Problem, aspect: str) -> Claim | None:
    """Right only with, or only without, the log-sum-exp asked for."""
    if aspect != "output" or not observer.run.offers("return_lse"):
        return None
    wrong = problem.return_lse
    if not observer.right(problem.replace(return_lse=not wrong), aspect):
        return None
    with_it, without = ("wrong", "right") if wrong else ("right", "wrong")
    text = f"The result is {with_it} where the log-sum-exp is asked for and {without} where it is not."
    return Claim(
        text, aspect, lambda observation: not observation.right and observation.subject.return_lse != wrong
    )


def written(observer: Observer) -> Claim | None:
    """Arguments that the call has changed."""
    return writes_into(sorted(observer.written)) if observer.written else None


def writes_into(names: Sequence[str], aspect: str = "output") -> Claim:
    """A call changes arguments of these names."""
    return watched(f"The call writes into its argument {' and '.join(names)}.", aspect)


def remembered(observer: Observer, aspect: str) -> Claim | None:
    """The result of a call is right for an array of the call before it, of the same sizes."""
    names = [n for n, x in observer.problem.options.items() if isinstance(x, np.ndarray)]
    rng = np.random.default_rng(1)
    for name in names:
        if all(_remembers(observer, name, rng, aspect, 11 + i) for i in range(SHOWN)):
            return watched(
                f"The result is that of the {name} of an earlier call with the same sizes.", aspect
            )
    return None


def _remembers(observer: Observer, name: str, rng: np.random.Generator, aspect: str, keys: int) -> bool:
    """Whether the second of two calls with so many keys, which differ in one array alone, gets the result of the first."""
    before, now = (
        filled(observer.run, observer.problem, (2, 2, 2, 3, keys, 3, 3), rng, observer.problem.options)
        for _ in "ab"
    )
    stale = now.replace(**{name: getattr(before, name)})
    first, then = observer.observe(stale, aspect), observer.observe(now, aspect)
    if first is None or then is None or then.right or not first.right:
        return False
    return bool(fits(observer.run, then, first.expected))


def digits(observer: Observer, aspect: str) -> Iterator[Claim]:
    """Rounded to a coarser format throughout: wrong without any option, never far, and right where nothing rounds. With any
    options, or without them, where another mistake joins in."""
    if aspect != "output":
        return
    run = observer.run
    plain = [
        observation for p in _plain(observer) if (observation := observer.observe(p, "output")) is not None
    ]
    exact = [
        observation
        for p in _plain(observer, exact=True)
        if (observation := observer.observe(p, "output")) is not None
    ]
    wrong = sum(not observation.right for observation in plain)
    if 2 * wrong < len(plain) or not exact or not all(observation.right for observation in exact):
        return
    narrow = FORMATS[run.dtype].unit > FORMATS["float32"].unit
    for coarse in (run.dtype,) if narrow else ("float32", "float16", "bfloat16"):
        if FORMATS[coarse].unit <= run.precision.accumulate.unit:
            continue
        coarser = _in_coarser_sums(run, FORMATS[coarse])
        too_far = _farther_than(run, coarser, FORMATS[coarse])
        if not any(map(too_far, plain)):
            if looser_models.explains(
                coarser
            ):  # errors that lean one way are no roundings: of a scale that is wrong
                yield from _as_far_off(coarse, too_far)
            return


def _look_rounded(coarser: Run, observations: Sequence[Observation]) -> bool:
    """Whether errors within the bounds are roundings: these stay far below, and lean no way. Those of a wrong scale come near
    the bounds, or are systematic."""
    margins = []
    for observation in observations:
        bound = coarser.bound(observation.subject)[0]
        errors = np.abs(np.asarray(observation.got["output"], np.float64) - bound.value)
        told = np.isfinite(bound.errors) & (bound.errors > 0)
        margins.append(float(np.max(errors[told] / bound.errors[told], initial=0.0)))
    return max(margins, default=0.0) < ROUNDED and looser_models.explains(coarser)


def _as_far_off(coarse: str, too_far: Callable[[Observation], bool]) -> Iterator[Claim]:
    text = f"result is as far off as sums would be that are kept in {coarse}."
    yield Claim(f"The {text}", "output", too_far)
    yield Claim(
        f"Without options the {text}", "output",
        lambda observation: _optionless(observation.subject) and too_far(observation), inside=_optionless,
    )  # fmt: skip


def _optionless(problem: Problem) -> bool:
    return not problem.options


def _in_coarser_sums(run: Run, coarse: Format) -> Run:
    """The same run under a model whose sums are kept in a coarser format."""
    coarser = fresh(run)
    coarser.precision = _coarser(run.precision, coarse)
    return coarser


def _farther_than(run: Run, coarser: Run, coarse: Format) -> Callable[[Observation], bool]:
    """Whether a result is farther off than sums in a coarser format would be; of what passes its range nothing is said."""

    def too_far(observation: Observation) -> bool:
        inside = _largest(observation.subject) < coarse.huge
        return inside and fits(run, observation, {"output": coarser.bound(observation.subject)[0]}) is False

    return too_far


def _largest(p: Problem) -> float:
    """No number on the way to the output is larger, unless a bias is: what passes the range of a format may be anything."""
    query, key, value = (
        float(np.max(np.abs(x.astype(np.float64)), initial=0.0)) for x in (p.query, p.key, p.value)
    )
    product = query * key * max(p.sizes["D"], 1)
    return max(product, product * abs(p.scale or 1.0), value * max(p.sizes["K"], 1))


def _plain(observer: Observer, exact: bool = False) -> Iterator[Problem]:
    """Problems without options; with `exact` of equal scores and whole numbers, whose mean no format rounds."""
    rng = np.random.default_rng(2)
    for sizes in SIZES:
        sizes = (*sizes[:4], 4, *sizes[5:]) if exact else sizes
        if observer.run.implementation.accepts(letters(sizes)) is None:
            p = filled(observer.run, observer.problem, sizes, rng, {})
            yield p.replace(query=0 * p.query, value=np.rint(p.value)) if exact else p


def place(observer: Observer, observations: Sequence[Observation], aspect: str) -> Claim | None:
    """Where the wrong elements are, if that is simple."""
    wrong = [observation for observation in observations if not observation.right]
    if len(wrong) >= 2 and aspect == "output" and all(_only_empty_rows(observation) for observation in wrong):
        return Claim(
            "Only the rows of queries that see no key are wrong.",
            aspect,
            lambda observation: not _only_empty_rows(observation),
        )
    differ = [_differ(observation) for observation in observations]
    if not any(observation.got for observation in wrong) and differ == [
        not observation.right for observation in observations
    ]:
        text = "The result has the wrong shape exactly where values are of another size than keys."
        return Claim(text, aspect, lambda observation: _differ(observation) != (not observation.got))
    problem = observations[0].subject
    tile = next((t for t in TILES if _only_parts_of_tiles(observer, problem, t, aspect)), None)
    if tile is None:
        return None
    text = f"{SUBJECTS[aspect]} wrong only where the number of keys is no multiple of {tile}."
    return Claim(
        text, aspect, lambda observation: not observation.right and observation.subject.sizes["K"] % tile == 0
    )


def _differ(observation: Observation) -> bool:
    return bool(observation.subject.sizes["D"] != observation.subject.sizes["E"])


def _only_parts_of_tiles(observer: Observer, problem: Problem, tile: int, aspect: str) -> bool:
    """Whether, all else equal, whole tiles of keys give right results, and all other numbers of keys wrong ones; and whole
    tiles right ones with each other option, too."""
    rng = np.random.default_rng(3)

    def right(keys: int, options: Mapping[str, Any]) -> bool | None:
        sizes = (2, 2, 2, 3, keys, 3, 4)
        observation = observer.observe(filled(observer.run, problem, sizes, rng, options), aspect)
        return None if observation is None else observation.right

    counts = (tile, tile + 1, 2 * tile, 2 * tile - 1, 3 * tile, 3 * tile // 2, 5 * tile, 5 * tile + 2)
    if any(right(keys, problem.options) is not (keys % tile == 0) for keys in counts):
        return False
    others = other_options(observer.run, problem)
    return all(right(keys * tile, options) for options in others for keys in (1, 4))


def _only_empty_rows(observation: Observation) -> bool:
    """Whether nothing but rows that see no key is wrong."""
    if not observation.got:
        return False
    right = agrees(observation.got["output"], observation.expected["output"]).all(-1)
    return bool((right | ~observation.subject.some_visible).all())


def _coarser(declared: Precision, coarse: Format) -> Precision:
    """The same formats with as few digits, and as narrow a range, as the coarse one."""

    def rounded(f: Format) -> Format:
        wider = max(coarse.unit, f.unit), max(coarse.tiny, f.tiny)
        return replace(f, unit=wider[0], tiny=wider[1], huge=min(coarse.huge, f.huge))

    return replace(declared, operand=rounded(declared.operand), accumulate=rounded(declared.accumulate),
                   elementwise=rounded(declared.elementwise), output=rounded(declared.output))  # fmt: skip
