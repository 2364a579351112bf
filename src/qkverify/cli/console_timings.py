"""What `bench` and `compare` print: the A/A control first, then times, then who is faster and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.markup import escape
from rich.text import Text

from qkverify import units
from qkverify.cli.bench_command import BenchResult
from qkverify.cli.console import console
from qkverify.report import finding_links
from qkverify.results import Ceiling, Control, Timing
from qkverify.timing import marks, statistics, untimed
from qkverify.timing.ceilings import fraction_of_roofline
from qkverify.timing.comparison import ComparedCase, Result
from qkverify.timing.statistics import Comparison, Interval

STYLE = {"slower": "red", "faster": "green", "same": "", "undecided": "dim"}


def bench(measured: BenchResult) -> None:
    """Case by case: the control, every implementation's time, and why some have none."""
    by_group: dict[tuple[str, ...], list[Timing]] = {}
    for timing in measured.all_timings:
        by_group.setdefault(timing.group, []).append(timing)
    for mine in by_group.values():
        timed = sorted(
            (t for t in mine if t.seconds),
            key=lambda t: statistics.median(statistics.drop_disturbed_rounds(t)),
        )
        if timed:
            _group(timed, mine, statistics.own_controls(timed[0], measured.side.controls), measured.ceilings)
    known(measured.side.timings)
    reasons = _untimed(measured.all_timings)
    if reasons:
        console.print("\nnot timed")
    for reason, names in reasons.items():
        console.print(f"  {', '.join(names)}: {reason}", style="dim", markup=False)


def known(timed: Iterable[Timing]) -> None:
    """What is known against implementations that have a time, each mark once, with the place where it is told."""
    by_mark: dict[str, dict[str, None]] = {}
    for timing in timed:
        for mark in (mark for mark in timing.marks if mark.kind != "not verified"):
            said = f"{marks.words(mark, finding_links.place_of)}"
            by_mark.setdefault(said, {})[timing.implementation] = None
    if by_mark:
        console.print("\nknown problems of what was timed; they do not affect the workloads above")
    for said, names in by_mark.items():
        console.print(f"  {', '.join(names)}: {said}", markup=False)


def comparison(compared: Result) -> None:
    """Every case with its interval and word, and all of them together."""
    header = ("case", "", "", "candidate", "baseline", "ratio", "", "")
    aligned([header, *(_case(case) for case in compared.cases)], right=(3, 4, 5))
    if len(compared.cases) > 1:
        console.print(f"\nover {len(compared.cases)} cases   {_said(compared.overall)}")
    if not all(statistics.is_told(case.comparison.interval) for case in compared.cases):
        console.print(f"[dim]no interval: {statistics.TOO_FEW}, so nothing is decided[/dim]")
    known(timing for case in compared.cases for timing in (case.candidate, case.baseline))


def changes(software: Sequence[str], relative_to: str) -> None:
    """What differs between two runs besides their times, and what that comparison cannot know."""
    for line in software:
        console.print(line, style="dim", markup=False)
    console.print(drift(relative_to), markup=False)


def drift(relative_to: str) -> str:
    """What the ratios of two runs are of."""
    if relative_to:
        return f"ratios of times to those of {relative_to} in the same rounds"
    return (
        "the two runs took place at different times, so these ratios include changes of the machine; "
        "--relative-to NAME removes them"
    )


def _group(
    timed: Sequence[Timing], every: Sequence[Timing], controls: Sequence[Control], ceilings: Iterable[Ceiling]
) -> None:
    first, ceilings = timed[0], list(ceilings)
    s = first.sizes
    heads = f"{s['H']}" if s["H"] == s["G"] else f"{s['H']}({s['G']})"
    lengths = f"{s['Q']}" if s["Q"] == s["K"] else f"{s['Q']}->{s['K']}"
    words = [f"{s['B']}x{heads}x{lengths}x{s['D']}", first.dtype, first.device, *(["causal"] if first.causal else []),
             first.options, first.direction, f"clock: {first.clock}, cache {first.cache}"]  # fmt: skip
    console.print(f"\n[bold]{escape(first.case)}[/bold]  {escape('  '.join(filter(None, words)))}")
    console.print(f"  {_control(controls)}")
    compared = [statistics.compare(timing, first, controls) for timing in timed[1:]]
    is_alone = all(
        against_first.word == "slower" for against_first in compared
    )  # else it is only what the others are held against
    others = untimed.names(untimed.left_out(every))
    best = "fastest of those timed" if others else "fastest"
    words = [
        best if is_alone and compared else "1 x" if compared else "the only one timed",
        *map(_said, compared),
    ]
    aligned(
        [_line(timing, word, ceilings) for timing, word in zip(timed, words, strict=True)], right=(1, 2, 3)
    )
    if others:
        console.print(f"  [yellow]not timed, although it can run here: {escape(others)}[/yellow]")


def _line(timing: Timing, word: str, ceilings: Sequence[Ceiling]) -> tuple[str, ...]:
    seconds = statistics.median(statistics.drop_disturbed_rounds(timing))
    share = fraction_of_roofline(timing, seconds, ceilings)
    processes = units.number_of(len(set(timing.processes)) or 1, "process").replace("processs", "processes")
    counts = f"{processes}, {len(timing.seconds)} rounds" if len(timing.seconds) > 1 else "measured once"
    return (
        f"  {escape(timing.implementation)}",
        units.seconds(seconds),
        units.flops(timing.flops / seconds),
        "" if share is None else f"{units.percent(share)} of roofline",
        f"margin {units.margin(timing.margin)}" if timing.margin is not None else "",
        word,
        f"[dim]{counts}[/dim]",
        f"[yellow]{escape(marks.brief(timing.marks))}[/yellow]" if timing.marks else "",
    )


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    """Print columns as wide as their longest entry: rich's tables would be cut to 80 characters in a file or a CI log."""
    widths = [max(cell_len(Text.from_markup(row[i]).plain) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        gaps = [
            " " * (width - cell_len(Text.from_markup(cell).plain))
            for cell, width in zip(row, widths, strict=True)
        ]
        cells = [
            gap + cell if i in right else cell + gap
            for i, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        ]
        console.print("  ".join(cells).rstrip())


def _control(controls: Sequence[Control]) -> str:
    if not controls:
        return (
            "A/A control: too few rounds to measure the noise of this machine; "
            f"only differences of {statistics.CLEAR:g} x and more are judged"
        )
    control = controls[0]
    reach = math.expm1(statistics.noise(controls))
    meaning = (
        f"differences within {units.percent(reach)} are not judged"
        if reach < 1
        else "too noisy to judge anything"
    )
    interval = _interval(Interval(control.ratio, control.low, control.high))
    return f"A/A {escape(control.implementation)} against itself: {interval}: {meaning}"


def _case(case: ComparedCase) -> tuple[str, ...]:
    mine, other = case.candidate, case.baseline
    name = mine.implementation if mine.implementation == other.implementation else ""
    return (
        escape(mine.case),
        f"{mine.direction} {mine.dtype} {mine.device}",
        escape(name),
        units.seconds(statistics.median(statistics.drop_disturbed_rounds(mine))),
        units.seconds(statistics.median(statistics.drop_disturbed_rounds(other))),
        f"{case.comparison.interval.ratio:.3f}",
        _edges(case.comparison.interval),
        _word(case.comparison),
    )


def _said(compared: Comparison) -> str:
    """ "slower: 1.56 x (1.53 .. 1.59)"."""
    few = "" if statistics.is_told(compared.interval) else f" ({statistics.TOO_FEW})"
    return f"{_word(compared)}: {_interval(compared.interval)}{few}"


def _word(compared: Comparison) -> str:
    style = STYLE[compared.word]
    return f"[{style}]{compared.word}[/{style}]" if style else compared.word


def _interval(interval: Interval) -> str:
    return f"{interval.ratio:.3f} x {_edges(interval)}".rstrip()


def _edges(interval: Interval) -> str:
    return f"({interval.low:.3f} .. {interval.high:.3f})" if statistics.is_told(interval) else ""


def _untimed(timings: Iterable[Timing]) -> dict[str, list[str]]:
    by_reason: dict[str, dict[str, None]] = {}
    for timing in timings:
        if not timing.seconds:
            by_reason.setdefault(timing.reason, {})[timing.implementation] = None
    return {reason: list(names) for reason, names in by_reason.items()}
