"""What the command line prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qkverify import units
from qkverify.contract import (
    SEMANTICS,
    Implementation,
    unknown_parameters,
)
from qkverify.contract.messages import lines, summed, taken
from qkverify.counterexamples.causes import Cause, causes
from qkverify.counterexamples.causes import summary as summary_of_causes
from qkverify.probes import sentences
from qkverify.probes.conventions import Choice
from qkverify.results import OUTCOMES_BROKEN, Message, Verdict
from qkverify.verification import outcomes, torch_findings
from qkverify.verification import unverified_options as offered
from qkverify.verification.checking import Cell, VerificationPlan, conventions_of
from qkverify.verification.known_failures import KnownFailure, holding_again
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
    for choice in choices.values():
        if choice.looser:
            console.print(f"  [yellow]looser[/yellow]       {escape(choice.looser)}")


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
            words += f"   [yellow]known failure[/yellow] {escape(', '.join(known))}"
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
    if said := torch_findings.next_step([cause.text() for cause in groups]):
        console.print(said, markup=False)


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
