"""What decides an example: one string of bytes, in which every decision has a place of its own.

    shapes = strategy(Recipe({"size": 2, "seed": 2}, lambda choices: ...))       a Hypothesis strategy, drawn as one string
    together({"shape": shapes, "factor": (2.0, -1.0)})                           all arguments of a law out of one string

Hypothesis draws the string and shrinks it byte by byte, so a decision shrinks without moving those after it, and one that is
not asked for shrinks to nothing. Two reasons not to draw every decision by itself. A draw costs as much as a small bound. And
Hypothesis makes five of six examples from a random one by copying one draw over another of the same kind; of 500 problems
drawn decision by decision 149 had sizes that no other had, drawn as one string almost all.

Zero bytes are the simplest example: the first of every pool, zero for every digit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.errors import HypothesisDeprecationWarning, UnsatisfiedAssumption

from qkverify.problem import distributions

T = TypeVar("T")
Argument = (
    st.SearchStrategy[Any] | Sequence[Any]
)  # of a law: a strategy, or a pool of candidates, the simplest first

SEED = 4  # bytes of a generator's seed
DIGITS = 8  # bytes of an array of digits: elements that are decided one by one


class Choices:
    """The decisions of one example, read off its bytes. `places` says where each begins and ends."""

    def __init__(self, data: bytes, places: Mapping[str, tuple[int, int]]) -> None:
        self._data = data
        self._places = places

    def _fraction(self, place: str, candidates: int) -> int:
        first, end = self._places[place]
        return int.from_bytes(self._data[first:end], "big") * candidates >> 8 * (end - first)

    def pick(self, place: str, pool: Sequence[T]) -> T:
        """One of a pool, the first one for zero bytes."""
        return pool[self._fraction(place, len(pool))]

    def one_in(self, place: str, many: int) -> bool:
        """True in one of so many examples, and not in the simplest."""
        return self._fraction(place, many) == many - 1

    @cached_property
    def generator(self) -> np.random.Generator:
        """The one source of all numbers that are not digits; it has the place "numbers"."""
        return np.random.default_rng(self._fraction("numbers", 1 << 8 * SEED))

    def digits(self, place: str, shape: tuple[int, ...], base: int = 8) -> np.ndarray:
        """Integers in [0, base), zero for zero bytes: one for each byte (two bytes where the base needs them).

        An array of more elements repeats them in an order without order, so that its first elements stay what they are
        while its sizes shrink. The last byte is the first element: shrinking sorts bytes upward.
        """
        letters, size = self._letters(place, base), math.prod(shape)
        chosen = letters[:size] if size <= len(letters) else letters[_scattered(size, len(letters))]
        return chosen.reshape(shape)

    def flags(self, place: str, shape: tuple[int, ...], many: int) -> np.ndarray:
        """True for one element in so many, element by element where there are few, else by the generator; none for zero bytes."""
        letters: np.ndarray = self._letters(place, many) == many - 1
        size = math.prod(shape)
        if size <= len(letters):
            return letters[:size].reshape(shape)
        if not letters.any():
            return np.zeros(shape, bool)
        return np.asarray(self.generator.integers(0, many, size=shape) == many - 1)

    def _letters(self, place: str, base: int) -> np.ndarray:
        first, end = self._places[place]
        width = 1 if base <= 256 else 2
        read: np.ndarray = np.frombuffer(self._data[first:end], f">u{width}")[::-1].astype(np.int64)
        return read * base >> 8 * width

    def array(self, place: str, fill: str, shape: tuple[int, ...]) -> np.ndarray:
        """A float64 array of the named distribution (see `distributions`)."""
        if fill == "digits":
            return np.asarray(distributions.DIGITS[self.digits(place, shape)])
        return distributions.fill(fill, shape, 0 if fill in distributions.UNSEEDED else self.generator)


@lru_cache(maxsize=256)
def _scattered(size: int, letters: int) -> np.ndarray:
    """Which letter each of `size` elements is: the same in all examples, and the letters themselves first."""
    order = np.random.default_rng(0).integers(0, letters, size=size)
    order[:letters] = np.arange(letters)
    return order.astype(np.uint16)  # a place has far fewer letters, and 256 arrays are kept


@dataclass(frozen=True)
class Recipe(Generic[T]):
    """How a value is made from choices: the bytes that every place takes, and the maker. It may call `assume`."""

    places: Mapping[str, int]
    make: Callable[[Choices], T]


_recipes: WeakKeyDictionary[st.SearchStrategy[Any], Recipe[Any]] = WeakKeyDictionary()


def strategy(recipe: Recipe[T]) -> st.SearchStrategy[T]:
    """A Hypothesis strategy of what a recipe makes. `together` knows it again."""
    laid, string = _laid({"made": recipe})

    @st.composite
    def made(draw: Callable[[st.SearchStrategy[Any]], Any]) -> T:
        return recipe.make(Choices(draw(string), laid["made"]))

    search_strategy = made()
    _recipes[search_strategy] = recipe
    return search_strategy


def sampled(search_strategy: st.SearchStrategy[T], generator: np.random.Generator) -> T | None:
    """What a strategy of this module gives for random bytes, outside of a Hypothesis test; None where it assumes otherwise."""
    recipe = _recipes[search_strategy]
    laid, _ = _laid({"made": recipe})
    data = generator.bytes(sum(recipe.places.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisDeprecationWarning)  # assume() outside of a Hypothesis test
        try:
            made: T = recipe.make(Choices(data, laid["made"]))
        except UnsatisfiedAssumption:
            return None
    return made


def together(arguments: Mapping[str, Argument]) -> st.SearchStrategy[dict[str, Any]]:
    """All arguments by name: pools and what `strategy` made out of one string, other strategies each by itself."""
    recipes = {
        name: recipe
        for name, argument in arguments.items()
        if (recipe := _recipe_of(name, argument)) is not None
    }
    others = {
        name: argument for name, argument in arguments.items() if isinstance(argument, st.SearchStrategy)
    }
    laid, string = _laid(recipes)

    @st.composite
    def drawn(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
        data = draw(string)
        return {
            name: recipes[name].make(Choices(data, laid[name])) if name in recipes else draw(others[name])
            for name in arguments
        }

    return drawn()


def fields(
    where: Callable[[dict[str, Any]], bool] = lambda example: True, **pools: Sequence[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    """A dictionary with one of each pool, of those that `where` is true of."""

    def make(choices: Choices) -> dict[str, Any]:
        example = {name: choices.pick(name, pool) for name, pool in pools.items()}
        assume(where(example))
        return example

    return strategy(Recipe({name: _width(pool) for name, pool in pools.items()}, make))


# Around powers of two, and past them: where a chunk, a vector, a block or a buffer ends.
EDGES = (31, 32, 33, 63, 64, 65, 127, 128, 129, 160, 257)


def stretched(
    long: Mapping[str, Sequence[Any]],
    where: Callable[[dict[str, Any]], bool] = lambda example: True,
    **pools: Sequence[Any],
) -> st.SearchStrategy[dict[str, Any]]:
    """As `fields`, but in two of three examples one of the names in `long` is drawn from there, and the others from the
    simpler half of their pools: one dimension at a time is large, so that an example stays cheap."""
    which = ("",) * -(-len(long) // 2) + tuple(long)

    def make(choices: Choices) -> dict[str, Any]:
        large = choices.pick("stretched", which)
        example = {
            name: choices.pick(
                name,
                limited(name, long[name] if name == large else pool[: -(-len(pool) // 2)] if large else pool),
            )
            for name, pool in pools.items()
        }
        assume(where(example))
        return example

    widths = {name: max(_width(pool), _width(long.get(name, ()))) for name, pool in pools.items()}
    return strategy(Recipe({"stretched": _width(which), **widths}, make))


LIMITS: ContextVar[Mapping[str, tuple[int, int]]] = ContextVar("limits", default={})  # noqa: B039  # it is only read
LETTERS = {
    "batch": "B",
    "length": "L",
    "heads": "H",
    "size": "D",
    "inner": "F",
}  # of sizes that laws spell out


def limited(
    name: str, pool: Sequence[Any], limits: Mapping[str, tuple[int, int]] | None = None
) -> Sequence[Any]:
    """Those of a pool of sizes that lie within the limits of an implementation of few sizes, by default `LIMITS`; the largest
    that it takes if none does."""
    within = (LIMITS.get() if limits is None else limits).get(LETTERS.get(name, name))
    if within is None:
        return pool
    least, most = within
    return [size for size in pool if least <= size <= most] or (most,)


def several(pool: Sequence[T], most: int) -> st.SearchStrategy[list[T]]:
    """One to `most` of a pool."""
    counts = range(1, most + 1)

    def make(choices: Choices) -> list[T]:
        return [choices.pick(str(i), pool) for i in range(choices.pick("count", counts))]

    return strategy(Recipe({"count": _width(counts), **{str(i): _width(pool) for i in range(most)}}, make))


def _recipe_of(name: str, argument: Argument) -> Recipe[Any] | None:
    if isinstance(argument, st.SearchStrategy):
        return _recipes.get(argument)
    return Recipe({"one": _width(argument)}, lambda choices: choices.pick("one", limited(name, argument)))


def _width(pool: Sequence[Any]) -> int:
    """The bytes with which every candidate of a pool is nearly as likely as every other."""
    return 1 + ((len(pool) - 1).bit_length() + 7) // 8


def _laid(
    recipes: Mapping[str, Recipe[Any]],
) -> tuple[dict[str, dict[str, tuple[int, int]]], st.SearchStrategy[bytes]]:
    """Where the places of every recipe lie when they stand one after another, and the string of them all."""
    laid: dict[str, dict[str, tuple[int, int]]] = {}
    at = 0
    for name, recipe in recipes.items():
        laid[name] = {}
        for place, width in recipe.places.items():
            laid[name][place] = (at, at + width)
            at += width
    return laid, st.binary(min_size=at, max_size=at)
