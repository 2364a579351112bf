"""Trends over made-up runs: the machine's drift is taken out, a step is named with its size, and the page says so."""

from __future__ import annotations

import functools
import itertools
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from qkverify import report, results
from qkverify.history import earlier_runs, trends
from qkverify.history.earlier_runs import PastRun, runs_of
from qkverify.history.machine_drift import together
from qkverify.history.trends import Trends, findings_of, software_changes, trends_of
from qkverify.report import charts, svg
from qkverify.report.charts import ChartSeries, Point
from qkverify.report.model import Report
from qkverify.results import Ceiling

from .. import synthetic_history
from ..synthetic_history import RATIO, SLOWED, run

STEP = 6  # runs before the change
LARGEST = 80_000  # bytes of the section with twenty runs


def past(count: int, **settings: Any) -> list[PastRun]:
    return [past_run for day in range(1, count + 1) for past_run in runs_of(run(day, **settings))]


@pytest.fixture(scope="module")
def ten() -> Trends:
    return trends_of(past(10, step=STEP))


def written(folder: Path, count: int, **settings: Any) -> report.Page:
    path = folder / "results.jsonl"
    for day in range(1, count + 1):
        synthetic_history.write(path, run(day, **settings))
    page, summary = report.write(path, folder)
    return report.Page(page.read_text(), summary.read_text())


def section(page: report.Page) -> str:
    _, opening, rest = page.html.partition('<section id="history"')
    return opening + rest.partition("\n</section>\n<section id=")[0]


def test_the_drift_of_the_machine_is_taken_out() -> None:
    trends = trends_of(past(8, drift=0.2, noise=0.01))
    for trend in trends.cells:
        assert np.std(np.log(trend.seconds)) > 0.1
        assert np.std(np.log(trend.normalised)) < 0.03
    assert findings_of(trends) == []
    assert trends.pace["cpu"][-1] == 1
    raw = [math.log(trend.seconds[0] / trend.seconds[-1]) for trend in trends.cells]
    assert math.log(trends.pace["cpu"][0]) == pytest.approx(np.median(raw), abs=0.01)


def test_a_step_is_named_with_its_run_its_size_and_its_cases(ten: Trends) -> None:
    (finding,) = findings_of(ten)
    cell, change = finding.cell, finding.change
    assert (cell.implementation, cell.dtype, cell.direction) == SLOWED
    assert change.since == STEP
    assert change.low < RATIO < change.high
    assert change.ratio == pytest.approx(RATIO, rel=0.02)
    assert change.high / change.low < 1.10
    assert len(finding.cases) == sum(
        (t.cell.implementation, t.cell.dtype, t.cell.direction) == SLOWED for t in ten.cells
    )
    assert change.runs_after == 10 - STEP


@functools.cache
def first_run() -> PastRun:
    (first,) = runs_of(run(1))
    return first


def bare(
    seed: int, *, runs: int, since: int | None = None, noise: float = 0.02, drift: float = 0.05
) -> list[PastRun]:
    """Runs of four implementations and four cases in pure noise; the first implementation gets 10 % slower at run `since`."""
    random = np.random.default_rng(seed)
    first = first_run()
    summary = next(iter(first.cells.values()))
    past_runs = []
    for number in range(runs):
        pace, cells = random.normal(0, drift), {}
        for name, case in itertools.product("abcd", "wxyz"):
            slowed = math.log(1.1) if name == "a" and since is not None and number >= since else 0.0
            seconds = math.exp(pace + random.normal(0, noise) + slowed)
            cell = earlier_runs.TimedCase(name, "cpu", "float32", "forward", case, 1)
            cells[cell] = msgspec.structs.replace(
                summary, median_seconds=seconds, low_seconds=0.99 * seconds, high_seconds=1.01 * seconds
            )
        start = msgspec.structs.replace(first.start, started=f"2026-01-{number + 1:02}T00:00:00Z")
        past_runs.append(
            PastRun(start, cells, [Ceiling("cpu", "float32", "matmul", math.exp(-pace))], [], None)
        )
    return past_runs


def test_pages_of_noise_and_drift_name_no_step() -> None:
    false = sum(bool(findings_of(trends_of(bare(seed, runs=5)))) for seed in range(100))
    assert false <= 5  # two are expected: steps.FALSE_PAGES


def test_a_step_of_ten_per_cent_is_found_and_nobody_else_is_named() -> None:
    pages = [findings_of(trends_of(bare(seed, runs=10, since=6))) for seed in range(50)]
    right = [
        finding
        for findings in pages
        for finding in findings
        if finding.cell.implementation == "a" and finding.change.since == 6
    ]
    assert len(right) >= 48
    assert sum(finding.change.low <= 1.1 <= finding.change.high for finding in right) >= 0.95 * len(right)
    assert sum(any(finding.cell.implementation != "a" for finding in findings) for findings in pages) <= 2


def test_an_implementation_has_no_say_in_its_own_pace() -> None:
    """Most cells are of the one that changed: the others and the ceilings still tell that it did, and not they."""
    every = [r for day in range(1, 9) for r in runs_of(run(day, step=4))]

    def kept(cell: earlier_runs.TimedCase) -> bool:
        slowed = (cell.implementation, cell.dtype, cell.direction) == SLOWED
        return slowed or (
            cell.implementation != SLOWED[0] and cell.case.endswith("gpt2") and cell.dtype == "float32"
        )

    few = [
        PastRun(
            r.start,
            {cell: s for cell, s in r.cells.items() if kept(cell)},
            r.ceilings[:1],
            r.controls,
            r.tally,
        )
        for r in every
    ]
    assert {(f.cell.implementation, f.cell.dtype, f.cell.direction) for f in findings_of(trends_of(few))} == {
        SLOWED
    }
    assert all(finding.change.since == 4 for finding in findings_of(trends_of(few)))


def test_without_other_witnesses_times_are_judged_as_measured() -> None:
    alone = [
        PastRun(r.start, {c: s for c, s in r.cells.items() if c.implementation == SLOWED[0]}, [], [], None)
        for r in past(8, step=4, drift=0.0)
    ]
    trends = trends_of(alone)
    assert all(np.array_equal(t.seconds, t.normalised) for t in trends.cells)
    assert {f.change.since for f in findings_of(trends)} == {4}


def test_two_runs_are_compared_and_not_judged() -> None:
    trends = trends_of(past(2, step=1))
    assert not trends.judged
    assert findings_of(trends) == []
    slowed = [
        t.last for t in trends.cells if (t.cell.implementation, t.cell.dtype, t.cell.direction) == SLOWED
    ]
    assert [change.ratio for change in slowed if change] == pytest.approx([RATIO] * len(slowed), rel=0.15)


def test_runs_of_another_machine_are_left_out_with_the_reason() -> None:
    runs = [*runs_of(run(1, facts={"cores": 64})), *runs_of(run(2)), *runs_of(run(3))]
    trends = trends_of(runs)
    assert [past_run.start.started[:10] for past_run in trends.runs] == ["2026-01-02", "2026-01-03"]
    assert [(past_run.start.started[:10], why) for past_run, why in trends.others] == [
        ("2026-01-01", "cores 64 instead of 2")
    ]


def test_only_the_latest_runs_are_shown() -> None:
    (past_run,) = runs_of(run(1))
    starts = [
        msgspec.structs.replace(past_run.start, started=f"2026-01-01T00:{minute:02}:00Z")
        for minute in range(30)
    ]
    many = [PastRun(start, past_run.cells, [], [], None) for start in starts]
    shown = trends_of(many)
    assert (len(shown.runs), shown.older) == (trends.MOST_RUNS, 30 - trends.MOST_RUNS)
    assert findings_of(shown) == []


def test_a_case_that_was_redefined_is_another_case() -> None:
    (before,), (after,) = runs_of(run(1)), runs_of(run(2))
    cells = {earlier_runs.TimedCase(*cell[:-1], cell.flops * 2): s for cell, s in before.cells.items()}
    trends = trends_of([PastRun(before.start, cells, before.ceilings, [], None), after])
    assert trends.cells == ()


def test_changes_of_software_are_said() -> None:
    (before,), (after,) = runs_of(run(1, facts={"torch": "2.12.0"})), runs_of(run(2))
    assert software_changes(before, after) == ["torch 2.12.0 → 2.13.0"]
    assert software_changes(after, after) == []
    (before_swap,), (after_swap,) = (
        runs_of(run(1, facts={"blas_threads": said}))
        for said in ("openblas 2, openmp 2", "openmp 2, openblas 2")
    )
    assert software_changes(before_swap, after_swap) == []
    (with_jax,), (without,) = (runs_of(run(1, facts={"jax": version})) for version in ("0.10.2", None))
    assert software_changes(with_jax, without) == []  # an environment that merely lacks the extra


def test_cells_together_do_not_depend_on_which_were_timed() -> None:
    slow, quick = np.array([8.0, 8.8, np.nan, 8.0]), np.array([1.0, 1.1, 1.2, 1.0])
    assert together([slow, quick]) == pytest.approx([1.0, 1.1, 1.2, 1.0])
    missing = together([np.array([np.nan, 2.0, 3.0])])
    assert math.isnan(missing[0])
    assert missing[1:] == pytest.approx([1.0, 1.5])


def test_the_page_names_the_step_and_shows_the_runs(tmp_path: Path) -> None:
    page = written(tmp_path, 10, step=STEP, facts=None)
    said = "Since run 7 (2026-01-07 03:04, commit 0707070) synthetic_eager forward float32 on cpu is 1.3"
    assert said in section(page)
    assert said in page.markdown
    assert "× slower (1." in page.markdown
    assert "There are 9 earlier runs on this machine." in page.markdown
    assert page.markdown.count("| 2026-01-") == 10
    assert "Seen in one run so far" not in section(page)
    assert section(page).count("<svg") == 8  # two directions in two dtypes, normalised and as measured


def test_a_step_in_the_latest_run_waits_for_the_next(tmp_path: Path) -> None:
    page = written(tmp_path, 8, step=7)
    assert "Since run 8 " in page.markdown
    assert "Seen in one run so far: the next one confirms or clears it." in page.markdown


def test_one_earlier_run_is_compared_in_words_that_do_not_judge(tmp_path: Path) -> None:
    page = written(tmp_path, 2, step=1)
    assert "There is 1 earlier run on this machine" in page.markdown
    assert "none is judged before there are 2" in page.markdown
    assert "Since run" not in page.markdown
    assert "No step was found" not in page.html
    assert section(page).count("<svg") == 8


def test_without_earlier_runs_there_is_no_history(tmp_path: Path) -> None:
    page = written(tmp_path, 1)
    assert 'id="history"' not in page.html
    assert "## History" not in page.markdown


def test_quiet_runs_are_said_to_be_quiet(tmp_path: Path) -> None:
    page = written(tmp_path, 5)
    assert "No step was found" in page.html
    assert "No step was found" in page.markdown


def test_the_page_is_the_same_bytes_again_and_stays_small(tmp_path: Path) -> None:
    page = written(tmp_path, 20, step=STEP)
    assert len(section(page).encode()) < LARGEST
    again = report.write(tmp_path / "results.jsonl", tmp_path / "again")
    assert again[0].read_text() == page.html
    assert again[1].read_text() == page.markdown


def test_names_from_a_kept_run_are_escaped(tmp_path: Path) -> None:
    page = written(tmp_path, 2, facts={"commit": "<script>alert(1)</script>", "torch": '"><b>'})
    written_again = written(tmp_path, 3)
    assert "<script>alert" not in page.html + written_again.html
    assert "&lt;script" in written_again.html
    HTMLParser().feed(written_again.html)


def test_a_broken_kept_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    synthetic_history.write(path, run(1))
    (tmp_path / earlier_runs.FOLDER).mkdir()
    (tmp_path / earlier_runs.FOLDER / "2025.jsonl").write_text('{"type":"run"\n')
    with pytest.raises(results.ResultsError, match=r"2025\.jsonl, line 1"):
        report.write(path, tmp_path)


def test_a_resumed_file_shows_its_own_runs(tmp_path: Path) -> None:
    shown = Report([*run(1), *run(2)]).trends
    assert len(shown.runs) == 2


def test_a_run_chart_marks_what_has_words_and_draws_the_rest() -> None:
    points = [Point(1, 1.0, "first"), Point(2, 1.1, ""), Point(3, 1.3, "step"), Point(4, 1.3, "last")]
    drawn = charts.run_chart([ChartSeries("one", 0, points)], 4, alt="Trend")
    assert drawn.count("data-tip") == 3
    assert drawn.count("L") == 3 + 1 + 1  # the line, its key in the legend, the line at one
    assert 'aria-label="Trend"' in drawn


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.95, 1.05, [0.95, 1.0, 1.05]),
        (0.95, 1.31, [0.9, 1.0, 1.1, 1.2, 1.3, 1.4]),
        (0.5, 12, [0, 5, 10, 15]),
    ],
)
def test_even_ticks_are_round_and_around_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert svg.even(low, high) == pytest.approx(ticks)
