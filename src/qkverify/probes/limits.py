"""Sizes that a function visibly does not take: it raises for them, each time, and not where only they are otherwise.

A limit is inferred if the function raises on two problems that break it and not on those that keep it. Wrong results are never
a limit. What is inferred is printed, named in the last line, and from then on drawn by the strategies like a declared
`requires`; a problem that a law makes beyond it counts as refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qkverify.contract import Implementation
from qkverify.probes import option_pairs, sentences
from qkverify.probes.plain import Attempt, call

Sizes = Mapping[str, int]
POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
LARGEST: Mapping[str, tuple[int, ...]] = {  # of what the laws draw, the largest first
    "D": (256, 129, 128, 96, 80, 64, 33, 32), "K": (2049, 2048, 1025, 1024, 513, 512, 257, 256, 128),
    "Q": (1025, 1024, 513, 512, 257, 256, 128),
}  # fmt: skip


def inferred(implementation: Implementation, fit: Attempt) -> tuple[Implementation, list[str]]:
    """The implementation with the limits that it shows, and a sentence on each. What it declares is left alone; beside a limit
    that an adapter says there may be more."""
    said = "requires" in implementation.adapters
    if implementation.requires and not said and not implementation.layout.startswith(("BLD", "LD")):
        return implementation, []
    probe = Probe(implementation, fit)
    for look in (_heads, _value_size, _lengths, _tiles, _empty, _longest):
        if implementation.compiles and look in (_empty, _longest):
            continue  # each size is one more compilation
        look(probe)
    rules = tuple(rule for rule in probe.rules if rule not in implementation.requires)
    limited = replace(implementation, requires=(*implementation.requires, *rules), inferred=rules)
    limited = replace(limited, requires_with=_causal(probe))
    pairs, remarks = option_pairs.refused_together(limited, fit, probe.several())
    return replace(limited, exclusive=(*limited.exclusive, *pairs), not_together=pairs), [
        *probe.remarks,
        *remarks,
    ]


class Probe:
    """Calls of one function around the sizes that fit; `rules` and `remarks` are what they show."""

    def __init__(self, implementation: Implementation, fit: Attempt) -> None:
        self.implementation, self.dtype, self.device = implementation, fit.dtype, fit.device
        self.sizes: dict[str, int] = dict(fit.problem.sizes)
        self.rules: list[str] = []
        self.remarks: list[str] = []
        self._errors: dict[tuple[Any, ...], BaseException | None] = {}

    def error(self, sizes: Sizes, *, causal: bool = False) -> BaseException | None:
        """What the function raises if these sizes are changed, or None."""
        wanted = {**self.sizes, **sizes}
        key = (causal, *sorted(wanted.items()))
        if key not in self._errors:
            seed = len(self._errors)
            options: dict[str, Any] = {"causal": True} if causal else {}
            attempt = call(self.implementation, wanted, self.dtype, self.device, seed, {}, **options)
            self._errors[key] = attempt.error
        return self._errors[key]

    def takes(self, **sizes: int) -> bool:
        return self.error(sizes) is None

    def several(self) -> list[Sizes]:
        """Sizes that it takes: those of the first call, longer ones, and values that are wider than the keys."""
        s = self.sizes
        others: tuple[dict[str, int], ...] = (
            {},
            {"Q": 2 * s["Q"], "K": 2 * s["K"]},
            {"E": 2 * s["E"]},
            {"E": 3 * s["E"]},
        )
        return [
            {**s, **sizes} for sizes in others if self.implementation_accepts(sizes) and self.takes(**sizes)
        ]

    def implementation_accepts(self, sizes: Sizes) -> bool:
        """Whether these sizes keep what was inferred so far."""
        rules = replace(self.implementation, requires=tuple(self.rules))
        return rules.accepts({**self.sizes, **sizes}) is None

    def infer(
        self, rules: Sequence[str], kept: Sequence[Sizes], broken: Sequence[Sizes], words: str = ""
    ) -> bool:
        """Take the rules if all that keep them are taken, and all that break them raise."""
        if not all(self.takes(**sizes) for sizes in kept) or any(self.takes(**sizes) for sizes in broken):
            return False
        self.rules += rules
        self.remarks.append(sentences.limited(rules, self.error(broken[0]), words))
        return True


def plain_sizes(implementation: Implementation) -> dict[str, int] | None:
    """Small sizes that a declaration takes; None where a search of the usual ones finds none."""
    heads = [
        {"B": b, "H": h, "G": g}
        for b, h, g in ((2, 4, 2), (2, 3, 3), (2, 4, 4), (1, 4, 4), (2, 1, 1), (1, 1, 1))
    ]
    lengths = [
        {"Q": q, "K": k}
        for q, k in ((5, 7), (5, 5), (1, 7), (16, 32), (32, 32), (128, 256), (128, 128), (1, 128))
    ]
    widths = [{"D": d, "E": e} for d, e in ((4, 8), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128))]
    chosen: dict[str, int] = {}
    for candidates in (heads, widths, lengths):
        fitting = [sizes for sizes in candidates if implementation.accepts({**chosen, **sizes}) is None]
        if not fitting:
            return None
        chosen |= fitting[0]
    return chosen


def _causal(probe: Probe) -> dict[str, tuple[str, ...]]:
    """Of a causal call: whether it takes as many queries as keys only, or no more, where others may differ."""
    offered = "causal" in probe.implementation.offers and not probe.implementation.always
    if not offered or probe.implementation.compiles:
        return {}
    n = max(probe.sizes["Q"], probe.sizes["K"])
    equal = [{"Q": n, "K": n}, {"Q": 2 * n, "K": 2 * n}]
    fewer, more = [{"K": 2 * n}, {"Q": n, "K": 3 * n}], [{"Q": 2 * n}, {"Q": 3 * n, "K": n}]
    for rule, broken in (("Q == K", [*fewer, *more]), ("Q <= K", more), ("Q >= K", fewer)):
        broken = [sizes for sizes in broken if probe.takes(**sizes)]
        errors = [probe.error(sizes, causal=True) for sizes in broken]
        if broken and all(errors) and not any(probe.error(sizes, causal=True) for sizes in equal):
            probe.remarks.append(
                sentences.limited([rule], errors[0], "a causal call, the number of queries and keys")
            )
            return {"causal": (rule,)}
    return {}


def _heads(probe: Probe) -> None:
    heads = probe.sizes["H"]
    if probe.sizes["G"] != heads or len(probe.implementation.layout) < 4:
        return
    several, few = 2 * heads, 4
    kept = [{"H": several, "G": several}, {"H": few, "G": few}]
    broken = [{"H": several, "G": heads}, {"H": few, "G": 2}]
    single = probe.takes(H=several, G=1) and probe.takes(H=few, G=1)
    if single:
        probe.infer(["G == H or G == 1"], kept, broken, "heads must be equal, or there is one key/value head")
    else:
        probe.infer(["G == H"], kept, broken, "heads must be equal")
    if heads == few:
        probe.infer(["H & (H - 1) == 0"], [{"H": 2, "G": 2}, {"H": 8, "G": 8}],
                    [{"H": 3, "G": 3}, {"H": 5, "G": 5}], "the number of heads is a power of two")  # fmt: skip


def _value_size(probe: Probe) -> None:
    size = probe.sizes["D"]
    if probe.sizes["E"] == size:
        probe.infer(["E == D"], [{"D": 2 * size, "E": 2 * size}], [{"E": 2 * size}, {"D": 2 * size}],
                    "keys and values must have the same size")  # fmt: skip


def _lengths(probe: Probe) -> None:
    queries, keys = probe.sizes["Q"], probe.sizes["K"]
    longer = {"Q": 2 * keys, "K": 2 * keys}
    more, fewer = [{"Q": 2 * keys}, {"Q": 3 * keys}], [{"K": 2 * keys}, {"K": 3 * keys}]
    words = "the number of queries and keys"
    if queries == keys and probe.infer(["Q == K"], [longer], [*more, *fewer], words):
        return
    if probe.infer(["Q <= K"], [longer], more, words) or queries != keys:
        return
    probe.infer(["Q >= K"], [longer], fewer, words)


def _tiles(probe: Probe) -> None:
    """Of a function that takes none of the small sizes: which multiples it takes."""
    if probe.sizes["Q"] < POWERS[-1]:
        return
    together = {"Q": ("Q", "K"), "K": ("Q", "K")} if "Q == K" in probe.rules else {}
    together |= {"D": ("D", "E"), "E": ("D", "E")} if "E == D" in probe.rules else {}
    for letter in "QKDE":
        letters = together.get(letter, (letter,))
        if letter == letters[0]:
            _multiples(probe, letters)


def _multiples(probe: Probe, letters: Sequence[str]) -> None:
    def sizes(length: int) -> dict[str, int]:
        return dict.fromkeys(letters, length)

    letter, words = letters[0], f"the sizes that {letters[0]} takes"
    for tile in POWERS:
        if probe.takes(**sizes(tile)) and probe.takes(**sizes(3 * tile)):
            if tile > 1:
                broken = [sizes(3 * tile // 2), sizes(tile + 1)]
                probe.infer([f"{letter} % {tile} == 0"], [sizes(tile), sizes(3 * tile)], broken, words)
            return
    taken = [power for power in (*POWERS, 256) if probe.takes(**sizes(power))]
    if (
        len(taken) > 1
        and taken[-1] == 256
        and taken == [power for power in (*POWERS, 256) if power >= taken[0]]
    ):
        rules = [f"{letter} & ({letter} - 1) == 0", f"{letter} >= {taken[0]}"]
        probe.infer(rules, [sizes(taken[0])], [sizes(3 * taken[0]), sizes(taken[0] + 1)], words)
    elif taken:
        probe.infer(
            [f"{letter} in {tuple(taken)}"],
            [sizes(taken[0])],
            [sizes(3 * taken[0]), sizes(taken[0] + 1)],
            words,
        )


def _empty(probe: Probe) -> None:
    """Axes of length zero, of those that the laws draw."""
    rules, error = [], None
    for letter in "BQK":
        sizes = {letter: 0}
        if not probe.implementation_accepts(sizes):  # as many queries as keys, or no more
            sizes = {"Q": 0, "K": 0}
        others: tuple[dict[str, int], ...] = ({}, {"D": 2 * probe.sizes["D"], "E": 2 * probe.sizes["E"]})
        if (letter == "B" and probe.implementation.layout == "LD") or not all(
            probe.takes(**other) for other in others
        ):
            continue
        errors = [probe.error({**other, **sizes}) for other in others]
        if all(errors):
            rules.append(f"{letter} >= 1")
            error = errors[0]
    if rules:
        probe.rules += rules
        probe.remarks.append(sentences.limited(rules, error, "no empty axes"))


def _longest(probe: Probe) -> None:
    """Upper limits of the sizes that the laws draw, each with few other numbers."""
    tile = POWERS[-1] if probe.sizes["Q"] >= POWERS[-1] else 1
    joint_lengths, joint_sizes = "Q == K" in probe.rules, "E == D" in probe.rules
    ways: list[tuple[str, Callable[[int], dict[str, int]]]] = [
        ("D", lambda size: {"D": size, "E": size} if joint_sizes else {"D": size}),
        ("K", lambda length: {"Q": length, "K": length} if joint_lengths else {"K": length}),
    ]
    ways += [] if joint_sizes else [("E", lambda size: {"E": size})]
    ways += [] if joint_lengths or "Q <= K" in probe.rules else [("Q", lambda length: {"Q": length})]
    for letter, sizes in ways:
        tried = [
            n // tile * tile if letter in "QK" and n >= tile else n for n in LARGEST.get(letter, LARGEST["D"])
        ]
        _upper(probe, letter, sizes, tried)


def _upper(probe: Probe, letter: str, sizes: Callable[[int], dict[str, int]], tried: Sequence[int]) -> None:
    fitting = [n for n in dict.fromkeys(tried) if probe.implementation_accepts(sizes(n))]
    if not fitting or probe.takes(**sizes(fitting[0])):
        return
    taken = next((n for n in fitting if probe.takes(**sizes(n))), None)
    larger = [sizes(n) for n in fitting if taken is not None and n > taken]
    if taken is not None and len(larger) > 1:
        probe.infer(
            [f"{letter} <= {taken}"], [sizes(taken)], larger[::-1], f"the largest {letter} of those tried"
        )
