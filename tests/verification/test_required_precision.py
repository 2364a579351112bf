"""--require-precision: who can only be judged by a looser model fails, and is told why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qkverify.cli.full_run import run_start
from qkverify.errors import LawViolation, UsageError
from qkverify.exports.file_formats.junit import export
from qkverify.results import LooserModel, Tested, Verdict
from qkverify.verification import required_precision
from qkverify.verification.checking import verify
from qkverify.verification.outcomes import BROKEN, HOLDS, lines, of_cell
from qkverify.verification.required_precision import LAW

ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
SENTENCE = (
    "judged as rounding after every operation: errors may be 10 x (output) those of a fused kernel, "
    "whose bound was exceeded by a factor of 1.9"
)

EAGER = """
import torch


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    return weights @ value / weights.sum(-1, keepdim=True)
"""

GRANTED = "judged by a looser model of rounding than a fused kernel's"


def held(looser=(), dtype="bfloat16"):
    return Verdict(law="agrees", family="attention", sentence="It agrees.", exact=False, implementation="mine", device="cpu",
                   dtype=dtype, outcome="passed", examples=9, margin=0.5, tested=Tested(calls=9, results=9),
                   looser=list(looser))  # fmt: skip


def granted(model="eager", sentence=SENTENCE):
    return held([LooserModel(model, sentence)])


def test_nothing_is_broken_where_nothing_is_required_or_granted():
    assert required_precision.verdicts([granted()], "") == []
    assert required_precision.verdicts([held()], "fused") == []
    assert required_precision.verdicts([granted()], "eager") == []
    assert required_precision.verdicts([granted("fused-fast-exp")], "fused-fast-exp") == []


def test_a_looser_model_than_the_required_one_is_a_broken_law_with_the_sentence():
    (verdict,) = required_precision.verdicts([granted(), granted()], "fused")
    assert (verdict.law, verdict.outcome, verdict.dtype) == (LAW, "failed", "bfloat16")
    assert verdict.reason == f"fused is required, and 1 looser model had to be granted: {SENTENCE}"
    outcome = of_cell([granted(), verdict])
    assert (outcome.word, outcome.exit_code()) == (BROKEN, 1)
    assert SENTENCE in export([granted(), verdict], "verdicts").decode()


def test_the_verdict_line_says_what_was_granted():
    outcome = of_cell([granted()])
    assert outcome.word == HOLDS
    assert str(outcome) == f"all laws hold; {SENTENCE}"
    assert lines({"mine-cpu-bfloat16": outcome}) == [
        "all laws hold in 1 configuration; judged by a looser model of rounding than a fused kernel's"
    ]
    assert f"all laws hold; {SENTENCE}" in export([run_start("glance", ""), granted()], "verdicts").decode()
    other = of_cell([held([LooserModel("eager", "another sentence")], "float16")])
    *each, last = lines({"a": outcome, "b": other, "c": of_cell([held()])})
    assert f"a: all laws hold; {GRANTED}" in each
    assert last == f"all laws hold in 3 configurations; 2 of them {GRANTED}"


def test_a_word_that_is_no_model_is_refused():
    with pytest.raises(UsageError, match="fused"):
        required_precision.checked("exact")


def test_from_python_a_function_that_rounds_op_by_op_fails_if_fused_is_required(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(EAGER)
    asked = {"dtypes": ["bfloat16"], "profile": "glance", "laws": ["agrees_with_reference"]}
    verify("mine.py:attention", **asked).raise_for_failures()
    with pytest.raises(LawViolation, match="fused is required, and 2 looser models had to be granted"):
        verify("mine.py:attention", **asked, require_precision="fused").raise_for_failures()


def test_in_pytest_the_session_fails(tmp_path):
    (tmp_path / "mine.py").write_text(EAGER)
    (tmp_path / "pyproject.toml").write_text('[tool.qkverify]\nrequire_precision = "fused"\n')
    asked = ["--pyargs", "qkverify.properties", "--implementation", "mine.py:attention", "--dtype", "bfloat16", "--law",
             "agrees_with_reference", "--hypothesis-profile", "glance"]  # fmt: skip
    strict = pytest_in(tmp_path, *asked)
    assert strict.returncode == 1, strict.stdout
    assert f"broken: 1 law; {GRANTED}" in strict.stdout
    lenient = pytest_in(tmp_path, *asked, "--require-precision", "eager")
    assert lenient.returncode == 0, lenient.stdout


def pytest_in(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=ALONE)
