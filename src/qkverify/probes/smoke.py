"""The first call: which framework, layout, part of the result and neutral values make a function attention, if any do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from qkverify.contract import (
    DEVICES,
    DTYPES,
    EVERY_KEY,
    Implementation,
    adapters,
    axes,
    describe,
    frameworks,
    letters,
    mask_forms,
    with_defaults,
)
from qkverify.contract.modules_used import frameworks_used
from qkverify.errors import NothingVerified, UnsupportedCase, UsageError
from qkverify.probes import defaults, forms, hidden_heads, limits, open_sides, sentences
from qkverify.probes.influence import within_its_head
from qkverify.probes.plain import Attempt, call
from qkverify.rounding import FORMATS

# Sizes of the first problem that fits, from the one that asks most to the one that asks least. They differ pairwise where
# they may, so that the shape of the result tells the axes.
RUNGS: tuple[Mapping[str, int], ...] = (
    {"B": 2, "H": 6, "G": 3, "Q": 5, "K": 7, "D": 11, "E": 9},
    {"B": 2, "H": 3, "G": 3, "Q": 5, "K": 7, "D": 4, "E": 4},
    {"B": 2, "H": 3, "G": 3, "Q": 5, "K": 5, "D": 4, "E": 4},
    {"B": 2, "H": 4, "G": 4, "Q": 128, "K": 256, "D": 64, "E": 64},
    {"B": 2, "H": 4, "G": 4, "Q": 128, "K": 128, "D": 64, "E": 64},
)
FIRST_DTYPES = ("float32", "float16", "bfloat16", "float64")
REFUSED = (UnsupportedCase, NotImplementedError)


def inferred(implementation: Implementation) -> Implementation:
    """An undeclared function with all that its plain calls show. Raises UsageError if none of them gives an output."""
    implementation = defaults.with_constants(implementation)
    attempts: list[Attempt] = []
    fit = _fit_of_any(implementation, attempts)
    if fit is not None and (one_head := defaults.with_one_head(fit.implementation)):
        fit = _fit_of_any(one_head, attempts)
    if not attempts and implementation.requires:
        rules = ", ".join(implementation.requires)
        raise NothingVerified(f"{implementation.name}: none of the sizes that are tried keeps {rules}")
    if fit is None:
        if all(isinstance(attempt.error, REFUSED) for attempt in attempts):
            return implementation  # it refuses, and says so: the laws count that as not offered
        other = _right_otherwise(implementation)
        raise NothingVerified("\n  ".join([sentences.misfit(implementation, attempts), *other]))
    assert fit.part is not None
    hidden_heads.refused(fit)
    made = replace(fit.implementation, returns=fit.part[0], devices=(fit.device,))
    remarks = [
        *sentences.adapted(implementation, made, fit),
        *defaults.remark(made),
        *defaults.constants_remark(made),
        *([] if fit.right else _right_otherwise(implementation)),
    ]
    made = replace(made, requires=(*made.requires, *axes.SIZES[made.layout]))
    made, said = forms.found(made, fit)
    remarks += said
    made, said = _dtypes(made, fit)
    made = defaults.without_module(
        replace(made, remarks=(*remarks, *said)),
        lambda **further: call(made, fit.problem.sizes, fit.dtype, fit.device, further=further).error,
    )
    made = open_sides.with_open_side(
        made, lambda window: call(made, fit.problem.sizes, fit.dtype, fit.device, window=window).error
    )
    limited, said = limits.inferred(made, fit)
    declaration = sentences.as_declared(implementation, limited)
    return replace(limited, remarks=(*made.remarks, *said, *declaration))


def _right_otherwise(implementation: Implementation) -> list[str]:
    """Of a function whose layout or output was said: with which others its first call is right, if it is."""
    said = {name: value for name, value in implementation.adapters.items() if name in ("layout", "returns")}
    if not said:
        return []
    rest = {name: value for name, value in implementation.adapters.items() if name not in said}
    free = replace(implementation, adapters=rest, returns=None)
    fit = _fit_of_any(free, [])
    if fit is None or fit.part is None or not fit.right:
        return []
    shown = {"layout": fit.implementation.layout} | ({} if fit.part[0] is None else {"returns": fit.part[0]})
    return [f"{adapters.written(said)} was said, and its first call is right with {adapters.written(shown)}"]


def checked(implementation: Implementation) -> Implementation:
    """A declared implementation after plain calls of sizes that it declares, with what switches its options off.

    The first call asks most, grouped heads among it; what it raises there the laws judge. If all calls raise, the implementation
    is unavailable on that device, with the reason. Raises UsageError if it returns more than the output.
    """
    candidates = defaults.passed(implementation)
    made = defaults.with_first(implementation, candidates)
    sizes = limits.plain_sizes(made)
    device = next((name for name in made.devices if _reason(made, name) is None), None)
    if sizes is None or device is None:
        return made
    rungs = [sizes, *(rung for rung in RUNGS if made.accepts(rung) is None)]
    attempts: list[Attempt] = []
    for rung, neutral in product(rungs, _choices(candidates)):
        attempts.append(call(replace(made, neutral=neutral), rung, made.dtypes[0], device))
        if attempts[-1].right:
            break
        if attempts[-1].error is None and len(candidates) == 0:
            break  # something came back: the laws judge it
    attempt = next((attempt for attempt in (attempts[-1], *attempts) if attempt.error is None), attempts[0])
    if attempt.right or len(candidates) == 0:
        made = attempt.implementation
    made = replace(made, remarks=tuple(defaults.remark(made)))
    if attempt.error is not None and not isinstance(attempt.error, REFUSED):
        return unavailable(made, sentences.raised(made, attempt), device)
    if made.returns is None and attempt.part is not None and attempt.part[0] is not None:
        raise UsageError(sentences.several(attempt, attempt.part[0]))
    return made


def first_call(implementation: Implementation) -> Attempt | None:
    """The plainest call of a function as it stands, or None if no sizes are known that it takes."""
    sizes = limits.plain_sizes(implementation) if implementation.declared else RUNGS[0]
    if sizes is None or frameworks.missing(implementation.arrays):
        return None
    return call(implementation, sizes, implementation.dtypes[0])


def unavailable(implementation: Implementation, reason: str, *devices: str) -> Implementation:
    """The implementation, which cannot run on these devices (by default on any) for this reason."""
    reasons = dict.fromkeys(devices or implementation.devices, reason)
    return replace(
        implementation, available=partial(_unavailable, reasons, implementation.available), probed=True
    )


def _unavailable(
    reasons: Mapping[str, str], before: Callable[[str], str | None] | None, device: str
) -> str | None:
    return reasons.get(device) or (before(device) if before else None)


# What a required mask may be that may not be None, the commonest first; its form is found out afterwards.
REQUIRED_MASKS = tuple(
    f"{kind}:{axes}"
    for kind in ("visible", "additive", "int", "hidden")
    for axes in ("BHQK", "BK", "QK", "BQK")
)


def _fit_of_any(implementation: Implementation, attempts: list[Attempt]) -> Attempt | None:
    """The first call that fits: without options, else always causal, else with a mask that hides nothing."""
    candidates = defaults.passed(implementation)
    without_causal = {name: values for name, values in candidates.items() if name != "causal"}
    ways = [(implementation, without_causal if implementation.always else candidates)]
    if "causal" in candidates and not implementation.always:
        ways.append((replace(implementation, always=("causal",)), without_causal))
    if "mask" in candidates:
        with_mask = {**ways[0][1], "mask": (EVERY_KEY,)}
        said = implementation.adapters.get("mask")
        ways += [
            (replace(implementation, mask_form=mask_forms.checked(form)), with_mask)
            for form in ([said] if said else REQUIRED_MASKS)
        ]
    fitting: list[Attempt] = []
    first, known = implementation.arrays, "arrays" in implementation.adapters
    others = [name for name in frameworks_used(implementation.function) if name != first and not known]
    quick = [name for name in others if name != "jax"]  # which compiles for every call
    tries = [*((*way, [first]) for way in ways), (*ways[0], others), *((*way, quick) for way in ways[1:])]
    for variant, neutral, arrays in tries:
        made: list[Attempt] = []
        fit = _fit(variant, neutral, made, arrays)
        attempts += made
        if fit is not None and (not variant.mask_form or fit.right):
            return fit
        fitting += [fit] if fit is not None else []
    return next(iter(fitting), None)


def _fit(implementation: Implementation, candidates: Mapping[str, tuple[Any, ...]],
         attempts: list[Attempt], of: Iterable[str]) -> Attempt | None:  # fmt: skip
    """The first call whose result is right; else, of the first framework whose arrays come back, the first of the output's shape
    on four axes, three or two; else None. Further frameworks, dtypes and devices are tried only if nothing comes back."""
    variants = [_on(implementation, arrays) for arrays in of if frameworks.missing(arrays) is None]
    for device, rank in product(DEVICES, range(len(DTYPES))):
        for variant in variants:
            dtypes = sorted(variant.dtypes, key=FIRST_DTYPES.index)
            if rank >= len(dtypes) or frameworks.get(variant.arrays).unavailable(device):
                continue
            fitting: list[Attempt] = []
            for neutral in _choices(candidates):
                for attempt in _climbed(replace(variant, neutral=neutral), device, dtypes[rank]):
                    attempts.append(attempt)
                    if attempt.right:
                        return attempt
                    if attempt.part is not None:
                        fitting.append(attempt)
            if fitting:
                same_layout = [
                    attempt for attempt in fitting if attempt.implementation.layout == implementation.layout
                ]
                in_order = [*same_layout, *fitting]
                return next(filter(within_its_head, in_order), in_order[0])
        if not all(attempt.error for attempt in attempts):
            return None  # something came back, and it is no output
    return None


def _climbed(implementation: Implementation, device: str, dtype: str) -> Iterator[Attempt]:
    """Calls with arrays of four axes at every rung, then of three, then of two."""
    others = () if "layout" in implementation.adapters else tuple(axes.LAYOUTS)
    layouts = dict.fromkeys((implementation.layout, *others))
    for count, rung in product((4, 3, 2), _rungs(implementation)):
        for layout in (layout for layout in layouts if len(layout) == count):
            variant = replace(implementation, layout=layout)
            sizes = {**rung, **{rule[0]: 1 for rule in axes.SIZES[layout]}}
            if variant.accepts(sizes) is None:
                yield call(variant, sizes, dtype, device)


def _rungs(implementation: Implementation) -> tuple[Mapping[str, int], ...]:
    """Those of `RUNGS`; where it was said which sizes the function takes, also with such sizes in their place."""
    plain = limits.plain_sizes(implementation) if "requires" in implementation.adapters else None
    if plain is None:
        return RUNGS
    said = {letter: plain[letter] for rule in implementation.requires for letter in letters(rule)}
    return (*RUNGS, *({**rung, **said} for rung in RUNGS))


def _choices(candidates: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Every combination of neutral values, the plainest first."""
    for values in product(*candidates.values()):
        yield dict(zip(candidates, values, strict=True))


def _on(implementation: Implementation, arrays: str) -> Implementation:
    """The implementation, given arrays of another framework."""
    if arrays == implementation.arrays:
        return implementation
    said = {**implementation.adapters, "arrays": arrays}
    other = with_defaults(describe(implementation.function, **said))
    return replace(implementation, arrays=arrays, dtypes=other.dtypes, offers=other.offers, vjp=other.vjp,
                   effort=other.effort, compiles=other.compiles)  # fmt: skip


def _dtypes(implementation: Implementation, fit: Attempt) -> tuple[Implementation, list[str]]:
    """Without the dtypes that the plain call refuses, and with the wider dtypes that come back."""
    taken: list[str] = []
    wider: dict[str, str] = {}
    refused: dict[str, str] = {}
    for dtype in implementation.dtypes:
        attempts = [fit] if dtype == fit.dtype else []
        attempts = (
            attempts or [call(implementation, fit.problem.sizes, dtype, seed=seed) for seed in (0, 1)][:2]
        )
        if all(attempt.error is not None for attempt in attempts):
            refused[dtype] = sentences.first_line(attempts[0].error)
            continue
        attempt = next(attempt for attempt in attempts if attempt.error is None)
        result = attempt.dtype_of_result if attempt.part is not None else dtype
        if (dtype, result) == ("float64", "float32") and len(implementation.dtypes) > 1:
            refused[dtype] = f"{sentences.RESULT} float32"
            continue
        if (
            dtype == "float64"
            and fit.right
            and _is_float32_inside(attempt)
            and len(implementation.dtypes) > 1
        ):
            refused[dtype] = f"{sentences.RESULT} as exact as float32, and no more"
            continue
        taken.append(dtype)
        if result in ("float32", "float64") and FORMATS[result].unit < FORMATS[dtype].unit:
            wider[dtype] = result
    narrowed = replace(implementation, dtypes=tuple(taken), result_dtypes=wider, refused_dtypes=refused)
    return narrowed, [*sentences.wider(wider), *sentences.refused(refused)]


def _is_float32_inside(attempt: Attempt) -> bool:
    """Whether torch code makes float32 of float64, and its result is as exact as that allows and not as float64 does."""
    if attempt.implementation.arrays != "torch" or attempt.part is None or attempt.right:
        return False
    problem = attempt.problem
    rounded = {name: getattr(problem, name).astype(np.float32) for name in ("query", "key", "value")}
    if not replace(attempt, dtype="float32", problem=problem.replace(**rounded)).right:
        return False
    from qkverify.contract.frameworks.torch_narrowing import narrows  # here: it loads torch

    return narrows(lambda: call(attempt.implementation, problem.sizes, attempt.dtype, attempt.device))


def _reason(implementation: Implementation, device: str) -> str | None:
    reason = frameworks.missing(implementation.arrays) or frameworks.get(implementation.arrays).unavailable(
        device
    )
    return reason or (implementation.available(device) if implementation.available else None)
