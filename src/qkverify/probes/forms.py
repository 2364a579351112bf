"""Forms of a call that a function shows when it is called: always causal, and what it takes as a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from qkverify.contract import SIGNATURE_STYLES, Implementation, mask_forms
from qkverify.probes import added_masks
from qkverify.probes.influence import visible
from qkverify.probes.plain import Attempt
from qkverify.reference.masks import visible as causal

SEEDS = (0, 1, 2)
MOST = 0.75  # of the pairs of query and key: a form that explains fewer is not the function's


def found(implementation: Implementation, fit: Attempt) -> tuple[Implementation, list[str]]:
    """The function with the forms that it shows, and a sentence on each."""
    implementation, said = _always_causal(implementation, fit)
    masked, further = _mask(implementation, fit)
    masked, floats = added_masks.found(masked, fit)
    return masked, [*said, *further, *floats]


def _always_causal(implementation: Implementation, fit: Attempt) -> tuple[Implementation, list[str]]:
    """A function that hides every later key, and no other, although no option asks for it."""
    if "causal" in implementation.offers or "always" in implementation.adapters:
        return implementation, []
    sizes = fit.problem.sizes
    longer = {**sizes, "Q": 2 * sizes["Q"], "K": 2 * sizes["K"]}
    patterns = [visible(implementation, s, fit.dtype, fit.device) for s in (sizes, longer)]
    shown = [(s, p) for s, p in zip((sizes, longer), patterns, strict=True) if p is not None]
    if not shown or all(pattern.all() for _, pattern in shown):
        return implementation, []
    for alignment in ("bottom-right", "top-left"):
        if all(_is_causal(s, pattern, alignment) for s, pattern in shown):
            offers = implementation.offers | {"causal"}
            return replace(implementation, always=("causal",), offers=offers), [
                "always causal: a query sees no later key, and nothing switches that off"
            ]
    sizes, pattern = shown[0]
    row, column = (int(at) for at in np.argwhere(~pattern)[-1][2:])
    return implementation, [
        f"hides keys although no option asks for it, and is not causal: query {row} of {sizes['Q']} does not see "
        f"key {column} of {sizes['K']}, counted from 0; it is verified as attention to all keys"
    ]


def _is_causal(sizes: dict[str, int], pattern: np.ndarray, alignment: str) -> bool:
    expected = causal(sizes["B"], sizes["Q"], sizes["K"], causal=True, causal_alignment=alignment)
    return bool((pattern == expected).all())


def _mask(implementation: Implementation, fit: Attempt) -> tuple[Implementation, list[str]]:
    """What the function takes as a mask: the first form by which what is hidden has no weight, and all else has.

    The axes are told by what raises, so a function that takes a mask of all axes and looks at fewer is not excused. A form that
    most pairs of query and key agree with is the function's: those that do not are what the laws are to find.
    """
    if "mask" not in implementation.offers or implementation.convention in SIGNATURE_STYLES:
        return implementation, []
    if said := implementation.adapters.get("mask"):
        return implementation, _shown_otherwise(implementation, fit, said)
    shares: dict[str, float] = {}
    for form in _candidates(implementation, fit):
        share = _share(_with(implementation, form), form, fit)
        if share is not None:
            shares[form] = share
        if share == 1.0:
            break
    form = max(shares, key=lambda form: shares[form], default=mask_forms.PLAIN)
    keyword = implementation.parameters["mask"]
    if shares.get(form, 0.0) >= MOST and (fewer := _of_fewer_axes(implementation, form, fit)):
        kind = form.partition(":")[0]
        return _with(implementation, f"{kind}:{mask_forms.FOUR}"), [
            f"{keyword} is (B,H,Q,K), {mask_forms.KINDS[kind]}; of {fewer}, so it is given with four and not verified with fewer"
        ]
    if form == mask_forms.PLAIN or shares[form] < MOST:
        return implementation, []
    return _with(implementation, form), [f"{keyword} is {mask_forms.words(form)}"]


def _of_fewer_axes(implementation: Implementation, form: str, fit: Attempt) -> str:
    """Of a function that takes a mask of all axes: what one of fewer axes is to it, where that is not the last of the four."""
    kind, axes = form.split(":")
    if axes != mask_forms.FULL or len(implementation.layout) != len(mask_forms.FULL):
        return ""
    for fewer, words in (("BK", "two axes it is (B,K)"), ("BQK", "three axes it is (B,Q,K)")):
        other = f"{kind}:{fewer}"
        if _share(_with(implementation, other), other, fit) == 1.0:
            return words
    shares = [
        _share(_with(implementation, f"{kind}:{few}"), f"{kind}:{few}", fit) for few in mask_forms.FEWER
    ]
    return "fewer axes it makes an error" if shares == [None] * len(shares) else ""


def _shown_otherwise(implementation: Implementation, fit: Attempt, said: str) -> list[str]:
    """Of a function whose mask was said: what it shows instead, if it does."""
    if _share(implementation, said, fit) == 1.0:
        return []
    free = replace(implementation, adapters={}, mask_form="")
    form = _mask(free, fit)[0].mask_form
    if form in ("", said):
        return []
    keyword = implementation.parameters["mask"]
    return [
        f"{keyword} is said to be {mask_forms.words(said)}; its first calls show {mask_forms.words(form)}"
    ]


def _candidates(implementation: Implementation, fit: Attempt) -> Iterator[str]:
    """Forms, the plainest first: of each kind all axes, and fewer only if those raise or give no output."""
    for kind in _kinds(implementation, fit):
        for several in ((mask_forms.FULL,), mask_forms.FEWER, mask_forms.ONES):
            forms = [f"{kind}:{axes}" for axes in several]
            yield from forms
            if any(_share(_with(implementation, form), form, fit) is not None for form in forms):
                break


def _kinds(implementation: Implementation, fit: Attempt) -> Iterable[str]:
    """What a mask may consist of. A function in which bools hide keys takes bools, however wrongly: that it adds floats as well
    excuses nothing."""
    for axes in (mask_forms.FULL, *mask_forms.FEWER, *mask_forms.ONES):
        form = f"visible:{axes}"
        masked = _with(implementation, form)
        mask = _drawn(form, fit.problem.sizes, SEEDS[0])
        pattern = visible(masked, fit.problem.sizes, fit.dtype, fit.device, SEEDS[0], mask=mask)
        if pattern is None:
            continue
        plain = visible(implementation, fit.problem.sizes, fit.dtype, fit.device, SEEDS[0])
        hides = not pattern.all() if plain is None else bool((plain & ~pattern).any())
        return mask_forms.OF_BOOLS if hides else mask_forms.KINDS
    return mask_forms.KINDS


def _with(implementation: Implementation, form: str) -> Implementation:
    parameters, offers = dict(implementation.parameters), implementation.offers
    if form.startswith("additive"):
        parameters.setdefault("bias", parameters["mask"])
        offers |= {"bias"}
    return replace(implementation, mask_form=mask_forms.checked(form), parameters=parameters, offers=offers)


def _share(implementation: Implementation, form: str, fit: Attempt) -> float | None:
    """The share of the hidden pairs that have no weight, or of the visible ones that have: the smaller. None if calls raise or
    give no output."""
    hidden: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    for seed in SEEDS:
        mask = _drawn(form, fit.problem.sizes, seed)
        pattern = visible(implementation, fit.problem.sizes, fit.dtype, fit.device, seed, mask=mask)
        if pattern is None:
            return None
        may = np.broadcast_to(mask, pattern.shape)
        if implementation.always:
            plain = visible(implementation, fit.problem.sizes, fit.dtype, fit.device, seed)
            may = may if plain is None else may & plain
        hidden.append(~pattern[~may])
        seen.append(pattern[may])
    return float(min(np.concatenate(hidden).mean(), np.concatenate(seen).mean()))


def _drawn(form: str, sizes: dict[str, int], seed: int) -> np.ndarray:
    """A mask over the axes of a form, half of it True; the first key is visible to all, the second to none."""
    letters = mask_forms.axes_of(form)
    shape = tuple(sizes[letter] if letter in letters else 1 for letter in mask_forms.FULL)
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[..., 0], mask[..., 1] = True, False
    return mask
