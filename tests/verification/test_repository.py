"""What a repository selects, adds and already knows: laws by name, laws of its own, known failures, `[tool.qkverify]`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qkverify.cli.adapter_options import with_adapters
from qkverify.errors import UsageError
from qkverify.results import RunStart, Verdict, of_kind, read
from qkverify.verification import known_failures, requested, selection, settings
from qkverify.verification.checking import law_book

KERNEL = """
import numpy as np

def attention(query, key, value):
    key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    return weights @ value / np.where(total == 0, 1, total)
"""
UNSCALED = KERNEL.replace("query.shape[-1] ** -0.5", "1")
LAWS = """
from qkverify import law, problems
from qkverify.runs.assertions import assert_within_bound

@law("Twice the values give twice the output.", source="linearity", problem=problems(tame=True))
def test_twice(run, problem):
    assert_within_bound(run(problem.replace(value=problem.value * 2)), run(problem) * 2.0)

@law("Twice the values give three times the output.", source="none: this law is wrong", problem=problems(tame=True))
def test_thrice(run, problem):
    assert_within_bound(run(problem.replace(value=problem.value * 2)), run(problem) * 3.0)
"""
THRICE = '[[known_failure]]\nlaw = "thrice"\nreason = "three is not two"\nlink = "issue 7"\n'
SETTINGS = '[tool.qkverify]\ntargets = ["kernel.py:attention"]\nprofile = "glance"\ndtypes = ["float32"]\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "kernel.py").write_text(KERNEL)
    (tmp_path / "unscaled.py").write_text(UNSCALED)
    (tmp_path / "test_laws.py").write_text(LAWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    prefixes = ("PYTEST_", "QKVERIFY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def verify(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run("qkverify.cli", "verify", *arguments, cwd=cwd)


# Selection


def test_laws_are_selected_by_name_pattern_and_family() -> None:
    every = law_book()
    assert [law.name for law in selection.select(every, ["rows_sum_to_one"]).laws] == ["rows_sum_to_one"]
    causal = {law.name for law in every if law.name.startswith("causal_")}
    assert {law.name for law in selection.select(every, ["causal_*"]).laws} == causal
    family = {law.name for law in every if law.family == "softmax"}
    assert {law.name for law in selection.select(every, ["softmax"], ["rows_sum_to_one"]).laws} == family - {
        "rows_sum_to_one"
    }
    assert {law.family for law in selection.select(every, (), ["dropout"]).laws} == {
        law.family for law in every
    } - {"dropout"}


def test_all_laws_are_selected_by_no_pattern_or_one_for_all() -> None:
    assert selection.select(law_book()).laws == law_book()
    assert selection.select(law_book(), ["*"]).laws == law_book()


def test_a_name_that_no_law_has_gets_the_nearest_and_where_all_are_listed() -> None:
    with pytest.raises(
        UsageError,
        match=r"unknown law 'row_sum_to_one'. Did you mean 'rows_sum_to_one'\?\n.*qkverify list laws",
    ):
        selection.select(law_book(), ["row_sum_to_one"])
    with pytest.raises(UsageError, match="unknown law 'cuasal_"):
        selection.select(law_book(), ["attention"], ["cuasal_*"])
    with pytest.raises(UsageError, match="no law is left"):
        selection.select(law_book(), ["softmax"], ["soft*"])


def test_the_verdict_of_a_selection_never_speaks_of_all_laws(folder) -> None:
    done = verify(
        "kernel.py:attention",
        "--law",
        "rows_sum_to_one",
        "--dtype",
        "float32",
        "--profile",
        "glance",
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 selected law holds" in done.stdout
    assert "all laws" not in done.stdout
    left = verify(
        "unscaled.py:attention",
        "--law",
        "agrees_with_reference",
        "--dtype",
        "float32",
        "--profile",
        "glance",
        cwd=folder,
    )
    assert left.returncode == 1
    untested = verify("kernel.py:attention", "--law", "gradients", "--profile", "glance", cwd=folder)
    assert untested.returncode == 4
    assert "NOT VERIFIED" in untested.stdout
    assert "holds" not in untested.stdout
    other = verify("kernel.py:attention", "--law", "positions", cwd=folder)
    assert other.returncode == 2
    assert "none of the selected laws is about attention" in other.stderr


def test_a_report_of_selected_laws_says_so(folder) -> None:
    arguments = ("--dtype", "float32", "--profile", "glance", "--results", "mine/results.jsonl")
    assert (
        verify(
            "kernel.py:attention", "--law", "softmax", "--skip", "rows_*", *arguments, cwd=folder
        ).returncode
        == 0
    )
    (start,) = of_kind(read("mine/results.jsonl"), RunStart)
    assert start.selection == "laws softmax, skip rows_*"
    done = run("qkverify.cli", "report", "mine", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every selected law holds for " in (folder / "mine" / "summary.md").read_text()


# Laws of one's own


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_own_laws_run_beside_the_built_in_ones(folder, jobs) -> None:
    arguments = ("--own-laws", "test_laws.py", "--dtype", "float32", "--profile", "glance", "--jobs", jobs)
    done = verify("kernel.py:attention", "--law", "laws", "--law", "rows_sum_to_one", *arguments, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 laws" in next(line for line in done.stdout.splitlines() if line.startswith("  laws "))
    assert "thrice: Twice the values give three times the output." in done.stdout
    replay = next(line.split()[-1] for line in done.stdout.splitlines() if "qkverify replay" in line)
    again = run("qkverify.cli", "replay", replay, cwd=folder)
    assert again.returncode == 1
    assert "thrice: Twice the values" in again.stdout


def test_files_without_laws_and_names_that_are_taken_are_mistakes(folder) -> None:
    (folder / "plain.py").write_text("from qkverify.properties.test_softmax import test_rows_sum_to_one\n")
    with pytest.raises(UsageError, match=r"plain.py defines no law"):
        selection.laws_of_files(["plain.py"])
    (folder / "same.py").write_text(LAWS.replace("test_twice", "test_rows_sum_to_one"))
    with pytest.raises(UsageError, match=r"same.py: the name 'rows_sum_to_one' is taken by a built-in law"):
        selection.laws_of_files(["same.py"])
    (folder / "copy.py").write_text(LAWS)
    with pytest.raises(UsageError, match=r"copy.py: the name 'twice' is taken by a law of test_laws.py"):
        selection.laws_of_files(["test_laws.py", "copy.py"])


# Known failures


def test_a_known_failure_fails_no_run_and_is_told_with_its_reason(folder) -> None:
    arguments = ("--law", "laws", "--own-laws", "test_laws.py", "--dtype", "float32", "--profile", "glance")
    (folder / known_failures.FILE).write_text(THRICE)
    for jobs in ("1", "2"):
        done = verify("kernel.py:attention", *arguments, "--jobs", jobs, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "known failure thrice: three is not two, see issue 7" in done.stdout
        told = "1 other selected law holds in 1 configuration; 1 known failure: thrice (three is not two, see issue 7)"
        assert told in done.stdout
    (folder / known_failures.FILE).write_text(THRICE + 'dtype = "float64"\n')
    assert verify("kernel.py:attention", *arguments, cwd=folder).returncode == 1  # it speaks of another dtype


def test_an_entry_that_holds_again_is_said(folder) -> None:
    (folder / "known.toml").write_text(THRICE.replace("thrice", "agrees_with_reference"))
    arguments = ("--law", "agrees_with_reference", "--dtype", "float32", "--profile", "glance")
    assert verify("kernel.py:attention", *arguments, "--strict", cwd=folder).returncode == 0
    for strict, code in (((), 0), (("--strict",), 1)):
        done = verify(
            "kernel.py:attention", *arguments, "--known-failures", "known.toml", *strict, cwd=folder
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "examples: agrees_with_reference; " in done.stdout
        assert (
            "if it does with --profile thorough as well, remove known.toml, entry 1 (line 1)" in done.stdout
        )


def verdict(law: str, dtype: str, outcome: str) -> Verdict:
    return Verdict(law=law, family="f", sentence="s", exact=False, implementation="mine", device="cpu", dtype=dtype,
                   outcome=outcome, examples=5)  # fmt: skip


def test_of_two_entries_the_narrower_one_speaks(folder) -> None:
    wide = THRICE.replace('link = "issue 7"', 'implementation = "m*"')
    (folder / "known.toml").write_text(wide + "\n" + THRICE + 'dtype = "float32"\nimplementation = "mine"\n')
    entries = known_failures.read("known.toml")
    assert known_failures.entry_of(entries, "thrice", "mine", "cpu", "float32") is entries[1]
    assert known_failures.entry_of(entries, "thrice", "mine", "cpu", "float64") is entries[0]
    assert known_failures.entry_of(entries, "thrice", "yours", "cpu", "float64") is None
    verdicts = [verdict("thrice", "float32", "finding"), verdict("thrice", "float64", "passed")]
    (said,) = known_failures.holding_again(entries, verdicts)
    assert "entry 1 (line 1)" in said
    assert not known_failures.holding_again(entries, [verdict("thrice", "float64", "not offered")])


def test_an_entry_for_several_laws_is_needed_while_one_of_them_fails(folder) -> None:
    (folder / "known.toml").write_text(THRICE.replace('"thrice"', '["thrice", "twice"]'))
    entries = known_failures.read("known.toml")
    still = [verdict("thrice", "float32", "finding"), verdict("twice", "float32", "passed")]
    assert not known_failures.holding_again(entries, still)
    (said,) = known_failures.holding_again(entries, [verdict("thrice", "float32", "passed"), still[1]])
    held = "holds again in 10 examples: thrice, twice"
    assert said == f"{held}; if it does with --profile thorough as well, remove known.toml, entry 1 (line 1)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[known_failure]\n", r"known.toml is not valid TOML: .*line 1"),
        ("[[known_failures]]\n", r"known.toml: unknown table 'known_failures'. Did you mean 'known_failure'\?"),
        ("[known_failure]\nlaw = 'x'\n", r"known.toml: each known failure is a table of its own"),
        (THRICE + "\n[[known_failure]]\nlaw = 'x'\n", r"entry 2 \(line 6\): reason is missing"),
        (THRICE.replace("three is not two", " "), r"entry 1 \(line 1\): reason is ' '; it must be a string that is not empty"),
        (THRICE + "dtpye = 'float32'\n", r"entry 1 \(line 1\): unknown key 'dtpye'. Did you mean 'dtype'\?"),
        (THRICE + "dtype = 'float23'\n", r"entry 1 \(line 1\): unknown dtype 'float23'. Did you mean 'float32'\?"),
        (THRICE + "device = 'gpu'\n", r"entry 1 \(line 1\): unknown device 'gpu'"),
        (THRICE + THRICE, r"entry 2 \(line 5\): known.toml, entry 1 \(line 1\) names thrice too"),
        (THRICE.replace('"thrice"', "[]"), r"entry 1 \(line 1\): law is \[\]"),
        (None, r"known.toml cannot be read"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_said_with_its_place(folder, text, said) -> None:
    if text is not None:
        (folder / "known.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        known_failures.read("known.toml")


def test_an_entry_for_a_law_that_there_is_not_is_a_mistake(folder) -> None:
    (folder / "known.toml").write_text(THRICE.replace("thrice", "row_sum_to_one"))
    with pytest.raises(
        UsageError,
        match=r"entry 1 \(line 1\): unknown law 'row_sum_to_one'. Did you mean 'rows_sum_to_one'\?",
    ):
        known_failures.check_laws(known_failures.read("known.toml"), law_book())


# Settings


def test_without_targets_those_of_pyproject_are_verified_from_any_folder_below(folder) -> None:
    (folder / "pyproject.toml").write_text(SETTINGS + 'laws = ["softmax"]\nskip = ["rows_sum_to_one"]\n')
    below = folder / "deep" / "er"
    below.mkdir(parents=True)
    for place in (folder, below):
        done = verify(cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "kernel:attention · numpy · float32 · cpu" in done.stdout
        assert "laws softmax, skip rows_sum_to_one" in done.stdout  # what is in force is said
        assert "selected" in done.stdout


def test_the_command_line_wins(folder) -> None:
    (folder / "pyproject.toml").write_text(SETTINGS + 'own_laws = ["test_laws.py"]\nlaws = ["laws"]\n')
    given = requested.gathered(
        targets=["unscaled.py:attention"], dtypes=["float64"], laws=["twice"], profile="quick", skip=None
    )
    assert [str(cell) for cell in given.plan.cells] == ["unscaled:attention-cpu-float64"]
    assert [law.name for law in given.selection.laws] == ["twice"]
    assert given.profile == "quick"
    assert [law.name for law in requested.gathered().selection.laws] == ["twice", "thrice"]


def test_without_a_target_anywhere_the_ways_to_name_one_are_said(folder) -> None:
    done = verify(cwd=folder)
    assert done.returncode == 2
    assert "qkverify init" in done.stderr
    assert "[tool.qkverify]" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("target = []", r"pyproject.toml, \[tool.qkverify\]: unknown key 'target'. Did you mean 'targets'\?"),
        ("targets = 'kernel.py'", r"targets is 'kernel.py'; it must be a list of strings"),
        ("profile = 3", r"profile is 3; it must be a string"),
        ("profile = ", r"pyproject.toml is not valid TOML"),
    ],
)
def test_a_mistake_in_pyproject_is_said(folder, line, said) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.qkverify]\n{line}\n")
    with pytest.raises(UsageError, match=said):
        settings.read()


def test_another_pyproject_between_is_passed_over(folder) -> None:
    (folder / "pyproject.toml").write_text(SETTINGS)
    (folder / "part").mkdir()
    (folder / "part" / "pyproject.toml").write_text("[tool.other]\n")
    assert settings.read(folder / "part").targets == ("kernel.py:attention",)


# pytest


def test_pytest_takes_settings_known_failures_and_own_laws(folder) -> None:
    (folder / "pyproject.toml").write_text(SETTINGS)
    (folder / known_failures.FILE).write_text(THRICE + "\n" + THRICE.replace("thrice", "twice"))
    done = run("pytest", "-q", "-rx", "test_laws.py", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 xfailed" in done.stdout
    assert (
        "test_laws.py::test_thrice[kernel:attention-cpu-float32] - recorded finding: three is not two, see issue 7"
        in done.stdout
    )
    assert "known failures that hold again" in done.stdout
    assert f"remove {known_failures.FILE}, entry 2 (line 6)" in done.stdout


def test_pytest_selects_laws(folder) -> None:
    arguments = (
        "--pyargs",
        "qkverify.properties",
        "--implementation",
        "kernel.py:attention",
        "--dtype",
        "float32",
    )
    done = run(
        "pytest",
        "-q",
        *arguments,
        "--law",
        "softmax",
        "--skip-law",
        "rows_*",
        "--hypothesis-profile",
        "glance",
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout
    wrong = run("pytest", "-q", *arguments, "--law", "row_sum_to_one", cwd=folder)
    assert wrong.returncode == 4, wrong.stdout
    assert "Did you mean 'rows_sum_to_one'?" in wrong.stdout + wrong.stderr


def test_a_repository_that_has_options_of_the_same_names_keeps_them(folder) -> None:
    (folder / "conftest.py").write_text(
        "def pytest_addoption(parser):\n"
        "    parser.addoption('--device', default='cuda')\n"
        "    parser.addoption('--dtype', dest='number')\n"
        "    parser.addoption('--results', action='store_true')\n"
    )
    (folder / "test_theirs.py").write_text(
        "def test_theirs(request):\n    assert request.config.getoption('--device') == 'cuda'\n"
    )
    done = run("pytest", "-q", "test_theirs.py", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    arguments = ("test_laws.py", "--implementation", "kernel.py:attention", "--law", "twice")
    ours = run("pytest", "-q", *arguments, "--qkverify-dtype", "float32", "--device", "mars", cwd=folder)
    assert "1 passed, 1 deselected" in ours.stdout, ours.stdout + ours.stderr


def test_problems_is_the_strategy_whatever_was_imported_before() -> None:
    imported = "import qkverify.problem.attention_problem, qkverify.strategies"
    code = f"{imported}; from qkverify import problems; assert callable(problems), problems"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_folder_of_counterexamples_is_ignored_by_git(folder) -> None:
    done = verify(
        "unscaled.py:attention",
        "--law",
        "agrees_with_reference",
        "--dtype",
        "float32",
        "--profile",
        "glance",
        cwd=folder,
    )
    assert done.returncode == 1
    assert (folder / ".qkverify" / ".gitignore").read_text() == "*\n"


# What a repository says of its targets


ADAPTED = """
[tool.qkverify]
targets = ["deep/kernel.py:attention", "other.py:attention --layout LD"]

[tool.qkverify.adapters."deep/kernel.py:attention"]
layout = "BLHD"
returns = 0
weights = {"c_attn.weight" = "qkv"}
"""


def test_adapters_of_a_table_hold_for_their_target_however_it_is_written(folder, monkeypatch) -> None:
    (folder / "pyproject.toml").write_text(ADAPTED)
    (folder / "deep").mkdir()
    said = "--layout BLHD --returns 0 --weights c_attn.weight=qkv"
    assert settings.read().given().targets == (
        f"deep/kernel.py:attention {said}",
        "other.py:attention --layout LD",
    )
    monkeypatch.chdir(folder / "deep")
    here = settings.read().given(targets=["./kernel.py:attention --layout LD", "kernel.py:attention_vjp"])
    assert here.targets == (f"./kernel.py:attention {said.replace('BLHD', 'LD')}", "kernel.py:attention_vjp")
    assert with_adapters(["kernel.py:attention", "numpy_tiled"], {"returns": ["1"]}) == (
        "kernel.py:attention --layout BLHD --returns 1 --weights c_attn.weight=qkv",
        "numpy_tiled",
    )
    with pytest.raises(UsageError, match=r"--returns 1: of what\? Name the function"):
        with_adapters(["numpy_tiled"], {"returns": ["1"]})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            'layot = "BLHD"',
            r"\[tool.qkverify.adapters.\"a:b\"\]: unknown adapter 'layot'. Did you mean 'layout'",
        ),
        ('layout = "BLDH"', r"adapters.\"a:b\"\]: layout: unknown layout 'BLDH'.*\n  layouts: BHLD"),
        ("returns = true", "returns: True is not a word"),
        ("requires = 3", "requires: 3 is neither a word nor a list of words"),
        ('weights = "qkv"', "weights: 'qkv' gives no name a value"),
    ],
)
def test_a_wrong_table_of_adapters_is_told_with_its_place(folder, table: str, said: str) -> None:
    (folder / "pyproject.toml").write_text(f'[tool.qkverify.adapters."a:b"]\n{table}\n')
    with pytest.raises(UsageError, match=said):
        settings.read()
