"""Times of operations other than attention: who is timed, what is checked, and what is refused a time."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np
import pytest

from qkverify.contract import Implementation, describe, registry
from qkverify.results import OperationTiming
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OperationCall
from qkverify.strategies.operations import OPERATION_SPECS
from qkverify.timing import operation_times
from qkverify.timing.measurement import Prepared, checked, run_of
from qkverify.timing.operation_case import OperationCase
from qkverify.timing.operation_check import thinned
from qkverify.timing.operation_sizes import OPERATION_CASES
from qkverify.timing.sampling import FEWEST_ROUNDS


def softmax(scores: Any) -> Any:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def declared(function: Any) -> Implementation:
    return describe(
        function, name=function.__name__, arrays="numpy", dtypes=("float32",), operation="softmax"
    )


def timed(*implementations: Implementation, budget_seconds: float = 0.05) -> list[OperationTiming]:
    return list(operation_times.measure(implementations, budget_seconds=budget_seconds, devices=("cpu",)))


def test_every_operation_has_a_short_and_a_long_case() -> None:
    assert OPERATION_CASES.keys() == OPERATION_SPECS.keys()
    for cases in OPERATION_CASES.values():
        assert [case.name for case in cases] == ["short", "long"]
        short, long = (case.shown for case in cases)
        assert short.keys() == long.keys()
        assert all(short[letter] <= long[letter] for letter in short)
        assert short != long


@pytest.mark.parametrize(
    "case", [cases[0] for cases in OPERATION_CASES.values()], ids=lambda case: case.operation
)
def test_what_is_here_is_timed_within_its_bound(case: OperationCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_times, "OPERATION_CASES", {case.operation: [case]})
    here = [
        implementation
        for implementation in registry.load_folder()
        if implementation.operation == case.operation
    ]
    timings = timed(*here)
    assert {timing.implementation for timing in timings} == {
        implementation.name for implementation in here if "float32" in implementation.dtypes
    }
    for timing in timings:
        assert timing.reason == ""
        assert timing.seconds
        assert timing.margin is not None
        assert timing.margin <= 1


def test_both_take_turns_in_the_same_rounds() -> None:
    def another(scores: Any) -> Any:
        return softmax(scores)

    timings = timed(declared(softmax), declared(another), budget_seconds=20.0)
    assert [(t.case, t.implementation) for t in timings] == [
        ("short", "softmax"), ("short", "another"), ("long", "softmax"), ("long", "another"),
    ]  # fmt: skip
    assert timings[0].sizes == {"B": 8, "L": 128, "K": 128}
    assert len({*timings[0].rounds} & {*timings[1].rounds}) >= FEWEST_ROUNDS


def wrong(scores: Any) -> Any:
    return softmax(scores) * np.float32(1.01)


def wrong_when_large(scores: Any) -> Any:
    return softmax(scores) if scores.shape[-1] <= 128 else wrong(scores)


def raises(scores: Any) -> Any:
    raise RuntimeError("no room for it")


def remembering() -> Any:
    answers: dict[int, Any] = {}

    def replays(scores: Any) -> Any:
        address = scores.__array_interface__["data"][0]
        if address not in answers:
            answers[address] = softmax(scores)
        return answers[address]

    return replays


@pytest.mark.parametrize(
    ("function", "reasons"),
    [
        (wrong, ["times its bound away from the reference"] * 2),
        (wrong_when_large, ["", "times its bound away from the reference"]),
        (raises, ["raised RuntimeError: no room for it"] * 2),
    ],
    ids=["wrong", "wrong when large", "raises"],
)
def test_what_is_wrong_at_a_size_has_no_time_there(function: Any, reasons: list[str]) -> None:
    timings = timed(declared(function), declared(softmax))
    mine = [timing for timing in timings if timing.implementation != "softmax"]
    for timing, reason in zip(mine, reasons, strict=True):
        assert bool(timing.seconds) is (reason == "")
        assert reason in timing.reason
    assert all(timing.seconds for timing in timings if timing.implementation == "softmax")


def test_what_replays_by_address_is_wrong_or_seen_to_remember() -> None:
    """Which of the two depends on the addresses that come back."""
    timings = timed(declared(remembering()), declared(softmax))
    for timing in timings:
        assert bool(timing.seconds) is (timing.implementation == "softmax")
        if timing.implementation != "softmax":
            assert re.search(
                "remembers an earlier call|times its bound away from the reference", timing.reason
            )


# Cheats, of every operation


def first_array(values: Any) -> np.ndarray:
    """The first array of numbers among arguments, as NumPy sees it."""
    for value in values:
        if isinstance(value, dict):
            return first_array(value.values())
        if hasattr(value, "shape") and "int" not in str(value.dtype):
            return np.asarray(value)
    raise AssertionError("no array")


def cheating(function: Any, cheat: str) -> Any:
    """The function, and a way to seem fast."""
    last: dict[Any, Any] = {}

    @functools.wraps(function)
    def replays(*arguments: Any, **options: Any) -> Any:
        array = first_array(arguments)
        mark = array.ctypes.data if cheat == "by address" else array.tobytes()
        if mark not in last:
            last.clear()
            last[mark] = function(*arguments, **options)
        return last[mark]

    @functools.wraps(function)
    def lazy(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        parts = result if isinstance(result, tuple) else (result,)
        subclassed = tuple(x.view(Sub) if isinstance(x, np.ndarray) else x.as_subclass(sub()) for x in parts)
        return subclassed if isinstance(result, tuple) else subclassed[0]

    return lazy if cheat == "lazy" else replays


class Sub(np.ndarray):
    """A subclass, which may do anything when it is read."""


def sub() -> Any:
    import torch

    return type("SubTensor", (torch.Tensor,), {})


WITH_ARRAYS = [name for name, form in OPERATION_SPECS.items() if form.has_arrays]
SAID = {
    "by address": "remembers an earlier call",
    "by content": "remembers its last result",
    "lazy": "what it computes when it is read",
}


@functools.cache
def honest(operation: str) -> Implementation:
    return next(
        i for i in registry.load_folder() if i.operation == operation and i.arrays in ("numpy", "torch")
    )


@pytest.mark.parametrize("cheat", ["by address", "lazy"])
@pytest.mark.parametrize("operation", WITH_ARRAYS)
def test_who_cheats_at_an_operation_is_refused(operation: str, cheat: str) -> None:
    """Two calls and the check are enough: nothing here depends on how long anything takes."""
    ready = prepared(operation, cheat)
    for _ in range(2):
        ready.renew(1)
        ready.call()
    margin, said = checked(ready)
    assert margin is None
    # of layers nobody can tell what belonged to the numbers before: with full weights the bound would let anything pass
    assert SAID[cheat] in said or ("layer" in operation and "times its bound away" in said)


def prepared(operation: str, cheat: str) -> Prepared:
    mine = honest(operation)
    mine = dataclasses.replace(mine, function=cheating(mine.function, cheat))
    case, run = OPERATION_CASES[operation][0], Run(mine)
    return operation_times._prepared(case, run, 0, operation_times.Known())


@pytest.mark.parametrize("operation", ["feed_forward", "packed_attention"])
def test_who_remembers_the_numbers_of_an_operation_is_refused(operation: str) -> None:
    ready = prepared(operation, "by content")
    ready.call()
    seconds = [ready.clock.sample(ready.call) for _ in range(4)]
    margin, said = checked(ready, seconds)
    assert margin is not None
    assert margin <= 1  # it is right, and no faster than it says
    assert SAID["by content"] in said


def test_who_leaves_out_the_work_of_an_operation_in_the_middle_is_refused() -> None:
    mine, number = honest("softmax"), iter(range(100))

    @functools.wraps(mine.function)
    def sometimes(scores: Any) -> Any:
        result = mine.function(scores)
        return result if next(number) != 1 else result * 0

    run = Run(dataclasses.replace(mine, function=sometimes))
    ready = operation_times._prepared(OPERATION_CASES["softmax"][0], run, 0, operation_times.Known())
    assert ready.kept is not None
    ready.call()
    ready.kept.keep(ready.call())
    assert "one in the middle returned a wrong result" in checked(ready)[1]


@pytest.mark.parametrize("operation", OPERATION_CASES)
def test_the_bound_of_a_long_case_is_narrow_enough_to_judge(operation: str) -> None:
    run, case = run_of(honest(operation), "cpu", "float32"), OPERATION_CASES[operation][1]
    call = thinned(operation, operation_times._drawn(case, run, 5), 5)
    for part in call.exact(run):
        bound = run.within(part.value, part).errors
        assert np.isfinite(bound).all()
        assert np.median(bound) < 0.02 * np.abs(part.value).mean()


def test_rivals_are_judged_by_one_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[OperationCall] = []
    exact = OperationCall.exact

    def counted(call: OperationCall, run: Run) -> Any:
        asked.append(call)
        return exact(call, run)

    monkeypatch.setattr(OperationCall, "exact", counted)
    monkeypatch.setattr(operation_times, "OPERATION_CASES", {"softmax": OPERATION_CASES["softmax"][:1]})
    first, second = timed(declared(softmax), declared(softmax_too))
    assert first.seconds
    assert second.seconds
    assert len(asked) == 1


def softmax_too(scores: Any) -> Any:
    return softmax(scores)
