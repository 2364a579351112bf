"""What is said of failures that several processes found is held against all of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qkverify.counterexamples.causes import causes, settled
from qkverify.verification import checking
from qkverify.verification.checking import check_cells, checked, explained_together, laws_named, plan
from qkverify.verification.isolation import checkers, judge

KERNEL = """
import numpy as np
def attention(q, k, v, *, scale=None):
    if q.shape[1] != k.shape[1] or q.shape[::3] != k.shape[::3] or k.shape[:3] != v.shape[:3]:
        raise ValueError("sizes")
    s = q @ k.swapaxes(-1, -2)
    w = np.exp(s - s.max(-1, keepdims=True))
    return (w / w.sum(-1, keepdims=True)) @ v
"""
LAWS = ("agrees_with_reference", "scale_covariance", "zero_scale_averages")
SENTENCE = "The result equals attention without a scale."


@pytest.fixture
def cell(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(KERNEL)
    monkeypatch.chdir(tmp_path)
    (cell,) = plan(["mine.py:attention"], ["cpu"], ["float32"]).cells
    return cell


def diagnoses(verdicts):
    return [v.counterexample.diagnosis for v in verdicts if v.counterexample]


def test_failures_of_several_processes_are_explained_together(cell, monkeypatch):
    monkeypatch.setattr(checkers, "PARTS", len(LAWS))  # a law in each
    ((_, verdicts),) = check_cells([cell], profile="glance", jobs=2, laws=laws_named(LAWS))
    assert len(diagnoses(verdicts)) > 1
    assert set(diagnoses(verdicts)) == {SENTENCE}
    assert len(causes(verdicts)) == 1


def test_a_part_says_nothing_by_itself(cell):
    calls = {cell: checking.Failures()}
    laws = {cell: laws_named(LAWS[:1])}
    ((_, verdicts),) = checking.check_parts(laws, profile="glance", jobs=1, calls=calls)
    assert diagnoses(verdicts) == [""]
    assert calls[cell].returned


def test_a_sentence_that_came_along_is_not_believed(cell):
    verdicts = [settled(v, diagnosis="False.") for v in checked(cell, laws_named(LAWS[:1]), examples=5)]
    assert diagnoses(explained_together(cell, verdicts)) == [SENTENCE]
    scaled = KERNEL.replace("swapaxes(-1, -2)", "swapaxes(-1, -2) * q.dtype.type(q.shape[3] ** -0.5)")
    Path("mine.py").write_text(scaled)
    (mended,) = plan(["mine.py:attention"], ["cpu"], ["float32"]).cells
    assert SENTENCE not in diagnoses(explained_together(mended, verdicts))


def test_nothing_is_said_if_the_process_dies(cell, monkeypatch):
    verdicts = [settled(v, diagnosis="False.") for v in checked(cell, laws_named(LAWS[:1]), examples=5)]
    monkeypatch.setattr(judge, "explained", lambda *_: None)
    assert diagnoses(explained_together(cell, verdicts)) == [""]


@pytest.mark.parametrize("ci", [{}, {"CI": "true"}], ids=["terminal", "CI"])
def test_workers_of_xdist_are_explained_together(cell, ci):
    pytest.importorskip("xdist", reason="several processes need pytest-xdist")
    command = [sys.executable, "-m", "pytest", "--pyargs", "qkverify.properties", "--implementation", "mine.py:attention",
               "--dtype", "float32", "--hypothesis-profile=glance", "-n", "2", "-q", "-p", "no:cacheprovider",
               *(word for law in LAWS for word in ("--law", law))]  # fmt: skip
    variables = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")} | ci
    said = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=variables
    ).stdout
    assert said.count(f"looks like         {SENTENCE}") == 1, said
    assert re.search(r"^1 cause, [23] laws$", said, re.M), said
