"""A recorded finding explains what it speaks of: another bug under the same law still counts as a failure."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qkverify import Finding
from qkverify.contract import describe, registry
from qkverify.implementations.numpy_textbook import attention as right
from qkverify.verification.checking import Cell, check, law_book, prepare

FOLDER = "reports/findings/of-a-test"
LAW = "agrees_with_reference"
RECORDED = Path(__file__).parents[2] / "reports" / "findings"
IN_ONNXRUNTIME = {
    "onnxruntime-cpu-grouped-attention-loses-nan-of-a-query": (
        "nan_goes_where_it_must",
        r"exact +\[ 1\. nan +1\. +1\.\]\n  GroupQueryAttention +\[1\. 0\. 1\. 1\.\]",
    ),
    "onnxruntime-cpu-unidirectional-last-query-sees-the-future": (
        "causal_alignment_when_lengths_differ",
        r"MultiHeadAttention +\[\[1\.0(, 0\.0){4}\], \[0\.5, 0\.5(, 0\.0){3}\], \[0\.2(, 0\.2){4}\]\]",
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def kernel(*, wrong_if_causal, wrong_if_capped):
    """An attention that doubles its output under one option or two."""

    def attention(query, key, value, *, causal=False, softcap=None):
        output = right(query, key, value, causal=causal, softcap=softcap)
        broken = (causal and wrong_if_causal) or (softcap is not None and wrong_if_capped)
        return output * 2 if broken else output

    return attention


def verdict(function, known, seed=1):
    implementation = describe(
        function, name="of a test", arrays="numpy", findings={LAW: known}, differentiable=False
    )
    law = next(law for law in law_book() if law.name == LAW)
    return check(
        law, prepare(Cell(implementation, "cpu", "float32")), max_examples=60, seed=seed, database=None
    )


CAUSAL = Finding(FOLDER, when=lambda problem: problem.causal)


def test_what_a_finding_speaks_of_is_a_finding():
    judgement = verdict(kernel(wrong_if_causal=True, wrong_if_capped=False), CAUSAL)
    assert (judgement.outcome, judgement.reason) == ("finding", FOLDER)
    assert "causal" in judgement.counterexample.problem


def test_another_bug_alone_is_a_failure():
    judgement = verdict(kernel(wrong_if_causal=False, wrong_if_capped=True), CAUSAL)
    assert judgement.outcome == "failed"
    assert "softcap" in judgement.counterexample.problem


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_bug_beside_the_finding_is_a_failure(seed):
    """Whichever of the two the law meets first."""
    judgement = verdict(kernel(wrong_if_causal=True, wrong_if_capped=True), CAUSAL, seed)
    assert judgement.outcome == "failed"
    assert "softcap" in judgement.counterexample.problem
    assert "causal" not in judgement.counterexample.problem


def test_a_finding_without_a_condition_explains_every_failure_of_its_law():
    assert verdict(kernel(wrong_if_causal=False, wrong_if_capped=True), FOLDER).outcome == "finding"


def test_a_finding_that_does_not_show_is_said():
    judgement = verdict(kernel(wrong_if_causal=False, wrong_if_capped=False), CAUSAL)
    assert judgement.outcome == "passed"
    assert FOLDER in judgement.reason


def test_torch_findings_say_where_they_show():
    pytest.importorskip("torch", reason="needs torch")
    from qkverify.implementations.torch_sdpa import ACCUMULATES, KEY_COUNT, NAN_QUERY, SCALE_NOT_POSITIVE
    from qkverify.problem.attention_problem import Problem

    single = np.zeros((1, 1, 1, 1), np.float32)
    plain = Problem(query=single, key=single, value=single)
    every = (ACCUMULATES, KEY_COUNT, NAN_QUERY, SCALE_NOT_POSITIVE)
    assert not [known for known in every if known.explains([plain])]
    assert NAN_QUERY.explains([plain.replace(query=single * np.nan)])
    double = np.zeros((1, 1, 2, 1), np.float32)
    assert NAN_QUERY.explains([plain.replace(key=single * np.nan)])
    assert not NAN_QUERY.explains(
        [plain.replace(key=np.concatenate([single * np.nan, single], 2), value=double)]
    )
    assert SCALE_NOT_POSITIVE.explains([plain, plain.replace(causal=True, scale=0.0)])
    assert KEY_COUNT.explains([plain.replace(value=np.zeros((1, 1, 2, 1), np.float32))])
    assert ACCUMULATES.explains([plain.replace(query=np.zeros((1, 3, 1, 1), np.float32))])


def test_the_script_of_overlapping_queries_shows_them():
    torch = pytest.importorskip("torch", reason="needs torch")
    folder = RECORDED / "torch-cpu-flash-misplaces-rows-of-an-overlapping-query"
    if f"torch {torch.__version__.partition('+')[0]} " not in (folder / "README.md").read_text():
        pytest.skip(f"recorded with another release than torch {torch.__version__}")
    script = [sys.executable, folder / "reproduce.py"]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    right = re.escape("[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]")
    assert re.search(
        rf"overlapping math .* {right}\noverlapping flash .* \[\[1.0, 2.0, [^\n]*\ncontiguous ", said
    ), said
    assert not re.search(rf"overlapping flash .* {right}", said), said
    assert re.search(rf"contiguous  flash .* {right}", said), said


@pytest.fixture
def onnxruntime_as_recorded():
    """The release that the findings were made with: another one may be mended, which is none of our failures."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnx", reason="needs onnx")
    installed = importlib.metadata.version("onnxruntime")
    readme = (RECORDED / next(iter(IN_ONNXRUNTIME)) / "README.md").read_text()
    if f"onnxruntime {installed} " not in readme:
        pytest.skip(f"recorded with another release than onnxruntime {installed}")


@pytest.mark.parametrize("folder", IN_ONNXRUNTIME)
def test_scripts_of_onnxruntime_findings_show_them(folder, onnxruntime_as_recorded):
    script = [sys.executable, RECORDED / folder / "reproduce.py"]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert re.search(IN_ONNXRUNTIME[folder][1], said), said


@pytest.mark.parametrize("folder", IN_ONNXRUNTIME)
def test_laws_find_what_is_recorded_of_onnxruntime(folder, onnxruntime_as_recorded):
    """The law that the finding names breaks; in the operator's right cases attention agrees with the reference."""
    (implementation,) = registry.find(f"{RECORDED / folder / 'reproduce.py'}:attention")
    laws = {law.name: law for law in law_book()}
    cell = prepare(Cell(implementation, "cpu", "float32"))
    verdict = check(laws[IN_ONNXRUNTIME[folder][0]], cell, max_examples=40, seed=1, database=None)
    assert verdict.outcome == "failed"
    verdict = check(laws["head_permutation"], cell, max_examples=10, seed=1, database=None)
    assert verdict.outcome == "passed"
