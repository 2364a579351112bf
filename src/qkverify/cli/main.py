"""The command line: each command is a thin front over the same functions that Python users call.

Exit codes: 0 the laws hold, 1 a law is broken, 2 wrong usage, 3 the harness failed (a results file that cannot be read, say),
4 nothing, or next to nothing, was verified (with --strict: not everything). A broken law (1) wins over what was not verified (4).
A user's mistake gets a sentence, never a traceback of ours; a target that raises on import shows its own.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from qkverify.cli import help_texts
from qkverify.errors import HarnessError, NothingVerified, UsageError

COMPARE_FORMATS = ("text", "markdown")
STARTED = time.monotonic()  # a budget counts what is loaded for a command as well
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"max_content_width": help_texts.WIDTH},
                  help="Test attention kernels: check laws with derived error bounds, and time what is right.",
                  epilog="Exit codes: 0 the laws hold, 1 a law is broken, 2 wrong usage, 3 qkverify itself failed, "
                         "4 nothing was verified, or too little to say that the laws hold.")  # fmt: skip

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
        "--lawful-only", help="time only implementations that break no law and have no known finding"
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        metavar="N", help="worker processes; a kernel that kills its process loses only its own configuration"
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


def _print_version(given: bool) -> None:
    if given:
        from qkverify import __version__

        print(f"qkverify {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Test attention kernels: check laws with derived error bounds, and time what is right."""


def main() -> None:
    """The entry point: turns our errors into sentences and exit codes."""
    try:
        _run()
    except ModuleNotFoundError as error:  # a target's own missing modules are TargetImportErrors
        name = (error.name or "a module").partition(".")[0]
        _fail(f"{name} is not installed, and this command needs it: pip install {name.replace('_', '-')}\n"
              "  without a package index: `make wheels` elsewhere, then `make gpu-report WHEELS=folder` here", 2)  # fmt: skip


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
    targets: Annotated[list[str] | None, typer.Argument(metavar="TARGET", help=(
        "a name, module:function or path/file.py:function; default: the targets of [tool.qkverify] in pyproject.toml"))] = None,
    dtype: Dtypes = None, device: Devices = None,
    profile: Annotated[str | None, typer.Option(metavar="PROFILE", help=f"{EXAMPLES}; default: default")] = None, jobs: Jobs = 1,
    law: LawNames = None, skip: SkippedLaws = None, own_laws: LawFiles = None, known_failures: KnownFailures = None,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="append the verdicts to this file, as JSON lines")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="write the verdicts to this file, as JUnit XML")] = None,
    strict: Annotated[bool, typer.Option("--strict", help=(
        "for CI: exit code 4 if something that is offered was not verified, 1 if a known failure no longer fails"))] = False,
    call_timeout: CallTimeout = None, memory: Memory = "", in_process: InProcess = False,
) -> None:  # fmt: skip
    """Check every law on the targets. A law is a property that a right result has for every input.

    Exit code 0: the laws hold. 1: a law is broken. 4: too little was verified. The last line names what was not verified."""
    from qkverify.cli import console
    from qkverify.cli.full_run import run_start
    from qkverify.results import OUTCOMES_BROKEN, Writer
    from qkverify.verification import requested
    from qkverify.verification.checking import info, outcome_of
    from qkverify.verification.isolation import checkers
    from qkverify.verification.outcomes import exit_code, without_cell

    checker = checkers.chosen(in_process=in_process, jobs=jobs, call_seconds=call_timeout, memory=memory)
    request = requested.gathered(
        checker.plan, targets=targets, devices=device, dtypes=dtype, profile=profile, laws=law, skip=skip, own_laws=own_laws,
        known_failures=known_failures,
    )  # fmt: skip
    planned, selection, profile = request.plan, request.selection, request.profile
    console.settings(request)
    console.remarks(planned.implementations)
    writer = _started(Writer(results), profile, request.selected) if results else None
    broken, all_verdicts, infos = [], [], []
    outcomes = {target: without_cell(reason) for target, reason in planned.idle.items()}
    outcomes |= {str(cell): outcome_of(cell, []) for cell in planned.cells}
    for cell, verdicts, conventions in checker.check(planned.cells, selection.laws, profile, console.heading):
        console.families(verdicts)
        console.unverified(cell, verdicts)
        outcomes[str(cell)] = outcome_of(cell, verdicts, selection.laws_of(cell))
        infos.append(info(cell.implementation, dict(conventions), {}))
        broken += [v for v in verdicts if v.outcome in OUTCOMES_BROKEN]
        all_verdicts += verdicts
        if writer:
            writer.append(infos[-1])
            for verdict in verdicts:
                writer.append(verdict)
    if junit:
        from qkverify.exports import save

        save([run_start(profile, request.selected), *infos, *all_verdicts], junit, "junit")
    outdated = console.known_failures(request.known, all_verdicts)
    console.messages(all_verdicts)
    console.verdict(broken, planned, outcomes)
    raise typer.Exit(exit_code(outcomes.values(), strict) or int(strict and outdated))


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="implementations, operations, laws or workloads")
    ] = "implementations",
) -> None:
    """List implementations with their options, operations with their parameters, laws with their sentences, or workloads with
    their sizes."""
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
    targets: Annotated[list[str] | None, typer.Argument(metavar="TARGET", help="implementations; default: all")] = None,
    workload: Workloads = None, pass_: Passes = None, dtype: Dtypes = None, device: Devices = None,
    budget: Budget = "90s", processes: Processes = 5, rounds: Rounds = 100, laws: Laws = "glance",
    cache: CacheState = "", lawful_only: LawfulOnly = False,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="append the samples to this file, as JSON lines")] = None,
) -> None:  # fmt: skip
    """Time implementations whose output is right. They take turns, in several processes, and one is timed under two names (the
    A/A control): a difference as small as its own is never called a difference.

    Exit code 1: nothing was timed, or a timed call failed, gave a wrong result, or was faster than the measured roofline."""
    from qkverify.cli import bench_command, console_timings
    from qkverify.timing import untimed

    request = bench_command.BenchRequest(
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
    measured = bench_command.run(request, results or _bench_file(), STARTED)
    console_timings.bench(measured)
    print(f"samples: {measured.path}")
    raise typer.Exit(1 if untimed.refused(measured.all_timings) or not measured.side.timings else 0)


@app.command()
def compare(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help=(
        "an implementation, or the results of a run: FILE, or REVISION:FILE in git"))],
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="the implementation or the results to compare with")],
    results: Annotated[Path | None, typer.Option(metavar="FILE", help=(
        "two implementations: take their times from this file instead of measuring"))] = None,
    relative_to: Annotated[str, typer.Option(metavar="NAME", help=(
        "two runs: compare ratios to this implementation, so that the machine's drift cancels"))] = "",
    fail_on: Annotated[str, typer.Option(metavar="WORD", help="exit code 1 if a case is slower, faster or different")] = "",
    across_devices: Annotated[bool, typer.Option("--across-devices", help=(
        "two runs: allow that they come from different machines"))] = False,
    workload: Workloads = None, pass_: Passes = None, dtype: Dtypes = None, device: Devices = None,
    budget: Budget = "90s", processes: Processes = 5, rounds: Rounds = 100, laws: Laws = "glance",
    cache: CacheState = "", lawful_only: LawfulOnly = False,
    format_: Annotated[str, typer.Option("--format", metavar="WORD", help=(
        "text, or markdown for the comment of a pull request: then progress goes to standard error"))] = "text",
) -> None:  # fmt: skip
    """Say for each case, and overall, whether the candidate is faster, slower, the same, or whether it is undecided."""
    from qkverify.cli import bench_command, compare_markdown, console_timings
    from qkverify.timing import comparison

    if fail_on not in ("", *comparison.FAIL_ON):
        raise UsageError.unknown("outcome", fail_on, comparison.FAIL_ON)
    if format_ not in COMPARE_FORMATS:
        raise UsageError.unknown("format", format_, COMPARE_FORMATS)
    notes: list[str] = []
    if comparison.is_run(candidate) or comparison.is_run(baseline):
        new, old = comparison.load(candidate), comparison.load(baseline)
        compared = comparison.runs(new, old, relative_to=relative_to, across_devices=across_devices)
        software = comparison.software_changes(new, old)
        if format_ == "text":
            console_timings.changes(software, relative_to)
        notes = [*software, console_timings.drift(relative_to)]
    else:
        request = bench_command.BenchRequest((candidate, baseline), workload or (), pass_ or (), dtype or (),
                                             device or (), budget, processes, rounds, laws, cache, lawful_only)  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr if format_ == "markdown" else sys.stdout):
            side = (
                comparison.load(str(results))
                if results
                else bench_command.run(request, _bench_file(), STARTED).side
            )
        compared = comparison.implementations(side, *bench_command.names_of(candidate, baseline, side))
    if format_ == "markdown":
        print(compare_markdown.comment(compared, candidate, baseline, notes))
    else:
        console_timings.comparison(compared)
    raise typer.Exit(1 if comparison.fails(compared, fail_on) else 0)


@app.command()
def report(
    words: Annotated[list[str] | None, typer.Argument(metavar="[FOLDER | TARGET...]", help=(
        "a folder with results.jsonl, default: this device's; with --run implementations, default: all"))] = None,
    run: Annotated[bool, typer.Option("--run", help=(
        "first verify and time everything that runs here, or only the implementations that are named"))] = False,
    against: Annotated[str, typer.Option(metavar="NAME", help=(
        "with implementations: what they are compared with; default: torch's scaled_dot_product_attention"))] = "",
    dtype: Dtypes = None,
    device: Devices = None,
    resume: Annotated[bool, typer.Option("--resume", help="with --run: continue an interrupted run")] = False,
    profile: Profile = "quick",
    reports: Annotated[
        Path, typer.Option(metavar="FOLDER", help="the folder with the reports of all devices")
    ] = Path("reports"),
    budget: Annotated[str, typer.Option(metavar="TIME", help="time for timing: 90s, 5m")] = "150s",
) -> None:  # fmt: skip
    """Write a page and its Markdown summary from recorded results. With --run, verify and time everything first, or only the
    implementations that are named: their report goes into a folder of their name."""
    from qkverify.cli import console, own_report
    from qkverify.cli.bench_command import seconds_of
    from qkverify.cli.console_overview import overview
    from qkverify.cli.full_run import best_device, record_everything
    from qkverify.report import write, write_index
    from qkverify.report.model import Report
    from qkverify.results import Verdict, read
    from qkverify.results.fingerprint import device_slug
    from qkverify.verification.outcomes import exit_code, of_records

    folder, targets = own_report.folder_or_targets(words or ())
    requested = own_report.gathered(targets, against, device or (), run)
    if dtype and not requested:
        raise UsageError("--dtype narrows a report of implementations: name them")
    place = (
        own_report.folder_of(requested, reports)
        if requested
        else folder or reports / device_slug(best_device())
    )
    path = place / "results.jsonl"
    interrupted = False
    if run:
        try:
            record_everything(path, profile=profile, budget_seconds=seconds_of(budget),
                              devices=device or (), resume=resume, targets=requested.everything if requested else (),
                              dtypes=dtype or (), against=own_report.name_of(requested.against) if requested else "")  # fmt: skip
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
    overview(Report(records))
    print(f"\n{made}\nraw:     {path}")
    if interrupted:
        _fail("interrupted: the page shows what was done by then; --resume goes on with it", 130)
    outcomes = of_records(own_report.without_baseline(records, requested) if requested else records)
    raise typer.Exit(exit_code(outcomes.values()) if outcomes else 0)


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="the implementation's name, a Python identifier")
    ],
    arrays: Annotated[str, typer.Option(metavar="FRAMEWORK", help="numpy, torch or jax")] = "numpy",
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="where to write it")] = Path(),
) -> None:
    """Write the file of a new implementation, and say what to run next."""
    from qkverify.cli.scaffold import write_new

    path = write_new(name, arrays, folder)
    print(f"wrote {path}\nnext:  qkverify verify {path}")


@app.command()
def init(
    target: Annotated[str | None, typer.Argument(metavar="TARGET", help=(
        "path/file.py:function or module:function; without it, list functions in this folder that look like attention"))] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="write an adapter even if none seems to be needed")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the files, and write none")] = False,
) -> None:  # fmt: skip
    """Set up qkverify in your own repository. Writes a test, a CI workflow, a file for known failures, a file for your own laws,
    and an adapter if one is needed."""
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
def replay(
    name: Annotated[str, typer.Argument(metavar="ID", help="the id that the failure printed")],
) -> None:
    """Check one stored counterexample again. Exit code 1: the law is still broken."""
    from qkverify.verification.replay_command import replay_counterexample

    message = replay_counterexample(name)
    print(message or f"{name}: the law holds now")
    raise typer.Exit(1 if message else 0)


@app.command()
def profile(
    targets: Annotated[list[str], typer.Argument(metavar="TARGET", help="a name, module:function or path/file.py:function")],
    dtype: Dtypes = None, device: Devices = None,
) -> None:  # fmt: skip
    """Show which conventions a function follows. Libraries differ legitimately in some choices, such as how causal is aligned;
    each is declared, or found out by small examples."""
    from qkverify.cli import console
    from qkverify.verification.checking import conventions_of, plan

    planned = plan(targets, device or (), dtype or ())
    if not planned.cells:
        raise UsageError(
            "nothing to profile: no target can run with these devices and dtypes on this machine"
        )
    for cell in planned.cells:
        console.heading(cell, conventions_of(cell))
        console.conventions(cell)
        console.messages_of(cell.implementation.name)


@app.command()
def power(
    words: Annotated[list[str] | None, typer.Argument(metavar="WORD", help=(
        "only mutants and controls with this word in their name; default: all"))] = None,
    profile: Profile = "default", jobs: Jobs = 2,
    matrix: Annotated[bool, typer.Option("--matrix", help="check every law on every mutant, also after the first kill")] = False,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="write the records to this file")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", envvar="QKVERIFY_SEED", min=0, help=(
        "generate the same problems in every run with this number; without it, fresh ones"))] = None,
) -> None:  # fmt: skip
    """Mutation testing: measure how strong the laws are. A mutant is correct code with one known bug planted in it; a law that
    breaks on it kills it. A control is correct code, which no law may accuse.

    Exit code 1: a mutant survives, or a control is accused."""
    from qkverify.cli import console
    from qkverify.results import Writer
    from qkverify.verification.mutation_testing import FOLDERS, idle_laws, left_out, measure

    records = []
    if results:
        results.unlink(missing_ok=True)
    writer = _started(Writer(results), profile) if results else None
    for record in measure(words or (), profile=profile, jobs=jobs, matrix=matrix, seed=seed):
        console.planted(record)
        records.append(record)
        if writer:
            writer.append(record)
    console.power(records, idle_laws(records) if matrix and not words else None)
    for gone in [gone for folder in FOLDERS for gone in left_out(folder)]:
        console.console.print(f"left out: {gone.name}: {gone.reason}", markup=False)
    raise typer.Exit(0 if all(bool(record.kills) == (record.kind == "mutant") for record in records) else 1)


@app.command()
def doctor(
    probe: Annotated[bool, typer.Option("--probe", help="also measure how matrix products and exp round on each device")] = False,
) -> None:  # fmt: skip
    """Show what this machine can run, and why it cannot run the rest."""
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
    results: Annotated[Path | None, typer.Argument(metavar="RESULTS", help=(
        "a results file, the folder of a report, or its history folder"))] = None,
    to: Annotated[str | None, typer.Option(metavar="FORMAT", help=(
        "csv, markdown, parquet, junit, ...; default: by the ending of --output"))] = None,
    what: Annotated[str | None, typer.Option(metavar="TABLE", help=(
        "timings, samples, verdicts, accuracy, ...; default: the format's usual table"))] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="the file to write; default: standard output")] = None,
    columns: Annotated[bool, typer.Option("--columns", help="explain the columns, and export nothing")] = False,
) -> None:  # fmt: skip
    """Write results for other tools: tables as CSV, Markdown, Parquet or JSON lines, verdicts as JUnit XML."""
    from qkverify import exports

    if columns:
        print(exports.explained(what))
    elif results is None:
        raise UsageError("export needs results: a file, or the folder of a report")
    else:
        exports.write(results, to, what, output)


@app.command()
def schema() -> None:
    """Print the JSON schema of a results file, whose lines are one record each."""
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


help_texts.complete(app)

if __name__ == "__main__":
    main()
