"""Whole configurations are checked side by side where cores are free, and come back in order, as of one job."""

from __future__ import annotations

import pytest

from qkverify.verification import checking
from qkverify.verification.checking import law_book
from qkverify.verification.isolation import checkers, limits, process

LAWS = [
    law
    for law in law_book()
    if law.name in ("rows_sum_to_one", "agrees_with_reference", "single_key_gets_all")
]


def laws_of(targets: list[str], dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, cores: int = 8):
    monkeypatch.setattr(checkers, "cores", lambda: cores)
    monkeypatch.setattr(process, "forks", lambda: True)
    cells = checking.plan(targets, (), dtypes).cells
    return {cell: law_book() for cell in cells}


def test_there_is_at_most_one_worker_for_each_core_and_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    two = laws_of(["numpy_textbook"], ("float32", "float64"), monkeypatch)
    assert checkers.workers_for(two, examples=100) == 2
    monkeypatch.setattr(checkers, "cores", lambda: 1)
    assert checkers.workers_for(two, examples=100) == 1


def test_one_worker_where_little_is_asked_or_several_targets_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    few = {cell: LAWS for cell in laws_of(["numpy_textbook"], ("float32", "float64"), monkeypatch)}
    assert checkers.workers_for(few, examples=5) == 1
    mine = tmp_path / "mine.py"
    mine.write_text("def attention(q, k, v):\n    return v\n")
    several = laws_of(["numpy_textbook", f"{mine}:attention"], ("float32",), monkeypatch)
    assert checkers.workers_for(several, examples=100) == 1


def test_cells_side_by_side_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "workers_for", lambda laws, examples: 2)
    monkeypatch.setattr(
        process, "_forks", False
    )  # is put back: later tests change files that this process has imported
    checker = checkers.InWorkers(limits.limits(), None)
    cells = checker.plan(["numpy_textbook"], (), ("float32", "float64")).cells
    headed: list[str] = []
    checked = []
    for done in checker.check(cells, LAWS, "glance", lambda cell, conventions: headed.append(cell.dtype)):
        checked.append(done.cell.dtype)
        assert headed[: len(checked)] == checked  # each heading before its results
        assert [verdict.outcome for verdict in done.verdicts] == ["passed"] * len(LAWS)
    assert headed == checked == [cell.dtype for cell in cells]
