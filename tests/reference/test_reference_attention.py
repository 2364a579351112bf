"""reference.attention against attention word by word with 50 digits: each option, and all together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpmath import mp

from qkverify.reference import attention, distance, scores, visible, weights

from .reference_oracles import DIGITS, attention_by_words, bounds, off

SIZES = {"B": 2, "H": 4, "G": 2, "Q": 4, "K": 5, "D": 3, "E": 2}


def problem(seed: int = 0, magnitude: float = 1.0, **sizes: int) -> tuple[Any, Any, Any]:
    """query (B,H,Q,D), key (B,G,K,D), value (B,G,K,E)."""
    n, random = {**SIZES, **sizes}, np.random.default_rng(seed)
    shapes = ("BHQD", "BGKD", "BGKE")
    query, key, value = (random.normal(size=[n[letter] for letter in letters]) for letters in shapes)
    return magnitude * query, magnitude * key, value


def numbers(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def some(*shape: int) -> Any:
    return np.random.default_rng(2).random(size=shape) < 0.6


INFINITE_BIAS = np.where(some(4, 5), numbers(4, 5), -np.inf)
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "causal": {"causal": True},
    "causal top-left": {"causal": True, "causal_alignment": "top-left"},
    "window": {"window": (1, 1)},
    "window top-left": {"window": (2, 0), "causal_alignment": "top-left"},
    "window to the left": {"window": (1, None)},
    "window to the right": {"window": (None, 0)},
    "window of nothing but itself": {"window": (0, 0)},
    "window wider than the keys": {"window": (9, 9)},
    "mask": {"mask": some(2, 4, 4, 5)},
    "mask of keys only": {"mask": np.array([True, False, True, True, False])},
    "mask of each batch entry": {"mask": some(2, 1, 1, 5)},
    "mask of nothing": {"mask": np.zeros((4, 5), dtype=bool)},
    "bias": {"bias": numbers(2, 4, 4, 5)},
    "bias of each head": {"bias": numbers(4, 1, 5)},
    "bias of -inf": {"bias": INFINITE_BIAS},
    "scale": {"scale": 1.7},
    "negative scale": {"scale": -0.3},
    "scale zero": {"scale": 0.0},
    "softcap": {"softcap": 0.8},
    "alibi": {"alibi_slopes": numbers(4)},
    "alibi top-left": {"alibi_slopes": numbers(4), "causal_alignment": "top-left"},
    "lengths": {"key_lengths": np.array([5, 2])},
    "lengths with an empty sequence": {"key_lengths": np.array([0, 4])},
    "sinks": {"sinks": numbers(4)},
    "sinks beside empty rows": {"sinks": numbers(4), "key_lengths": np.array([0, 4])},
    "sinks that take all": {"sinks": numbers(4) + 50.0},
    "everything": {
        "mask": some(2, 1, 4, 5), "bias": numbers(4, 4, 5), "causal": True, "window": (2, None), "scale": 0.9,
        "softcap": 1.3, "alibi_slopes": numbers(4), "key_lengths": np.array([5, 3]), "sinks": numbers(4),
    },
}  # fmt: skip


@pytest.mark.parametrize("magnitude", [1.0, 8.0])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_does_what_the_words_say(options: dict[str, Any], magnitude: float) -> None:
    inputs = problem(magnitude=magnitude)
    got, got_lse = attention(*inputs, return_lse=True, **options)
    bound, lse_bound = bounds(*inputs, **options)
    with mp.workdps(DIGITS):
        exact, lse = attention_by_words(*inputs, **options)
        assert off(got, exact, bound) <= 1
        assert off(got_lse, lse, lse_bound) <= 1


@pytest.mark.parametrize(
    "sizes",
    [
        {"Q": 7},
        {"K": 1},
        {"Q": 1},
        {"D": 1, "E": 5},
        {"H": 6, "G": 3},
        {"G": 4},
        {"G": 1},
        {"D": 64, "K": 33},
    ],
    ids=str,
)
def test_every_size_agrees_with_the_words(sizes: dict[str, int]) -> None:
    inputs = problem(seed=3, **sizes)
    got = attention(*inputs, causal=True)
    with mp.workdps(DIGITS):
        exact, _ = attention_by_words(*inputs, causal=True)
        assert off(got, exact, bounds(*inputs, causal=True)[0]) <= 1


def test_a_mistake_of_one_part_in_a_billion_would_be_seen() -> None:
    inputs = problem()
    with mp.workdps(DIGITS):
        exact, _ = attention_by_words(*inputs)
        assert off(attention(*inputs) * (1 + 1e-9), exact, bounds(*inputs)[0]) > 1
        assert off(attention(*inputs, scale=3**-0.5 * (1 + 1e-9)), exact, bounds(*inputs)[0]) > 1


@pytest.mark.parametrize("letter", "BHQKDE")
def test_any_size_may_be_zero(letter: str) -> None:
    sizes = {**SIZES, letter: 0} | ({"G": 0} if letter == "H" else {})
    output, lse = attention(*problem(**sizes), causal=True, return_lse=True)
    assert output.shape == tuple(sizes[x] for x in "BHQE")
    assert not output.any() or letter == "D"
    assert np.isneginf(lse).all() == (letter in "KBHQ")


def test_rows_that_see_nothing_follow_the_policy() -> None:
    query, key, value = problem(G=4)
    hidden = np.array([True, False, True, True])[:, None]
    outputs = {
        p: attention(query, key, value, mask=~hidden, empty_rows=p) for p in ("zero", "nan", "uniform")
    }
    rows = hidden[:, 0]
    assert (outputs["zero"][:, :, rows] == 0).all()
    assert np.isnan(outputs["nan"][:, :, rows]).all()
    means = np.broadcast_to(value.mean(axis=2, keepdims=True), outputs["zero"].shape)
    np.testing.assert_array_max_ulp(
        outputs["uniform"][:, :, rows], means[:, :, rows], maxulp=2 * value.shape[2]
    )
    expected = attention(query, key, value)[:, :, ~rows]
    assert all((output[:, :, ~rows] == expected).all() for output in outputs.values())


@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
def test_a_sink_takes_all_of_a_row_that_sees_nothing(policy: str) -> None:
    hidden, sinks = np.zeros((4, 5), dtype=bool), numbers(4)
    output, lse = attention(*problem(), mask=hidden, sinks=sinks, empty_rows=policy, return_lse=True)
    assert (output == 0).all()
    assert (lse == sinks[:, None]).all()


def test_the_weights_are_what_a_value_of_identity_shows() -> None:
    query, key, _ = problem(G=4)
    identity = np.broadcast_to(np.eye(5), (2, 4, 5, 5))
    options = {"causal": True, "softcap": 2.0}
    assert (attention(query, key, identity, **options) == weights(scores(query, key, **options))).all()


def test_an_infinite_cap_caps_nothing() -> None:
    inputs = problem()
    assert (attention(*inputs, softcap=np.inf) == attention(*inputs)).all()


def test_masks_drawn_as_pictures() -> None:
    def picture(**options: Any) -> list[str]:
        return ["".join(".#"[int(allowed)] for allowed in row) for row in visible(1, 3, 5, **options)]

    assert picture() == ["#####", "#####", "#####"]
    assert picture(causal=True) == ["###..", "####.", "#####"]
    assert picture(causal=True, causal_alignment="top-left") == ["#....", "##...", "###.."]
    assert picture(window=(1, 0)) == [".##..", "..##.", "...##"]
    assert picture(window=(1, 1), causal_alignment="top-left") == ["##...", "###..", ".###."]
    assert picture(window=(None, 1)) == ["####.", "#####", "#####"]
    assert picture(window=(1, None), causal=True) == [".##..", "..##.", "...##"]


def test_alignment_stays_with_the_key_array_where_sequences_are_shorter() -> None:
    allowed = visible(2, 2, 4, causal=True, key_lengths=np.array([2, 4]))
    assert allowed[0, 0].tolist() == [[True, True, False, False]] * 2
    assert allowed[1, 0].tolist() == [[True, True, True, False], [True, True, True, True]]


def test_distance_is_counted_from_the_position_of_the_query() -> None:
    assert distance(2, 4).tolist() == [[2, 1, 0, 1], [3, 2, 1, 0]]
    assert distance(2, 4, "top-left").tolist() == [[0, 1, 2, 3], [1, 0, 1, 2]]


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4)), ["(1, 2, 3, 4)", "(1, 2, 3, 5)"]),
        (((1, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)), ["(1, 2, 3, 4)", "(2, 2, 3, 4)"]),
        (((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 4, 4)), ["(1, 2, 3, 4)", "(1, 2, 4, 4)"]),
        (((1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)), ["(1, 3, 3, 4)", "(1, 2, 3, 4)", "multiple"]),
        (((1, 3, 3, 4), (1, 0, 3, 4), (1, 0, 3, 4)), ["(1, 3, 3, 4)", "(1, 0, 3, 4)", "multiple"]),
        (((3, 4), (3, 4), (3, 4)), ["four axes"]),
    ],
)
def test_sizes_that_do_not_fit_are_named(shapes: Any, named: list[str]) -> None:
    with pytest.raises(ValueError, match=r"query|key") as error:
        attention(*(np.zeros(shape) for shape in shapes))
    assert all(name in str(error.value) for name in named)


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 1, 1, 1), (1, 2, 4, 4, 5), (2, 4, 4, 4)])
def test_a_mask_or_bias_that_does_not_broadcast_is_named(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=name) as error:
        attention(*problem(), **{name: np.ones(shape, dtype=bool)})
    assert str(shape) in str(error.value)
    assert "(2, 4, 4, 5)" in str(error.value)
