"""A wrong kernel that changes its process is found out by the judge, and its honest neighbour's verdict stays what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .reward_hacks import HACKS, text_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are forks there, and cheap"),
    pytest.mark.xdist_group("reward hacks"),  # one run serves all tests
]

LAW = "agrees_with_reference"
HONEST, REFERENCE = "honest", "returns_the_reference"
# Those in whose process the law holds on the very problem that is broken outside.
INSIDE_HOLDS = ("patches_check_and_replay", "patches_the_comparison", "patches_np_abs", "patches_the_bounds",
                "patches_the_reference", "looks_for_the_law_in_frames", "looks_for_its_judge_in_frames",
                "asks_the_run_in_frames")  # fmt: skip
CHECKED_ALWAYS = ("patches_check_and_replay", "patches_the_comparison", "patches_np_abs", "patches_given", "replaces_a_module",
                  "patches_the_reference", "patches_the_verdict", "patches_the_writer", "looks_for_its_judge_in_frames",
                  "remembers_shapes", "forges_a_finding", "refuses_outsiders")  # fmt: skip
REST = [name for name in HACKS if name not in (*CHECKED_ALWAYS, HONEST, REFERENCE)]
NOT_VERIFIED = ("refuses_outsiders", "raises_for_outsiders")


def verified(folder: Path, names: list[str]) -> tuple[int, str, dict[str, Any]]:
    """The exit code, what was printed, and the verdict of each."""
    for name in names:
        (folder / f"{name}.py").write_text(text_of(name))
    results = folder / "results.jsonl"
    command = [sys.executable, "-m", "qkverify.cli", "verify", *(f"{name}.py" for name in names), "--profile", "glance",
               "--law", LAW, "--results", str(results)]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "QKVERIFY_SEED": "7", "OMP_NUM_THREADS": "1"})  # fmt: skip
    records = map(json.loads, results.read_text().splitlines())
    return done.returncode, done.stdout, {r["implementation"]: r for r in records if r["type"] == "verdict"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hacks")


@pytest.fixture(scope="module")
def checked(folder: Path) -> tuple[int, str, dict[str, Any]]:
    return verified(folder, [*CHECKED_ALWAYS, HONEST, REFERENCE])


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, Any]]:
    return verified(tmp_path_factory.mktemp("rest"), REST)


@pytest.mark.parametrize("name", CHECKED_ALWAYS)
def test_a_wrong_kernel_that_changes_its_process_breaks_a_law(checked: Any, name: str) -> None:
    assert_broken(checked[2][name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_so_does_every_other(rest: Any, name: str) -> None:
    assert_broken(rest[2][name], name)


def assert_broken(verdict: dict[str, Any], name: str) -> None:
    assert verdict["outcome"] == ("error" if name in NOT_VERIFIED else "failed"), verdict
    if name in NOT_VERIFIED:
        assert verdict["reason"].startswith("not verified, because ")
        assert "from outside of the function's process" in verdict["reason"]
    elif name in INSIDE_HOLDS:
        assert verdict["reason"].startswith("the law holds inside of the function's process")
        assert "exceed its bound by a factor of" in verdict["reason"]


def test_the_run_is_no_success_and_says_what_was_asked(checked: Any) -> None:
    code, printed, verdicts = checked
    assert code == 1
    example = verdicts["patches_np_abs"]["counterexample"]
    assert "query [[" in example["message"]
    assert "bound" in example["message"]
    assert verdicts["patches_np_abs"]["reason"] in printed


def test_its_replay_asks_from_outside_too(checked: Any, folder: Path) -> None:
    replay = checked[2]["patches_np_abs"]["counterexample"]["replay"]
    command = [sys.executable, "-m", "qkverify.cli", "replay", replay]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the law holds inside of the function's process" in done.stdout


def test_an_honest_neighbour_keeps_its_verdict(checked: Any, tmp_path: Path) -> None:
    code, _, alone = verified(tmp_path, [HONEST])
    assert code == 0
    assert {**checked[2][HONEST], "seconds": 0} == {**alone[HONEST], "seconds": 0}


def test_a_kernel_that_returns_the_reference_is_right_and_passes(checked: Any) -> None:
    """A limit, told in SECURITY.md: its results are right, and whose they are no comparison shows."""
    assert checked[2][REFERENCE]["outcome"] == "passed"
