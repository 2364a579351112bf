"""Laws in the judge, on results that it asks for: no right function is accused, and whatever comes back is checked.

The worker's part is called here in this process; `tests/hostile/test_reward_hacks.py` has whole runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify.contract import DEVICES, OPERATIONS, Finding, adapters, describe
from qkverify.contract.signatures import parameters_of
from qkverify.errors import ContractError, HarnessError, UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Precision
from qkverify.verification import checking
from qkverify.verification.checking import Cell, law_book, laws_named
from qkverify.verification.isolation import asking, exchange, worker
from qkverify.verification.isolation.outside_run import OutsideRun

OURS = ("numpy_textbook", "numpy_packed", "numpy_cached", "numpy_paged", "numpy_slopes", "numpy_rotary", "numpy_layer_norm",
        "numpy_multi_head", "numpy_cross_entropy")  # fmt: skip
OF_USERS = {
    # A keyword that every call must give, a limit and a pair that are found out, and its own names and layout.
    "needs_a_keyword": "def rotary(x, positions, *, base):\n"
    "    half = x.shape[-1] // 2\n"
    "    angle = np.asarray(positions, np.float64)[:, None] / base ** (np.arange(half) / half)\n"
    "    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)\n"
    "    a, b = x[..., :half], x[..., half:]\n"
    "    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)\n",
    "has_a_limit": "def attention(query, key, value):\n"
    "    if query.shape[2] != key.shape[2]:\n"
    "        raise ValueError('only self-attention')\n"
    "    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)\n"
    "    weights = np.exp(scores - scores.max(-1, keepdims=True))\n"
    "    return weights @ value / weights.sum(-1, keepdims=True)\n",
    "has_its_own_layout": "def attention(q, k, v, attn_mask=None):\n"
    "    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))\n"
    "    scores = q @ k.swapaxes(-1, -2) * q.dtype.type(q.shape[-1] ** -0.5)\n"
    "    if attn_mask is not None:\n"
    "        scores = scores + attn_mask\n"
    "    weights = np.exp(scores - scores.max(-1, keepdims=True))\n"
    "    return (weights @ v / weights.sum(-1, keepdims=True)).swapaxes(1, 2)\n",
}


def answered_by(cell: Cell, answers: Any = None) -> OutsideRun:
    """A run of what the judge knows of a cell, whose questions this process answers, by way of the lines that would be sent."""
    facts = exchange.event_of(exchange.event_line(exchange.Planned([exchange.ImplementationFacts.of(cell.implementation)],
                                                                   [], [], {})))  # fmt: skip
    assert isinstance(facts, exchange.Planned)
    known = Cell(facts.implementations[0].standing_in(), cell.device, cell.dtype, cell.target)
    checking.remember(cell)

    def ask(method: str, question: Any) -> dict[str, Any]:
        request = exchange.Call(exchange.CellAddress.of(cell), method, question)
        sent = exchange.request_of(exchange.request_line(request))
        assert isinstance(sent, exchange.Call)
        event = exchange.event_of(exchange.event_line(worker._returned(sent)))
        return {name: getattr(event, name) for name in event.__struct_fields__}

    return OutsideRun(known, checking.conventions_of(cell), answers or ask)


def whole_laws(cell: Cell) -> list[Any]:
    return [law for law in checking.applicable(law_book(), cell) if asking.compares_whole_results(law)]


def assert_no_law_is_broken(cell: Cell) -> None:
    calls = 0
    for law in whole_laws(cell):
        run = answered_by(cell)
        if law.unfit(run) is None:
            law.check(run, max_examples=6, seed=3, database=None)
            calls += run.calls - run.refused
    assert calls >= 3


@pytest.mark.parametrize("name", OURS)
def test_no_implementation_of_ours_is_accused(name: str) -> None:
    assert_no_law_is_broken(checking.plan([name], ["cpu"]).cells[-1])


@pytest.mark.parametrize("name", OF_USERS)
def test_no_function_of_a_user_is_accused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{OF_USERS[name]}")
    function = OF_USERS[name].partition("def ")[2].partition("(")[0]
    assert_no_law_is_broken(checking.plan([f"{name}.py:{function}"], ["cpu"], ["float32"]).cells[0])


def test_every_operation_has_a_law_about_whole_results() -> None:
    whole = [law for law in law_book() if asking.compares_whole_results(law)]
    assert {operation for law in whole for operation in law.operations} == {*OPERATIONS}
    assert len(laws_named(asking.WHOLE)) == len(asking.WHOLE)


ONES = np.ones((1, 1, 2, 4), np.float32)
PROBLEM = Problem(query=ONES, key=ONES, value=ONES)


def asked(answer: dict[str, Any]) -> Any:
    (cell,) = checking.plan(["numpy_textbook"], ["cpu"], ["float32"]).cells
    return answered_by(cell, lambda method, question: answer).outputs(PROBLEM)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({"returned": None}, ContractError, "1 results were asked for"),
        ({"returned": {"list": [3]}}, ContractError, r"the output is int, expected float32 of shape \(1, 1, 2, 4\)"),
        ({"returned": {"list": [{"dtype": "float32", "shape": [2], "data": "AAAAAAAAAAA="}]}}, ContractError, r"float32\(2,\)"),
        ({"returned": {"list": [{"dtype": "object", "shape": [1], "data": "AAAAAAAAAAA="}]}}, HarnessError, "is no result"),
        ({"returned": {"list": [{"dtype": "float32", "shape": [9], "data": "AAAA"}]}}, HarnessError, "is no result"),
        ({"refused": "not today"}, UnsupportedCase, "not today"),
        ({"raised": "TypeError: no", "kind": "TypeError"}, TypeError, "no"),
        ({"raised": "Odd: no", "kind": "SystemExit"}, Exception, "no"),
    ],
)  # fmt: skip
def test_what_comes_back_is_checked(answer: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        asked(answer)


def test_the_judge_imports_no_framework() -> None:
    facts = exchange.ImplementationFacts.of(checking.plan(["numpy_textbook"]).implementations[0])
    known = facts.standing_in()
    object.__setattr__(known, "arrays", "none that is installed")
    assert OutsideRun(
        Cell(known, DEVICES[0], "float32"), {}, lambda method, question: {}
    ).framework.MODES == ("",)
    with pytest.raises(HarnessError, match="in the process of the judge"):
        known.function()


def test_whatever_an_implementation_declares_reaches_the_judge() -> None:
    def attention(query: Any, key: Any, value: Any, *, causal: bool = False, out: Any) -> Any:
        return value

    precision = {"float32": Precision.named("fused", "float32"), "float64": "eager"}
    declared = replace(
        describe(attention, name="mine:attention", dtypes=("float32", "float64")), precision=precision, tile=(16, 32),
        neutral={"softcap": np.inf, "scale": np.float32(1)}, effort={"cpu": 0.5}, size_limits={"D": (1, 8)},
        adapters={"constants": {"window": (-1, np.inf)}, "layout": "BLHD"}, exclusive=(("a", "b", "c"),),
        findings={"a_law[float32]": Finding("reports/findings/mine")}, vjp=attention,
    )  # fmt: skip
    line = exchange.event_line(
        exchange.Planned([exchange.ImplementationFacts.of(declared)], [(0, "cpu", "float32")], [], {})
    )
    planned = exchange.event_of(line)
    assert isinstance(planned, exchange.Planned)
    known = planned.implementations[0].standing_in()
    assert known.precision == precision
    assert known.findings_at("cpu", "float32").keys() == {"a_law"}
    assert adapters.written(known.adapters) == adapters.written(declared.adapters)
    assert {*parameters_of(known.function)} >= {"query", "key", "value", "out"}
    assert "causal" not in parameters_of(known.function)
    assert known.vjp is not None


def test_problems_are_secret_unless_a_seed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QKVERIFY_SEED", raising=False)
    assert asking._seed("law") != asking._seed("law")
    monkeypatch.setenv("QKVERIFY_SEED", "7")
    assert asking._seed("law") == asking._seed("law") != asking._seed("other law")
