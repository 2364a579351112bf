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
from qkverify.probes.conventions import Choice
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


def heading(cell: Cell, choices: Mapping[str, Choice]) -> None:
    """Which cell is checked, what it offers, and which conventions were found."""
    implementation = cell.implementation
    console.print(
        f"\n[bold]{escape(implementation.name)}[/bold] · {implementation.arrays} · {cell.dtype} · {cell.device}"
    )
    if implementation.operation == "attention":
        console.print(
            f"  offers       {', '.join(sorted(implementation.offers)) or 'only query, key, value'}"
        )
        console.print(f"  not offered  {', '.join(implementation.not_offered) or 'nothing'}")
    for name in implementation.unknown:
        said = unknown_parameters.sentence(name, implementation.operation, implementation.offers)
        console.print(f"  [yellow]{escape(name)}[/yellow]: {escape(said)}")
    declared = [rule for rule in implementation.requires if rule not in implementation.inferred]
    if declared:
        console.print(f"  requires     {escape(', '.join(declared))}")
    for how in ("declared", "detected"):
        words = [
            f"{name.replace('_', ' ')} {choice.value}"
            for name, choice in choices.items()
            if choice.how == how
        ]
        if words:
            console.print(f"  {how:11}  {' · '.join(words)}")


def remarks(implementations: Sequence[Implementation]) -> None:
    """What the first calls of each implementation showed, each said once."""
    for implementation in implementations:
        for remark in implementation.remarks:
            console.print(f"[cyan]{escape(implementation.name)}[/cyan] detected: {escape(remark)}")


def families(verdicts: Sequence[Verdict]) -> None:
    """One line a family: laws, examples, the largest margin, and what is broken."""
    for family in dict.fromkeys(v.family for v in verdicts):
        mine = [v for v in verdicts if v.family == family]
        judged = [v for v in mine if v.outcome not in ("not offered", "unavailable")]
        if all(v.outcome == "not offered" for v in mine):
            console.print(f"  {escape(f'{family:10}')} not offered ({units.number_of(len(mine), 'law')})")
            continue
        broken = [v.law for v in judged if v.outcome in OUTCOMES_BROKEN]
        known = [v.law for v in judged if v.outcome == "finding"]
        examples, plural = sum(v.examples for v in judged), "laws" if len(judged) != 1 else "law "
        margins = [v.margin for v in judged if v.margin is not None and v.outcome == "passed"]
        words = f"  {escape(f'{family:10}')} {len(judged):3} {plural} {examples:7,} examples   "
        words += "largest margin " * bool(margins) + outcomes.margin_in_words(judged)
        if len(judged) < len(mine):
            words += f"   {len(mine) - len(judged)} not offered"
        if known:
            words += f"   [yellow]known finding[/yellow] {escape(', '.join(known))}"
        if broken:
            words += f"   [bold red]BROKEN[/bold red] {escape(', '.join(broken))}"
        console.print(words)


def unverified(cell: Cell, verdicts: Sequence[Verdict]) -> None:
    """A line with the options that are offered and that no law used."""
    if names := offered.unverified(cell.implementation.offers, verdicts):
        console.print(f"  [yellow]{offered.WORDS}[/yellow]  {escape(', '.join(names))}")


def conventions(cell: Cell) -> None:
    """Every convention of a cell in a table: the choice, how it is known, and what it is about."""
    table = Table()
    for name in ("convention", "choice", "known", "about"):
        table.add_column(name)
    for name, choice in conventions_of(cell).items():
        about = SEMANTICS[name][1] if name in SEMANTICS else "where half-precision numbers are rounded"
        known = choice.how if choice.how != "not applicable" else "does not apply"
        table.add_row(
            name.replace("_", " "),
            escape(choice.value) if choice.how != "not applicable" else "-",
            known,
            about,
        )
    console.print(table)


def counterexamples(broken: Sequence[Verdict]) -> list[Cause]:
    """A block for each cause: its clearest counterexample, and the other laws that it breaks. Returns the causes."""
    groups = causes(broken)
    for cause in groups:
        console.print()
        console.print(cause.text(), markup=False)
    return groups


def verdict(
    broken: Sequence[Verdict], planned: VerificationPlan, cells: Mapping[str, outcomes.CellOutcome]
) -> None:
    """The counterexamples of all broken laws, what is said of each cell where they differ, and one line that sums up."""
    groups = counterexamples(broken)
    for (name, device), reason in planned.unavailable.items():
        console.print(f"unavailable: {name} on {device}: {reason}", style="dim", markup=False)
    *each, last = outcomes.lines(cells, summary_of_causes(groups))
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


def settings(request: Request) -> None:
    """What is in force, where the repository's files say something."""
    said = request.settings
    if said.file is not None:
        console.print(f"with {said.file}: {said}", markup=False)
    elif request.known:
        console.print(f"known failures: {said.known_failures}", markup=False)


def known_failures(known: Sequence[KnownFailure], verdicts: Sequence[Verdict]) -> bool:
    """Each known failure that showed, with its reason, and each entry of the file that is of no more use.

    Returns whether there is such an entry.
    """
    for law, reason in dict.fromkeys((v.law, v.reason) for v in verdicts if v.outcome == "finding"):
        console.print(f"[yellow]known failure[/yellow] {escape(law)}: {escape(reason)}")
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
        console.print(
            f"{escape(f'{family:12}')} {escape(f'{name:{longest}}')}  {device}  {'   '.join(words)}"
        )


def _verified(families: Mapping[str, Sequence[Verdict]]) -> bool:
    """Whether something of a cell was put to the test."""
    verdicts = [verdict for mine in families.values() for verdict in mine]
    return outcomes.of_cell(verdicts).word != outcomes.NOT_VERIFIED


def _cell(verdicts: Sequence[Verdict], verified: bool = True) -> str:
    broken = [v for v in verdicts if v.outcome in OUTCOMES_BROKEN]
    if broken:
        return f"[bold red]{escape(broken[0].law)}[/bold red]"
    if any(v.outcome == "finding" for v in verdicts):
        return "[yellow]finding[/yellow]"
    judged = [v for v in verdicts if v.outcome == "passed"]
    if not verified and (judged or any(v.tested is not None for v in verdicts)):
        return "[yellow]not verified[/yellow]"
    if not judged:
        gone = [v for v in verdicts if v.outcome == "unavailable"]
        return f"[dim]{escape(gone[0].reason)}[/dim]" if gone else "[dim]-[/dim]"
    return outcomes.margin_in_words(judged)


def implementations() -> None:
    """Every implementation of the folder: where it runs, and what it offers."""
    for implementation in registry.load_folder():
        devices = [
            escape(f"{device} ({why})") if why else device
            for device, why in registry.devices_of(implementation).items()
        ]
        console.print(
            f"[bold]{escape(f'{implementation.name:22}')}[/bold] {implementation.arrays} · "
            f"{', '.join(implementation.dtypes)} · {', '.join(devices)}"
        )
        offered = (
            f"without {', '.join(implementation.not_offered)}"
            if implementation.not_offered
            else "every option"
        )
        if implementation.operation != "attention":
            offered = ", ".join(sorted(implementation.offers)) or "no options"
        needs = f"; requires {escape(', '.join(implementation.requires))}" if implementation.requires else ""
        console.print(f"{'':22} {escape(implementation.summary)}\n{'':22} [dim]{offered}{needs}[/dim]")
    for gone in registry.folder()[1]:
        console.print(f"[bold]{escape(f'{gone.name:22}')}[/bold] [dim]{escape(gone.reason)}[/dim]")


def operations() -> None:
    """Every operation: what it computes, and what a function of it takes and returns."""
    for name, operation in DESCRIBED.items():
        console.print(
            f"[bold]{name}[/bold]({', '.join(operation.parameters)}) -> {operation.returns}\n    {escape(operation.computes)}"
        )
        for parameter, meaning in {
            **operation.parameters,
            **(OPTIONS if name == "attention" else operation.options),
        }.items():
            console.print(f"    {parameter:13} {meaning}", markup=False)
        for rule in operation.rules:
            console.print(f"    {rule}", markup=False)


def laws() -> None:
    """Every law with its sentence and source, family by family."""
    for law in sorted(law_book(), key=lambda law: law.family):
        needs = f"  (needs {', '.join(law.needs)})" if law.needs else ""
        console.print(f"[bold]{escape(law.family)}[/bold] {law.name}{needs}\n    {escape(law.sentence)}")
        console.print(f"    [dim]{escape(law.source)}[/dim]")


def workloads() -> None:
    """Every workload that is shipped: its sizes by their letters, what is visible, and its source."""
    for workload in workload_table().values():
        sizes = " ".join(f"{letter}={size}" for letter, size in workload.sizes.items())
        options = "; ".join(
            words for words in ("causal" if workload.causal else "", workload.options) if words
        )
        console.print(
            f"[bold]{escape(f'{workload.name:24}')}[/bold] {sizes}  {escape(options)}\n    [dim]{escape(workload.source)}[/dim]"
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
        rounding = row.product
        operands = f"{rounding.operand_bits}, {'all kept' if rounding.operand_rounding == 'none' else rounding.operand_rounding}"
        kept = [
            "kept" if is_kept else "zero"
            for is_kept in (rounding.subnormal_operands, rounding.subnormal_results)
        ]
        sums = f"{rounding.accumulator_bits}, {rounding.accumulator_rounding}"
        told = ("-" if row.exp is None else f"{row.exp.units:.2f}", "; ".join(row.departures) or "-")
        table.add_row(row.name, operands, sums, str(rounding.block or "partial sums"), *kept, *told)
    Console(highlight=False, width=max(console.width, 150)).print(table)


def planted(record: Planted) -> None:
    """One line for a mutant or a control, when it is done."""
    if record.kills:
        others = f" and {len(record.kills) - 1} more" if len(record.kills) > 1 else ""
        words = (
            f"killed by {record.kills[0].law}{others}"
            if record.kind == "mutant"
            else "[bold red]ACCUSED[/bold red]"
        )
        if record.kind != "mutant":
            words += f" by {', '.join(kill.law for kill in record.kills)}"
    else:
        words = "[bold red]SURVIVED[/bold red]" if record.kind == "mutant" else "never accused"
    console.print(
        f"{escape(f'{record.name:64}')} {words}  [dim]{record.examples:,} examples, {record.seconds:.1f} s[/dim]"
    )


def power(records: Sequence[Planted], idle: Sequence[Law] | None) -> None:
    """What all of it says; `idle` are the laws that no mutant broke, where that is known."""
    console.print()
    for line in summary(records):
        console.print(line, markup=False)
    if idle is not None:
        console.print(f"laws that kill no mutant: {', '.join(law.name for law in idle) or 'none'}")


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
