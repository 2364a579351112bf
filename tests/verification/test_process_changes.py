"""A call that changes settings of its process is named, wherever it did so; what is checked next does not notice."""

from __future__ import annotations

import decimal
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify.contract import describe, process_settings
from qkverify.results import Verdict
from qkverify.verification import process_changes
from qkverify.verification.checking import Cell, checked, laws_named

LAWS = laws_named(["constant_values_are_returned", "global_state_is_left_alone"])


def textbook(query: Any, key: Any, value: Any) -> Any:

    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def cell(function: Any, **declared: Any) -> Cell:
    implementation = describe(
        function, name="mine", dtypes=("float32",), requires=("G == H", "K >= 1"), **declared
    )
    return Cell(implementation, "cpu", "float32")


def broken(verdicts: list[Verdict]) -> dict[str, str]:
    return {
        v.law: v.counterexample.message if v.counterexample else "" for v in verdicts if v.outcome != "passed"
    }


def test_the_law_about_the_process_names_the_setting_and_no_other_is_broken() -> None:
    before = decimal.getcontext().prec

    def changing(query: Any, key: Any, value: Any) -> Any:
        decimal.getcontext().prec = 3
        return textbook(query, key, value)

    said = broken(checked(cell(changing), LAWS, examples=5))
    assert list(said) == ["global_state_is_left_alone"]
    assert f"the call changed decimal's prec from {before} to 3" in said["global_state_is_left_alone"]
    assert decimal.getcontext().prec == before


def test_what_another_law_met_is_said_by_a_law_that_held(tmp_path: Path) -> None:
    here = Path.cwd()

    def wandering(query: Any, key: Any, value: Any) -> Any:
        os.chdir(tmp_path)
        return textbook(query, key, value)

    said = broken(checked(cell(wandering), LAWS[:1], examples=5))
    assert list(said) == ["constant_values_are_returned"]
    assert (
        f"a call changed the working folder from {here} to {tmp_path}"[:60]
        in said["constant_values_are_returned"]
    )
    assert Path.cwd() == here


def test_a_call_that_changes_nothing_is_not_accused() -> None:
    assert broken(checked(cell(textbook), LAWS, examples=5)) == {}


def test_a_change_by_a_module_that_is_imported_meanwhile_is_the_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_settings.sys, "modules", dict(process_settings.sys.modules))
    monkeypatch.setenv("SET_BY_A_MODULE", "before")
    with process_settings.noted_of("mine"), process_settings.restored(process_settings.OF_PYTHON):
        os.environ["SET_BY_A_MODULE"] = "after"
        process_settings.sys.modules["a_new_one"] = os
    assert os.environ["SET_BY_A_MODULE"] == "after"
    assert process_settings.taken("mine") == []
    with process_settings.noted_of("mine"), process_settings.restored(process_settings.OF_PYTHON):
        os.environ["SET_BY_A_MODULE"] = "again"
    assert os.environ["SET_BY_A_MODULE"] == "after"
    assert process_settings.taken("mine") == ["the environment variable SET_BY_A_MODULE from after to again"]


def test_many_changes_are_counted() -> None:
    verdict = Verdict("law", "family", "sentence", True, "mine", "cpu", "float32", "passed")
    (said,) = process_changes.blamed([verdict], [f"setting {n}" for n in range(9)])
    assert (said.outcome, said.reason.count("setting")) == ("failed", process_changes.NAMED)
    assert said.reason.endswith("and 3 more")
