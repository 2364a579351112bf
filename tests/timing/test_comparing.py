"""Who is faster: within a run by pairs, between runs by processes, and never against another machine by mistake."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from qkverify.errors import UsageError
from qkverify.results import Control, Fingerprint, Record, RunStart, Timing, Writer
from qkverify.timing import comparison, statistics
from qkverify.timing.comparison import FAIL_ON, Side, fails, implementations, runs, side_of


def start(cpu: str = "a cpu", torch: str = "2.13", memory: float = 24.0) -> RunStart:
    identity: dict[str, str | int | float | None] = {
        "cpu": cpu,
        "cores": 2,
        "torch": torch,
        "memory_gib": memory,
    }
    return RunStart(
        qkverify="1", started="2026-01-01", command="", profile="", fingerprint=Fingerprint(identity, {})
    )


def timing(
    name: str, factor: float, seed: int, *, case: str = "a", drift: float = 1.0, processes: int = 3
) -> Timing:
    """Three processes of ten rounds: the machine's own disturbance is that of the seed, the same for both names."""
    shared = np.random.default_rng(seed)
    mine = np.random.default_rng([zlib.crc32(f"{name} {case}".encode()), seed])
    by_process = np.repeat(shared.normal(0, 0.01, processes), 10)
    logs = by_process + shared.normal(0, 0.05, 10 * processes) + mine.normal(0, 0.002, 10 * processes)
    return Timing(
        case=case, sizes={"B": 1}, causal=True, options="", implementation=name, device="cpu", dtype="float32",
        direction="forward", clock="host", seconds=(factor * drift * np.exp(logs)).tolist(),
        rounds=list(range(10 * processes)), processes=np.repeat(range(processes), 10).tolist(), flops=1, bytes=1,
    )  # fmt: skip


def side(
    *timings: Timing, cpu: str = "a cpu", torch: str = "2.13", reach: float = 1.004, memory: float = 24.0
) -> Side:
    controls: list[Record] = [
        Control(case, "base", "cpu", "float32", 1.0, 1 / reach, reach) for case in {t.case for t in timings}
    ]
    return side_of([start(cpu, torch, memory), *timings, *controls])


def both(factor: float, seed: int = 1, **more: object) -> Side:
    return side(timing("mine", factor, seed, **more), timing("base", 1.0, seed, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(("factor", "word"), [(1.05, "slower"), (0.95, "faster"), (1.0, "same")])
def test_two_implementations_of_a_run_are_compared_round_by_round(factor: float, word: str) -> None:
    compared = implementations(both(factor), "mine", "base")
    assert compared.overall.word == word
    assert compared.overall.interval.ratio == pytest.approx(factor, rel=0.005)


def test_the_noise_that_a_control_shows_is_no_difference() -> None:
    noisy = side(timing("mine", 1.05, 1), timing("base", 1.0, 1), reach=1.1)
    assert implementations(noisy, "mine", "base").overall.word == "undecided"


def test_a_case_whose_rounds_were_too_few_for_a_control_is_not_judged() -> None:
    run = side(timing("mine", 1.5, 1), timing("base", 1.0, 1))
    elsewhere = run._replace(controls=[Control("b", "base", "cpu", "float32", 1.0, 0.99, 1.01)])
    assert implementations(elsewhere, "mine", "base").overall.word == "undecided"


def test_an_unknown_name_says_what_was_timed() -> None:
    with pytest.raises(UsageError, match=r"unknown implementation 'mime'.*'mine'"):
        implementations(both(1.0), "mime", "base")


def test_the_mean_over_cases_is_geometric_and_counts_processes_once() -> None:
    cases = {"a": 1.2, "b": 1 / 1.2, "c": 1.1}
    timings = [
        timing(n, f if n == "mine" else 1.0, 3, case=c) for c, f in cases.items() for n in ("mine", "base")
    ]
    compared = implementations(side(*timings), "mine", "base")
    assert [case.comparison.word for case in compared.cases] == ["slower", "faster", "slower"]
    assert compared.overall.interval.ratio == pytest.approx(1.1 ** (1 / 3), rel=0.003)
    assert compared.overall.rounds == 3


def test_a_change_between_runs_is_seen_beyond_what_processes_scatter() -> None:
    compared = runs(both(1.2, seed=2), both(1.0, seed=1))
    words = {case.candidate.implementation: case.comparison.word for case in compared.cases}
    assert words["mine"] == "slower"
    assert words["base"] in ("same", "undecided")


def test_a_machine_that_slowed_down_between_runs_is_taken_out_by_a_common_neighbour() -> None:
    new, old = both(1.05, seed=2, drift=1.3), both(1.0, seed=1)
    (mine,) = [c for c in runs(new, old).cases if c.candidate.implementation == "mine"]
    assert mine.comparison.interval.ratio > 1.25
    (case,) = runs(new, old, relative_to="base").cases
    assert case.comparison.word == "slower"
    assert case.comparison.interval.ratio == pytest.approx(1.05, rel=0.005)


def test_runs_of_different_machines_are_not_compared_unless_asked_to() -> None:
    new, old = side(timing("mine", 1.0, 1), cpu="another"), both(1.0)
    with pytest.raises(UsageError, match="cpu: a cpu, now another"):
        runs(new, old)
    assert runs(new, old, across_devices=True).cases
    with pytest.raises(UsageError, match=r"memory_gib: 24\.0, now 16\.0"):
        runs(side(timing("mine", 1.0, 1), memory=16.0), old)


def test_memory_that_a_kernel_reserves_makes_no_other_machine() -> None:
    assert runs(side(timing("mine", 1.0, 1), memory=23.5), both(1.0)).cases


def test_what_changed_beside_the_times_is_said() -> None:
    new = side(timing("mine", 1.0, 1), torch="2.14")
    assert comparison.software_changes(new, both(1.0)) == ["torch: 2.13, now 2.14"]


def test_threads_in_another_order_and_an_extra_that_is_not_there_are_no_change() -> None:
    def run(**facts: str | None) -> Side:
        first = start()
        identity = {**first.fingerprint.identity, **facts}
        return side_of(
            [msgspec.structs.replace(first, fingerprint=Fingerprint(identity, {})), timing("mine", 1.0, 1)]
        )

    with_jax = run(blas_threads="openblas 2, openmp 2", jax="0.10.2")
    assert comparison.software_changes(with_jax, run(blas_threads="openmp 2, openblas 2", jax=None)) == []
    assert comparison.software_changes(run(blas="x"), run(blas=None)) == ["blas: unknown, now x"]


def test_what_was_not_timed_says_why_it_cannot_be_compared() -> None:
    untimed = msgspec.structs.replace(
        timing("slow", 1.0, 1),
        seconds=[],
        rounds=[],
        processes=[],
        reason="known failure: it is wrong, see there",
    )
    with pytest.raises(
        UsageError, match=r"slow has no time to compare\n  known failure: it is wrong, see there"
    ):
        implementations(side(timing("base", 1.0, 1), untimed), "slow", "base")


def called_once(seconds: float) -> Timing:
    once = timing("once", 1.0, 1)
    return msgspec.structs.replace(once, seconds=[seconds], rounds=[statistics.ALONE], processes=[0])


@pytest.mark.parametrize(("seconds", "word"), [(10.0, "slower"), (1.3, "undecided"), (0.1, "faster")])
def test_a_call_that_was_made_once_is_judged_only_where_it_is_far_away(seconds: float, word: str) -> None:
    overall = implementations(side(called_once(seconds), timing("base", 1.0, 1)), "once", "base").overall
    assert (overall.word, overall.rounds) == (word, 0)
    assert overall.interval.ratio == pytest.approx(seconds, rel=0.05)
    assert not statistics.is_told(overall.interval)


def test_two_calls_made_once_need_a_wider_gap() -> None:
    def word(seconds: float) -> str:
        return statistics.compare(called_once(seconds), called_once(1.0)).word

    assert [word(s) for s in (3.0, 5.0, 0.3, 0.2)] == ["undecided", "slower", "undecided", "faster"]


def test_an_interval_over_orders_of_magnitude_is_printed_as_none() -> None:
    told = [statistics.Interval(4.0, *edges) for edges in ((0.0, 136917.0), (0.04, 5.0), (3.0, 5.0))]
    assert [statistics.is_told(interval) for interval in told] == [False, False, True]


def test_one_process_against_three_decides_nothing() -> None:
    (case, _) = runs(both(2.0, processes=1), both(1.0)).cases
    assert case.comparison.word == "undecided"


def test_runs_without_a_common_cell_are_an_error() -> None:
    with pytest.raises(UsageError, match="timed no case in common"):
        runs(side(timing("mine", 1.0, 1)), side(timing("base", 1.0, 1)))


@pytest.mark.parametrize("fail_on", ["", *FAIL_ON])
def test_what_must_not_be_fails(fail_on: str) -> None:
    slower, same, faster = (implementations(both(f), "mine", "base") for f in (1.1, 1.0, 0.9))
    assert [fails(compared, fail_on) for compared in (slower, same, faster)] == [
        fail_on in ("slower", "different"), False, fail_on in ("faster", "different"),
    ]  # fmt: skip


def write(path: Path, factor: float, seed: int) -> Path:
    with Writer(path) as writer:
        for record in (start(), timing("mine", factor, seed), timing("base", 1.0, seed),
                       Control("a", "base", "cpu", "float32", 1.0, 0.997, 1.003)):  # fmt: skip
            writer.append(record)
    return path


def compare(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qkverify.cli", "compare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_command_line_fails_a_build_that_got_slower(tmp_path: Path) -> None:
    write(tmp_path / "old.jsonl", 1.0, 1)
    write(tmp_path / "new.jsonl", 1.1, 2)
    done = compare("new.jsonl", "old.jsonl", "--relative-to", "base", "--fail-on", "slower", folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "slower" in done.stdout
    assert compare("new.jsonl", "old.jsonl", "--relative-to", "base", folder=tmp_path).returncode == 0
    within = compare("mine", "base", "--results", "new.jsonl", "--fail-on", "slower", folder=tmp_path)
    assert within.returncode == 1, within.stdout + within.stderr


def test_the_command_line_reads_a_file_of_another_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True,
                       capture_output=True)  # fmt: skip

    write(tmp_path / "times.jsonl", 1.0, 1)
    git("init", "-q")
    git("add", "times.jsonl")
    git("commit", "-qm", "one")
    (tmp_path / "times.jsonl").unlink()
    write(tmp_path / "times.jsonl", 1.1, 2)
    done = compare("times.jsonl", "HEAD:times.jsonl", "--relative-to", "base", folder=tmp_path)
    assert "slower" in done.stdout, done.stderr
    missing = compare("times.jsonl", "HEAD~9:times.jsonl", folder=tmp_path)
    assert missing.returncode == 2
    assert "git has no HEAD~9:times.jsonl" in missing.stderr


def test_the_command_line_refuses_a_wish_that_it_does_not_know(tmp_path: Path) -> None:
    done = compare("a.jsonl", "b.jsonl", "--fail-on", "slow", folder=tmp_path)
    assert done.returncode == 2
    assert "'slower'" in done.stderr
