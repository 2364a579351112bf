"""Earlier runs are kept, small, and never lost; a resumed or a killed run is one run."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from qkverify import results
from qkverify.cli import full_run
from qkverify.history import earlier_runs
from qkverify.history.earlier_runs import FOLDER, another_machine, archive, load, median_interval, runs_of
from qkverify.results import (
    Ceiling,
    Control,
    Record,
    ResultsError,
    RunStart,
    Tally,
    Timing,
    TimingSummary,
    Verdict,
    Writer,
    of_kind,
)

from ..cli.test_campaigns import small  # noqa: F401  # a fixture
from ..results.test_results import run_start
from ..synthetic_history import run, write

LARGEST = 100_000  # bytes of one run in version control


def kept(path: Path) -> list[str]:
    return sorted(file.name for file in (path.parent / FOLDER).glob("*"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_a_run_is_kept_before_the_next_takes_its_place(path: Path) -> None:
    write(path, run(1))
    assert kept(path) == []
    write(path, run(2))
    assert kept(path) == ["2026-01-01T03-04-05-00-00.jsonl"]
    write(path, run(3))
    (first, second) = load(path)
    assert [past_run.start.started[:10] for past_run in (first, second)] == ["2026-01-01", "2026-01-02"]


def test_what_a_trend_needs_is_kept_and_is_small(path: Path) -> None:
    records = run(1)
    write(path, records)
    (file,) = archive(path)
    assert file.stat().st_size < LARGEST
    kept_records = results.read(file)
    timed = [t for t in of_kind(records, Timing) if t.seconds]
    assert of_kind(kept_records, RunStart) == of_kind(records, RunStart)
    assert of_kind(kept_records, Control) == of_kind(records, Control)
    assert [c.rate for c in of_kind(kept_records, Ceiling)] == [c.rate for c in of_kind(records, Ceiling)]
    assert [c.seconds for c in of_kind(kept_records, Ceiling)] == [[]] * len(of_kind(records, Ceiling))
    summaries = of_kind(kept_records, TimingSummary)
    assert len(summaries) == len(timed) > 50
    assert LARGEST / (file.stat().st_size / len(timed)) > 250  # so many cells of a run fit
    for timing, summary in zip(timed, summaries, strict=True):
        assert summary.median_seconds == np.median(timing.seconds)
        assert min(timing.seconds) <= summary.low_seconds <= summary.median_seconds <= summary.high_seconds
        assert (summary.samples, summary.flops, summary.margin) == (20, timing.flops, timing.margin)
    (tally,) = of_kind(kept_records, Tally)
    verdicts = of_kind(records, Verdict)
    assert sum(tally.outcomes.values()) == len(verdicts)
    assert tally.outcomes["failed"] == sum(v.outcome == "failed" for v in verdicts)
    assert tally.examples == sum(v.examples for v in verdicts)


def test_a_kept_run_says_the_same_as_the_run_itself(path: Path) -> None:
    write(path, run(1))
    (today,) = runs_of(results.read(path))
    archive(path)
    (later,) = load(path)
    assert later.cells == today.cells
    assert later.tally == today.tally
    assert later.controls == today.controls


def test_keeping_twice_changes_nothing(path: Path) -> None:
    write(path, run(1))
    (file,) = archive(path)
    before = file.read_bytes()
    assert archive(path) == []
    assert file.read_bytes() == before


def test_a_run_in_which_nothing_was_timed_is_not_kept(path: Path) -> None:
    untimed: list[Record] = [record for record in run(1) if not isinstance(record, Timing)]
    write(path, [*untimed, *(t for t in of_kind(run(1), Timing) if not t.seconds)])
    assert archive(path) == []
    assert kept(path) == []


def test_a_file_that_was_gone_on_with_holds_a_run_for_each_start_that_timed_something(path: Path) -> None:
    killed = [record for record in run(1) if not isinstance(record, Timing)]
    write(path, [*killed, *run(2), *run(3)])
    assert [file.name[:10] for file in archive(path)] == ["2026-01-02", "2026-01-03"]


def test_a_torn_line_does_not_cost_the_run(path: Path) -> None:
    write(path, run(1))
    path.write_bytes(path.read_bytes()[:-20])
    assert len(archive(path)) == 1


def test_a_file_that_cannot_be_read_is_not_replaced(path: Path) -> None:
    with Writer(path) as writer:
        writer.append(run_start(schema=99, qkverify="9.9"))
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"qkverify 9\.9 or newer reads it"):
        full_run.record_everything(path, profile="glance", budget_seconds=0)
    assert path.read_bytes() == before


def test_a_run_in_both_places_counts_once(path: Path) -> None:
    write(path, run(1))
    archive(path)  # and killed before the file was replaced
    assert len(earlier_runs.in_order([*load(path), *runs_of(results.read(path))])) == 1


def test_runs_come_in_the_order_of_their_starts_however_these_are_written() -> None:
    starts = ["2026-01-02T00:00:00Z", "2026-01-02T00:30:00+01:00", "2026-01-01T23:59:00+00:00"]
    runs = [earlier_runs.PastRun(run_start(started=start), {}, [], [], None) for start in starts]
    assert [past_run.start.started for past_run in earlier_runs.in_order(runs)] == [
        starts[1],
        starts[2],
        starts[0],
    ]


@pytest.mark.parametrize(
    ("facts", "differs"),
    [({}, ""), ({"torch": "9.9", "commit": "f" * 40}, ""), ({"memory_gib": 7.6}, ""), ({"cores": 4}, "cores 4 instead of 2"),
     ({"memory_gib": 15.5}, "memory gib 15.5 instead of 7.5"), ({"gpu": "NVIDIA H200"}, "gpu NVIDIA H200 instead of None")],
)  # fmt: skip
def test_only_the_machine_decides_what_is_comparable(facts: dict[str, results.Fact], differs: str) -> None:
    (earlier,), (latest,) = runs_of(run(1, facts=facts)), runs_of(run(2))
    assert another_machine(earlier, latest) == differs


def timed(seconds: list[float], processes: int = 1) -> Timing:
    each = len(seconds) // processes
    return Timing("a", {}, True, "", "one", "cpu", "float32", "forward", "host", seconds, list(range(len(seconds))), 1, 1,
                  processes=[number for number in range(processes) for _ in range(each)])  # fmt: skip


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    intervals = [median_interval(timed(random.lognormal(0, 0.1, 21).tolist())) for _ in range(200)]
    assert 0.88 < sum(low <= 1 <= high for low, high in intervals) / len(intervals) <= 1.0
    assert median_interval(timed([2.0])) == (2.0, 2.0)
    assert median_interval(timed([1.0, 3.0])) == (1.0, 3.0)


def test_processes_that_differ_make_the_interval_wide() -> None:
    seconds = [1.0] * 7 + [1.1] * 7 + [1.2] * 7
    low, high = median_interval(timed(seconds, processes=3))
    assert low < 0.9
    assert high > 1.3
    assert median_interval(timed(seconds))[1] <= 1.2


def test_names_of_files_are_safe() -> None:
    assert earlier_runs.file_name("2026-11-21T11:47:47+00:00") == "2026-11-21T11-47-47-00-00"
    assert earlier_runs.file_name("../../etc: x") == "etc-x"
    assert earlier_runs.file_name("") == "unknown"


def test_report_run_keeps_the_run_before_and_resume_does_not(small, monkeypatch) -> None:  # noqa: F811
    path, _ = small
    timing = Timing(
        "c", {"B": 1}, True, "", "i", "cpu", "float32", "forward", "host", [1.0, 1.1, 1.2], [0, 1, 2], 1, 1
    )
    starts = iter(f"2026-01-0{day}T00:00:00+00:00" for day in range(1, 9))
    begin = full_run.run_start
    monkeypatch.setattr(
        full_run,
        "run_start",
        lambda profile, **named: msgspec.structs.replace(begin(profile, **named), started=next(starts)),
    )

    def everything(**settings: object) -> None:
        full_run.record_everything(path, profile="glance", budget_seconds=0, **settings)  # type: ignore[arg-type]

    everything()  # nothing is timed
    everything()
    assert kept(path) == []

    def killed(writer: results.Writer, *given: object, **settings: object) -> None:
        writer.append(timing)
        raise KeyboardInterrupt

    monkeypatch.setattr(full_run, "run_grid", killed)
    with pytest.raises(KeyboardInterrupt):
        everything()
    monkeypatch.setattr(full_run, "run_grid", lambda writer, *given, **settings: writer.append(timing))
    everything(resume=True)
    assert kept(path) == []
    everything(resume=True)  # that one is finished
    assert [name[:10] for name in kept(path)] == ["2026-01-03", "2026-01-04"]
    everything()
    assert [name[:10] for name in kept(path)] == ["2026-01-03", "2026-01-04", "2026-01-05"]
    assert math.isclose(next(iter(load(path)[-1].cells.values())).median_seconds, 1.1)
