"""The first table: who is right, how accurate, how fast against the default; the same on page, summary and terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from qkverify import report
from qkverify.cli import console_overview, console_timings
from qkverify.report import headline, overview
from qkverify.report.model import Report
from qkverify.report.overview import Speed
from qkverify.results import Accuracy, Fingerprint, ImplementationInfo, Record, RunStart, Timing, Verdict

FLASH = "torch_sdpa-flash"
LENGTHS = (128, 256, 512, 1024, 4096)


def verdict(name: str, law: str, outcome: str = "passed", **changes: Any) -> Verdict:
    facts: dict[str, Any] = {"law": law, "family": "softmax", "sentence": "It holds.", "exact": False, "implementation": name,
                             "device": "cpu", "dtype": "float32", "outcome": outcome, "examples": 5, "margin": 0.25}  # fmt: skip
    return Verdict(**{**facts, **changes})


def timing(name: str, length: int, factor: float, direction: str = "forward", **changes: Any) -> Timing:
    """`factor` times 1 ms at length 256, growing with the square; three processes of four rounds."""
    seconds = [] if "reason" in changes else [
        factor * 1e-3 * (length / 256) ** 2 * (1 + 0.001 * ((7 * r) % 5)) for r in range(12)]  # fmt: skip
    facts: dict[str, Any] = {
        "case": f"base-{length}", "sizes": {"B": 1, "H": 8, "G": 8, "Q": length, "K": length, "D": 64, "E": 64},
        "causal": True, "options": "", "implementation": name, "device": "cpu", "dtype": "float32", "direction": direction,
        "clock": "host", "seconds": seconds, "rounds": list(range(len(seconds))),
        "processes": [r // 4 for r in range(len(seconds))], "flops": 1000, "bytes": 1000,
    }  # fmt: skip
    return Timing(**{**facts, **changes})


def run_start(**changes: Any) -> RunStart:
    return RunStart(qkverify="1", started="2026-01-02T03:04:05Z", command="qkverify report --run", profile="quick",
                    fingerprint=Fingerprint({"cpu": "A processor", "cores": 2}, {}), **changes)  # fmt: skip


@pytest.fixture
def records() -> list[Record]:
    """Flash with a known failure, an exact but slower kernel, a faster one that breaks a law, one without gradients or time."""
    return [
        run_start(),
        verdict(FLASH, "rows"),
        verdict(FLASH, "zero_scale", "finding", reason="reports/findings/a"),
        verdict(FLASH, "negative_scale", "finding", reason="reports/findings/a"),
        verdict("exact", "rows", margin=0.01),
        verdict("quick", "rows"),
        verdict("quick", "zero_scale", "failed", margin=30.0),
        verdict("silent", "rows", "passed"),
        *(timing(FLASH, length, 1.0, d, peak_bytes=length << 10) for length in LENGTHS for d in ("forward", "forward+backward")),
        *(timing("exact", length, 2.0, d) for length in LENGTHS for d in ("forward", "forward+backward")),
        *(timing("quick", length, 0.5) for length in LENGTHS),
        *(timing("silent", length, 1.0, reason="raised ValueError: no") for length in LENGTHS),
        Accuracy(FLASH, "cpu", "float32", 10, 0.5, 0.0, 0.1, 1.0, 1.0, 1.42),
        Accuracy("exact", "cpu", "float32", 10, 0.5, 0.0, 0.1, 1.0, 1.0, 0.004),
        ImplementationInfo(name="other", operation="rotary", summary="", arrays="numpy", file="", dtypes=["float32"],
                           devices=["cpu"], offers=[], not_offered=[], requires=[], semantics={}),
        verdict("other", "turns"),
        verdict("other", "turns", dtype="float64", margin=0.75),
    ]  # fmt: skip


@pytest.fixture
def table(records: list[Record]) -> overview.Overview:
    (only,) = overview.overviews(Report(records))
    return only


def row(table: overview.Overview, name: str) -> overview.OverviewRow:
    return next(row for row in table.rows if row.implementation == name)


def test_a_table_has_the_three_usual_lengths_in_both_directions(table: overview.Overview) -> None:
    assert [(c.label, c.direction) for c in table.cases] == [
        (label, direction)
        for direction in ("forward", "forward+backward")
        for label in ("256", "1,024", "4,096")
    ]


def test_other_lengths_give_the_shortest_the_middle_and_the_longest() -> None:
    few = [timing(FLASH, length, 1.0) for length in (64, 128, 192, 512, 2048)]
    (table,) = overview.overviews(Report(few))
    assert [c.label for c in table.cases] == ["64", "192", "2,048"]


def test_times_are_held_against_the_default_and_say_by_how_much(table: overview.Overview) -> None:
    assert table.baseline == FLASH
    assert table.is_default
    assert [row.implementation for row in table.rows] == [
        "quick",
        FLASH,
        "exact",
        "silent",
    ]  # by the longest, forward
    assert {s.text for s in row(table, "exact").speeds} == {"2.00 × slower"}
    assert [s.text for s in row(table, "quick").speeds] == ["2.00 × faster"] * 3 + ["–"] * 3
    assert [s.text for s in row(table, FLASH).speeds][:3] == ["1.00 ms", "16.0 ms", "257 ms"]
    assert row(table, "silent").speeds[0].text == "failed"
    assert table.reasons == {"raised ValueError: no": ["silent"]}


def test_a_run_that_names_a_baseline_is_held_against_that(records: list[Record]) -> None:
    (table,) = overview.overviews(Report([run_start(against="exact"), *records[1:]]))
    assert table.baseline == "exact"
    assert not table.is_default
    assert row(table, FLASH).speeds[0].text == "2.00 × faster"


def test_the_headline_of_a_run_with_a_baseline_is_about_the_others(records: list[Record]) -> None:
    both = [r for r in records if getattr(r, "implementation", FLASH) in (FLASH, "exact")]
    found = headline.of(Report([run_start(against=FLASH), *both[1:]]))
    assert (found.sentence, found.state) == ("Every law holds for exact", "good")


def test_right_says_laws_and_faults_and_a_fault_of_two_laws_is_one(table: overview.Overview) -> None:
    said = {row.implementation: (row.right.sign, row.right.text) for row in table.rows}
    assert said == {
        FLASH: ("◆", "1 of 3 laws, 1 known failure"),
        "exact": ("✓", "the 1 law"),
        "quick": ("✗", "breaks 1 of 2 laws"),
        "silent": ("✓", "the 1 law"),
    }
    assert row(table, "quick").margin == 0.25  # of the laws that hold


def test_the_three_answers_are_sentences(table: overview.Overview) -> None:
    assert table.sentences == [
        "Right: 2 of 4 keep every law, 1 breaks a law, 1 has known failures",
        "Most accurate: exact, 0.0 bits lost",
        "Fastest at length 4,096, forward: quick, 128 ms, 2.00 × faster than torch_sdpa-flash",
    ]


def test_what_is_too_close_has_a_question_mark_and_no_winner(records: list[Record]) -> None:
    noisy = timing("near", 4096, 1.0)
    noisy.seconds[:] = [s * (0.8 if i % 3 else 1.3) for i, s in enumerate(noisy.seconds)]
    kept = [r for r in records if getattr(r, "implementation", "") in (FLASH, "")]
    (table,) = overview.overviews(Report([*kept, noisy]))
    speed = row(table, "near").speeds[2]
    assert speed.word == "undecided"
    assert speed.text.endswith("?")
    assert table.undecided
    assert "too close to call" in table.sentences[-1]


def test_who_was_left_out_is_named_beside_the_fastest(records: list[Record]) -> None:
    more = timing("late", 4096, 1.0, reason="the time budget had run out")
    (table,) = overview.overviews(Report([*records, more]))
    assert table.sentences[-1].startswith(
        "Fastest of those timed (without late) at length 4,096, forward: quick"
    )


def test_memory_is_that_of_the_longest_length_forward(table: overview.Overview) -> None:
    assert table.memory_case == overview.OverviewCase("base-4096", "forward", "4,096")
    assert row(table, FLASH).memory == 4096 << 10


def test_files_without_bits_lost_show_the_error_beside_a_textbook(records: list[Record]) -> None:
    old = [
        r
        if not isinstance(r, Accuracy)
        else Accuracy(r.implementation, "cpu", "float32", 1, None, 0, 0, 0.79, 1.0)
        for r in records
    ]
    (table,) = overview.overviews(Report(old))
    assert not table.bits
    assert row(table, "exact").accurate == "0.79 × textbook"


def test_the_table_with_most_times_comes_first() -> None:
    rows = [timing("a", 256, 1.0, dtype="float64"), *(timing("a", n, 1.0, dtype="bfloat16") for n in LENGTHS)]
    assert [table.dtype for table in overview.overviews(Report(rows))] == ["bfloat16", "float64"]


def test_other_operations_have_a_line_each_with_all_their_dtypes(records: list[Record]) -> None:
    (other,) = overview.others(Report(records))
    assert other.operation == "rotary"
    assert [(entry.implementation, entry.right.text, entry.margin) for entry in other.implementations] == [
        ("other", "the 1 law", 0.75)
    ]
    assert overview.others_in_a_sentence([other]) == "1 of 1 implementation keeps every law"


def test_nothing_verified_and_nothing_timed_is_no_table() -> None:
    assert overview.overviews(Report([])) == []
    assert "At a glance" not in report.render([]).html


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_page_summary_and_terminal_say_the_same(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    for module in (console_overview, console_timings):
        monkeypatch.setattr(module, "console", Console(file=written, width=300))
    console_overview.overview(Report(records))
    page = report.render(records)
    (table,) = overview.overviews(Report(records))
    for sentence in table.sentences:
        assert sentence in written.getvalue()
        assert sentence in page.markdown
        assert sentence in words(page.html)
    for entry in table.rows:
        for text in (page.markdown, words(page.html), written.getvalue()):
            assert f"{entry.right.sign} {entry.right.text}" in text
    assert "2.00x" in written.getvalue()
    assert "2.00 × slower" in words(page.html)
    assert "2.00 × slower (2.0" in page.markdown


def test_the_first_forty_lines_of_the_summary_have_all_answers(records: list[Record]) -> None:
    first = "\n".join(report.render(records).markdown.splitlines()[:40])
    for name in (FLASH, "exact", "quick", "silent", "bits lost", "Other operations"):
        assert name in first


def test_the_page_leads_from_a_fault_to_its_square(records: list[Record]) -> None:
    html = report.render(records).html
    assert re.search(rf'<td class="right known"[^>]*><span><a href="#cell-{FLASH}-cpu-float32-softmax"', html)


def test_a_time_of_nothing_is_a_dash() -> None:
    assert Speed(None).text == "–"
    assert Speed(None).short == "–"
