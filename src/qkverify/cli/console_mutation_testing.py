"""Mutation testing on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from qkverify.cli.console import console
from qkverify.results import Planted
from qkverify.verification.laws import Law
from qkverify.verification.mutation_testing import summary


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
