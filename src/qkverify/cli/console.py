"""What the command line prints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from qkverify import units
from qkverify.contract import (
    DEVICES,
    FRAMEWORKS,
    OPTIONS,
    SEMANTICS,
    Implementation,
    frameworks,
    registry,
    unknown_parameters,
)
from qkverify.contract.messages import lines, summed, taken
from qkverify.contract.operations import DESCRIBED
from qkverify.counterexamples.causes import Cause, causes
from qkverify.counterexamples.causes import summary as summary_of_causes
from qkverify.probes import sentences
from qkverify.problem import pretrained
from qkverify.results import OUTCOMES_BROKEN, Message, Planted, Verdict
from qkverify.timing.workloads import table as workload_table
from qkverify.verification import outcomes
from qkverify.verification import unverified_options as offered
from qkverify.verification.checking import Cell, VerificationPlan, conventions_of, law_book
from qkverify.verification.known_failures import KnownFailure, holding_again
from qkverify.verification.laws import Law
from qkverify.verification.mutation_testing import summary
from qkverify.verification.requested import Request

console = Console(highlight=False, soft_wrap=True)
STYLES = {0: "bold green", 1: "bold red", 4: "bold yellow"}


def heading(cell: Cell) -> None:
    """Which cell is checked, what it offers, and which conventions were found."""
    one = cell.implementation
    console.print(f"\n[bold]{escape(one.name)}[/bold] · {one.arrays} · {cell.dtype} · {cell.device}")
    if one.operation == "attention":
        console.print(f"  offers       {', '.join(sorted(one.offers)) or 'query, key, value alone'}")
        console.print(f"  not offered  {', '.join(one.not_offered) or 'nothing'}")
    for name in one.unknown:
        said = unknown_parameters.sentence(name, one.operation, one.offers)
        console.print(f"  [yellow]{escape(name)}[/yellow]: {said}")
    declared = [rule for rule in one.requires if rule not in one.inferred]
    if declared:
        console.print(f"  requires     {escape(', '.join(declared))}")
    found = conventions_of(cell)
    for how in ("declared", "detected"):
        words = [
            f"{name.replace('_', ' ')} {choice.value}" for name, choice in found.items() if choice.how == how
        ]
        if words:
            console.print(f"  {how:11}  {' · '.join(words)}")


def remarks(implementations: Sequence[Implementation]) -> None:
    """What the first calls of each implementation showed, each said once."""
    for one in implementations:
        for remark in one.remarks:
            console.print(f"[cyan]{escape(one.name)}[/cyan] detected: {escape(remark)}")


def families(verdicts: Sequence[Verdict]) -> None:
    """One line a family: laws, examples, the largest margin, and what is broken."""
    for family in dict.fromkeys(v.family for v in verdicts):
        mine = [v for v in verdicts if v.family == family]
        judged = [v for v in mine if v.outcome not in ("not offered", "unavailable")]
        broken = [v.law for v in judged if v.outcome in OUTCOMES_BROKEN]
        known = [v.law for v in judged if v.outcome == "finding"]
        examples = sum(v.examples for v in judged)
        margins = [v.margin for v in judged if v.margin is not None and v.outcome == "passed"]
        words = f"  {family:10} {len(judged):3} laws {examples:7,} examples   "
        held = any(v.outcome == "passed" for v in judged)  # of none that held nothing is exact
        words += f"largest margin {units.margin(max(margins))}" if margins else "exact" if held else ""
        if len(judged) < len(mine):
            words += f"   {len(mine) - len(judged)} not offered"
        if known:
            words += f"   [yellow]known finding[/yellow] {', '.join(known)}"
        if broken:
            words += f"   [bold red]BROKEN[/bold red] {', '.join(broken)}"
        console.print(words)


def unverified(cell: Cell, verdicts: Sequence[Verdict]) -> None:
    """A line with what the cell offers and no law put to use."""
    if names := offered.unverified(cell.implementation.offers, verdicts):
        console.print(f"  [yellow]{offered.WORDS}[/yellow]  {', '.join(names)}")


def conventions(cell: Cell) -> None:
    """Every convention of a cell in a table: the choice, how it is known, and what it is about."""
    table = Table()
    for name in ("convention", "choice", "known", "about"):
        table.add_column(name)
    for name, choice in conventions_of(cell).items():
        about = SEMANTICS[name][1] if name in SEMANTICS else "where half-precision numbers are rounded"
        known = choice.how if choice.how != "not applicable" else "does not show"
        table.add_row(
            name.replace("_", " "), choice.value if choice.how != "not applicable" else "-", known, about
        )
    console.print(table)


def counterexamples(broken: Sequence[Verdict]) -> list[Cause]:
    """A block for each cause: its clearest counterexample, and the other laws that it breaks. Returns the causes."""
    found = causes(broken)
    for cause in found:
        console.print()
        console.print(cause.text(), markup=False)
    return found


def verdict(
    broken: Sequence[Verdict], planned: VerificationPlan, cells: Mapping[str, outcomes.CellOutcome]
) -> None:
    """The counterexamples of all broken laws, what is said of each cell where they differ, and one line that sums up."""
    found = counterexamples(broken)
    for (name, device), reason in planned.unavailable.items():
        console.print(f"unavailable: {name} on {device}: {reason}", style="dim", markup=False)
    *each, last = outcomes.lines(cells, summary_of_causes(found))
    console.print()
    for line in each:
        console.print(line, markup=False)
    if said := sentences.inferred(planned.implementations):
        console.print(said, style="yellow", markup=False)
    console.print(last, style=STYLES[outcomes.exit_code(cells.values(), strict=True)], markup=False)


def messages(verdicts: Sequence[Verdict]) -> None:
    """What each implementation warned of and printed while it was called, once, with how often."""
    for name, said in summed(verdicts).items():
        _messages(name, said)


def messages_of(name: str) -> None:
    """As `messages`, of an implementation that has no verdicts."""
    _messages(name, taken(name))


def _messages(name: str, said: Sequence[Message]) -> None:
    if said:
        console.print(f"\nwarnings and prints of {name}", style="yellow", markup=False)
    for line in lines(said):
        console.print(f"  {line}", markup=False)


def settings(asked: Request) -> None:
    """What is in force, where the repository's files say something."""
    said = asked.settings
    if said.file is not None:
        console.print(f"with {said.file}: {said}", markup=False)
    elif asked.known:
        console.print(f"known failures: {said.known_failures}", markup=False)


def known_failures(known: Sequence[KnownFailure], verdicts: Sequence[Verdict]) -> bool:
    """Each known failure that showed, with its reason, and each entry of the file that is of no more use.

    Returns whether there is such an entry.
    """
    for law, reason in dict.fromkeys((v.law, v.reason) for v in verdicts if v.outcome == "finding"):
        console.print(f"[yellow]known failure[/yellow] {law}: {escape(reason)}")
    outdated = holding_again(known, verdicts)
    for sentence in outdated:
        console.print(f"[yellow]{escape(sentence)}[/yellow]")
    return bool(outdated)


def matrix(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The largest margin, a finding, or the broken law: cells down and families across for what many families judge, and a
    line for each implementation that one or two judge. Returns what is broken."""
    ran: dict[tuple[str, str, str], dict[str, list[Verdict]]] = {}
    for verdict in verdicts:
        if verdict.outcome != "unavailable":
            key = verdict.implementation, verdict.device, verdict.dtype
            ran.setdefault(key, {}).setdefault(verdict.family, []).append(verdict)
    many = {key: families for key, families in ran.items() if len(families) > units.FEW_FAMILIES}
    names = [f for f in dict.fromkeys(v.family for v in verdicts) if any(f in mine for mine in many.values())]
    table = Table(
        title="largest margin of each family (|error| / bound: 1 is the limit)", title_justify="left"
    )
    for heading in ("implementation", "device", "dtype"):
        table.add_column(heading, no_wrap=True)
    for family in names:
        table.add_column(family, justify="right")
    for key in sorted(many):
        verified = _verified(many[key])
        table.add_row(*map(escape, key), *[_cell(many[key].get(family, []), verified) for family in names])
    if many:
        Console(highlight=False, width=max(console.width, 130)).print(table)
    _of_few_families({key: families for key, families in ran.items() if len(families) <= units.FEW_FAMILIES})
    gone = {(v.implementation, v.device): v.reason for v in verdicts if v.outcome == "unavailable"}
    for device, reason in dict.fromkeys((device, reason) for (_, device), reason in gone.items()):
        names = [name for (name, where), why in gone.items() if (where, why) == (device, reason)]
        console.print(f"not on {device}, {reason}: {', '.join(names)}", style="dim", markup=False)
    for finding in dict.fromkeys(v.reason for v in verdicts if v.outcome == "finding"):
        console.print(f"[yellow]known finding[/yellow] {escape(finding)}")
    broken = [v for v in verdicts if v.outcome in OUTCOMES_BROKEN]
    counterexamples(broken)
    return broken


def _of_few_families(cells: Mapping[tuple[str, str, str], Mapping[str, Sequence[Verdict]]]) -> None:
    """A line for each implementation and device: its family (beside "calls"), and the margin of each dtype."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for (name, device, dtype), families in sorted(cells.items()):
        family = next((family for family in families if family != "calls"), "calls")
        judged = [verdict for mine in families.values() for verdict in mine]
        said.setdefault((family, name, device), []).append(f"{dtype} {_cell(judged, _verified(families))}")
    longest = max((len(name) for _, name, _ in said), default=0)
    for (family, name, device), words in sorted(said.items()):
        console.print(f"{family:12} {escape(f'{name:{longest}}')}  {device}  {'   '.join(words)}")


def _verified(families: Mapping[str, Sequence[Verdict]]) -> bool:
    """Whether something of a cell was put to the test."""
    verdicts = [verdict for mine in families.values() for verdict in mine]
    return outcomes.of_cell(verdicts).word != outcomes.NOT_VERIFIED


def _cell(verdicts: Sequence[Verdict], verified: bool = True) -> str:
    broken = [v for v in verdicts if v.outcome in OUTCOMES_BROKEN]
    if broken:
        return f"[bold red]{broken[0].law}[/bold red]"
    if any(v.outcome == "finding" for v in verdicts):
        return "[yellow]finding[/yellow]"
    judged = [v for v in verdicts if v.outcome == "passed"]
    if not verified and (judged or any(v.tested is not None for v in verdicts)):
        return "[yellow]not verified[/yellow]"
    if not judged:
        gone = [v for v in verdicts if v.outcome == "unavailable"]
        return f"[dim]{escape(gone[0].reason)}[/dim]" if gone else "[dim]-[/dim]"
    margins = [v.margin for v in judged if v.margin is not None]
    return units.margin(max(margins)) if margins else "exact"


def implementations() -> None:
    """Every implementation of the folder: where it runs, and what it offers."""
    for one in registry.load_folder():
        devices = [
            escape(f"{device} ({why})") if why else device for device, why in registry.devices_of(one).items()
        ]
        console.print(
            f"[bold]{escape(f'{one.name:22}')}[/bold] {one.arrays} · {', '.join(one.dtypes)} · {', '.join(devices)}"
        )
        offered = f"without {', '.join(one.not_offered)}" if one.not_offered else "every option"
        if one.operation != "attention":
            offered = ", ".join(sorted(one.offers)) or "no options"
        needs = f"; requires {escape(', '.join(one.requires))}" if one.requires else ""
        console.print(f"{'':22} {escape(one.summary)}\n{'':22} [dim]{offered}{needs}[/dim]")
    for gone in registry.folder()[1]:
        console.print(f"[bold]{escape(f'{gone.name:22}')}[/bold] [dim]{escape(gone.reason)}[/dim]")


def operations() -> None:
    """Every operation: what it computes, and what a function of it takes and returns."""
    for name, one in DESCRIBED.items():
        console.print(
            f"[bold]{name}[/bold]({', '.join(one.parameters)}) -> {one.returns}\n    {escape(one.computes)}"
        )
        for parameter, meaning in {
            **one.parameters,
            **(OPTIONS if name == "attention" else one.options),
        }.items():
            console.print(f"    {parameter:13} {meaning}", markup=False)
        for rule in one.rules:
            console.print(f"    {rule}", markup=False)


def laws() -> None:
    """Every law with its sentence and source, family by family."""
    for law in sorted(law_book(), key=lambda law: law.family):
        needs = f"  (needs {', '.join(law.needs)})" if law.needs else ""
        console.print(
            f"[bold]{law.family}[/bold] {law.name}{needs}\n    {escape(law.sentence)}\n    [dim]{escape(law.source)}[/dim]"
        )


def workloads() -> None:
    """Every workload that is shipped: its sizes by their letters, what is visible, and its source."""
    for one in workload_table().values():
        sizes = " ".join(f"{letter}={size}" for letter, size in one.sizes.items())
        options = "; ".join(words for words in ("causal" if one.causal else "", one.options) if words)
        console.print(
            f"[bold]{escape(f'{one.name:24}')}[/bold] {sizes}  {escape(options)}\n    [dim]{escape(one.source)}[/dim]"
        )


def doctor() -> None:
    """Frameworks, devices and implementations, each with the reason where it is missing."""
    for name in FRAMEWORKS:
        why = frameworks.missing(name)
        console.print(f"{name:8} {why or 'installed'}", markup=False)
        for device in DEVICES if why is None else ():
            reason = frameworks.get(name).unavailable(device)
            console.print(f"  {device:6} {reason or 'available'}", markup=False)
    console.print(f"{'models':8} {pretrained.lacking() or 'installed'}", markup=False)
    implementations()


def probes(device: str) -> None:
    """How the products and exps of a device really round, and where that is more than their model allows."""
    from qkverify.probes.precision import rows

    table = Table(
        title=f"how {device} rounds (bits of fraction; block: products added at once)", title_justify="left"
    )
    for name in (
        "unit",
        "operands",
        "accumulator",
        "block",
        "subnormals in",
        "out",
        "exp, unit roundoffs",
        "departs",
    ):
        table.add_column(name)
    for row in rows(device):
        found = row.product
        operands = f"{found.operand_bits}, {'all kept' if found.operand_rounding == 'none' else found.operand_rounding}"
        kept = ["kept" if one else "zero" for one in (found.subnormal_operands, found.subnormal_results)]
        sums = f"{found.accumulator_bits}, {found.accumulator_rounding}"
        told = ("-" if row.exp is None else f"{row.exp.units:.2f}", "; ".join(row.departures) or "-")
        table.add_row(row.name, operands, sums, str(found.block or "partial sums"), *kept, *told)
    Console(highlight=False, width=max(console.width, 150)).print(table)


def planted(one: Planted) -> None:
    """One line for a mutant or a control, when it is done."""
    if one.kills:
        others = f" and {len(one.kills) - 1} more" if len(one.kills) > 1 else ""
        words = (
            f"killed by {one.kills[0].law}{others}"
            if one.kind == "mutant"
            else "[bold red]ACCUSED[/bold red]"
        )
        if one.kind != "mutant":
            words += f" by {', '.join(kill.law for kill in one.kills)}"
    else:
        words = "[bold red]SURVIVED[/bold red]" if one.kind == "mutant" else "never accused"
    console.print(
        f"{escape(f'{one.name:64}')} {words}  [dim]{one.examples:,} examples, {one.seconds:.1f} s[/dim]"
    )


def power(found: Sequence[Planted], idle: Sequence[Law] | None) -> None:
    """What all of it says; `idle` are the laws that no mutant broke, where that is known."""
    console.print()
    for line in summary(found):
        console.print(line, markup=False)
    if idle is not None:
        console.print(f"laws that kill nothing planted: {', '.join(law.name for law in idle) or 'none'}")


LINE_SECONDS = 15.0  # between two lines of progress where there is no terminal


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[float, str], None]]:
    """A bar with what is being done; the function that it gives takes the share that is done and a label.

    In a file or a pipe, where a bar shows nothing, a line now and then: of a run that is killed they tell how far it came.
    """
    if not console.is_terminal:
        start, said = time.monotonic(), -LINE_SECONDS

        def say(share: float, now: str) -> None:
            nonlocal said
            passed = time.monotonic() - start
            if share == 1 or passed - said >= LINE_SECONDS:
                said = passed
                console.print(f"{what} {share:4.0%} after {passed:.0f} s  {now}", markup=False)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left about"),
               TimeRemainingColumn(), TextColumn("{task.fields[now]}", markup=False))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=1.0, now="")
        yield lambda share, now: bar.update(task, completed=share, now=now)
