"""The command line: each command is a thin front over the same functions that Python users call.

Exit codes: 0 the laws hold, 1 a law is broken, 2 wrong usage, 3 the harness failed (a results file that cannot be read, say),
4 nothing, or next to nothing, was verified (with --strict: not everything). A broken law (1) wins over what was not verified (4).
A user's mistake gets a sentence, never a traceback of ours; a target that raises on import shows its own.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qkverify.errors import HarnessError, NothingVerified, UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Verify and time attention: laws with derived error bounds, on any implementation.",
                  epilog="Exit codes: 0 the laws hold, 1 a law is broken, 2 wrong usage, 3 the harness failed, "
                         "4 nothing, or next to nothing, was verified.")  # fmt: skip

Dtypes = Annotated[list[str] | None, typer.Option("--dtype", help="only this dtype (repeatable)")]
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="only this device: cpu, cuda (repeatable)")
]
EXAMPLES = "examples a law: glance 5, quick 25, default 100, thorough 2,000"
Profile = Annotated[str, typer.Option(help=EXAMPLES)]
LawNames = Annotated[
    list[str] | None,
    typer.Option("--law", help="only this law or family, or a pattern: 'causal_*' (repeatable)"),
]
SkippedLaws = Annotated[
    list[str] | None, typer.Option("--skip", help="not this law or family, or a pattern (repeatable)")
]
LawFiles = Annotated[
    list[str] | None,
    typer.Option("--own-laws", metavar="FILE", help="check the laws of this file too (repeatable)"),
]
KnownFailures = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="failures that are known, with reasons; default: qkverify-known-failures.toml"
    ),
]
Workloads = Annotated[
    list[str] | None,
    typer.Option("--workload", help="a name, a pattern or a TOML file (repeatable)"),
]
Passes = Annotated[
    list[str] | None,
    typer.Option("--pass", help="forward, backward or both (repeatable)"),
]
Budget = Annotated[str, typer.Option(help="time for all of it: 90s, 5m, 1h")]
Processes = Annotated[
    int, typer.Option(min=1, help="fresh processes; what differs between them enters the intervals")
]
Rounds = Annotated[int, typer.Option(min=3, help="rounds of a process at most")]
Laws = Annotated[
    str, typer.Option(help="profile at which the laws are checked before: glance, quick, ...; none")
]
CacheState = Annotated[
    str, typer.Option("--cache", help="hot or cold before every call; default: hot on a CPU, cold on a GPU")
]
LawfulOnly = Annotated[
    bool, typer.Option("--lawful-only", help="time only what breaks no law and has no known finding")
]
Jobs = Annotated[int, typer.Option(help="processes; a kernel that kills one costs only its own cell")]


def main() -> None:
    """The entry point: turns our errors into sentences and exit codes."""
    try:
        _run()
    except ModuleNotFoundError as error:  # a target's own missing modules are TargetImportErrors
        name = (error.name or "a module").partition(".")[0]
        _fail(f"{name} is not installed, and this command needs it: pip install {name.replace('_', '-')}\n"
              "  without a package index: make wheels elsewhere, then make gpu-report WHEELS=folder here", 2)  # fmt: skip


def _run() -> None:
    from qkverify.contract.registry import TargetImportError
    from qkverify.results import ResultsError

    # Whoever ends us by a signal, as a time limit does, gets what was done so far: what stands in `finally` runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except TargetImportError as error:
        _fail(f"{error.text}\n{error}", 2)
    except NothingVerified as error:
        _fail(f"NOT VERIFIED: {error}", 4)
    except UsageError as error:
        _fail(str(error), 2)
    except (ResultsError, HarnessError) as error:
        _fail(str(error), 3)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(text: str, code: int) -> None:
    from qkverify.foreign_text import escaped

    print(f"qkverify: {escaped(text)}", file=sys.stderr)
    raise SystemExit(code)


@app.command()
def verify(
    targets: Annotated[list[str] | None, typer.Argument(help="a name, module:function or path/file.py:function; "
                                                             "default: those of [tool.qkverify] in pyproject.toml")] = None,
    dtype: Dtypes = None, device: Devices = None,
    profile: Annotated[str | None, typer.Option(help=f"{EXAMPLES}; default: default")] = None, jobs: Jobs = 1,
    law: LawNames = None, skip: SkippedLaws = None, own_laws: LawFiles = None, known_failures: KnownFailures = None,
    results: Annotated[Path | None, typer.Option(help="append the verdicts to this file, a JSON line each")] = None,
    junit: Annotated[Path | None, typer.Option(help="write the verdicts to this file as JUnit XML, for a CI system")] = None,
    strict: Annotated[bool, typer.Option("--strict", help=(
        "for CI: exit 4 if anything that is offered was not verified, 1 if a known failure holds again"))] = False,
) -> None:  # fmt: skip
    """Check every law on the targets. Exit code 0: the laws hold. 1: a law is broken. 4: nothing, or next to nothing, was
    verified. The last line names what was not verified."""
    from qkverify.cli import console
    from qkverify.cli.full_run import run_start
    from qkverify.results import OUTCOMES_BROKEN, Writer
    from qkverify.verification import requested as asked
    from qkverify.verification.checking import check_cells, conventions_of, info, outcome_of
    from qkverify.verification.outcomes import exit_code, without_cell

    asked_for = asked.gathered(
        targets=targets, devices=device, dtypes=dtype, profile=profile, laws=law, skip=skip, own_laws=own_laws,
        known_failures=known_failures,
    )  # fmt: skip
    planned, selection, profile = asked_for.plan, asked_for.selection, asked_for.profile
    console.settings(asked_for)
    console.remarks(planned.implementations)
    writer = _started(Writer(results), profile, asked_for.selected) if results else None
    broken, found, infos = [], [], []
    outcomes = {target: without_cell(reason) for target, reason in planned.idle.items()}
    outcomes |= {str(cell): outcome_of(cell, []) for cell in planned.cells}
    for cell, verdicts in check_cells(
        planned.cells, profile=profile, jobs=jobs, laws=selection.laws,
        started=console.heading if jobs == 1 else None,
    ):  # fmt: skip
        if jobs != 1:
            console.heading(cell)
        console.families(verdicts)
        console.unverified(cell, verdicts)
        outcomes[str(cell)] = outcome_of(cell, verdicts, selection.laws_of(cell))
        infos.append(info(cell.implementation, conventions_of(cell), {}))
        broken += [v for v in verdicts if v.outcome in OUTCOMES_BROKEN]
        found += verdicts
        if writer:
            writer.append(infos[-1])
            for verdict in verdicts:
                writer.append(verdict)
    if junit:
        from qkverify.exports import save

        save([run_start(profile, asked_for.selected), *infos, *found], junit, "junit")
    outdated = console.known_failures(asked_for.known, found)
    console.messages(found)
    console.verdict(broken, planned, outcomes)
    raise typer.Exit(exit_code(outcomes.values(), strict) or int(strict and outdated))


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="implementations, operations, laws or workloads")
    ] = "implementations",
) -> None:
    """What there is: implementations with what they offer, operations with what a function of them takes, laws with their
    sentences, workloads with their sizes."""
    from qkverify.cli import console

    pages = {
        "implementations": console.implementations,
        "operations": console.operations,
        "laws": console.laws,
        "workloads": console.workloads,
    }
    if what not in pages:
        raise UsageError.unknown("list", what, pages)
    pages[what]()


@app.command()
def bench(
    targets: Annotated[list[str] | None, typer.Argument(help="implementations; default: all")] = None,
    workload: Workloads = None, pass_: Passes = None, dtype: Dtypes = None, device: Devices = None,
    budget: Budget = "90s", processes: Processes = 5, rounds: Rounds = 100, laws: Laws = "glance",
    cache: CacheState = "", lawful_only: LawfulOnly = False,
    results: Annotated[Path | None, typer.Option(help="append the samples to this file, a JSON line each")] = None,
) -> None:  # fmt: skip
    """Time implementations whose output is right: interleaved, over several processes, with an A/A control.

    Exit 1 if nothing was timed, or if the call that was timed failed, gave a wrong result or a time above the roofline."""
    from qkverify.cli import bench_command, console_timings
    from qkverify.timing import untimed

    asked = bench_command.BenchRequest(
        targets or (),
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
    found = bench_command.run(asked, results or _bench_file())
    console_timings.bench(found)
    print(f"samples: {found.path}")
    raise typer.Exit(1 if untimed.refused(found.all_timings) or not found.side.timings else 0)


@app.command()
def compare(
    candidate: Annotated[str, typer.Argument(help="an implementation, or the results of a run: FILE or REVISION:FILE")],
    baseline: Annotated[str, typer.Argument(help="what it is compared with, of the same kind")],
    results: Annotated[Path | None, typer.Option(help="of two implementations: take times from this file, not anew")] = None,
    relative_to: Annotated[str, typer.Option(help="of two runs: this implementation's times take the machine's drift out")] = "",
    fail_on: Annotated[str, typer.Option(help="exit 1 where a case is: slower, faster, different")] = "",
    across_devices: Annotated[bool, typer.Option("--across-devices", help="of two runs: even of different machines")] = False,
    workload: Workloads = None, pass_: Passes = None, dtype: Dtypes = None, device: Devices = None,
    budget: Budget = "90s", processes: Processes = 5, rounds: Rounds = 100, laws: Laws = "glance",
    cache: CacheState = "", lawful_only: LawfulOnly = False,
) -> None:  # fmt: skip
    """Faster, slower, same or undecided, case by case and overall: two implementations, or two runs."""
    from qkverify.cli import bench_command, console_timings
    from qkverify.timing import comparison

    if fail_on not in ("", *comparison.FAIL_ON):
        raise UsageError.unknown("outcome", fail_on, comparison.FAIL_ON)
    if comparison.is_run(candidate) or comparison.is_run(baseline):
        new, old = comparison.load(candidate), comparison.load(baseline)
        found = comparison.runs(new, old, relative_to=relative_to, across_devices=across_devices)
        console_timings.changes(comparison.software_changes(new, old), relative_to)
    else:
        asked = bench_command.BenchRequest((candidate, baseline), workload or (), pass_ or (), dtype or (), device or (), budget,
                               processes, rounds, laws, cache, lawful_only)  # fmt: skip
        side = comparison.load(str(results)) if results else bench_command.run(asked, _bench_file()).side
        found = comparison.implementations(side, *bench_command.names_of(candidate, baseline, side))
    console_timings.comparison(found)
    raise typer.Exit(1 if comparison.fails(found, fail_on) else 0)


@app.command()
def report(
    folder: Annotated[
        Path | None, typer.Argument(help="a folder with results.jsonl; default: this device's")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="verify and time everything that runs here first")
    ] = False,
    device: Devices = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="with --run: go on with what a killed run left behind")
    ] = False,
    profile: Profile = "quick",
    reports: Annotated[Path, typer.Option(help="where the reports of all devices are")] = Path("reports"),
    budget: Annotated[str, typer.Option(help="time for timing: 90s, 5m")] = "75s",
) -> None:
    """Make the page and its Markdown summary from results; with --run, make the results too."""
    from qkverify.cli import console
    from qkverify.cli.bench_command import seconds_of
    from qkverify.cli.full_run import best_device, record_everything
    from qkverify.report import write, write_index
    from qkverify.results import Verdict, read
    from qkverify.results.fingerprint import device_slug
    from qkverify.verification.outcomes import exit_code, of_records

    place = folder or reports / device_slug(best_device())
    path = place / "results.jsonl"
    interrupted = False
    if run:
        try:
            record_everything(path, profile=profile, budget_seconds=seconds_of(budget),
                              devices=device or (), resume=resume)  # fmt: skip
        except KeyboardInterrupt:
            if not path.is_file():
                raise
            interrupted = True
    elif not path.is_file():
        raise UsageError(f"{path} does not exist; make it with: qkverify report --run")
    try:
        page, summary = write(path, place)
        write_index(place.parent)
        made = f"page:    {page}\nsummary: {summary}"
    except UsageError as error:  # jinja2 is not here: what was measured is not lost for that
        if not run:
            raise
        made = f"no page: {error}\n         where it is installed: qkverify report {place}"
    records = read(path)
    console.matrix([record for record in records if isinstance(record, Verdict)])
    print(f"\n{made}\nraw:     {path}")
    if interrupted:
        _fail("interrupted: the page shows what was done by then; --resume goes on with it", 130)
    outcomes = of_records(records)
    raise typer.Exit(exit_code(outcomes.values()) if outcomes else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the implementation's name, a Python identifier")],
    arrays: Annotated[str, typer.Option(help="numpy, torch or jax")] = "numpy",
    folder: Annotated[Path, typer.Option(help="where to write it")] = Path(),
) -> None:
    """Write a new implementation's file and say what to run next."""
    from qkverify.cli.scaffold import write_new

    path = write_new(name, arrays, folder)
    print(f"wrote {path}\nnext:  qkverify verify {path}")


@app.command()
def init(
    target: Annotated[str | None, typer.Argument(help="path/file.py:function or module:function; without it, what looks like "
                                                      "attention in this folder is listed")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="write an adapter even where none seems to be needed")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the files and write none")] = False,
) -> None:  # fmt: skip
    """Begin in your own repository: a test, a workflow, known failures, laws of your own, and an adapter if one is needed."""
    from qkverify.cli.init import candidates, console
    from qkverify.cli.init.files import files_for

    if target is None:
        console.candidates(candidates.of_folder(Path()))
        return
    prepared = files_for(target, with_adapter=adapter)
    for file in prepared.files:
        (console.contents if dry_run else console.written)(file)
    if not dry_run:
        console.next_steps(prepared)


@app.command()
def replay(name: Annotated[str, typer.Argument(help="the id that a failure printed")]) -> None:
    """Check one stored counterexample again; exit 1 if the law is still broken."""
    from qkverify.verification.replay_command import replay_counterexample

    message = replay_counterexample(name)
    print(message or f"{name}: the law holds now")
    raise typer.Exit(1 if message else 0)


@app.command()
def profile(
    targets: Annotated[list[str], typer.Argument(help="a name, module:function or path/file.py:function")],
    dtype: Dtypes = None, device: Devices = None,
) -> None:  # fmt: skip
    """What the targets chose where libraries differ legitimately: declared, or found out by small examples."""
    from qkverify.cli import console
    from qkverify.verification.checking import plan

    planned = plan(targets, device or (), dtype or ())
    if not planned.cells:
        raise UsageError("nothing to profile here: no target has these devices and dtypes on this machine")
    for cell in planned.cells:
        console.heading(cell)
        console.conventions(cell)
        console.messages_of(cell.implementation.name)


@app.command()
def power(
    words: Annotated[list[str] | None, typer.Argument(help="parts of names of mutants and controls; default: all")] = None,
    profile: Profile = "default", jobs: Jobs = 2,
    matrix: Annotated[bool, typer.Option("--matrix", help="every law against every mutant, past the first kill")] = False,
    results: Annotated[Path | None, typer.Option(help="write what was found to this file")] = None,
    seed: Annotated[int | None, typer.Option(envvar="QKVERIFY_SEED", min=0, help=(
        "check the problems that every run with this number checks; without it, fresh ones in every run"))] = None,
) -> None:  # fmt: skip
    """Measure the suite on planted bugs and on correct code; exit 1 if a bug survives or correct code is accused."""
    from qkverify.cli import console
    from qkverify.results import Writer
    from qkverify.verification.mutation_testing import FOLDERS, idle_laws, left_out, measure

    found = []
    if results:
        results.unlink(missing_ok=True)
    writer = _started(Writer(results), profile) if results else None
    for one in measure(words or (), profile=profile, jobs=jobs, matrix=matrix, seed=seed):
        console.planted(one)
        found.append(one)
        if writer:
            writer.append(one)
    console.power(found, idle_laws(found) if matrix and not words else None)
    for gone in [gone for folder in FOLDERS for gone in left_out(folder)]:
        console.console.print(f"left out: {gone.name}: {gone.reason}", markup=False)
    raise typer.Exit(0 if all(bool(one.kills) == (one.kind == "mutant") for one in found) else 1)


@app.command()
def doctor(
    probe: Annotated[bool, typer.Option("--probe", help="measure how matrix products and exp round on every device")] = False,
) -> None:  # fmt: skip
    """What this machine can run, and why not the rest."""
    from qkverify.cli import console
    from qkverify.contract import DEVICES, frameworks

    console.doctor()
    for device in DEVICES if probe else ():
        absent = frameworks.missing("torch") or frameworks.get("torch").unavailable(device)
        if device == "cpu" or absent is None:
            console.probes(device)
        else:
            print(f"not probed on {device}: {absent}")


@app.command()
def export(
    results: Annotated[Path | None, typer.Argument(help="a results file, the folder of a report, or its history")] = None,
    to: Annotated[str | None, typer.Option(help="csv, markdown, parquet, junit, ...; default: by --output")] = None,
    what: Annotated[str | None, typer.Option(help="timings, samples, verdicts, accuracy, ...; default: the format's own")] = None,
    output: Annotated[Path | None, typer.Option(help="where to; default: standard output")] = None,
    columns: Annotated[bool, typer.Option("--columns", help="say what the columns mean, and export nothing")] = False,
) -> None:  # fmt: skip
    """Results for other tools."""
    from qkverify import exports

    if columns:
        print(exports.explained(what))
    elif results is None:
        raise UsageError("say which results: a file, or the folder of a report")
    else:
        exports.write(results, to, what, output)


@app.command()
def schema() -> None:
    """Print the JSON schema of a line of a results file."""
    import json

    from qkverify.results import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))


def _bench_file() -> Path:
    from qkverify.counterexamples import store

    return store.ignored(store.FOLDER) / "bench.jsonl"


def _started(writer: Any, profile: str, selection: str = "") -> Any:
    from qkverify.cli.full_run import run_start

    writer.append(run_start(profile, selection))
    return writer


if __name__ == "__main__":
    main()
