"""When calls of an attention raise: the simplest condition on sizes and options that separates them from those that return.

A condition is said only if every call that raised meets it and no call that returned does, whatever law they were made for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from qkverify.contract import OPTIONS, compiled
from qkverify.problem.attention_problem import Problem

TILES = (2, 4, 8, 16, 32, 64, 128, 256)
LIMITS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RETURNED = 4  # calls at least that returned: fewer could differ from those that raised in anything

# When calls raise, as `requires` would write it, and what it would have to say; the simplest first.
SIZES: tuple[tuple[str, str], ...] = (
    ("G != H", "G == H"), ("E != D", "E == D"), ("Q != K", "Q == K"), ("Q > K", "Q <= K"), ("Q < K", "Q >= K"),
    ("K == 0", "K >= 1"), ("Q == 0", "Q >= 1"), ("B == 0", "B >= 1"), ("B * Q == 0", "B * Q >= 1"),
    ("B * K == 0", "B * K >= 1"), ("B * Q * K == 0", "B * Q * K >= 1"),
    ("D & (D - 1) != 0", "D & (D - 1) == 0"), ("E & (E - 1) != 0", "E & (E - 1) == 0"),
    ("K & (K - 1) != 0", "K & (K - 1) == 0"), ("Q & (Q - 1) != 0", "Q & (Q - 1) == 0"),
    *((f"{letter} % {tile} != 0", f"{letter} % {tile} == 0") for tile in TILES for letter in "KQDE"),
    *((f"Q % {tile} != 0 or K % {tile} != 0", f"Q % {tile} == 0 and K % {tile} == 0") for tile in TILES),
    *((f"{letter} > {limit}", f"{letter} <= {limit}") for limit in LIMITS for letter in "BHGQKDE"),
    *((f"{letter} < {limit}", f"{letter} >= {limit}") for limit in LIMITS[1:] for letter in "BHGQKDE"),
)  # fmt: skip
# Sizes for which such calls return all the same: a single head or key broadcasts, a single query is a step of decoding, what is
# shorter than a tile is padded.
EXCEPTIONS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("G != H", (("G != 1", "G == 1"), ("Q != 1", "Q == 1"))),
    ("E != D", (("E != 1", "E == 1"), ("D != 1", "D == 1"))),
    ("Q != K", (("Q != 1", "Q == 1"), ("K != 1", "K == 1"), ("K != 0", "K == 0"), ("Q != 0", "Q == 0"))),
    ("Q > K", (("K != 0", "K == 0"), ("K != 1", "K == 1"))),
    ("Q < K", (("Q != 1", "Q == 1"), ("Q != 0", "Q == 0"))),
    ("K == 0", (("Q != 0", "Q == 0"), ("B != 0", "B == 0"))),
    ("Q == 0", (("K != 0", "K == 0"), ("B != 0", "B == 0"))),
    *((f"{letter} & ({letter} - 1) != 0", ((f"{letter} >= {limit}", f"{letter} < {limit}"),))
      for letter in "DEKQ" for limit in TILES),
    *((f"{letter} % {tile} != 0", ((f"{letter} > {tile}", f"{letter} <= {tile}"), (f"{letter} != 1", f"{letter} == 1")))
      for tile in TILES[1:] for letter in "KQDE"),
)  # fmt: skip
WITNESSES = 3  # calls at least that show each side of a condition of two parts: more conditions fit few calls by chance
OPPOSITES = dict(SIZES) | {
    f"{size} and {part}": f"{dict(SIZES)[size]} or {otherwise}"
    for size, parts in EXCEPTIONS
    for part, otherwise in parts
}
FEW = ("G != H", "E != D", "Q != K", "Q > K", "Q < K", "K == 0")  # those that may meet an option


class CallShape(NamedTuple):
    """What conditions may speak of: sizes in the order B, H, G, Q, K, D, E; options in use; whether gradients are asked for."""

    sizes: tuple[int, ...]
    options: frozenset[str]
    gradients: bool
    mode: str
    strided: bool


Condition = Callable[[CallShape], bool]


def call_of(problem: Problem, gradients: bool) -> CallShape:
    """The call of a problem."""
    strided = any(layout != "contiguous" for layout in problem.layouts.values())
    return CallShape(
        tuple(problem.sizes.values()), frozenset(problem.options), gradients, problem.mode, strided
    )


def separating(raised: Collection[CallShape], returned: Collection[CallShape]) -> list[str]:
    """The conditions that all calls which raised meet and no call that returned does, the simplest first."""
    if not raised or len(returned) < RETURNED:
        return []
    plain = [
        phrase for phrase, holds in conditions() if all(map(holds, raised)) and not any(map(holds, returned))
    ]
    shown = [phrase for phrase, size, part in _with_exceptions() if _shown(size, part, raised, returned)]
    return plain + shown


def _shown(
    size: Condition, part: Condition, raised: Collection[CallShape], returned: Collection[CallShape]
) -> bool:
    """Whether "size and part" separates the calls, each side of it shown by several: what raised, what returned although the size
    is one of those, and what returned at other sizes."""
    both = _both(size, part)
    if not all(map(both, raised)) or any(map(both, returned)):
        return False
    spared, others = ({call.sizes for call in returned if size(call) is inside} for inside in (True, False))
    return min(len({call.sizes for call in raised}), len(spared), len(others)) >= WITNESSES


def remedy(condition: str) -> str:
    """What whoever wrote the function may declare instead of mending it."""
    if condition in OPPOSITES:
        return f'declare requires=("{OPPOSITES[condition]}",), or mend it'
    given = [
        part.removesuffix(" is given") for part in condition.split(" and ") if part.endswith(" is given")
    ]
    if len(given) == 2:
        return f'declare exclusive=(("{given[0]}", "{given[1]}"),), or mend it'
    return (
        f"leave the parameter {given[0]} out, or mend it"
        if condition == f"{given and given[0]} is given"
        else "mend it"
    )


@lru_cache(maxsize=1)
def conditions() -> tuple[tuple[str, Condition], ...]:
    """All conditions that are tried: sizes, one option, two options, an option with sizes."""
    return tuple(_conditions())


@lru_cache(maxsize=1)
def _with_exceptions() -> tuple[tuple[str, Condition, Condition], ...]:
    """The conditions of two parts on sizes: as a phrase, and each part."""
    return tuple(
        (f"{size} and {part}", _of_sizes(size), _of_sizes(part))
        for size, parts in EXCEPTIONS
        for part, _ in parts
    )


def _conditions() -> Iterator[tuple[str, Condition]]:
    sizes = {phrase: _of_sizes(phrase) for phrase, _ in SIZES}
    given = {f"{name} is given": _of_option(name) for name in OPTIONS}
    yield from list(sizes.items())[: len(FEW)]
    yield from given.items()
    yield "gradients are asked for", lambda call: call.gradients
    yield "an array is not contiguous", lambda call: call.strided
    for mode in ("no_grad", "inference_mode"):
        yield f"under {mode}", lambda call, mode=mode: call.mode == mode  # type: ignore[misc]
    yield from list(sizes.items())[len(FEW) :]
    for (first_phrase, first), (second_phrase, second) in combinations(given.items(), 2):
        yield f"{first_phrase} and {second_phrase}", _both(first, second)
    for phrase, holds in given.items():
        for size in FEW:
            yield f"{phrase} and {size}", _both(holds, sizes[size])


def _of_sizes(phrase: str) -> Condition:
    code = compiled(phrase)
    return lambda call: bool(eval(code, {"__builtins__": {}}, dict(zip("BHGQKDE", call.sizes, strict=True))))


def _of_option(name: str) -> Condition:
    return lambda call: name in call.options


def _both(first: Condition, second: Condition) -> Condition:
    return lambda call: first(call) and second(call)
