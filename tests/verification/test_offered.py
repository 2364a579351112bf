"""What is offered and not verified is said: on the screen, by pytest, in Python, on the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qkverify import verify
from qkverify.cli.main import app
from qkverify.contract import describe
from qkverify.problem.attention_problem import Problem
from qkverify.report.model import Report
from qkverify.report.sections import semantics
from qkverify.results import ImplementationInfo, Verdict
from qkverify.runs.run import Run
from qkverify.verification import unverified_options
from qkverify.verification.checking import check, law_book

TURNED = """
import numpy as np

def rotary(x, positions, *, mode="fast"):
    return x
"""


def verdict(used, outcome="passed", name="mine"):
    return Verdict(law="law", family="decode", sentence="", exact=False, implementation=name, device="cpu",
                   dtype="float32", outcome=outcome, used=used)  # fmt: skip


def test_what_no_verdict_used_is_not_verified():
    verdicts = [verdict(["causal"]), verdict(["scale", "causal"]), verdict([], "not offered")]
    assert unverified_options.unverified({"causal", "scale", "window", "sinks"}, verdicts) == [
        "sinks",
        "window",
    ]
    assert unverified_options.unverified({"causal"}, verdicts) == []


def test_files_that_do_not_say_accuse_nobody():
    assert unverified_options.unverified({"window"}, [verdict(["causal"]), verdict(None)]) == []
    assert unverified_options.unverified({"window"}, []) == []
    assert unverified_options.unverified({"window"}, [verdict(None, "unavailable")]) == []


def attention(query, key, value, *, causal=False, scale=None, window=None):
    """Refuses a window."""
    if window is not None:
        raise NotImplementedError("no window")
    return query @ key.swapaxes(-1, -2) @ value


def problem(**options):
    return Problem(
        query=np.ones((1, 1, 2, 2)), key=np.ones((1, 1, 2, 2)), value=np.ones((1, 1, 2, 2)), **options
    )


def test_a_run_notes_the_options_of_calls_that_came_back():
    run = Run(describe(attention), dtype="float64")
    run.values(problem())
    assert run.used == set()
    run.values(problem(scale=0.0))  # zero is an option in use
    assert run.used == {"scale"}
    with pytest.raises(Exception, match="no window"):
        run.values(problem(causal=True, window=(1, 0)))
    run.values(problem())
    assert run.used == {"scale"}


def test_gradients_are_noted_once_they_were_computed():
    def pull(query, key, value, upstream, **options):
        return query, key, value

    run = Run(describe(attention, vjp=pull), dtype="float64")
    given = problem()
    run.values(given)
    assert "gradients" not in run.used
    run.gradient_values(given.replace(upstream=given.query))
    assert "gradients" in run.used


def with_lse(query, key, value, *, return_lse=False):
    """Its log-sum-exp is cut off from its arguments."""
    scores = query @ key.transpose(-1, -2) * max(query.shape[-1], 1) ** -0.5
    output = scores.softmax(-1) @ value
    return (output, scores.logsumexp(-1).detach()) if return_lse else output


def unverified_of(**declared):
    """What the law of the log-sum-exp's gradient says of it, and what it leaves unverified."""
    implementation = describe(
        with_lse, arrays="torch", dtypes=("float32",), requires=("G == H", "K >= 1"), **declared
    )
    run = Run(implementation, dtype="float32")
    book = [
        law
        for law in law_book()
        if law.name in ("gradient_of_lse", "vjp_agrees_with_reference", "log_sum_exp_is_right")
    ]
    verdicts = [check(law, Run(implementation, dtype="float32"), max_examples=5) for law in book]
    assert len(verdicts) == 3
    by_law = {v.law: v.outcome for v in verdicts}
    assert by_law["vjp_agrees_with_reference"] == by_law["log_sum_exp_is_right"] == "passed"
    return by_law["gradient_of_lse"], unverified_options.unverified(run.implementation.offers, verdicts)


def test_a_log_sum_exp_that_is_cut_off_is_said():
    assert unverified_of() == ("not offered", ["lse_gradient"])
    assert unverified_of(lse_gradient=False) == ("not offered", [])
    assert unverified_of(lse_gradient=True) == ("failed", ["lse_gradient"])


def test_a_vjp_of_its_own_offers_none_of_the_log_sum_exp():
    implementation = describe(with_lse, arrays="numpy", vjp=lambda *_: None)
    assert {"gradients", "return_lse"} <= implementation.offers
    assert "lse_gradient" not in implementation.offers


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """A rotary encoding with an option that no law knows."""
    path = tmp_path / "turned.py"
    path.write_text(TURNED)
    return path


def test_an_option_that_no_law_knows_is_said(turned, capsys):
    verification = verify(f"{turned}:rotary", dtypes=["float32"], profile="glance")
    assert verification.unverified == {"turned:rotary-cpu-float32": ["mode"]}
    app(["verify", f"{turned}:rotary", "--profile", "glance"], standalone_mode=False)
    said = capsys.readouterr().out
    assert said.count("mode: unknown, not verified") == 2  # two dtypes
    assert said.splitlines()[-1].endswith("; not verified: mode (unknown)")


def pytest_says(folder: Path, *arguments: str) -> str:
    """What pytest says of the law book on that file."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "qkverify.properties",
               "--implementation", "turned.py:rotary", "--dtype", "float32", "--hypothesis-profile", "glance"]  # fmt: skip
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=alone, capture_output=True, text=True, timeout=300
    ).stdout


def test_pytest_says_it_where_all_laws_were_run(turned):
    said = pytest_says(turned.parent, "-p", "no:xdist")
    assert "; not verified: mode (unknown)" in said
    assert "; not verified: mode (unknown)" in pytest_says(turned.parent, "-n", "2")
    selected = pytest_says(turned.parent, "-p", "no:xdist", "-k", "norm")
    assert "1 selected law holds in 1 configuration; not verified: mode (unknown)" in selected


@pytest.mark.parametrize("operation", ["attention", "packed_attention"])
def test_the_page_says_it(operation):
    info = ImplementationInfo(name="mine", operation=operation, summary="", arrays="numpy", file="mine.py",
                              dtypes=["float32"], devices=["cpu"], offers=["causal", "window"])  # fmt: skip
    text = str(semantics.html(Report([info, verdict(["causal"])])))
    assert text.count("offered, not verified") == (
        2 if operation == "attention" else 1
    )  # words and tip of a sign
    assert re.search(r"offered, not verified: window|○", text)
    assert "not verified" not in str(semantics.html(Report([info, verdict(["causal", "window"])])))
