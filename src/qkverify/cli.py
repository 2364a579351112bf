"""The command line: each command is a thin front over the same functions that Python users call.

Exit codes: 0 all laws hold, 1 a law is broken, 2 wrong usage, 3 the harness failed (a results file that cannot be read, say).
A user's mistake gets a sentence, never a traceback of ours; a target that raises on import shows its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qkverify.errors import HarnessError, UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Verify and time attention: laws with derived error bounds, on any implementation.")  # fmt: skip

Dtypes = Annotated[list[str] | None, typer.Option("--dtype", help="only this dtype (repeatable)")]
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="only this device: cpu, cuda (repeatable)")
]
Profile = Annotated[str, typer.Option(help="examples a law: glance 5, quick 25, default 100, thorough 2,000")]
Jobs = Annotated[int, typer.Option(help="processes; a kernel that kills one costs only its own cell")]


def main() -> None:
    """The entry point: turns our errors into sentences and exit codes."""
    from qkverify.registry import TargetImportError
    from qkverify.results import ResultsError

    try:
        app()
    except TargetImportError as error:
        _fail(f"{error.text}\n{error}", 2)
    except UsageError as error:
        _fail(str(error), 2)
    except (ResultsError, HarnessError) as error:
        _fail(str(error), 3)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(text: str, code: int) -> None:
    print(f"qkverify: {text}", file=sys.stderr)
    raise SystemExit(code)


@app.command()
def verify(
    targets: Annotated[list[str], typer.Argument(help="a name, module:function or path/file.py:function")],
    dtype: Dtypes = None, device: Devices = None, profile: Profile = "default", jobs: Jobs = 1,
    results: Annotated[Path | None, typer.Option(help="append the verdicts to this file, a JSON line each")] = None,
) -> None:  # fmt: skip
    """Check every law on the targets; exit 1 if one is broken."""
    from qkverify import screen
    from qkverify.results import Writer
    from qkverify.verification import check_cells, conventions_of, info, plan

    planned = plan(targets, device or (), dtype or ())
    if not planned.cells:
        reasons = "\n".join(
            f"  {name} on {where}: {why}" for (name, where), why in planned.unavailable.items()
        )
        raise UsageError("nothing to verify here\n" + (reasons or "  no target has these devices and dtypes"))
    writer = _started(Writer(results), profile) if results else None
    broken = []
    for cell, verdicts in check_cells(
        planned.cells, profile=profile, jobs=jobs, started=screen.heading if jobs == 1 else None
    ):
        if jobs != 1:
            screen.heading(cell)
        screen.families(verdicts)
        broken += [v for v in verdicts if v.outcome in ("failed", "crashed", "timed out", "error")]
        if writer:
            writer.append(info(cell.implementation, conventions_of(cell), {}))
            for verdict in verdicts:
                writer.append(verdict)
    screen.verdict(broken, planned)
    raise typer.Exit(1 if broken else 0)


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="implementations or laws")] = "implementations") -> None:
    """What there is: implementations with what they offer, or the laws with their sentences."""
    from qkverify import screen

    pages = {"implementations": screen.implementations, "laws": screen.laws}
    if what not in pages:
        raise UsageError.unknown("list", what, pages)
    pages[what]()


@app.command()
def bench(
    targets: Annotated[list[str] | None, typer.Argument(help="implementations; default: all")] = None,
    dtype: Dtypes = None, device: Devices = None,
    budget: Annotated[float, typer.Option(help="seconds, all in all")] = 90.0,
    results: Annotated[Path | None, typer.Option(help="append the samples to this file, a JSON line each")] = None,
) -> None:  # fmt: skip
    """Time implementations, interleaved, on the small grid of workloads."""
    from qkverify import screen
    from qkverify.registry import find, load_folder
    from qkverify.results import Writer
    from qkverify.timing import run_grid

    found = [one for target in targets for one in find(target)] if targets else load_folder()
    path = results or Path(".qkverify") / "bench.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with screen.progress("timing") as advance:
        timings = run_grid(_started(Writer(path), ""), found, budget_seconds=budget, progress=advance,
                           devices=device or (), dtypes=dtype or ())  # fmt: skip
    screen.timings(timings)
    print(f"samples: {path}")


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
    budget: Annotated[float, typer.Option(help="seconds for timing")] = 60.0,
) -> None:
    """Make the page and its Markdown summary from results; with --run, make the results too."""
    from qkverify import screen
    from qkverify.campaigns import best_device, record_everything
    from qkverify.fingerprint import device_slug
    from qkverify.report import write, write_index
    from qkverify.results import Verdict, read

    place = folder or reports / device_slug(best_device())
    path = place / "results.jsonl"
    if run:
        record_everything(path, profile=profile, budget_seconds=budget, devices=device or (), resume=resume)
    elif not path.is_file():
        raise UsageError(f"{path} does not exist; make it with: qkverify report --run")
    page, summary = write(path, place)
    write_index(place.parent)
    broken = screen.matrix([record for record in read(path) if isinstance(record, Verdict)])
    print(f"\npage:    {page}\nsummary: {summary}\nraw:     {path}")
    raise typer.Exit(1 if broken else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the implementation's name, a Python identifier")],
    arrays: Annotated[str, typer.Option(help="numpy, torch or jax")] = "numpy",
    folder: Annotated[Path, typer.Option(help="where to write it")] = Path(),
) -> None:
    """Write a new implementation's file and say what to run next."""
    from qkverify.scaffold import write_new

    path = write_new(name, arrays, folder)
    print(f"wrote {path}\nnext:  qkverify verify {path}")


@app.command()
def replay(name: Annotated[str, typer.Argument(help="the id that a failure printed")]) -> None:
    """Check one stored counterexample again; exit 1 if the law is still broken."""
    from qkverify.replaying import again

    message = again(name)
    print(message or f"{name}: the law holds now")
    raise typer.Exit(1 if message else 0)


@app.command()
def profile(
    targets: Annotated[list[str], typer.Argument(help="a name, module:function or path/file.py:function")],
    dtype: Dtypes = None, device: Devices = None,
) -> None:  # fmt: skip
    """What the targets chose where libraries differ legitimately: declared, or found out by small examples."""
    from qkverify import screen
    from qkverify.verification import plan

    planned = plan(targets, device or (), dtype or ())
    if not planned.cells:
        raise UsageError("nothing to profile here: no target has these devices and dtypes on this machine")
    for cell in planned.cells:
        screen.heading(cell)
        screen.conventions(cell)


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
    from qkverify import screen
    from qkverify.power import FOLDERS, idle_laws, left_out, measure
    from qkverify.results import Writer

    found = []
    if results:
        results.unlink(missing_ok=True)
    writer = _started(Writer(results), profile) if results else None
    for one in measure(words or (), profile=profile, jobs=jobs, matrix=matrix, seed=seed):
        screen.planted(one)
        found.append(one)
        if writer:
            writer.append(one)
    screen.power(found, idle_laws(found) if matrix and not words else None)
    for gone in [gone for folder in FOLDERS for gone in left_out(folder)]:
        screen.console.print(f"left out: {gone.name}: {gone.reason}")
    raise typer.Exit(0 if all(bool(one.kills) == (one.kind == "mutant") for one in found) else 1)


@app.command()
def doctor() -> None:
    """What this machine can run, and why not the rest."""
    from qkverify import screen

    screen.doctor()


def _started(writer: Any, profile: str) -> Any:
    from qkverify.campaigns import run_start

    writer.append(run_start(profile))
    return writer


if __name__ == "__main__":
    main()
