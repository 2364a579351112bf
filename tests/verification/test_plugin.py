"""The pytest plugin: laws become one test per cell, from any folder; other tests are left alone."""

from __future__ import annotations

import os
import subprocess
import sys

# A session of its own, also where this one is run by xdist.
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

KERNEL = """
import numpy as np

def attention(query, key, value, *, causal=False):
    key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    if causal:
        future = np.triu(np.ones(scores.shape[-2:], bool), 1 + scores.shape[-1] - scores.shape[-2])
        scores = np.where(future, -np.inf, scores)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    return (weights / np.where(total == 0, 1, total)) @ value
"""


def pytest_in(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_third_party_verifies_its_kernel_with_pyargs(tmp_path):
    (tmp_path / "mykernel.py").write_text(KERNEL)
    done = pytest_in(
        tmp_path,
        "--pyargs",
        "qkverify.properties",
        "--implementation",
        "mykernel:attention",
        "--dtype",
        "float32",
        "--hypothesis-profile",
        "quick",
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" in done.stdout  # laws about what it does not offer are skips with a reason


def test_a_planted_bug_fails_with_the_law_and_no_traceback_of_ours(tmp_path):
    (tmp_path / "mykernel.py").write_text(KERNEL.replace("-np.inf, scores)", "0.0, scores)"))
    done = pytest_in(
        tmp_path,
        "--pyargs",
        "qkverify.properties",
        "--implementation",
        "mykernel.py:attention",
        "--dtype",
        "float64",
        "-k",
        "causal",
        "--hypothesis-profile",
        "quick",
    )
    assert done.returncode == 1
    assert (
        "looks like         The result equals attention whose masked scores are 0 instead of -inf."
        in done.stdout
    )
    assert done.stdout.count("smallest problem") == 1  # of three laws that are broken
    assert "1 cause, 3 laws" in done.stdout
    assert "verification.py" not in done.stdout


def test_an_unknown_implementation_is_a_usage_error(tmp_path):
    done = pytest_in(tmp_path, "--pyargs", "qkverify.properties", "--implementation", "numpy_textbok")
    assert done.returncode == 4
    assert "Did you mean 'numpy_textbook'?" in done.stdout + done.stderr


def test_verdicts_go_to_the_results_file(tmp_path):
    done = pytest_in(
        tmp_path,
        "--pyargs",
        "qkverify.properties",
        "--implementation",
        "numpy_textbook",
        "--dtype",
        "float64",
        "-k",
        "one_of_everything",
        "--results",
        "r.jsonl",
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert '"law":"one_of_everything"' in (tmp_path / "r.jsonl").read_text().replace(" ", "")


def test_a_repository_without_laws_is_left_alone(tmp_path):
    (tmp_path / "test_plain.py").write_text(
        "import sys\n\ndef test_plain():\n    assert 'qkverify.verification.laws' not in sys.modules\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = pytest_in(tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_law_of_ones_own_gets_a_run_for_every_cell(tmp_path):
    (tmp_path / "mykernel.py").write_text(KERNEL)
    (tmp_path / "test_mine.py").write_text("""
from qkverify.verification.laws import law
from qkverify.strategies.attention_problems import problems
from qkverify.runs.assertions import assert_within_bound

@law("Twice the values give twice the output.", source="linearity", problem=problems(tame=True))
def test_twice(run, problem):
    assert_within_bound(run(problem.replace(value=problem.value * 2)), run(problem) * 2.0)
""")
    done = pytest_in(tmp_path, "test_mine.py", "--implementation", "mykernel:attention", "-vv")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_twice[mykernel:attention-cpu-float32] PASSED" in done.stdout
