"""What a run says of its progress where there is no terminal: lines, of which a killed run leaves what it came to."""

from __future__ import annotations

import io
from functools import partial

from rich.console import Console

from qkverify.cli import console, console_matrix, console_overview, console_progress, console_timings
from qkverify.report.model import Report
from qkverify.results import Timing, Verdict


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(monkeypatch):
    seconds = iter([0.0, 1.0, 2.0, 20.0, 21.0])
    written = io.StringIO()
    monkeypatch.setattr(console_progress, "console", Console(file=written, width=100))
    monkeypatch.setattr(console_progress.time, "monotonic", lambda: next(seconds))
    with console_progress.progress("verifying") as advance:
        for share, now in ((0.1, "one"), (0.2, "two"), (0.3, "[three]"), (1.0, "four")):
            advance(share, now)
    assert written.getvalue().splitlines() == [
        "verifying  10% after 1 s  one",
        "verifying  30% after 20 s  [three]",
        "verifying 100% after 21 s  four",
    ]


def test_on_a_terminal_progress_is_a_bar_that_goes_away(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(console_progress, "console", Console(file=written, width=100, force_terminal=True))
    with console_progress.progress("verifying") as advance:
        advance(0.5, "half")
    assert "after" not in written.getvalue()


def test_a_family_that_is_not_offered_has_no_figures(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=written, width=100))
    law = partial(
        Verdict, sentence="It holds.", exact=False, implementation="mine", device="cpu", dtype="float32"
    )
    console.families(
        [
            law(law="first", family="dropout", outcome="not offered"),
            law(law="second", family="dropout", outcome="not offered"),
            law(law="third", family="softmax", outcome="passed", examples=5, margin=0.25),
            law(law="fourth", family="softmax", outcome="not offered"),
        ]
    )
    assert written.getvalue().splitlines() == [
        "  dropout    not offered (2 laws)",
        "  softmax      1 law        5 examples   largest margin 0.25   1 not offered",
    ]


def test_words_in_brackets_are_printed(monkeypatch):
    """What others write may look like markup: [bold] of theirs is a word."""
    written = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=written, width=300))
    verdict = Verdict(law="a[law]", family="own[family]", sentence="It holds.", exact=False, implementation="mine[x]",
                      device="cpu", dtype="float32", outcome="failed", examples=1)  # fmt: skip
    console.families([verdict])
    console_matrix.matrix([verdict])
    record = Report([verdict, Timing(
        case="case[1]", sizes={"B": 1, "H": 1, "G": 1, "Q": 8, "K": 8, "D": 4, "E": 4}, causal=False, options="",
        implementation="mine[x]", device="cpu", dtype="float32", direction="forward", clock="host", seconds=[], rounds=[],
        flops=1, bytes=1, reason="raised ValueError: no [such] key")])  # fmt: skip
    for module in (console_matrix, console_overview, console_timings):
        monkeypatch.setattr(module, "console", Console(file=written, width=300))
    console_overview.overview(record)
    for word in ("a[law]", "own[family]", "mine[x]", "no [such] key"):
        assert word in written.getvalue()
