"""A device that answers its process no more, as a GPU after an illegal access: told of the law that met it, and of no other.

No GPU is needed: the functions here raise what torch raises then, and from then on, in their process, for everybody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qkverify.contract import describe, frameworks
from qkverify.contract.frameworks import numpy_arrays
from qkverify.runs.run import Run
from qkverify.verification import checking

SAID = "CUDA error: misaligned address"
# The device is lost in the first call with three queries that any process makes, and then for the rest of that process.
TARGET = r"""
from pathlib import Path
import numpy as np
from qkverify import implementation
from qkverify.contract.frameworks import numpy_arrays

met, state = Path(__file__).with_suffix(".met"), []
numpy_arrays.lost = lambda device="cpu": "CUDA error: misaligned address" if state else None

@implementation(name="breaks", arrays="numpy", dtypes=("float64",), requires=("G == H", "K >= 1"))
def attention(query, key, value):
    if state or query.shape[2] == 3 and not met.exists():
        met.touch()
        state.append(1)
        raise RuntimeError("CUDA error: misaligned address\nSearch for `cudaErrorMisalignedAddress'")
    scores = query @ np.swapaxes(key, -1, -2) * query.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)
"""


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the device says, once something was appended."""
    said: list[str] = []
    monkeypatch.setattr(numpy_arrays, "lost", lambda device="cpu": said[0] if said else None)
    monkeypatch.setattr(checking, "LOST", {})
    return said


def law(name: str) -> Any:
    return next(law for law in checking.law_book() if law.name == name)


def test_the_problem_that_lost_the_device_is_shown_and_later_laws_are_not_blamed(lost: list[str]) -> None:
    problems = []

    def attention(query: Any, key: Any, value: Any) -> Any:
        problems.append(query.shape)
        if query.shape[2] == 3 or lost:
            lost.append(SAID)
            raise RuntimeError(f"{SAID}\nSearch for it")
        raise NotImplementedError("every other problem is refused")

    implementation = describe(attention, name="breaks", arrays="numpy", dtypes=("float32",))
    first = checking.check(law("agrees_with_reference"), Run(implementation), max_examples=200)
    assert first.outcome == "crashed"
    assert first.reason == f"cpu answers its process no more: {SAID}"
    assert first.counterexample is not None
    assert "3 queries" in first.counterexample.problem
    assert "first problem" in first.counterexample.message
    calls = len(problems)
    second = checking.check(law("weights_lie_in_unit_interval"), Run(implementation))
    assert (second.outcome, len(problems)) == ("error", calls)
    assert "agrees_with_reference of breaks-cpu-float32" in second.reason


def test_the_laws_after_one_that_lost_the_device_are_checked_by_another_process(
    tmp_path: Path, lost: list[str]
) -> None:
    target = tmp_path / "breaks.py"
    target.write_text(TARGET)
    (cell,) = checking.plan([f"{target}:attention"]).cells
    laws = [
        law(name)
        for name in ("agrees_with_reference", "constant_values_are_returned", "weights_lie_in_unit_interval")
    ]
    verdicts_found = [
        verdict
        for _, verdicts in checking.check_parts({cell: laws}, profile="default", jobs=1)
        for verdict in verdicts
    ]
    assert [(v.law, v.outcome) for v in verdicts_found] == [
        (laws[0].name, "crashed"),
        (laws[1].name, "passed"),
        (laws[2].name, "passed"),
    ]


def test_torch_says_whether_its_device_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    arrays = frameworks.get("torch")

    def dead() -> None:
        raise torch.AcceleratorError(f"{SAID}\nSearch for `cudaErrorMisalignedAddress' in the documentation")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert arrays.lost("cuda") == SAID
    assert arrays.lost("cpu") is None
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert arrays.lost("cuda") is None
