"""A stored counterexample that somebody else wrote or changed gets a sentence; no path that it names is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.counterexamples import store
from qkverify.errors import UsageError
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run
from qkverify.verification.checking import laws_named
from qkverify.verification.replay_command import replay_counterexample

MINE = """
import numpy as np
open('imported', 'w').close()
def attention(query, key, value):
    weights = np.exp(query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5))
    return weights / weights.sum(-1, keepdims=True) @ value
"""
(LAW,) = laws_named(["constant_values_are_returned"])


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stored counterexample of a function whose file leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)

    def attention(query: Any, key: Any, value: Any) -> Any:
        return value

    run = Run(describe(attention, name="mine:attention", dtypes=("float32",)))
    ones = np.ones((1, 1, 1, 1), np.float32)
    run.failing = {"problem": Problem(query=ones, key=ones, value=ones)}
    name = store.store(LAW, run, scripted=False)
    return {
        **json.loads((store.FOLDER / f"{name}.json").read_text()),
        "file": str(tmp_path / "mine.py"),
        "function": "attention",
    }


def written(record: Any) -> str:
    Path("given.json").write_text(json.dumps(record))
    return "given.json"


def test_a_path_in_a_given_file_is_not_imported(record: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"name the function: qkverify replay given\.json"):
        replay_counterexample(written(record))
    assert not Path("imported").exists()
    assert replay_counterexample(written(record), "mine.py:attention") == ""
    assert Path("imported").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"law": None}, "its law is a NoneType"),
        ({"device": "tpu"}, "its device is 'tpu'"),
        ({"dtype": "int3"}, "its dtype is 'int3'"),
        ({"dtype": "float64"}, "of dtype float32, and its dtype float64"),
        ({"law": "gone"}, "unknown law 'gone'"),
        ({"drawn": {}}, "holds no arguments"),
        ({"drawn": {"problem": {"dtype": "object", "shape": [1], "data": "AAAAAAAAAAA="}}}, "none of a call"),
        ({"drawn": {"problem": {"dtype": "float32", "shape": [2**62], "data": ""}}}, "is not a stored counterexample"),
        ({"drawn": {"problem": {"problem": {"nonsense": 1}}}}, "is not a stored counterexample"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(record: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replay_counterexample(written({**record, **change}), "mine.py:attention")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", "", "{", '"x"', "\ud800", '{"law": 1e999}'])
def test_a_file_that_is_no_record_is_no_traceback(record: dict[str, Any], text: str) -> None:
    Path("given.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match=r"given\.json is not a stored counterexample"):
        replay_counterexample("given.json")
