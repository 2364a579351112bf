"""One string of bytes decides an example: evenly, each decision by itself, and toward the simplest."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from qkverify.problem.byte_strategies import (
    DIGITS,
    SEED,
    Choices,
    Recipe,
    fields,
    several,
    strategy,
    stretched,
    together,
)
from qkverify.strategies.attention_problems import problems

PLACES = {"first": (0, 2), "second": (2, 4), "numbers": (4, 8), "digits": (8, 16)}


def drawn(source: st.SearchStrategy[Any], count: int = 100) -> list[Any]:
    """So many examples of a strategy."""
    examples: list[Any] = []

    @settings(max_examples=count, database=None, phases=(Phase.generate,), deadline=None)
    @given(source)
    def collect(value: Any) -> None:
        examples.append(value)

    collect()
    return examples


def test_zero_bytes_are_the_simplest() -> None:
    choices = Choices(bytes(16), PLACES)
    assert choices.pick("first", ("simple", "other")) == "simple"
    assert not choices.one_in("second", 2)
    assert not choices.digits("digits", (2, 2)).any()
    assert not choices.digits("digits", (5, 7)).any()  # more elements than bytes
    assert not choices.array("digits", "digits", (3, 3)).any()
    assert not choices.flags("digits", (5, 7), 2).any()


@pytest.mark.parametrize("count", [1, 2, 3, 40, 54, 256])
def test_candidates_are_nearly_equally_likely(count: int) -> None:
    places = {"one": (0, 2)}
    picked = Counter(Choices(n.to_bytes(2, "big"), places).pick("one", range(count)) for n in range(1 << 16))
    assert len(picked) == count
    assert max(picked.values()) - min(picked.values()) <= 1


def test_a_decision_moves_no_other() -> None:
    def read(data: bytes) -> tuple[Any, ...]:
        choices = Choices(data, PLACES)
        return (
            choices.pick("first", range(100)),
            choices.pick("second", range(100)),
            choices.digits("digits", (4,)).tolist(),
        )

    base = bytes(range(60, 76))
    changed = read(bytes([250]) + base[1:])
    assert changed[0] != read(base)[0]
    assert changed[1:] == read(base)[1:]


def test_few_elements_are_decided_one_by_one_and_many_by_the_generator() -> None:
    data = bytes(8) + bytes([1, 0, 0, 0, 64, 32, 255, 0])
    assert Choices(data, PLACES).digits("digits", (2, 2)).tolist() == [[0, 7], [1, 2]]
    assert Choices(data, PLACES).digits("digits", (2,), base=1000).tolist() == [996, 250]  # two bytes each
    many = Choices(data, PLACES).digits("digits", (10, 10)).ravel()
    assert many[:8].tolist() == [0, 7, 1, 2, 0, 0, 0, 0]
    assert set(many[8:]) == {0, 1, 2, 7}
    assert Choices(data, PLACES).flags("digits", (2, 4), 4).tolist() == [
        [False, True, *[False] * 2],
        [False] * 4,
    ]
    assert 10 < Choices(data, PLACES).flags("digits", (10, 10), 4).sum() < 40


def test_many_elements_keep_their_first_ones_while_sizes_shrink() -> None:
    choices = Choices(bytes(range(16, 32)), PLACES)
    for size in (3, 8, 9, 40):
        np.testing.assert_array_equal(
            choices.digits("digits", (size,)), choices.digits("digits", (2000,))[:size]
        )


def test_examples_are_no_copies_of_one_another() -> None:
    """What one draw for every decision gave: 149 different sizes in 500 problems."""
    sizes = Counter(tuple(example["problem"].sizes.values()) for example in drawn(
        together({"problem": problems(), "factor": (1, 2, 3), "seed": range(1000)}), 200
    ))  # fmt: skip
    assert len(sizes) > 180


@pytest.mark.parametrize("seed", range(5))
def test_what_is_not_asked_for_shrinks_to_nothing(seed: int) -> None:
    problem = find(
        problems(),
        lambda p: p.causal and p.sizes["Q"] >= 3 and p.value.max(initial=0) >= 1,
        settings=settings(database=None, max_examples=2000, deadline=None),
        random=Random(seed),
    )
    assert problem.sizes == {"B": 1, "H": 1, "G": 1, "Q": 3, "K": 2, "D": 1, "E": 1}
    assert problem.options == {"causal": True}
    assert not problem.layouts
    assert sorted(problem.value.ravel()) == [0, 1]


def test_arguments_of_every_kind_go_together() -> None:
    arguments = {
        "problem": problems(only=()), "pool": ("a", "b"), "range": range(5, 7), "own": st.text("xy", max_size=2),
        "several": several((1, 2, 3), most=4), "fields": fields(lambda f: f["n"] != f["m"], n=(1, 2), m=(1, 2)),
    }  # fmt: skip
    examples = drawn(together(arguments), 60)
    assert {e["pool"] for e in examples} == {"a", "b"}
    assert {e["range"] for e in examples} == {5, 6}
    assert {len(e["several"]) for e in examples} == {1, 2, 3, 4}
    assert all(e["fields"]["n"] != e["fields"]["m"] for e in examples)
    assert len({e["own"] for e in examples}) > 3
    assert list(examples[0]) == list(arguments)


def test_one_dimension_at_a_time_is_stretched() -> None:
    made = stretched(
        {"n": (100, 200), "m": (300,)}, lambda f: f["n"] != f["m"], n=(1, 2, 3, 4), m=(5, 6), k=(1, 2)
    )
    examples = drawn(made, 200)
    assert examples[0] == {"n": 1, "m": 5, "k": 1}  # the simplest one
    large = [{name for name, value in e.items() if value >= 100} for e in examples]
    assert {frozenset(names) for names in large} == {frozenset(), frozenset({"n"}), frozenset({"m"})}
    assert {e["n"] for e in examples} == {1, 2, 3, 4, 100, 200}
    assert all(e["n"] in (1, 2) and e["k"] == 1 for e in examples if e["m"] == 300)
    assert 90 < sum(map(bool, large)) < 180


def test_without_any_recipe_nothing_is_drawn_in_vain() -> None:
    assert drawn(together({}), 5) == [{}]


def test_a_recipe_is_a_strategy_like_any_other() -> None:
    pair = strategy(
        Recipe(
            {"a": 1, "b": 1, "numbers": SEED, "c": DIGITS}, lambda c: (c.pick("a", "xy"), c.pick("b", "xy"))
        )
    )
    assert set(drawn(st.lists(pair.map(lambda p: p[0] + p[1]), min_size=1), 50)[-1]) <= {
        "xx",
        "xy",
        "yx",
        "yy",
    }
