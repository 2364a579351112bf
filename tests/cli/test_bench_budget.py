"""The budget of `qkverify bench`: what it counts from, and what it has no room for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from qkverify.cli import bench_command
from qkverify.cli.bench_command import LAWS_SHARE, LEAST_LAWS_SECONDS, BenchRequest
from qkverify.results import Verdict, of_kind, read
from qkverify.timing.workloads import PLAIN_GRID, small_grid


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the grid was asked for; nothing is timed."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        bench_command, "run_grid", lambda writer, implementations, **terms: asked.append(terms)
    )
    return asked


def request(budget: str, laws: str) -> BenchRequest:
    return BenchRequest(("numpy_textbook",), (), (), ("float32",), ("cpu",), budget, 2, 10, laws, "")


def test_the_budget_counts_from_the_start_of_the_command(given: list[dict[str, Any]], tmp_path: Path) -> None:
    bench_command.run(request("60s", "none"), tmp_path / "times.jsonl", time.monotonic() - 50)
    bench_command.run(request("60s", "none"), tmp_path / "late.jsonl", time.monotonic() - 90)
    assert 0 < given[0]["budget_seconds"] <= 10
    assert given[1]["budget_seconds"] == bench_command.LEAST_SECONDS


def test_no_law_is_begun_that_the_budget_has_no_room_for_and_that_is_said(
    given: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = 0.9 * LEAST_LAWS_SECONDS / LAWS_SHARE
    path = tmp_path / "times.jsonl"
    bench_command.run(request(f"{seconds:g}s", "glance"), path)
    assert "too short for the" in capsys.readouterr().out
    assert of_kind(read(path), Verdict) == []
    assert given[0]["verdicts"] == []  # and not None: each time says that its implementation was not verified


PLAIN = """
import numpy as np

def attention(query, key, value, *, scale=None):
    scores = query @ np.swapaxes(key, -1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
    return weights / weights.sum(-1, keepdims=True) @ value
"""


def test_a_function_without_causality_and_gradients_is_timed_on_what_it_can_run(
    given: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text(PLAIN)
    terms = (("float32",), ("cpu",), "60s", 2, 10, "none", "")
    targets = (f"{own}:attention", "numpy_textbook")
    bench_command.run(BenchRequest(targets, (), (), *terms), tmp_path / "own.jsonl")
    assert [case.causal for case in given[0]["workloads"]("cpu")] == [False] * len(PLAIN_GRID)
    assert given[0]["directions"] == ("forward",)
    said = capsys.readouterr().out
    assert "cannot run the usual workloads (not offered: causal)" in said
    assert "offers no gradients, so only the forward pass is timed" in said

    bench_command.run(BenchRequest(targets, ("gpt2-small",), ("both",), *terms), tmp_path / "asked.jsonl")
    assert [case.name for case in given[1]["workloads"]("cpu")] == ["gpt2-small"]
    assert given[1]["directions"] == ("forward+backward",)
    assert capsys.readouterr().out == ""

    bench_command.run(BenchRequest(("numpy_textbook",), (), (), *terms), tmp_path / "ours.jsonl")
    assert given[2]["workloads"] is small_grid
