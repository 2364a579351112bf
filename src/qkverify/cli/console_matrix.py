"""The largest margin of every family and configuration, as the table at the end of a report on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qkverify import units
from qkverify.cli.console import console, counterexamples
from qkverify.results import OUTCOMES_BROKEN, Verdict
from qkverify.verification import outcomes


def matrix(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The largest margin, a known failure, or the broken law: cells down and families across for what many families judge, and a
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
        console.print(f"[yellow]known failure[/yellow] {escape(finding)}")
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
        return "[yellow]known failure[/yellow]"
    judged = [v for v in verdicts if v.outcome == "passed"]
    if not verified and (judged or any(v.tested is not None for v in verdicts)):
        return "[yellow]not verified[/yellow]"
    if not judged:
        gone = [v for v in verdicts if v.outcome == "unavailable"]
        return f"[dim]{escape(gone[0].reason)}[/dim]" if gone else "[dim]-[/dim]"
    return outcomes.margin_in_words(judged)
