"""Whatever a kernel does to its process, the run goes on, says what it was, and is no success; its neighbour is verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .kernels import KERNELS, text_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory and children are read from /proc"),
    pytest.mark.xdist_group("hostile"),  # one run serves all tests
]

LAWS = ("constant_values_are_returned", "weights_lie_in_unit_interval")
CHECKED_ALWAYS = ("exits_0", "reads_null", "interrupts", "loops_in_c", "allocates", "forks", "leaves_a_daemon", "hangs_at_exit",
                  "closes_everything", "changes_folder", "stalls_once")  # fmt: skip
GOOD = "good"


class Run(NamedTuple):
    """What one `qkverify verify` of several kernels gave."""

    code: int
    errors: str
    verdicts: dict[str, dict[str, Any]]  # kernel -> law -> verdict


def verified(folder: Path, names: list[str]) -> Run:
    for name in names:
        (folder / f"{name}.py").write_text(text_of(name))
    results = folder / "results.jsonl"
    command = [sys.executable, "-m", "qkverify.cli", "verify", *(f"{name}.py" for name in names), "--profile", "glance",
               *(word for law in LAWS for word in ("--law", law)), "--call-timeout", "2", "--memory", "400M",
               "--results", str(results)]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400,
                          env={**os.environ, "QKVERIFY_SEED": "7", "OMP_NUM_THREADS": "1"})  # fmt: skip
    verdicts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for record in map(json.loads, results.read_text().splitlines()):
        if record["type"] == "verdict":
            verdicts[record["implementation"]][record["law"]] = record
    return Run(done.returncode, done.stderr, verdicts)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return verified(tmp_path_factory.mktemp("few"), [*CHECKED_ALWAYS, GOOD])


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return verified(
        tmp_path_factory.mktemp("rest"), [*(name for name in KERNELS if name not in CHECKED_ALWAYS), GOOD]
    )


def assert_named(run: Run, name: str) -> None:
    verdicts, expected = run.verdicts[name], KERNELS[name][1]
    assert sorted(verdicts) == sorted(LAWS), run.errors
    broken = {law: verdict for law, verdict in verdicts.items() if verdict["outcome"] != "passed"}
    if expected is None:
        assert broken == {}
        return
    assert len(broken) == 1, broken  # one law, and not the others
    (verdict,) = broken.values()
    assert expected in verdict["reason"] + verdict["counterexample"]["message"]
    assert verdict["outcome"] in ("failed", "crashed", "timed out", "error")


@pytest.mark.parametrize("name", CHECKED_ALWAYS)
def test_a_hostile_kernel_gets_a_name_and_costs_one_law(few: Run, name: str) -> None:
    assert_named(few, name)


def test_a_call_that_returns_when_it_is_repeated_breaks_no_law_and_is_told(few: Run) -> None:
    (said,) = [
        message for verdict in few.verdicts["stalls_once"].values() for message in verdict.get("messages", [])
    ]
    assert said["text"] == "a call did not return within 2 s once, and did when it was repeated"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KERNELS if name not in (*CHECKED_ALWAYS, GOOD)])
def test_so_does_every_other(rest: Run, name: str) -> None:
    assert_named(rest, name)


def test_the_run_is_no_success_and_leaves_nothing_behind(few: Run) -> None:
    assert (few.code, few.errors) == (1, "")
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    assert not [command for command in commands if b"sleep\x00987" in command]


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_the_verdicts_of_a_neighbour_are_those_that_it_gets_alone(few: Run, tmp_path: Path) -> None:
    alone = verified(tmp_path, [GOOD])
    assert alone.code == 0
    for law in LAWS:
        beside, by_itself = ({**run.verdicts[GOOD][law], "seconds": 0} for run in (few, alone))
        assert beside == by_itself


def test_the_problem_that_killed_it_is_shown_and_stored(few: Run) -> None:
    example = few.verdicts["reads_null"][LAWS[0]]["counterexample"]
    assert "query" in example["problem"]
    assert f"qkverify replay {example['replay']}" in example["message"]
    assert example["line"].startswith("reads_null.py:")
