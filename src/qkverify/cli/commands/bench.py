"""`qkverify bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from qkverify.cli.adapter_options import adaptable, with_adapters
from qkverify.cli.app import STARTED, app
from qkverify.cli.options import (
    Budget,
    CacheState,
    Devices,
    Dtypes,
    LawfulOnly,
    Laws,
    Passes,
    Processes,
    Rounds,
    Workloads,
)


@app.command()
@adaptable
def bench(
    targets: Annotated[list[str] | None, typer.Argument(metavar="TARGET", help="implementations; default: all")] = None,
    workload: Workloads = None, pass_: Passes = None, dtype: Dtypes = None, device: Devices = None,
    budget: Budget = "90s", processes: Processes = 5, rounds: Rounds = 100, laws: Laws = "glance",
    cache: CacheState = "", lawful_only: LawfulOnly = False,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="append the samples to this file, as JSON lines")] = None,
    adapters: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Time implementations whose output is right. They take turns, in several processes, and one is timed under two names (the
    A/A control): a difference as small as its own is never called a difference.

    Exit code 1: nothing was timed, or a timed call failed, gave a wrong result, or was faster than any
    product measured here allows."""
    from qkverify.cli import bench_command, console_timings
    from qkverify.timing import untimed

    request = bench_command.BenchRequest(
        with_adapters(targets or (), adapters),
        workload or (),
        pass_ or (),
        dtype or (),
        device or (),
        budget,
        processes,
        rounds,
        laws,
        cache,
        lawful_only,
    )
    measured = bench_command.run(request, results or bench_command.bench_file(), STARTED)
    console_timings.bench(measured)
    print(f"samples: {measured.path}")
    raise typer.Exit(1 if untimed.refused(measured.all_timings) or not measured.side.timings else 0)
