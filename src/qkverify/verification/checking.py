"""Checking laws against cells: what `pytest`, `qkverify verify` and `verify()` share.

A cell is one implementation on one device in one dtype. `check` gives the verdict of one law on one cell and never raises
for what an implementation does; whatever is found becomes a `results.Verdict`.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from qkverify import foreign_text, probes
from qkverify.contract import DEVICES, DTYPES, Finding, Implementation, messages, registry
from qkverify.counterexamples import store
from qkverify.counterexamples.calls_alone import blamed, judged, numbers_of
from qkverify.counterexamples.causes import causes, settled, summary
from qkverify.counterexamples.failures import Failures
from qkverify.errors import (
    ContractError,
    DeviceLost,
    HarnessError,
    LawViolation,
    NotVerified,
    UnsupportedCase,
    UsageError,
)
from qkverify.probes import conventions
from qkverify.problem import traits
from qkverify.results import OUTCOMES_BROKEN, Counterexample, ImplementationInfo, Semantic, Tested, Verdict
from qkverify.runs.assertions import Evidence, number
from qkverify.runs.comparisons import GRADIENTS, RESULT
from qkverify.runs.raising_conditions import CallShape
from qkverify.runs.run import Run
from qkverify.verification import processes
from qkverify.verification.laws import PROFILES, Law, explain
from qkverify.verification.outcomes import (
    EXIT_CODES,
    NOT_VERIFIED,
    CellOutcome,
    of_cell,
    without_cell,
)
from qkverify.verification.unverified_options import unverified


@dataclass(frozen=True)
class Cell:
    """One implementation on one device in one dtype."""

    implementation: Implementation
    device: str
    dtype: str
    target: str = ""  # how another process finds the implementation again

    def __str__(self) -> str:
        return f"{self.implementation.name}-{self.device}-{self.dtype}"


@dataclass(frozen=True)
class VerificationPlan:
    """The cells to check, and for each (implementation, device) that cannot run here the reason."""

    cells: list[Cell]
    unavailable: dict[tuple[str, str], str]
    implementations: list[Implementation]
    idle: dict[str, str] = field(default_factory=dict)  # targets without any cell, each with the reason


def plan(
    targets: Sequence[Any] = (), devices: Sequence[str] = (), dtypes: Sequence[str] = ()
) -> VerificationPlan:
    """Cells for targets (default: the whole folder), narrowed to devices and dtypes. Raises UsageError."""
    for asked, every, what in ((devices, DEVICES, "device"), (dtypes, DTYPES, "dtype")):
        for word in asked:
            if word not in every:
                raise UsageError.unknown(what, word, every)
    unavailable: dict[tuple[str, str], str] = {}
    if targets:
        found = [(one, t if isinstance(t, str) else one.name) for t in targets for one in probes.find(t)]
    else:
        found = [(one, one.name) for one in registry.load_folder()]
        unavailable = {(gone.name, "cpu"): gone.reason for gone in registry.folder()[1]}
    found.sort(key=lambda pair: pair[0].operation != "attention")  # attention first, its parts after it
    cells = []
    for one, target in found:
        for device, reason in registry.devices_of(one).items():
            if devices and device not in devices:
                continue
            if reason is not None:
                unavailable[one.name, device] = reason
                continue
            cells += [
                Cell(one, device, dtype, target) for dtype in one.dtypes if not dtypes or dtype in dtypes
            ]
            refused = {dtype: why for dtype, why in one.refused_dtypes.items() if dtype in dtypes}
            if refused and not set(one.dtypes) & set(dtypes):
                unavailable[one.name, device] = "; ".join(
                    f"{d} is not taken: {why}" for d, why in refused.items()
                )
    idle = {target: _why_idle(one, unavailable) for one, target in found} if targets else {}
    for cell in cells:
        idle.pop(cell.target, None)
    return VerificationPlan(cells, unavailable, [one for one, _ in found], idle)


def _why_idle(one: Implementation, unavailable: Mapping[tuple[str, str], str]) -> str:
    """Why an implementation has no cell."""
    reasons = [f"{device}: {reason}" for (name, device), reason in unavailable.items() if name == one.name]
    return "; ".join(reasons) or (
        f"it declares {', '.join(one.dtypes)} on {', '.join(one.devices)}, and others were asked for"
    )


def nothing_to_verify(planned: VerificationPlan) -> str:
    """What is said where no target has a cell here, because other devices or dtypes were asked for."""
    reasons = "".join(f"\n  {target}: {reason}" for target, reason in planned.idle.items())
    return "nothing to verify here" + (reasons or "\n  no target has these devices and dtypes")


@functools.lru_cache(maxsize=256)
def conventions_of(cell: Cell) -> dict[str, conventions.Choice]:
    """What the cell declares and what was detected; probed once."""
    return conventions.detect(cell.implementation, cell.device, cell.dtype)


def prepare(cell: Cell) -> Run:
    """A fresh run of a cell, held to its conventions."""
    found = conventions_of(cell)
    return Run(cell.implementation, cell.device, cell.dtype, conventions.settled(found),
               **conventions.precisions_of(found, cell.dtype))  # fmt: skip


CALLS = ("contract", "calls")  # the families about how calls behave


@functools.lru_cache(maxsize=1)
def law_book() -> tuple[Law, ...]:
    """Every law of `properties/`: first those that compare whole results with the reference, which see most; then file by file,
    and last those about how calls behave."""
    package = importlib.import_module("qkverify.properties")
    names = [path.stem for path in sorted(Path(package.__path__[0]).glob("test_*.py"))]
    laws = [law for name in names for law in laws_in(importlib.import_module(f"qkverify.properties.{name}"))]
    return tuple(sorted(laws, key=lambda law: ("agrees_with" not in law.name, law.family in CALLS)))


def own_files(laws: Iterable[Law]) -> list[str]:
    """The files of those laws that are none of `properties/`: what another process needs to find them again."""
    return sorted({law.file for law in laws} - {law.file for law in law_book()})


def laws_named(names: Collection[str], files: Iterable[str] = ()) -> list[Law]:
    """The laws of these names, of `properties/` and of further files."""
    further = [law for file in files for law in laws_in(registry.load_file(file))]
    return [law for law in (*law_book(), *further) if law.name in names]


def laws_in(module: Any) -> list[Law]:
    return [value.law for value in vars(module).values() if isinstance(getattr(value, "law", None), Law)]


LOST: dict[tuple[str, str], str] = {}  # (framework, device) that this process has lost -> over what


def check(law: Law, run: Run, *, failures: Failures | None = None, **settings: Any) -> Verdict:
    """The verdict of one law on one run. What its implementation does to settings of the process ends with it.

    `failures` are those of the cell so far: a new one is explained with a look at them, and joins them.
    """
    failures = Failures() if failures is None else failures
    with messages.collected(), run.framework.restored():
        found = _verdict(law, run, failures, settings)
    failures.calls_of(run)
    if found.outcome == "crashed":
        LOST[run.implementation.arrays, run.device] = f"{law.name} of {run.cell}"
    return msgspec.structs.replace(found, messages=messages.taken(found.implementation))


def _verdict(law: Law, run: Run, failures: Failures, settings: Mapping[str, Any]) -> Verdict:
    one = run.implementation
    start = time.perf_counter()
    after = LOST.get((one.arrays, run.device))

    def verdict(outcome: Any, reason: str = "", counterexample: Counterexample | None = None) -> Verdict:
        return Verdict(law=law.name, family=law.family, sentence=law.sentence, exact=law.exact, implementation=one.name,
                       device=run.device, dtype=run.dtype, outcome=outcome, reason=reason, examples=run.examples,
                       margin=run.largest_margin if run.examples and not law.exact else None,
                       seconds=time.perf_counter() - start, counterexample=counterexample,
                       used=sorted(run.used & one.offers), tested=tested(run) if tried else None)  # fmt: skip

    tried = False
    if after is not None:
        return verdict("error", f"not checked: {run.device} answers this process no more since {after}")
    unfit = law.unfit(run)
    if unfit is not None:
        return verdict("not offered", unfit)
    tried = True
    try:
        law.check(run, **settings)
    except UnsupportedCase as refusal:
        return verdict("not offered", foreign_text.shown(refusal))
    except HarnessError as error:
        return verdict("error", f"the harness failed: {foreign_text.shown(error)}")
    except DeviceLost as error:
        return verdict(
            "crashed",
            f"{run.device} answers its process no more: {foreign_text.shown(error)}",
            counterexample(error, law, run, failures),
        )
    except Exception as broken:
        known = finding(law, run)
        if known is None or not known.explains(run.problems):
            found = counterexample(broken, law, run, failures)
            return verdict("failed", _in_short(found), found)
        found = counterexample(broken, law, run, Failures())  # what is known is no evidence for what is not
        other = beside(known, law, run, **settings)
        return (
            verdict("finding", str(known), found)
            if other is None
            else verdict("failed", _in_short(other), other)
        )
    if run.calls <= run.refusals:
        return verdict("not offered", "no generated problem reached the implementation")
    known = finding(law, run)
    return verdict("passed", f"a recorded finding did not show this time: {known}" if known else "")


def tested(run: Run) -> Tested:
    """What a law put to the test on this run."""
    compared = run.compared.examples
    return Tested(calls=run.calls, refused=run.refused, refusal=run.refusal[:120],
                  results=compared[RESULT], gradients=compared[GRADIENTS])  # fmt: skip


def _in_short(found: Counterexample) -> str:
    """The worst element in one line, or what was raised."""
    if not found.location:
        return found.got
    return f"{found.location}: got {found.got}, exact {found.exact}, bound {found.bound}"


def beside(known: Finding, law: Law, run: Run, **settings: Any) -> Counterexample | None:
    """What breaks the law where the finding cannot show, or None: the finding would hide it."""
    if known.when is None:
        return None
    again = Run(
        run.implementation, run.device, run.dtype, run.semantics, run.precision, run.gradient_precision
    )
    try:
        law.check(again, spared=known.explains, **settings)
    except (UnsupportedCase, HarnessError):
        return None
    except Exception as broken:
        return counterexample(broken, law, again, Failures())
    finally:
        run.examples += again.examples
        run.compared.examples.update(again.compared.examples)
    return None


def finding(law: Law, run: Run) -> Finding | None:
    """The recorded finding of this law here, if there is one."""
    return run.implementation.findings_at(run.device, run.dtype).get(law.name)


def counterexample(broken: BaseException, law: Law, run: Run, failures: Failures) -> Counterexample:
    """What a person needs of a failure; the problem is stored so that it can be replayed."""
    replay = store.store(law, run)
    evidence = broken.evidence if isinstance(broken, LawViolation) else None
    seen = evidence if isinstance(evidence, Evidence) else None
    raised = not isinstance(broken, LawViolation | ContractError)
    lost = isinstance(broken, DeviceLost)
    over_gradient = law.family == "gradients" and (seen is None or seen.what != "output")
    calls = blamed([] if lost else judged(run), over_gradient=over_gradient)
    diagnosis = (
        ""
        if lost
        else failures.explained(
            law.name,
            run,
            calls,
            dropped=law.family == "dropout",
            raised=raised,
            replay=lambda other: law.replay(other, run.failing),
        )
    )
    message, lines = explain(broken, law, run, replay=replay, diagnosis=diagnosis), []
    if raised:
        lines = _lines_of(broken, run)
        message += "".join(f"\n    {line}" for line in lines)
    path = store.script_of(replay)
    return Counterexample(
        message=message, problem=run.problems[0].describe() if run.problems else "", replay=replay,
        got=number(seen.got) if seen else foreign_text.shown(broken), exact=number(seen.exact) if seen else "",
        bound=f"{seen.bound:.2g}" if seen else "", margin=seen.margin if seen else None,
        location=f"{seen.what}{list(seen.location)}" if seen else "", script=path.read_text("utf-8") if path else "",
        diagnosis=diagnosis, exception=foreign_text.of_error(broken) if raised else "", line=lines[-1] if lines else "",
        value_wrong=any(one.value for one in calls), gradient_wrong=any(one.gradient for one in calls), numbers=numbers_of(run),
        traits=traits.of(run.problems),
    )  # fmt: skip


def _lines_of(broken: BaseException, run: Run) -> list[str]:
    """The last lines of the implementation's file that an exception came through."""
    frames = traceback.extract_tb(broken.__traceback__)
    own = [frame for frame in frames if frame.filename == run.implementation.file]
    return [f"{_place(frame)}  {foreign_text.shown_line(frame.line, characters=200)}" for frame in own[-3:]]


def _place(frame: traceback.FrameSummary) -> str:
    return f"{foreign_text.shown_line(Path(frame.filename).name, characters=100)}:{frame.lineno}"


def info(
    one: Implementation, semantics: dict[str, conventions.Choice], unavailable: dict[str, str]
) -> ImplementationInfo:
    """What the report says of an implementation."""
    return ImplementationInfo(
        name=one.name, operation=one.operation, summary=one.summary, arrays=one.arrays,
        file=foreign_text.shown_line(Path(one.file).name), dtypes=list(one.dtypes), devices=list(one.devices),
        offers=sorted(one.offers), not_offered=list(one.not_offered), requires=list(one.requires), unavailable=unavailable,
        semantics={name: Semantic(choice.value, choice.how) for name, choice in semantics.items()},
        unknown=list(one.unknown),
    )  # fmt: skip


def applicable(laws: Iterable[Law], cell: Cell) -> list[Law]:
    """The laws of the cell's operation."""
    return [law for law in laws if cell.implementation.operation in law.operations]


def check_cell(
    cell: Cell, laws: Sequence[Law] | None = None, *, examples: int | None = None
) -> Iterator[Verdict]:
    """The verdicts of one cell, as they come; what is said of a failure may be withdrawn by a later one: see `checked`."""
    yield from _checking(cell, laws, examples, Failures())


def checked(cell: Cell, laws: Sequence[Law] | None = None, *, examples: int | None = None) -> list[Verdict]:
    """The verdicts of one cell when all are there, each failure explained with a look at all others."""
    failures = Failures()
    return failures.settled(list(_checking(cell, laws, examples, failures)))


def _checking(
    cell: Cell, laws: Sequence[Law] | None, examples: int | None, failures: Failures
) -> Iterator[Verdict]:
    for law in applicable(law_book() if laws is None else laws, cell):
        yield check(law, prepare(cell), failures=failures, max_examples=examples)


def check_cells(cells: Sequence[Cell], *, profile: str = "default", jobs: int = 1, laws: Sequence[Law] | None = None,
                started: Callable[[Cell], None] | None = None) -> Iterator[tuple[Cell, list[Verdict]]]:  # fmt: skip
    """The verdicts of many cells on all laws or on these, cell by cell, as they finish; with several jobs as `check_parts`."""
    if jobs == 1:
        for cell in cells:
            if started:
                started(cell)
            yield cell, checked(cell, laws, examples=examples_of(profile))
        return
    every = {cell: applicable(law_book() if laws is None else laws, cell) for cell in cells}
    found: dict[Cell, dict[str, Verdict]] = {cell: {} for cell in cells}
    calls = {cell: Failures() for cell in cells}
    for cell, verdicts in check_parts(every, profile=profile, jobs=jobs, calls=calls):
        found[cell] |= {verdict.law: verdict for verdict in verdicts}
        if len(found[cell]) == len(every[cell]):
            yield cell, explained_together(cell, [found[cell][law.name] for law in every[cell]], calls[cell])


PARTS = 8  # of a cell with as many laws as attention has: what is lost of a run that is killed, and what each process takes


def check_parts(
    laws: Mapping[Cell, Sequence[Law]],
    *,
    profile: str = "default",
    jobs: int = 1,
    until: float = math.inf,
    calls: Mapping[Cell, Failures] | None = None,
) -> Iterator[tuple[Cell, list[Verdict]]]:
    """The verdicts of these laws of each cell, a part of a cell at a time, as they finish.

    Parts are checked in processes of one thread each. If one dies, its part is checked again; a part over which a process dies
    again is recorded as crashed, and the others go on. Where a process only loses its device, the laws after that one are
    checked by another. Nothing is begun or waited for after `until`, by time.monotonic().

    What is said of a failure was held against those of its part alone. With `calls` nothing is said: the calls of each cell are
    gathered there, for `explained_together`.
    """
    examples = examples_of(profile)
    longest = max((len(every) for every in laws.values()), default=0)
    # What is compiled for every other size or option takes longest: it comes first, that nobody waits for it alone.
    cells = sorted(laws, key=lambda cell: not compiled(cell))
    parts = [part for cell in cells for part in _parts(cell, laws[cell], -(-longest // PARTS))]
    while parts:
        tasks = [
            (address_of(cell), [law.name for law in some], examples, own_files(some), calls is not None)
            for cell, some in parts
        ]
        left = []
        for index, part in processes.each(_elsewhere, tasks, jobs, spent=_spent, until=until):
            cell, some = parts[index]
            verdicts = _crashed(cell, some) if part is None else part.verdicts
            if calls is not None and part is not None:
                calls[cell].returned |= part.returned
                calls[cell].raised |= part.raised
            yield cell, verdicts
            left += _parts(cell, some[len(verdicts) :], -(-len(some) // jobs))
        parts = left if time.monotonic() < until else []


def compiled(cell: Cell) -> bool:
    """Whether a call may wait for a compiler: JAX's, or Triton's on a GPU."""
    one = cell.implementation
    by_triton = cell.device != "cpu" and hasattr(sys.modules.get(one.function.__module__), "triton")
    return by_triton or one.compiles


def _parts(cell: Cell, laws: Sequence[Law], size: int) -> list[tuple[Cell, Sequence[Law]]]:
    return [(cell, laws[at : at + size]) for at in range(0, len(laws), size)]


Address = tuple[
    str, str, str, str, tuple[tuple[str, Finding], ...]
]  # target, name, device, dtype, known failures of a file


def address_of(cell: Cell) -> Address:
    """How another process finds the cell again."""
    known = cell.implementation.findings.items()
    listed = tuple((law, finding) for law, finding in known if finding.listed)
    return cell.target, cell.implementation.name, cell.device, cell.dtype, listed


def cell_at(address: Address) -> Cell:
    """The cell, found again: one and the same in a process, whose conventions are probed once."""
    if address not in _found:
        target, name, device, dtype, listed = address
        one = probes.fitted(next(one for one in registry.find(target) if one.name == name))
        one = replace(one, findings={**one.findings, **dict(listed)}) if listed else one
        _found[address] = Cell(one, device, dtype, target)
    return _found[address]


_found: dict[Address, Cell] = {}


@dataclass(frozen=True)
class Part:
    """The verdicts of some laws of a cell, and the calls that they made."""

    verdicts: list[Verdict]
    returned: set[CallShape]
    raised: set[CallShape]


def _elsewhere(
    address: Address, laws: Sequence[str], examples: int, files: Sequence[str], silent: bool
) -> Part:
    """The verdicts of these laws, in their order, or up to the one over which this process lost the device."""
    found, failures = [], Failures(silent=silent)
    for verdict in _checking(cell_at(address), laws_named(laws, files), examples, failures):
        found.append(verdict)
        if _lost_its_device(found):
            break
    return Part(failures.settled(found), failures.returned, failures.raised)


def explained_together(
    cell: Cell, verdicts: Sequence[Verdict], calls: Failures | None = None
) -> list[Verdict]:
    """The verdicts of a cell that several processes gave, each failure explained with a look at all others.

    Another process replays every counterexample. If it dies nothing is said of any; nor of one that holds when it is replayed.
    `calls` are all calls of the cell; without them it is not said when calls raise.
    """
    unsaid = [settled(verdict, diagnosis="", raises_when=[]) for verdict in verdicts]
    if not any(_replayable(verdict) for verdict in verdicts):
        return unsaid
    known = calls or Failures()
    task = (address_of(cell), unsaid, known.returned, known.raised)
    ((_, said),) = processes.each(_explaining, [task], 1)
    return unsaid if said is None else said


def _explaining(
    address: Address, verdicts: Sequence[Verdict], returned: set[CallShape], raised: set[CallShape]
) -> list[Verdict]:
    cell, failures = cell_at(address), Failures(returned, raised)
    return failures.settled([_explained(verdict, cell, failures) for verdict in verdicts])


def _replayable(verdict: Verdict) -> bool:
    return verdict.outcome == "failed" and bool(verdict.counterexample and verdict.counterexample.replay)


def _explained(verdict: Verdict, cell: Cell, failures: Failures) -> Verdict:
    """The verdict with what its counterexample shows when it is replayed, if it fails again."""
    if not _replayable(verdict) or verdict.counterexample is None:
        return verdict
    run = prepare(cell)
    try:
        record = store.load(verdict.counterexample.replay)
        (law,) = laws_named([verdict.law]) or laws_named([verdict.law], [record["law_file"]])
    except (UsageError, ValueError):
        return verdict
    run.failing = record["drawn"]
    try:
        with messages.collected(), run.framework.restored():
            law.replay(run, run.failing)
    except Exception as broken:
        again = counterexample(broken, law, run, failures)
        return settled(
            verdict, diagnosis=again.diagnosis, value_wrong=again.value_wrong, gradient_wrong=again.gradient_wrong
        )  # fmt: skip
    return verdict


def _spent(part: Part) -> bool:
    return _lost_its_device(part.verdicts)


def _lost_its_device(verdicts: Sequence[Verdict]) -> bool:
    return bool(verdicts) and verdicts[-1].outcome == "crashed"


def _crashed(cell: Cell, laws: Sequence[Law]) -> list[Verdict]:
    return [
        Verdict(law=law.name, family=law.family, sentence=law.sentence, exact=law.exact, implementation=cell.implementation.name,
                device=cell.device, dtype=cell.dtype, outcome="crashed", reason="the process died")
        for law in laws
    ]  # fmt: skip


def examples_of(profile: str) -> int:
    """Examples for each law at a profile. Raises UsageError naming the profiles."""
    if profile not in PROFILES:
        raise UsageError.unknown("profile", profile, PROFILES)
    return PROFILES[profile]


def outcome_of(cell: Cell, verdicts: Sequence[Verdict], laws: int | None = None) -> CellOutcome:
    """What is said of a cell; `laws` as in `outcomes.of_cell`: how many it has, where some were selected."""
    one = cell.implementation
    return of_cell(verdicts, operation=one.operation, offers=one.offers, unknown=one.unknown,
                   requires=one.requires, laws=laws)  # fmt: skip


@dataclass
class Verification:
    """The verdicts of `verify`, and of each cell what is said of it; `unverified` names what it offers and no law put to use."""

    verdicts: list[Verdict] = field(default_factory=list)
    unverified: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, CellOutcome] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)  # what the first calls of each showed

    @property
    def failures(self) -> list[Verdict]:
        return [v for v in self.verdicts if v.outcome in OUTCOMES_BROKEN]

    @property
    def messages(self) -> dict[str, list[str]]:
        """What each implementation warned of and printed while it was called, a sentence each with how often."""
        return {name: messages.lines(said) for name, said in messages.summed(self.verdicts).items()}

    def raise_for_failures(self, *, strict: bool = False) -> None:
        """Raise LawViolation with the smallest counterexample of every cause, and the laws that it breaks, and NotVerified if
        nothing of a cell was verified, or with `strict` if anything was not; return if the laws hold."""
        if self.failures:
            found = causes(self.failures)
            raise LawViolation("\n\n".join([*(cause.text() for cause in found), f"{summary(found)} broken"]))
        self.raise_if_not_verified(strict=strict)

    def raise_if_not_verified(self, *, strict: bool = False) -> None:
        """Raise NotVerified with the reason for each cell of which nothing was verified; with `strict`, or not everything."""
        lacking = [
            f"{cell}: {one}"
            for cell, one in self.outcomes.items()
            if one.exit_code(strict) == EXIT_CODES[NOT_VERIFIED]
        ]
        if lacking or not self.outcomes:
            raise NotVerified("\n".join(lacking) or "nothing was verified")


def verify(
    target: Any, *, devices: Sequence[str] = (), dtypes: Sequence[str] = (), profile: str = "default",
    laws: Sequence[str] = (), skip: Sequence[str] = (), own_laws: Sequence[str | Path] = (), known_failures: str | Path = "",
) -> Verification:  # fmt: skip
    """Check every law on a function, an implementation or a target string; nothing is printed.

    `laws` and `skip` select laws by name, family or pattern; `own_laws` are files with further laws, `known_failures` is a file
    of failures that are not raised for. Raises UsageError if there is nothing to check.
    """
    from qkverify.verification import requested as asked
    from qkverify.verification import settings

    chosen = asked.checked(
        settings.Settings(
            None, (target,), profile, tuple(dtypes), tuple(devices), tuple(laws), tuple(skip),
            tuple(map(str, own_laws)), str(known_failures),
        )
    )  # fmt: skip
    found = Verification()
    found.outcomes = {target: without_cell(reason) for target, reason in chosen.plan.idle.items()}
    found.outcomes |= {str(cell): outcome_of(cell, []) for cell in chosen.plan.cells}
    for cell, verdicts in check_cells(chosen.plan.cells, profile=profile, laws=chosen.selection.laws):
        found.verdicts += verdicts
        found.outcomes[str(cell)] = outcome_of(cell, verdicts, chosen.selection.laws_of(cell))
        one = cell.implementation
        unknown = [name for name in one.unknown if not name.startswith("*")]
        if missed := [*unknown, *unverified(one.offers, verdicts)]:
            found.unverified[str(cell)] = missed
    found.remarks = {one.name: list(one.remarks) for one in chosen.plan.implementations if one.remarks}
    return found
