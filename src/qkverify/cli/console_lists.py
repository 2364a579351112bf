"""What there is, on the terminal: implementations, operations, laws, workloads, and what this machine can run."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qkverify.cli.console import console
from qkverify.contract import (
    DEVICES,
    FRAMEWORKS,
    OPTIONS,
    frameworks,
    registry,
)
from qkverify.contract.operations import DESCRIBED
from qkverify.problem import pretrained
from qkverify.timing.workloads import table as workload_table
from qkverify.verification.checking import law_book


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
