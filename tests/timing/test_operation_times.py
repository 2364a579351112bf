"""Times of operations other than attention: who is timed, what is checked, and what is refused a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qkverify.contract import Implementation, describe, registry
from qkverify.results import OperationTiming
from qkverify.strategies.operation_cases import OPERATION_SPECS
from qkverify.timing import operation_times
from qkverify.timing.operation_sizes import OPERATION_CASES, OperationCase
from qkverify.timing.sampling import FEWEST_ROUNDS


def softmax(scores: Any) -> Any:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def declared(function: Any) -> Implementation:
    return describe(
        function, name=function.__name__, arrays="numpy", dtypes=("float32",), operation="softmax"
    )


def timed(*implementations: Implementation) -> list[OperationTiming]:
    return list(operation_times.measure(implementations, budget_seconds=0.05, devices=("cpu",)))


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

    timings = timed(declared(softmax), declared(another))
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
        (remembering(), ["times its bound away from the reference"] * 2),
    ],
    ids=["wrong", "wrong when large", "raises", "replays by address"],
)
def test_what_is_wrong_at_a_size_has_no_time_there(function: Any, reasons: list[str]) -> None:
    timings = timed(declared(function), declared(softmax))
    mine = [timing for timing in timings if timing.implementation != "softmax"]
    for timing, reason in zip(mine, reasons, strict=True):
        assert bool(timing.seconds) is (reason == "")
        assert reason in timing.reason
    assert all(timing.seconds for timing in timings if timing.implementation == "softmax")
