"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Dtypes = Annotated[
    list[str] | None, typer.Option("--dtype", metavar="DTYPE", help="only this dtype (repeatable)")
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="DEVICE", help="only this device: cpu or cuda (repeatable)"),
]
EXAMPLES = "examples for each law: glance 5, quick 25, default 100, thorough 2,000"
Profile = Annotated[str, typer.Option(metavar="PROFILE", help=EXAMPLES)]
LawNames = Annotated[
    list[str] | None,
    typer.Option(
        "--law", metavar="LAW", help="only this law, family, or pattern such as 'causal_*' (repeatable)"
    ),
]
SkippedLaws = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="LAW", help="leave out this law, family, or pattern (repeatable)"),
]
LawFiles = Annotated[
    list[str] | None,
    typer.Option("--own-laws", metavar="FILE", help="check the laws of this file too (repeatable)"),
]
RequiredPrecision = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="fused, or fused-fast-exp: fail if a function can only be judged by a looser model of rounding",
    ),
]
KnownFailures = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="known failures and their reasons; default: qkverify-known-failures.toml"
    ),
]
Workloads = Annotated[
    list[str] | None,
    typer.Option("--workload", metavar="WORKLOAD", help="a name, a pattern or a TOML file (repeatable)"),
]
Passes = Annotated[
    list[str] | None,
    typer.Option("--pass", metavar="PASS", help="forward, backward or both (repeatable)"),
]
Budget = Annotated[str, typer.Option(metavar="TIME", help="time for everything: 90s, 5m, 1h")]
Processes = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, help="fresh processes; the intervals cover the differences between them"
    ),
]
Rounds = Annotated[int, typer.Option(metavar="N", min=3, help="at most this many rounds in each process")]
Laws = Annotated[
    str,
    typer.Option(
        metavar="PROFILE",
        help="check the laws first, at this profile: glance, quick, ...; none leaves them out",
    ),
]
CacheState = Annotated[
    str,
    typer.Option(
        "--cache",
        metavar="STATE",
        help="hot or cold cache at each call; default: hot on a CPU, cold on a GPU",
    ),
]
LawfulOnly = Annotated[
    bool,
    typer.Option(
        "--lawful-only", help="time only implementations that break no law and have no known failure"
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        metavar="N", help="worker processes; a kernel that kills its process loses only its own configuration"
    ),
]
JobsOfCells = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="worker processes; default: whole configurations side by side, as many as cores, with the output of --jobs 1; "
        "one at a time on a GPU, with a compiler, or with several targets",
    ),
]
CallTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        help="a call that takes longer breaks its law; default: 60, or 600 if it may compile",
    ),
]
Memory = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="memory of a worker process, such as 4G; default: half of what is available (Linux only)",
    ),
]
InProcess = Annotated[
    bool,
    typer.Option(
        "--in-process",
        help="for debuggers: check in this process, which a crash, an exit or a hang of the function then ends or blocks",
    ),
]
