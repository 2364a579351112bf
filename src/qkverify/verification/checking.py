"""Checking laws against cells: what `pytest`, `qkverify verify` and `verify()` share.

A cell is one implementation on one device in one dtype. `check` gives the verdict of one law on one cell and never raises
for what an implementation does; whatever is found becomes a `results.Verdict`.
"""

from __future__ import annotations

import functools
import importlib
import math
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from qkverify import foreign_text, probes
from qkverify.contract import (
    DEVICES,
    DTYPES,
    Finding,
    Implementation,
    frameworks,
    messages,
    process_settings,
    registry,
)
from qkverify.contract.modules_used import has_triton_kernels
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
from qkverify.probes import conventions, sentences
from qkverify.problem import traits
from qkverify.results import (
    OUTCOMES_BROKEN,
    Counterexample,
    ImplementationInfo,
    LooserModel,
    Semantic,
    Tested,
    Verdict,
)
from qkverify.runs.assertions import Evidence, number
from qkverify.runs.comparisons import GRADIENTS, RESULT
from qkverify.runs.raising_conditions import CallShape
from qkverify.runs.run import Run
from qkverify.verification import process_changes
from qkverify.verification.laws import PROFILES, Law, explain
from qkverify.verification.outcomes import (
    EXIT_CODES,
    NOT_VERIFIED,
    CellOutcome,
    of_cell,
    without_cell,
)
from qkverify.verification.torch_findings import said_of_torch
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


def check_words(devices: Sequence[str], dtypes: Sequence[str]) -> None:
    """Raise UsageError for a device or dtype that there is none of."""
    for requested, every, what in ((devices, DEVICES, "device"), (dtypes, DTYPES, "dtype")):
        for word in requested:
            if word not in every:
                raise UsageError.unknown(what, word, every)


def plan(
    targets: Sequence[Any] = (), devices: Sequence[str] = (), dtypes: Sequence[str] = ()
) -> VerificationPlan:
    """Cells for targets (default: the whole folder), narrowed to devices and dtypes. Raises UsageError."""
    check_words(devices, dtypes)
    unavailable: dict[tuple[str, str], str] = {}
    if targets:
        targeted = [
            (implementation, t if isinstance(t, str) else implementation.name)
            for t in targets
            for implementation in probes.find(t)
        ]
    else:
        targeted = [(implementation, implementation.name) for implementation in registry.load_folder()]
        unavailable = {(gone.name, "cpu"): gone.reason for gone in registry.folder()[1]}
    targeted.sort(key=lambda pair: pair[0].operation != "attention")  # attention first, its parts after it
    cells = []
    for implementation, target in targeted:
        for device, reason in registry.devices_of(implementation).items():
            if devices and device not in devices:
                continue
            if reason is not None:
                unavailable[implementation.name, device] = reason
                continue
            cells += [
                Cell(implementation, device, dtype, target)
                for dtype in implementation.dtypes
                if not dtypes or dtype in dtypes
            ]
            refused = {dtype: why for dtype, why in implementation.refused_dtypes.items() if dtype in dtypes}
            if refused and not set(implementation.dtypes) & set(dtypes):
                unavailable[implementation.name, device] = "; ".join(
                    f"{d} is not verified: {why}"
                    if why.startswith(sentences.RESULT)
                    else f"{d} is refused: {why}"
                    for d, why in refused.items()
                )
    idle = (
        {target: _why_idle(implementation, unavailable) for implementation, target in targeted}
        if targets
        else {}
    )
    for cell in cells:
        idle.pop(cell.target, None)
    return VerificationPlan(cells, unavailable, [implementation for implementation, _ in targeted], idle)


def _why_idle(implementation: Implementation, unavailable: Mapping[tuple[str, str], str]) -> str:
    """Why an implementation has no cell."""
    reasons = [
        f"{device}: {reason}" for (name, device), reason in unavailable.items() if name == implementation.name
    ]
    return "; ".join(reasons) or (
        f"it declares {', '.join(implementation.dtypes)} on {', '.join(implementation.devices)}, and others were requested"
    )


def nothing_to_verify(planned: VerificationPlan) -> str:
    """What is said where no target has a cell here, because other devices or dtypes were asked for."""
    reasons = "".join(f"\n  {target}: {reason}" for target, reason in planned.idle.items())
    return "nothing can be verified here" + (reasons or "\n  no target has these devices and dtypes")


@functools.lru_cache(maxsize=256)
def conventions_of(cell: Cell) -> dict[str, conventions.Choice]:
    """What the cell declares and what was detected; probed once."""
    restored = frameworks.get(cell.implementation.arrays).restored()
    with process_settings.noted_of(cell.implementation.name), restored:
        return conventions.detect(cell.implementation, cell.device, cell.dtype)


def prepare(cell: Cell) -> Run:
    """A fresh run of a cell, held to its conventions."""
    choices = conventions_of(cell)
    run = Run(cell.implementation, cell.device, cell.dtype, conventions.settled(choices),
              **conventions.precisions_of(choices, cell.dtype))  # fmt: skip
    run.looser = tuple(
        LooserModel(choice.value, choice.looser) for choice in choices.values() if choice.looser
    )
    return run


CALLS = ("contract", "calls")  # the families about how calls behave


@functools.lru_cache(maxsize=1)
def law_book() -> tuple[Law, ...]:
    """Every law of `properties/`: first those that compare whole results with the reference, which see most; then family by
    family, and last those about how calls behave."""
    package = importlib.import_module("qkverify.properties")
    folder = Path(package.__path__[0])
    names = [
        ".".join(path.relative_to(folder).with_suffix("").parts) for path in sorted(folder.rglob("test_*.py"))
    ]
    laws = [law for name in names for law in laws_in(importlib.import_module(f"qkverify.properties.{name}"))]
    return tuple(
        sorted(laws, key=lambda law: ("agrees_with" not in law.name, law.family in CALLS, law.family))
    )


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
    noted = process_settings.noted_of(run.implementation.name)
    with messages.collected(), noted, run.framework.restored():
        verdict = _verdict(law, run, failures, settings)
    failures.calls_of(run)
    if verdict.outcome == "crashed":
        LOST[run.implementation.arrays, run.device] = f"{law.name} of {run.cell}"
    return msgspec.structs.replace(verdict, messages=messages.taken(verdict.implementation))


def _verdict(law: Law, run: Run, failures: Failures, settings: Mapping[str, Any]) -> Verdict:
    implementation = run.implementation
    start = time.perf_counter()
    after = LOST.get((implementation.arrays, run.device))

    def verdict(outcome: Any, reason: str = "", counterexample: Counterexample | None = None) -> Verdict:
        return Verdict(law=law.name, family=law.family, sentence=law.sentence, exact=law.exact,
                       implementation=implementation.name, device=run.device, dtype=run.dtype,
                       outcome=outcome, reason=reason, examples=run.examples,
                       margin=run.largest_margin if run.examples and not law.exact else None,
                       seconds=time.perf_counter() - start, counterexample=counterexample,
                       used=sorted(run.used & implementation.offers), tested=tested(run) if tried else None,
                       looser=list(run.looser))  # fmt: skip

    tried = False
    if after is not None:
        return verdict("error", f"not checked: {run.device} has not answered this process since {after}")
    unfit = law.unfit(run)
    if unfit is not None:
        return verdict("not offered", unfit)
    tried = True
    try:
        law.check(run, **settings)
    except UnsupportedCase as refusal:
        return verdict("not offered", foreign_text.shown(refusal))
    except HarnessError as error:
        return verdict("error", f"qkverify itself failed: {foreign_text.shown(error)}")
    except DeviceLost as error:
        return verdict(
            "crashed",
            f"{run.device} answers its process no more: {foreign_text.shown(error)}",
            counterexample(error, law, run, failures),
        )
    except Exception as broken:
        known = finding(law, run)
        if known is None or not known.explains(run.problems):
            example = counterexample(broken, law, run, failures)
            return verdict("failed", _in_short(example), example)
        example = counterexample(broken, law, run, Failures())  # what is known is no evidence for what is not
        other = beside(known, law, run, **settings)
        return (
            verdict("finding", str(known), example)
            if other is None
            else verdict("failed", _in_short(other), other)
        )
    if run.calls <= run.refusals:
        return verdict("not offered", "no generated problem reached the implementation")
    known = finding(law, run)
    return verdict("passed", f"a recorded finding did not show this time: {known}" if known else "")


def rechecked(law: Law, run: Run, drawn: Mapping[str, Any]) -> Verdict | None:
    """The verdict of a law that given arguments break; None if it holds on them."""
    run.failing = dict(drawn)
    noted = process_settings.noted_of(run.implementation.name)
    with messages.collected(), noted, run.framework.restored():
        try:
            law.replay(run, drawn)
        except (UnsupportedCase, HarnessError):
            return None
        except Exception as broken:
            example = counterexample(broken, law, run, Failures())
            known = finding(law, run)
            recorded = known is not None and known.explains(run.problems)
            outcome, reason = ("finding", str(known)) if recorded else ("failed", _in_short(example))
            return Verdict(law=law.name, family=law.family, sentence=law.sentence, exact=law.exact,
                           implementation=run.implementation.name, device=run.device, dtype=run.dtype,
                           outcome=outcome, reason=reason, counterexample=example)  # type: ignore[arg-type]  # fmt: skip
    return None


def tested(run: Run) -> Tested:
    """What a law put to the test on this run."""
    compared = run.compared.examples
    return Tested(calls=run.calls, refused=run.refused, refusal=run.refusal[:120],
                  results=compared[RESULT], gradients=compared[GRADIENTS])  # fmt: skip


def _in_short(example: Counterexample) -> str:
    """The worst element in one line, or what was raised."""
    if not example.location:
        return example.got
    return f"{example.location}: got {example.got}, exact {example.exact}, bound {example.bound}"


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
    worst = evidence if isinstance(evidence, Evidence) else None
    raised = not isinstance(broken, LawViolation | ContractError)
    lost = isinstance(broken, DeviceLost)
    over_gradient = law.family == "gradients" and (worst is None or worst.what != "output")
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
    elif of_torch := said_of_torch(law, run, _run_of):
        message += f"\n{of_torch}"
    path = store.script_of(replay)
    return Counterexample(
        message=message, problem=run.problems[0].describe() if run.problems else "", replay=replay,
        got=number(worst.got) if worst else foreign_text.shown(broken), exact=number(worst.exact) if worst else "",
        bound=f"{worst.bound:.2g}" if worst else "", margin=worst.margin if worst else None,
        location=f"{worst.what}{list(worst.location)}" if worst else "", script=path.read_text("utf-8") if path else "",
        diagnosis=diagnosis, exception=foreign_text.of_error(broken) if raised else "", line=lines[-1] if lines else "",
        value_wrong=any(call.value for call in calls), gradient_wrong=any(call.gradient for call in calls),
        numbers=numbers_of(run), traits=traits.of(run.problems),
    )  # fmt: skip


def _run_of(implementation: Implementation, device: str, dtype: str) -> Run:
    return prepare(Cell(implementation, device, dtype))


def _lines_of(broken: BaseException, run: Run) -> list[str]:
    """The last lines of the implementation's file that an exception came through."""
    frames = traceback.extract_tb(broken.__traceback__)
    in_file = [frame for frame in frames if frame.filename == run.implementation.file]
    return [
        f"{_place(frame)}  {foreign_text.shown_line(frame.line, characters=200)}" for frame in in_file[-3:]
    ]


def _place(frame: traceback.FrameSummary) -> str:
    return f"{foreign_text.shown_line(Path(frame.filename).name, characters=100)}:{frame.lineno}"


def info(
    implementation: Implementation, semantics: dict[str, conventions.Choice], unavailable: dict[str, str]
) -> ImplementationInfo:
    """What the report says of an implementation."""
    return ImplementationInfo(
        name=implementation.name, operation=implementation.operation, summary=implementation.summary,
        arrays=implementation.arrays, file=foreign_text.shown_line(Path(implementation.file).name),
        dtypes=list(implementation.dtypes), devices=list(implementation.devices), offers=sorted(implementation.offers),
        not_offered=list(implementation.not_offered), requires=list(implementation.requires), unavailable=unavailable,
        semantics={name: Semantic(choice.value, choice.how, choice.looser) for name, choice in semantics.items()},
        unknown=list(implementation.unknown),
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
    verdicts = failures.settled(list(_checking(cell, laws, examples, failures)))
    return process_changes.blamed(verdicts, process_settings.taken(cell.implementation.name))


def _checking(
    cell: Cell, laws: Sequence[Law] | None, examples: int | None, failures: Failures
) -> Iterator[Verdict]:
    for law in applicable(law_book() if laws is None else laws, cell):
        yield check(law, prepare(cell), failures=failures, max_examples=examples)


def check_cells(cells: Sequence[Cell], *, profile: str = "default", jobs: int = 1,
                laws: Sequence[Law] | None = None) -> Iterator[tuple[Cell, list[Verdict]]]:  # fmt: skip
    """The verdicts of many cells on all laws or on these, cell by cell, as they finish: in this process, or with several jobs in
    workers (see `isolation`)."""
    if jobs == 1:
        for cell in cells:
            yield cell, checked(cell, laws, examples=examples_of(profile))
        return
    from qkverify.verification.isolation import checkers, limits

    checker = checkers.InWorkers(limits.limits(jobs=jobs), jobs)
    for done in checker.check(cells, law_book() if laws is None else laws, profile, lambda *_: None):
        yield done.cell, done.verdicts


def check_parts(
    laws: Mapping[Cell, Sequence[Law]],
    *,
    profile: str = "default",
    jobs: int = 1,
    until: float = math.inf,
    calls: Mapping[Cell, Failures] | None = None,
) -> Iterator[tuple[Cell, list[Verdict]]]:
    """The verdicts of these laws of each cell, a part of a cell at a time, as they finish.

    Parts are checked in worker processes of one thread each (see `isolation`): one that dies costs a law. Nothing is begun or
    waited for after `until`, by time.monotonic().

    What is said of a failure was held against those of its part alone. With `calls` nothing is said: the calls of each cell are
    gathered there, for `explained_together`.
    """
    from qkverify.verification.isolation import checkers, limits

    of_worker = limits.limits(jobs=jobs)
    for task in checkers.tasks_in_parts(
        laws, of_worker, profile, jobs, silent=calls is not None, until=until
    ):
        if calls is not None:
            calls[task.cell].returned |= task.returned
            calls[task.cell].raised |= task.raised
        yield task.cell, checkers.in_order(task.laws, task.verdicts)


def compiled(cell: Cell) -> bool:
    """Whether a call may wait for a compiler: JAX's, or Triton's on a GPU."""
    implementation = cell.implementation
    by_triton = cell.device != "cpu" and has_triton_kernels(implementation.function)
    return by_triton or implementation.compiles


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
        if listed:
            implementation = cell_at((target, name, device, dtype, ())).implementation
            implementation = replace(implementation, findings={**implementation.findings, **dict(listed)})
        else:
            implementation = _fitted(target, name)
        _found[address] = Cell(implementation, device, dtype, target)
    return _found[address]


@functools.lru_cache(maxsize=256)
def _fitted(target: str, name: str) -> Implementation:
    """The same for all devices and dtypes."""
    candidates = registry.find(target)
    return probes.fitted(next(candidate for candidate in candidates if candidate.name == name))


def group_of(target: str) -> str:
    """What a target may share a process with: others of the same text, or, as "", all of our own implementations."""
    return target if ":" in target or "." in target or "/" in target else ""


def remember(cell: Cell) -> None:
    """Let `cell_at` find this cell under its address, without the calls that it takes to find out what it is."""
    _found[address_of(cell)] = cell


_found: dict[Address, Cell] = {}


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
    from qkverify.verification.isolation import judge

    known = calls or Failures()
    said = judge.explained(cell, unsaid, known.returned, known.raised)
    return unsaid if said is None else said


def explaining(
    address: Address, verdicts: Sequence[Verdict], returned: set[CallShape], raised: set[CallShape]
) -> list[Verdict]:
    """In another process: the verdicts with what is said of each failure, held against all others."""
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


def examples_of(profile: str) -> int:
    """Examples for each law at a profile. Raises UsageError naming the profiles."""
    if profile not in PROFILES:
        raise UsageError.unknown("profile", profile, PROFILES)
    return PROFILES[profile]


def outcome_of(cell: Cell, verdicts: Sequence[Verdict], laws: int | None = None) -> CellOutcome:
    """What is said of a cell; `laws` as in `outcomes.of_cell`: how many it has, where some were selected."""
    implementation = cell.implementation
    return of_cell(verdicts, operation=implementation.operation, offers=implementation.offers,
                   unknown=implementation.unknown, requires=implementation.requires, laws=laws)  # fmt: skip


@dataclass
class Verification:
    """The result of `verify`.

    - `verdicts`: one `Verdict` for each law and configuration (an implementation on one device in one dtype)
    - `outcomes`: for each configuration its outcome, a sentence with an exit code
    - `unverified`: for each configuration the options that it offers and that no law used
    - `remarks`: for each implementation what its first calls showed
    """

    verdicts: list[Verdict] = field(default_factory=list)
    unverified: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, CellOutcome] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)  # what the first calls of each showed

    @property
    def failures(self) -> list[Verdict]:
        return [v for v in self.verdicts if v.outcome in OUTCOMES_BROKEN]

    @property
    def messages(self) -> dict[str, list[str]]:
        """For each implementation the warnings and prints during its calls, each once, with its count."""
        return {name: messages.lines(said) for name, said in messages.summed(self.verdicts).items()}

    def raise_for_failures(self, *, strict: bool = False) -> None:
        """Return if the laws hold. Otherwise raise LawViolation, with the smallest counterexample of each cause and the laws that
        it breaks; or NotVerified, if nothing of a configuration was verified, or, with `strict`, not everything."""
        if self.failures:
            failure_causes = causes(self.failures)
            raise LawViolation(
                "\n\n".join(
                    [*(cause.text() for cause in failure_causes), f"{summary(failure_causes)} broken"]
                )
            )
        self.raise_if_not_verified(strict=strict)

    def raise_if_not_verified(self, *, strict: bool = False) -> None:
        """Raise NotVerified, with the reasons, if nothing of a configuration was verified, or, with `strict`, not everything."""
        lacking = [
            f"{cell}: {outcome}"
            for cell, outcome in self.outcomes.items()
            if outcome.exit_code(strict) == EXIT_CODES[NOT_VERIFIED]
        ]
        if lacking or not self.outcomes:
            raise NotVerified("\n".join(lacking) or "nothing was verified")


def verify(
    target: Any, *, devices: Sequence[str] = (), dtypes: Sequence[str] = (), profile: str = "default",
    laws: Sequence[str] = (), skip: Sequence[str] = (), own_laws: Sequence[str | Path] = (), known_failures: str | Path = "",
    require_precision: str = "",
) -> Verification:  # fmt: skip
    """Check every law on a function, an implementation, or a target such as "mine.py:attention". Prints nothing.

    - `devices`, `dtypes`: only these; by default all that it declares
    - `profile`: examples for each law: "glance" 5, "quick" 25, "default" 100, "thorough" 2,000
    - `laws`, `skip`: only these laws, or all but these: names, families or patterns such as "causal_*"
    - `own_laws`: Python files with further laws
    - `known_failures`: a file of failures that do not count
    - `require_precision`: "fused" or "fused-fast-exp": a function that can only be judged by a looser model fails

    Raises UsageError if there is nothing to check.
    """
    from qkverify.verification import requested, required_precision, settings

    chosen = requested.checked(
        settings.Settings(
            None, (target,), profile, tuple(dtypes), tuple(devices), tuple(laws), tuple(skip),
            tuple(map(str, own_laws)), str(known_failures), require_precision,
        )
    )  # fmt: skip
    verification = Verification()
    verification.outcomes = {target: without_cell(reason) for target, reason in chosen.plan.idle.items()}
    verification.outcomes |= {str(cell): outcome_of(cell, []) for cell in chosen.plan.cells}
    for cell, verdicts in check_cells(chosen.plan.cells, profile=profile, laws=chosen.selection.laws):
        verdicts += required_precision.verdicts(verdicts, require_precision)
        verification.verdicts += verdicts
        verification.outcomes[str(cell)] = outcome_of(cell, verdicts, chosen.selection.laws_of(cell))
        implementation = cell.implementation
        unknown = [name for name in implementation.unknown if not name.startswith("*")]
        if missed := [*unknown, *unverified(implementation.offers, verdicts)]:
            verification.unverified[str(cell)] = missed
    verification.remarks = {
        implementation.name: list(implementation.remarks)
        for implementation in chosen.plan.implementations
        if implementation.remarks
    }
    return verification
