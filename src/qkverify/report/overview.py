"""The one table that answers what a person brings: who is right, how accurate, how fast against the platform's default, and with
how much memory.

One table for each device and dtype in which attention was verified or timed, the one with most times first; of other operations a
line each. Page, summary and terminal print what is built here, and none of them has a rule of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from qkverify import units
from qkverify.report import timings
from qkverify.report.model import BROKEN, Report, VerdictRow
from qkverify.results import Accuracy, Timing, Verdict
from qkverify.timing import marks, statistics, untimed
from qkverify.timing.statistics import Comparison
from qkverify.verification.outcomes import NOT_VERIFIED, PARTLY

# What torch's scaled_dot_product_attention takes by itself on each device, the first that was timed.
DEFAULTS = {"cpu": ("torch_sdpa-flash",), "cuda": ("torch_sdpa-flash", "torch_sdpa-efficient")}
LENGTHS = (256, 1024, 4096)
MOST_CASES = len(LENGTHS)
LEADING = (
    "float32",
    "bfloat16",
    "float16",
    "float64",
)  # of dtypes with as many times, the first is shown open
SIGNS = {"holds": "✓", "known": "◆", "broken": "✗", "not verified": "?"}
HEADINGS = {"forward": "Forward", "backward": "Gradients", "forward+backward": "With gradients"}
NOT_OFFERED = "not offered"
NEAREST = 0.05  # bits lost: a smaller difference does not show in what is printed


def heading(direction: str) -> str:
    """A direction as a reader knows it."""
    return HEADINGS.get(direction, direction)


class Right(NamedTuple):
    """How many laws hold, of how many that apply; `faults` are known causes, `partly` says what was not verified."""

    word: str  # a key of SIGNS
    held: int
    judged: int
    broken: int
    faults: int
    partly: str = ""

    @property
    def sign(self) -> str:
        return SIGNS[self.word]

    @property
    def text(self) -> str:
        """ "all 118 laws", "108 of 118 laws, 3 known failures", "breaks 2 of 118 laws"."""
        if self.word == "not verified":
            return "not verified"
        if self.word == "broken":
            return f"breaks {self.broken} of {units.number_of(self.judged, 'law')}"
        if self.word == "known":
            return f"{self.held} of {units.number_of(self.judged, 'law')}, {units.number_of(self.faults, 'known failure')}"
        return ("the 1 law" if self.held == 1 else f"all {self.held:,} laws") + (
            ", in part" if self.partly else ""
        )


class Speed(NamedTuple):
    """One implementation on one case in one direction; `against` is its comparison with the baseline, None of the baseline itself
    and where that has no time."""

    timing: Timing | None
    seconds: float | None = None
    against: Comparison | None = None

    @property
    def ratio(self) -> float | None:
        return self.against.interval.ratio if self.against else None

    @property
    def word(self) -> str:
        """ "slower", "faster", "same", "undecided" against the baseline; "" where there is nothing to say."""
        return self.against.word if self.against else ""

    @property
    def time(self) -> str:
        return "" if self.seconds is None else units.seconds(self.seconds)

    @property
    def text(self) -> str:
        """ "1.56 × slower", "1.02 × slower?" if not decided, "same"; without a comparison the time, or why there is none."""
        ratio = self.ratio
        if ratio is None or ratio <= 0:
            return self.time or self.why
        if self.word == "same":
            return "same"
        said = f"{units.ratio(max(ratio, 1 / ratio))} × {'slower' if ratio >= 1 else 'faster'}"
        return said + "?" * (self.word == "undecided")

    @property
    def short(self) -> str:
        """The ratio of times for a narrow place: "1.56x", "1.02x?"; else the time, or why there is none."""
        if self.ratio is None:
            return self.time or self.why
        return f"{units.ratio(self.ratio)}x" + "?" * (self.word == "undecided")

    @property
    def reason(self) -> str:
        """The recorded reason why there is no time."""
        return "" if self.timing is None or self.seconds is not None else self.timing.reason

    @property
    def why(self) -> str:
        """Why there is no time, in a word or two."""
        if self.timing is None:
            return "–"
        if untimed.refused([self.timing]):
            return "failed"
        return NOT_OFFERED if self.reason.startswith(NOT_OFFERED) else "not timed"


class OverviewCase(NamedTuple):
    """A column of times: one case in one direction, `label` being its length or, where that says too little, its name."""

    case: str
    direction: str
    label: str


class OverviewRow(NamedTuple):
    """One implementation: `speeds` in the order of the overview's cases."""

    implementation: str
    right: Right
    verdict_id: str  # of a square or card to look at, "" if none
    accuracy: Accuracy | None
    margin: float | None
    speeds: list[Speed]
    memory: int | None

    @property
    def accurate(self) -> str:
        """Bits lost, or where an older file does not have them the error beside a textbook's."""
        if self.accuracy is None:
            return ""
        if self.accuracy.bits_lost is not None:
            return f"{max(self.accuracy.bits_lost, 0.0):.1f}"
        return "" if self.accuracy.ratio is None else f"{self.accuracy.ratio:.2g} × textbook"

    @property
    def known(self) -> str:
        """What is known against the timed calls, in full."""
        by_words = {
            marks.words(mark): None for speed in self.speeds if speed.timing for mark in speed.timing.marks
        }
        return "; ".join(by_words)


@dataclass(frozen=True)
class Overview:
    """All implementations of attention on one device in one dtype, the fastest first."""

    device: str
    dtype: str
    baseline: str  # what times are compared with; "" if there is nothing to compare with
    title: str  # what the times are of: the cases' common name and shape
    cases: list[OverviewCase]
    memory_case: OverviewCase | None
    rows: list[OverviewRow]
    sentences: list[str]

    @property
    def place(self) -> str:
        return f"{self.dtype} on {self.device}"

    @property
    def timed(self) -> int:
        return sum(speed.seconds is not None for row in self.rows for speed in row.speeds)

    @property
    def is_default(self) -> bool:
        """Whether the baseline is what the platform takes by itself."""
        return self.baseline in DEFAULTS.get(self.device, ())

    @property
    def directions(self) -> dict[str, list[OverviewCase]]:
        """The columns of times by direction, forward first."""
        by_direction: dict[str, list[OverviewCase]] = {}
        for case in self.cases:
            by_direction.setdefault(case.direction, []).append(case)
        return by_direction

    @cached_property
    def bits(self) -> bool:
        """Whether accuracy is in bits; older files have a ratio."""
        return any(row.accuracy and row.accuracy.bits_lost is not None for row in self.rows)

    @cached_property
    def undecided(self) -> bool:
        return any(speed.word == "undecided" for row in self.rows for speed in row.speeds)

    @cached_property
    def reasons(self) -> dict[str, list[str]]:
        """Why an implementation that offers a case has no time there, with who that is."""
        by_reason: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for speed in row.speeds:
                if speed.reason and speed.why != NOT_OFFERED:
                    by_reason.setdefault(speed.reason, {})[row.implementation] = None
        return {reason: list(names) for reason, names in by_reason.items()}


class OtherImplementation(NamedTuple):
    """One implementation of another operation, in all its dtypes together."""

    implementation: str
    right: Right
    margin: float | None


class OtherOperation(NamedTuple):
    operation: str
    implementations: list[OtherImplementation]


def overviews(report: Report) -> list[Overview]:
    """The tables of attention, that with most times first."""
    places = dict.fromkeys(
        (row.device, row.dtype)
        for row in report.rows
        if row.cells and report.is_attention(row.implementation)
    )
    places |= dict.fromkeys(report.places)
    tables = [_overview(report, device, dtype) for device, dtype in places]

    def rank(table: Overview) -> tuple[int, int]:
        return -table.timed, LEADING.index(table.dtype) if table.dtype in LEADING else len(LEADING)

    return sorted((table for table in tables if table.rows), key=rank)


def others(report: Report) -> list[OtherOperation]:
    """Every other operation, with the implementations of which a law was run."""
    by_operation: dict[str, list[OtherImplementation]] = {}
    for name in report.implementations:
        rows = [row for row in report.rows if row.implementation == name and row.cells]
        if rows and not report.is_attention(name):
            by_operation.setdefault(report.infos[name].operation, []).append(_other(name, rows))
    return [OtherOperation(operation.replace("_", " "), names) for operation, names in by_operation.items()]


def others_in_a_sentence(further: Sequence[OtherOperation]) -> str:
    """ "28 of 29 implementations keep every law; torch_embedding: 13 of 14 laws, 1 known failure"."""
    every = [implementation for other in further for implementation in other.implementations]
    exceptions = [
        f"{implementation.implementation}: {implementation.right.text}"
        for implementation in every
        if implementation.right.word != "holds"
    ]
    kept = len(every) - len(exceptions)
    verb = "keeps" if kept == 1 else "keep"
    return "; ".join(
        [f"{kept} of {units.number_of(len(every), 'implementation')} {verb} every law", *exceptions]
    )


def baseline_of(report: Report, device: str, dtype: str) -> str:
    """What times are compared with: what the run was asked to compare with, else the platform's default; "" if it has no time."""
    requested = report.runs[-1].against if report.runs else ""
    timed = {t.implementation for t in timings.at(report, device, dtype) if t.seconds}
    return next(
        (name for name in ([requested] if requested else DEFAULTS.get(device, ())) if name in timed), ""
    )


def _overview(report: Report, device: str, dtype: str) -> Overview:
    here = timings.at(report, device, dtype)
    baseline = baseline_of(report, device, dtype)
    title, chosen = _chosen(here, baseline)
    cases = [
        OverviewCase(case, direction, label)
        for direction in _two(timings.directions(t for t in here if t.case in chosen))
        for case, label in chosen.items()
        if any((t.case, t.direction) == (case, direction) for t in here)
    ]
    memory = _memory_case(here, cases)
    names = [
        name
        for name in report.implementations
        if any((row.device, row.dtype) == (device, dtype) and row.cells for row in _rows_of(report, name))
        or any(t.implementation == name for t in here)
    ]
    rows = [
        _row(report, name, (device, dtype), cases, baseline, memory)
        for name in names
        if report.is_attention(name)
    ]
    rows.sort(key=_by_time)  # stable: what has no time keeps its order
    return Overview(
        device, dtype, baseline, title, cases, memory, rows, _sentences(report, here, cases, rows, baseline)
    )


def _chosen(here: Sequence[Timing], baseline: str) -> tuple[str, dict[str, str]]:
    """Up to three cases with their labels: lengths of the series over length that is timed most, else names of cases."""
    families, alone = timings.families(here)

    def timed(cases: Sequence[str]) -> tuple[int, int]:
        mine = [t for t in here if t.case in cases and t.seconds]
        return sum(t.implementation == baseline for t in mine), len(mine)

    best = max(families, key=lambda family: timed(family.cases), default=None)
    if best is None:
        first = sorted(alone, key=lambda case: [-n for n in timed([case])])[:MOST_CASES]
        if len(first) != 1:
            return "", {case: case for case in first}
        timing = next(t for t in here if t.case == first[0])
        return f"{timing.case}: {timings.shape(timing)}", {timing.case: f"{timing.sizes['K']:,}"}
    lengths = {case: next(t.sizes["K"] for t in best.timings if t.case == case) for case in best.cases}
    return f"{best.name}: {best.shape}", {case: f"{lengths[case]:,}" for case in _three(lengths)}


def _two(directions: list[str]) -> list[str]:
    """Without and with gradients: the backward pass alone only where nothing has both."""
    return [d for d in directions if d != "backward"] if "forward+backward" in directions else directions


def _three(lengths: dict[str, int]) -> list[str]:
    """The cases of the usual lengths; where one of them is missing the shortest, the middle and the longest."""
    cases = sorted(lengths, key=lambda case: lengths[case])
    usual = [case for case in cases if lengths[case] in LENGTHS]
    if len(usual) == MOST_CASES or len(cases) <= MOST_CASES:
        return usual if len(usual) == MOST_CASES else cases
    return [cases[0], cases[len(cases) // 2], cases[-1]]


def _memory_case(here: Sequence[Timing], cases: Sequence[OverviewCase]) -> OverviewCase | None:
    """The longest case, forward if possible, in which somebody's memory was measured."""
    measured = {(t.case, t.direction) for t in here if t.peak_bytes is not None}
    fitting = [case for case in reversed(cases) if (case.case, case.direction) in measured]
    return next((case for case in fitting if case.direction == "forward"), fitting[0] if fitting else None)


def _rows_of(report: Report, name: str) -> list[VerdictRow]:
    return [row for row in report.rows if row.implementation == name]


def _row(
    report: Report,
    name: str,
    place: tuple[str, str],
    cases: Sequence[OverviewCase],
    baseline: str,
    memory: OverviewCase | None,
) -> OverviewRow:
    mine = [row for row in _rows_of(report, name) if (row.device, row.dtype) == place and row.cells]
    by_case: dict[tuple[str, str, str], Timing] = {
        (t.case, t.direction, t.implementation): t
        for t in timings.at(report, *place)
        if t.implementation in (name, baseline)
    }
    speeds = [
        _speed(report, by_case.get((c.case, c.direction, name)), by_case.get((c.case, c.direction, baseline)))
        for c in cases
    ]
    peak = by_case.get((memory.case, memory.direction, name)) if memory else None
    accuracy = next(
        (a for a in report.accuracy if (a.implementation, a.device, a.dtype) == (name, *place)), None
    )
    right = right_of(mine)
    return OverviewRow(
        name, right, _id(mine, right), accuracy, _margin(mine), speeds, peak.peak_bytes if peak else None
    )


def _speed(report: Report, mine: Timing | None, baseline: Timing | None) -> Speed:
    timed = None if mine is None else timings.timed(mine, report)
    if mine is None or timed is None:
        return Speed(mine)
    if baseline is None or not baseline.seconds or baseline is mine:
        return Speed(mine, timed.seconds)
    return Speed(mine, timed.seconds, statistics.compare(mine, baseline, report.controls))


def right_of(rows: Sequence[VerdictRow]) -> Right:
    """What the laws say of these rows together; a law counts once, by the gravest of its outcomes."""
    verdicts = [v for row in rows for cell in row.cells.values() for v in cell.verdicts]
    broken, known = ({v.law for v in verdicts if v.outcome in words} for words in (BROKEN, ("finding",)))
    held = {v.law for v in verdicts if v.outcome == "passed"} - broken - known
    judged = len(held | broken | known)
    verified = [row for row in rows if row.said.word != NOT_VERIFIED]
    partly = "; ".join(
        dict.fromkeys(phrase for row in rows if row.said.word == PARTLY for phrase in row.said.not_verified)
    )
    partly += (
        "; ".join(f"{row.dtype}: {row.said.reason}" for row in rows if row not in verified)
        if verified
        else ""
    )
    word = "broken" if broken else "not verified" if not verified else "known" if known else "holds"
    return Right(word, len(held), judged, len(broken), len(_faults(verdicts)), partly)


def _faults(verdicts: Sequence[Verdict]) -> set[str]:
    """The known causes: a finding that shows in several laws or dtypes has one reason, its folder."""
    return {v.reason for v in verdicts if v.outcome == "finding"}


def _id(rows: Sequence[VerdictRow], right: Right) -> str:
    """The square that shows what is broken; "" if nothing is."""
    wanted = BROKEN if right.word == "broken" else {"finding"} if right.word == "known" else frozenset[str]()
    return next(
        (cell.id for row in rows for cell in row.cells.values() if cell.gravest_outcome in wanted), ""
    )


def _margin(rows: Sequence[VerdictRow]) -> float | None:
    """The largest margin of the laws that hold."""
    margins = [cell.margin for row in rows for cell in row.cells.values()]
    return max((m for m in margins if m is not None), default=None)


def _other(name: str, rows: list[VerdictRow]) -> OtherImplementation:
    return OtherImplementation(name, right_of(rows), _margin(rows))


def _by_time(row: OverviewRow) -> tuple[int, float]:
    """By the longest case that was timed, the first direction: who has a time there comes first."""
    forward = (
        [s for s in row.speeds if s.timing is None or s.timing.direction == row.speeds[0].timing.direction]
        if (row.speeds and row.speeds[0].timing)
        else row.speeds
    )
    timed = [(-index, s.seconds) for index, s in enumerate(forward) if s.seconds is not None]
    return min(timed) if timed else (1, 0.0)


def _sentences(
    report: Report,
    here: Sequence[Timing],
    cases: Sequence[OverviewCase],
    rows: Sequence[OverviewRow],
    baseline: str,
) -> list[str]:
    """The three answers in a sentence each."""
    return [
        s
        for s in (
            _right_sentence(rows),
            _accurate_sentence(rows),
            _fast_sentence(report, here, cases, baseline),
        )
        if s
    ]


def _right_sentence(rows: Sequence[OverviewRow]) -> str:
    words = Counter(row.right.word for row in rows if row.right.judged)
    total = sum(words.values())
    if not total:
        return ""
    said = {"broken": "break a law", "known": "have known failures", "not verified": "were not verified"}
    rest = [
        f"{words[word]} {told if words[word] > 1 else SINGULAR[told]}"
        for word, told in said.items()
        if words[word]
    ]
    return ", ".join([f"Right: {words['holds']} of {total} keep every law", *rest])


SINGULAR = {
    "break a law": "breaks a law",
    "have known failures": "has known failures",
    "were not verified": "was not verified",
}


def _accurate_sentence(rows: Sequence[OverviewRow]) -> str:
    """Who loses the fewest bits; several where the difference does not show."""
    lost = {
        row.implementation: row.accuracy.bits_lost
        for row in rows
        if row.accuracy and row.accuracy.bits_lost is not None
    }
    if len(lost) < 2:
        return ""
    least = min(lost.values())
    best = [name for name, bits in lost.items() if bits - least < NEAREST]
    return f"Most accurate: {' and '.join(best)}, {max(least, 0.0):.1f} bits lost"


def _fast_sentence(
    report: Report, here: Sequence[Timing], cases: Sequence[OverviewCase], baseline: str
) -> str:
    """Who is fastest in the longest forward case, and by how much against the baseline."""
    forward = [case for case in cases if case.direction == cases[0].direction]
    if not forward:
        return ""
    mine = [t for t in here if (t.case, t.direction) == (forward[-1].case, forward[-1].direction)]
    lines = [line for line in timings.lines(mine, report) if line.timed]
    if len(lines) < 2:
        return ""
    first = lines[0].timing.implementation
    near = [line.timing.implementation for line in lines[1:] if line.word != "slower"]
    where = f"at {'length ' if forward[-1].label != forward[-1].case else ''}{forward[-1].label}, {forward[-1].direction}"
    left = untimed.names(untimed.left_out(mine))
    among = f" of those timed (without {left})" if left else ""
    said = f"{first} (too close to call: {', '.join(near)})" if near else first
    time = units.seconds(lines[0].timed.seconds) if lines[0].timed else ""
    beside = "" if near else _beside(report, mine, lines, baseline)
    return f"Fastest{among} {where}: {said}, {time}{beside}"


def _beside(
    report: Report, mine: Sequence[Timing], lines: Sequence[timings.TimingLine], baseline: str
) -> str:
    """How the fastest stands to the baseline; of the baseline itself, how far the next one is behind."""
    by_name = {t.implementation: t for t in mine}
    first = lines[0].timing
    if first.implementation == baseline:
        speed = _speed(report, lines[1].timing, first)
        return f"; the next, {lines[1].timing.implementation}, is {speed.text}"
    speed = _speed(report, first, by_name.get(baseline))
    return f", {speed.text} than {baseline}" if speed.word in ("faster", "slower") else ""
