"""Types of layers: each is what its definition says, does the work that its formula counts, and its growth is found."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from qkverify.errors import UsageError
from qkverify.results import Complexity, Travel
from qkverify.timing.clocks import ThreadClock
from qkverify.timing.complexity import (
    Span,
    all_layers,
    checking,
    counting,
    fitting,
    layer,
    measuring,
    tracing,
)
from qkverify.timing.complexity.layers import convolution, restricted_attention
from qkverify.timing.complexity.measuring import (
    FrameworkOnDevice,
    LayerSeries,
    measure,
    measure_series,
    one_thread,
)
from qkverify.timing.grid import OUT_OF_TIME

NUMPY = FrameworkOnDevice("numpy", "cpu")
NAMES = [layer.name for layer in all_layers()]


def places() -> list[FrameworkOnDevice]:
    return measuring.places(["cpu"])


# -- What the layers are ------------------------------------------------------------------------------------


def test_the_layers_are_those_of_the_table_and_a_plain_product() -> None:
    assert {layer.name: (layer.formula, layer.steps, layer.path) for layer in all_layers()} == {
        "matrix product": ("A B C", "1", ""),
        "self-attention": ("n² d", "1", "1"),
        "recurrent": ("n d²", "n", "n"),
        "convolution": ("k n d²", "1", "n / k"),
        "dilated convolution": ("k n d²", "1", "logₖ n"),
        "restricted attention": ("r n d", "1", "n / r"),
    }


def test_an_unknown_layer_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'recurrent'"):
        layer("recurent")


@pytest.mark.parametrize("place", places(), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_code_that_is_timed_is_the_layer_of_its_definition(name: str, place: FrameworkOnDevice) -> None:
    for seed in range(5):
        assert 0 < checking.margin(layer(name), *place, seed=seed) <= 1


def numpy_of(name: str) -> Any:
    return layer(name).numpy


def without_tanh(x: Any, inward: Any, onward: Any, sizes: Any) -> Any:
    state, states = np.zeros(sizes["d"], np.float32), []
    for row in x:
        state = row @ inward + state @ onward
        states.append(state)
    return np.stack(states)


WRONG = {
    "forgets its last state": ("recurrent", lambda x, w, u, s: np.tanh(x @ w)),
    "is linear": ("recurrent", without_tanh),
    "takes the neighbours in reverse": (
        "convolution",
        lambda x, w, s: numpy_of("convolution")(x, w[::-1], s),
    ),
    "sees the next position": (
        "convolution",
        lambda x, w, s: numpy_of("convolution")(np.roll(x, -1, axis=0), w, s),
    ),
    "ignores the dilation": (
        "dilated convolution",
        lambda x, w, s: numpy_of("convolution")(x, w, {**s, "dilation": 1}),
    ),
    "does not scale": (
        "self-attention",
        lambda q, k, v, s: numpy_of("self-attention")(q * np.float32(s["d"] ** 0.5), k, v, s),
    ),
    "looks at every position": ("restricted attention", numpy_of("self-attention")),
    "has a window that is one off": (
        "restricted attention",
        lambda q, k, v, s: numpy_of("restricted attention")(
            q, np.roll(k, 1, axis=0), np.roll(v, 1, axis=0), s
        ),
    ),
    "is wrong in the fifth digit": ("matrix product", lambda a, b, s: a @ b * np.float32(1.00002)),
    "transposes": ("matrix product", lambda a, b, s: (a @ b).T),
    "is not a number": ("matrix product", lambda a, b, s: a @ b * np.float32(np.nan)),
}


@pytest.mark.parametrize("what", WRONG)
def test_code_that_is_another_layer_is_seen(what: str) -> None:
    name, perform = WRONG[what]
    assert checking.margin(layer(name), *NUMPY, perform=perform) > 1


# -- What they cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", places(), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_counted_multiply_adds_are_those_of_the_formula(name: str, place: FrameworkOnDevice) -> None:
    assert checking.miscounted(layer(name), *place) == ""


def test_another_count_than_the_formulas_is_said() -> None:
    claimed = replace(layer("self-attention"), formula="n d", exponents={"n": 1, "d": 1})
    said = checking.miscounted(claimed, *NUMPY)
    assert said == "150 multiply-adds were counted at {'n': 5, 'd': 3}, and n d says 30"


@pytest.mark.parametrize("name", NAMES)
def test_counting_changes_no_result(name: str) -> None:
    known = layer(name)
    inputs = known.inputs(known.check_at[0], np.random.default_rng(0))
    counted = [counting.Counted.of(x, [0]) for x in inputs]
    product = known.numpy(*counted, known.check_at[0])
    np.testing.assert_array_equal(np.asarray(product), known.numpy(*inputs, known.check_at[0]))


def test_products_are_counted_of_any_shape() -> None:
    tally, ones = [0], np.ones((2, 3, 4))
    _ = counting.Counted.of(ones, tally) @ np.ones((4, 5))  # 2 x 3 x 5 sums of 4
    assert tally == [2 * 3 * 5 * 4]
    _ = np.ones(3) @ counting.Counted.of(ones[0], tally)
    assert tally == [2 * 3 * 5 * 4 + 4 * 3]


# -- How far signals travel ---------------------------------------------------------------------------------


def traced(name: str) -> list[tuple[int, dict[str, int]]]:
    sizes = {"d": 3, "k": 3, "r": 9, "A": 4, "B": 5, "C": 6}
    return [(n, {**sizes, "n": n}) for n in (2, 9, 10, 27, 28, 40)]


@pytest.mark.parametrize("name", NAMES)
def test_sequential_steps_are_those_of_theory(name: str) -> None:
    known = layer(name)
    assert [tracing.steps(known, sizes) for _, sizes in traced(name)] == [
        known.steps_at(sizes) for _, sizes in traced(name)
    ]


@pytest.mark.parametrize("name", [name for name in NAMES if layer(name).path])
def test_paths_are_those_of_theory(name: str) -> None:
    known = layer(name)
    assert [tracing.path(known, sizes)[0] for _, sizes in traced(name)] == [
        known.path_at(sizes) for _, sizes in traced(name)
    ]


def test_the_orders_of_the_table_by_their_numbers() -> None:
    at_27 = {layer.name: tracing.path(layer, traced("")[3][1]) for layer in all_layers() if layer.path}
    assert at_27 == {
        "self-attention": (1, 1),
        "recurrent": (27, 1),
        "convolution": (13, 13),
        "dilated convolution": (3, 3),
        "restricted attention": (7, 7),
    }


@pytest.mark.parametrize("name", [name for name in NAMES if layer(name).path])
def test_gradients_need_as_many_layers_as_the_chains_say(name: str) -> None:
    pytest.importorskip("torch")
    for n, sizes in traced(name):
        assert tracing.reached_in(layer(name), sizes) == tracing.path(layer(name), sizes)[1], n


def test_a_layer_that_waits_is_seen_to_wait() -> None:
    def one_after_another(query: Any, key: Any, value: Any, sizes: Any) -> Any:
        total = query[:1]
        for row in key:
            total = total + total @ row[:, None]
        return np.concatenate([total] * sizes["n"])

    waiting = replace(layer("self-attention"), numpy=one_after_another)
    assert tracing.steps(waiting, {"n": 12, "d": 3}) == 12


def test_ends_that_nothing_connects_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_LAYERS", 20)
    with pytest.raises(RuntimeError, match="do not connect"):
        tracing.path(replace(layer("convolution"), numpy=lambda x, w, s: x @ w[0]), {"n": 8, "d": 2, "k": 3})


def test_dilation_needs_the_smallest_power_that_is_enough() -> None:
    needed = {n: convolution.layers_to_reach({"n": n, "k": 3}) for n in (2, 3, 4, 9, 10, 27, 28)}
    assert needed == {2: 1, 3: 1, 4: 2, 9: 2, 10: 3, 27: 3, 28: 4}


def test_windows_hold_r_positions() -> None:
    assert [sum(restricted_attention.reach({"r": r})) + 1 for r in (1, 2, 3, 8, 9)] == [1, 2, 3, 8, 9]


# -- Exponents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1, 2, 3])
def test_an_exact_power_is_found_exactly(power: float) -> None:
    fitted = fitting.fit([1, 2, 4, 8], [3.0 * n**power for n in (1, 2, 4, 8)])
    assert fitted is not None
    assert fitted.exponent == pytest.approx(power)
    assert fitted.high - fitted.low < 1e-6


def test_only_the_largest_sizes_are_fitted() -> None:
    sizes = [2**i for i in range(12)]
    with_fixed_cost = [1000.0 if n < 2**6 else float(n) for n in sizes]
    fitted = fitting.fit(sizes, with_fixed_cost)
    assert fitted is not None
    assert (fitted.first, fitted.last, round(fitted.exponent, 6)) == (2**6, 2**11, 1.0)


def test_the_shortest_times_are_fitted() -> None:
    disturbed = msgspec.structs.replace(
        grown([1, 2, 4, 8], [1.0, 2.0, 4.0, 8.0]), seconds=[[5.0, 1.0, 9.0], [2.0], [4.0, 7.0], [80.0, 8.0]]
    )
    growth = fitting.growth(disturbed)
    assert growth is not None
    assert growth.exponent == pytest.approx(1)


def test_a_size_without_times_is_left_out() -> None:
    gap = msgspec.structs.replace(grown([1, 2, 4, 8], [1.0] * 4), seconds=[[1.0], [], [4.0], [8.0]])
    growth = fitting.growth(gap)
    assert growth is not None
    assert (growth.first, growth.last, growth.exponent) == (1, 8, pytest.approx(1))


def test_two_sizes_make_no_exponent() -> None:
    assert fitting.fit([1, 2], [1.0, 2.0]) is None


def test_the_interval_is_that_of_scipys_line() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    sizes = [16, 24, 32, 48, 64, 96]
    seconds = [n**1.5 * math.exp(rng.normal(0, 0.1)) for n in sizes]
    fitted, line = fitting.fit(sizes, seconds), scipy_stats.linregress(np.log(sizes), np.log(seconds))
    assert fitted is not None
    reach = scipy_stats.t.ppf(0.975, len(sizes) - 2) * line.stderr
    expected = (line.slope, line.slope - reach, line.slope + reach)
    assert (fitted.exponent, fitted.low, fitted.high) == pytest.approx(expected)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 21])
def test_students_quantile_is_scipys(freedom: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for probability in (0.5, 0.9, 0.975, 0.999):
        expected = scipy_stats.t.ppf(probability, freedom)
        assert fitting.student(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, sizes = np.random.default_rng(1), [2**i for i in range(6)]
    noise = np.exp(rng.normal(0, 0.05, (2000, 6)))
    fits = [fitting.fit(sizes, list(np.array(sizes) ** 2 * row)) for row in noise]
    share = np.mean([f.low <= 2 <= f.high for f in fits if f])
    assert abs(share - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)  # three standard errors of a share


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((1.8, 2.1), "agrees"),
        ((1.51, 2.49), "agrees"),
        ((1.4, 2.1), "undecided"),
        ((1.9, 2.7), "undecided"),
        ((0.9, 1.1), "differs"),
        ((2.6, 3.0), "differs"),
    ],
)
def test_theory_agrees_where_no_other_whole_power_fits(interval: tuple[float, float], word: str) -> None:
    assert fitting.FittedExponent(sum(interval) / 2, *interval, 1, 2).word(2) == word


def grown(sizes: list[int], seconds: list[float], multiply_adds: list[int] | None = None) -> Complexity:
    return Complexity(
        layer="made up",
        formula="n",
        factor=1,
        variable="n",
        theory=1,
        implementation="numpy",
        device="cpu",
        dtype="float32",
        clock="thread",
        threads=1,
        fixed={},
        sizes=sizes,
        multiply_adds=multiply_adds or sizes,
        seconds=[[s, 2 * s] for s in seconds],
        rounds=[[0, 1] for _ in seconds],
    )


def test_the_crossing_of_two_powers_is_where_they_are_equal() -> None:
    steep = grown([2, 8, 32], [float(n * n) for n in (2, 8, 32)])
    flat = grown([4, 16, 64], [10.0 * n for n in (4, 16, 64)])
    assert fitting.crossing(steep, flat) == pytest.approx(10)
    assert fitting.crossing(flat, steep) == math.inf  # it is the longer one at first, and not for good


def test_a_crossing_of_counts_does_not_look_at_times() -> None:
    steep = grown([2, 8, 32], [1.0, 1.0, 1.0], [n * n for n in (2, 8, 32)])
    flat = grown([2, 8, 32], [5.0, 5.0, 5.0], [5 * n for n in (2, 8, 32)])
    assert fitting.crossing(steep, flat, counts=True) == pytest.approx(5)
    assert (fitting.crossing(steep, flat), fitting.crossing(flat, steep)) == (math.inf, 0.0)


def test_without_sizes_in_common_there_is_no_crossing() -> None:
    assert math.isnan(fitting.crossing(grown([2, 4], [1.0, 2.0]), grown([8, 16], [1.0, 2.0])))
    assert math.isnan(fitting.crossing(grown([], []), grown([8, 16], [1.0, 2.0])))


# -- Measuring ----------------------------------------------------------------------------------------------


def burning(power: float) -> Any:
    """The plain product, and then busy for a time that grows with A^power, whatever the machine."""

    def perform(left: Any, right: Any, sizes: Any) -> Any:
        end = time.thread_time() + 2e-6 * sizes["A"] ** power
        product = left @ right
        while time.thread_time() < end:
            pass
        return product

    small = {"A": Span(8, {"B": 2, "C": 2}, multiple=4)}
    return replace(layer("matrix product"), numpy=perform, spans=small)


@pytest.mark.parametrize(("power", "word"), [(1, "agrees"), (2, "differs")])
def test_growth_is_found_whatever_theory_says(power: int, word: str) -> None:
    pytest.importorskip("threadpoolctl")  # else the clock is the host's, and counts what other programs took
    (record,) = measure_series(LayerSeries(burning(power), "A"), [NUMPY], budget_seconds=0.5)
    growth = fitting.growth(record)
    assert growth is not None
    assert growth.word(record.theory) == word
    assert fitting.counted(record) == pytest.approx(1)  # operations do not tell: only the times do


def test_a_record_holds_what_was_measured() -> None:
    (record,) = measure_series(LayerSeries(layer("self-attention"), "n"), [NUMPY], budget_seconds=0.2)
    assert (record.layer, record.variable, record.theory, record.fixed) == (
        "self-attention",
        "n",
        2,
        {"d": 128},
    )
    assert record.sizes == sorted(set(record.sizes))
    assert record.multiply_adds == [2 * n * n * 128 for n in record.sizes]
    assert [len(times) for times in record.seconds] == [len(rounds) for rounds in record.rounds]
    assert all(len(times) >= 3 and min(times) > 0 for times in record.seconds)
    assert 0 < (record.margin or 0) <= 1
    assert record.reason == ""


def test_each_size_doubles_the_work_but_for_whole_blocks() -> None:
    for series in measuring.series():
        span, power = series.layer.spans[series.variable], series.layer.exponents[series.variable]
        for step in range(20):
            size = series.sizes(step)[series.variable]
            assert size % span.multiple == 0
            assert abs(size - span.start * 2 ** (step / power)) <= span.multiple / 2


def test_what_is_another_layer_is_not_timed() -> None:
    wrong = replace(layer("matrix product"), numpy=lambda a, b, s: 2 * (a @ b))
    (record,) = measure_series(LayerSeries(wrong, "A"), [NUMPY], budget_seconds=0.2)
    assert (record.sizes, record.seconds) == ([], [])
    assert record.reason.endswith("times its bound away from the definition")
    assert record.margin is not None
    assert record.margin > 1


def test_what_does_other_work_is_not_timed() -> None:
    twice = replace(layer("matrix product"), numpy=lambda a, b, s: (a @ b + a @ b) / 2)
    (record,) = measure_series(LayerSeries(twice, "A"), [NUMPY], budget_seconds=0.2)
    assert record.seconds == []
    assert "multiply-adds were counted" in record.reason


def test_sizes_that_ran_stay_where_a_larger_one_fails() -> None:
    def perform(left: Any, right: Any, sizes: Any) -> Any:
        if sizes["A"] > 50:
            raise MemoryError("no room")
        return left @ right

    short = replace(layer("matrix product"), numpy=perform)
    (record,) = measure_series(LayerSeries(short, "A"), [NUMPY], budget_seconds=0.2)
    assert record.sizes == [16, 32]
    assert all(record.seconds)
    assert record.reason == "raised MemoryError: no room"


def test_a_place_that_fails_does_not_stop_the_others() -> None:
    pytest.importorskip("torch")

    def failing(left: Any, right: Any, sizes: Any) -> Any:
        raise RuntimeError("not today")

    half = replace(layer("matrix product"), torch=failing)
    in_numpy, in_torch = measure_series(
        LayerSeries(half, "A"), [NUMPY, FrameworkOnDevice("torch", "cpu")], budget_seconds=0.3
    )
    assert in_numpy.seconds
    assert (in_torch.seconds, in_torch.reason) == ([], "raised RuntimeError: not today")


def test_without_a_budget_chains_are_traced_and_times_say_why_not() -> None:
    records = list(measure(0, devices=["cpu"]))
    assert [r.layer for r in records if isinstance(r, Travel)] == NAMES
    timed = [r for r in records if isinstance(r, Complexity)]
    assert len(timed) == len(measuring.series()) * len(places())
    assert {r.reason for r in timed} == {OUT_OF_TIME}


def test_a_whole_run_times_every_layer_at_every_place() -> None:
    records = [r for r in measure(1.0, devices=["cpu"]) if isinstance(r, Complexity)]
    assert len(records) == len(measuring.series()) * len(places())
    assert [r.reason for r in records if not any(r.seconds) or r.reason] == []


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch on two threads, whatever the environment says."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_are_as_before_afterwards() -> None:
    torch, pools = pytest.importorskip("torch"), pytest.importorskip("threadpoolctl")
    before = torch.get_num_threads(), [pool["num_threads"] for pool in pools.threadpool_info()]
    with one_thread() as threads:
        assert (threads, torch.get_num_threads()) == (1, 1)
        assert {pool["num_threads"] for pool in pools.threadpool_info()} == {1}
    assert (torch.get_num_threads(), [pool["num_threads"] for pool in pools.threadpool_info()]) == before


def test_on_one_thread_the_clock_is_its_own() -> None:
    pytest.importorskip("threadpoolctl")
    (record,) = measure_series(LayerSeries(layer("matrix product"), "A"), [NUMPY], budget_seconds=0.1)
    assert (record.threads, record.clock) == (1, "thread")


def test_without_threadpoolctl_the_clock_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    (record,) = measure_series(LayerSeries(layer("matrix product"), "A"), [NUMPY], budget_seconds=0.1)
    assert (record.threads, record.clock) == (None, "host")


def test_the_threads_own_clock_does_not_count_waiting() -> None:
    def busy() -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    assert ThreadClock().sample(lambda: time.sleep(0.05)) < 0.02
    assert ThreadClock().sample(busy) >= 0.02
