"""What a report speaks of, arranged from the records of one device: rows, cells, laws, timings.

The file is append-only, so one thing may be recorded more than once (a resumed run, a second run of the same
day): the latest record counts. Order is that of the file, never that of a hash, so that a page made again
from the same file is the same page.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar
from urllib.parse import quote

from qkverify import units
from qkverify.history import earlier_runs
from qkverify.history.earlier_runs import PastRun
from qkverify.history.trends import Trends, trends_of
from qkverify.report.finding_links import Links
from qkverify.results import (
    OUTCOMES_BROKEN,
    Accuracy,
    Ceiling,
    Complexity,
    Conditions,
    Control,
    Fact,
    ImplementationInfo,
    OperationTiming,
    Outcome,
    Picture,
    Planted,
    Record,
    Rounding,
    RunStart,
    Timing,
    Travel,
    Verdict,
    of_kind,
)
from qkverify.results.fingerprint import cpu_name
from qkverify.timing import statistics
from qkverify.verification.outcomes import ALL_HOLDS, NOT_VERIFIED, CellOutcome, of_cell_of

FAMILIES = (
    "softmax",
    "attention",
    "masking",
    "heads",
    "positions",
    "gradients",
    "unbiased",
    "contract",
    "decode",
    "layers",
)
DTYPES = ("float64", "float32", "float16", "bfloat16")
DIRECTIONS = ("forward", "backward", "forward+backward")
BY_GRAVITY: tuple[Outcome, ...] = (
    "failed",
    "crashed",
    "timed out",
    "error",
    "finding",
    "passed",
    "not offered",
    "unavailable",
)
BROKEN: frozenset[str] = frozenset(OUTCOMES_BROKEN)
JUDGED = BROKEN | {"finding", "passed"}

NOWHERE = Links()  # no folder of findings stands beside the page

Item = TypeVar("Item")


@dataclass(frozen=True)
class MatrixSquare:
    """All laws of one family on one implementation, device and dtype: one square of the matrix."""

    implementation: str
    device: str
    dtype: str
    family: str
    verdicts: tuple[Verdict, ...]
    verified: bool = True  # whether results of this row were compared with the reference

    @property
    def id(self) -> str:
        return element_id("cell", self.implementation, self.device, self.dtype, self.family)

    @cached_property
    def outcome(self) -> str:
        """The gravest outcome of its laws; "not verified" where they hold, or found no problem, and nothing was compared."""
        tried = any(v.tested is not None for v in self.verdicts)
        silent = self.gravest_outcome == "passed" or (self.gravest_outcome == "not offered" and tried)
        return NOT_VERIFIED if silent and not self.verified else self.gravest_outcome

    @cached_property
    def gravest_outcome(self) -> Outcome:
        return min((v.outcome for v in self.verdicts), key=BY_GRAVITY.index)

    @property
    def by_gravity(self) -> list[Verdict]:
        return sorted(self.verdicts, key=lambda v: BY_GRAVITY.index(v.outcome))

    @property
    def gravest(self) -> list[Verdict]:
        """The laws that gave the cell its outcome."""
        return [v for v in self.verdicts if v.outcome == self.gravest_outcome]

    @property
    def margin(self) -> float | None:
        """The largest margin of the laws that hold; None where all of them are exact."""
        return max(
            (v.margin for v in self.verdicts if v.outcome == "passed" and v.margin is not None), default=None
        )

    @property
    def held(self) -> int:
        return sum(v.outcome == "passed" for v in self.verdicts)


@dataclass(frozen=True)
class VerdictRow:
    """One implementation on one device in one dtype; `reason` says why it has no cells (dtype is "" then), `said` is what is
    said of it."""

    implementation: str
    device: str
    dtype: str
    cells: dict[str, MatrixSquare]
    reason: str = ""
    said: CellOutcome = ALL_HOLDS


class Report:
    """The records of one results file, as the sections of the page ask for them."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        title: str | None = None,
        past: Sequence[PastRun] = (),
        links: Links = NOWHERE,
    ) -> None:
        self.links = links
        self.runs = of_kind(records, RunStart)
        self.infos = {info.name: info for info in of_kind(records, ImplementationInfo)}
        self.verdicts = _latest(
            of_kind(records, Verdict), lambda v: (v.implementation, v.device, v.dtype, v.family, v.law)
        )
        self.timings = _latest(
            of_kind(records, Timing), lambda t: (t.case, t.device, t.dtype, t.direction, t.implementation)
        )
        self.operation_timings = _latest(
            of_kind(records, OperationTiming),
            lambda t: (t.operation, t.case, t.device, t.dtype, t.implementation),
        )
        self.ceilings = _latest(of_kind(records, Ceiling), lambda c: (c.device, c.dtype, c.what))
        self.controls = _latest(
            of_kind(records, Control), lambda c: (c.case, c.direction, c.implementation, c.device, c.dtype)
        )
        self.conditions = _latest(
            of_kind(records, Conditions), lambda c: (c.case, c.direction, c.device, c.dtype, c.process)
        )
        self.rounding = _latest(of_kind(records, Rounding), lambda r: (r.unit, r.device))
        self.accuracy = _latest(of_kind(records, Accuracy), lambda a: (a.implementation, a.device, a.dtype))
        self.planted = sorted(_latest(of_kind(records, Planted), lambda p: p.name), key=lambda p: p.name)
        self.pictures = _latest(of_kind(records, Picture), lambda p: p.name)
        self.complexity = _latest(
            of_kind(records, Complexity), lambda c: (c.layer, c.variable, c.implementation, c.device, c.dtype)
        )
        self.travels = {t.layer: t for t in of_kind(records, Travel)}
        self._title = title
        self._past, self._records = past, records

    @cached_property
    def trends(self) -> Trends:
        """This run and the earlier ones of its machine, beside each other; none without earlier ones."""
        today = earlier_runs.runs_of(self._records)
        return trends_of([*self._past, *today] if today else [])

    @cached_property
    def identity(self) -> dict[str, Fact]:
        return self.runs[-1].fingerprint.identity if self.runs else {}

    @cached_property
    def device(self) -> str:
        """What the report is of: the processor or GPU in words, "Intel Xeon Platinum 8481C, 2 cores"; of a run with a baseline
        first who is compared with it."""
        if self._title:
            return self._title
        baseline = self.runs[-1].against if self.runs else ""
        compared = ", ".join(name for name in self.implementations if name != baseline)
        return f"{compared} against {baseline}, {self._machine}" if baseline and compared else self._machine

    @cached_property
    def subject(self) -> Report:
        """The report without what the others are compared with, where the run named such a baseline."""
        baseline = self.runs[-1].against if self.runs else ""
        if not baseline:
            return self
        kept = [
            r
            for r in self._records
            if baseline not in (getattr(r, "implementation", ""), getattr(r, "name", ""))
        ]
        return Report(kept, title=self._title, links=self.links)

    @property
    def _machine(self) -> str:
        gpu, cpu = self.identity.get("gpu"), self.identity.get("cpu")
        ran = {v.device for v in self.verdicts if v.outcome in JUDGED} | {
            t.device for t in self.timings if t.seconds
        }
        if gpu and "cuda" in ran:
            return str(gpu)
        cores = self.identity.get("cores")
        words = f", {units.number_of(cores, 'core')}" if isinstance(cores, int) else ""
        return cpu_name(str(cpu)) + words if cpu else "an unnamed device"

    @cached_property
    def implementations(self) -> list[str]:
        """Every name, as declared first and then as met; what ran nowhere comes last."""
        names = list(
            dict.fromkeys(
                [
                    *self.infos,
                    *(v.implementation for v in self.verdicts),
                    *(t.implementation for t in self.timings),
                ]
            )
        )
        ran = {v.implementation for v in self.verdicts if v.outcome != "unavailable"}
        ran |= {t.implementation for t in self.timings if t.seconds}
        return sorted(names, key=lambda name: name not in ran)  # sorted is stable

    def is_attention(self, implementation: str) -> bool:
        """Whether it computes attention, as what has no description does."""
        info = self.infos.get(implementation)
        return info is None or info.operation == "attention"

    def colour(self, implementation: str) -> int:
        """The number of an implementation's colour and mark, the same in every chart: what was timed has the first ones."""
        return self._coloured.index(implementation)

    @cached_property
    def _coloured(self) -> list[str]:
        timed = {t.implementation for t in self.timings if t.seconds}
        return sorted(self.implementations, key=lambda name: name not in timed)  # sorted is stable

    @cached_property
    def families(self) -> list[str]:
        return in_order({v.family for v in self.verdicts}, FAMILIES)

    @cached_property
    def dtypes(self) -> list[str]:
        return in_order({v.dtype for v in self.verdicts} | {t.dtype for t in self.timings}, DTYPES)

    @cached_property
    def devices(self) -> list[str]:
        gone = {device for info in self.infos.values() for device in info.unavailable}
        return sorted({v.device for v in self.verdicts} | {t.device for t in self.timings} | gone)

    @cached_property
    def laws(self) -> list[Verdict]:
        """One verdict for every law, to take its name, family, sentence and exactness from."""
        laws = {(v.family, v.law): v for v in self.verdicts}
        return sorted(laws.values(), key=lambda v: self.families.index(v.family))

    @cached_property
    def cells(self) -> list[MatrixSquare]:
        return [cell for row in self.rows for cell in row.cells.values()]

    @cached_property
    def rows(self) -> list[VerdictRow]:
        return [row for name in self.implementations for row in self._rows_of(name)]

    @cached_property
    def broken(self) -> list[Verdict]:
        """What a reader must see first: broken laws, gravest first."""
        broken = [v for v in self.verdicts if v.outcome in BROKEN]
        return sorted(broken, key=lambda v: BY_GRAVITY.index(v.outcome))

    @cached_property
    def findings(self) -> list[Verdict]:
        return [v for v in self.verdicts if v.outcome == "finding"]

    @cached_property
    def unverified(self) -> list[VerdictRow]:
        """What was run, and of which nothing was put to the test."""
        return [row for row in self.rows if row.cells and row.said.word == NOT_VERIFIED]

    @cached_property
    def judged(self) -> list[str]:
        """The implementations of which at least one law was checked."""
        names = {v.implementation for v in self.verdicts if v.outcome in JUDGED}
        return [name for name in self.implementations if name in names]

    @cached_property
    def examples(self) -> int:
        return sum(v.examples for v in self.verdicts)

    @cached_property
    def places(self) -> list[tuple[str, str]]:
        """Every (device, dtype) at which something was timed."""
        return [
            (d, t)
            for d in self.devices
            for t in self.dtypes
            if any((x.device, x.dtype) == (d, t) for x in self.timings)
        ]

    @cached_property
    def worst_control(self) -> Control | None:
        """The A/A control that strayed furthest."""
        return max(self.controls, key=lambda c: statistics.noise([c]) + abs(c.ratio - 1), default=None)

    def _rows_of(self, name: str) -> list[VerdictRow]:
        mine = [v for v in self.verdicts if v.implementation == name]
        gone = dict(self.infos[name].unavailable) if name in self.infos else {}
        for verdict in mine:
            if verdict.outcome == "unavailable":
                gone.setdefault(verdict.device, verdict.reason)
        rows = []
        for device in sorted({v.device for v in mine} | set(gone)):
            here = [v for v in mine if v.device == device and v.outcome != "unavailable"]
            rows += [
                self._row(name, device, dtype, here) for dtype in in_order({v.dtype for v in here}, DTYPES)
            ]
            if not here:
                rows.append(VerdictRow(name, device, "", {}, gone.get(device) or "no reason recorded"))
        return rows or [VerdictRow(name, "", "", {}, "no law was run on it")]

    def _row(self, name: str, device: str, dtype: str, verdicts: Iterable[Verdict]) -> VerdictRow:
        mine = [v for v in verdicts if v.dtype == dtype]
        said = of_cell_of(self.infos.get(name), mine)
        cells = {
            family: MatrixSquare(
                name,
                device,
                dtype,
                family,
                tuple(v for v in mine if v.family == family),
                said.word != NOT_VERIFIED,
            )
            for family in self.families
            if any(v.family == family for v in mine)
        }
        return VerdictRow(name, device, dtype, cells, said=said)


def margin(verdict: Verdict) -> float | None:
    """The margin that speaks of the outcome: of a broken law that of its counterexample, not of what held before."""
    example = verdict.counterexample
    return verdict.margin if example is None else example.margin


def in_order(names: set[str], known: Sequence[str]) -> list[str]:
    """Known names in their own order, then the rest by the alphabet."""
    return [name for name in known if name in names] + sorted(names - set(known))


def element_id(*words: str) -> str:
    """An id that stands in a link as it is: anything but letters, digits and ._-~ is percent-encoded."""
    return "-".join(quote(word, safe="") for word in words)


def _latest(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[Item]:
    return list({key(item): item for item in items}.values())
