"""The suite's own strength: which laws kill which planted bugs, how fast, and how small the counterexample is.

Every mutant of `implementations/mutants/` is a correct attention with one bug that was reported in a public thread. A mutant
is killed by a law that is broken on it; the controls of `implementations/controls/` are correct by other algorithms and must
never be accused. Nothing here says which law should kill which mutant: the matrix is measured.

Laws are checked in the order of the book. The first that breaks shrinks its counterexample; what a kill cost counts from the
first law's first example to the end of that. With `matrix` the other laws are checked too, without shrinking.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from statistics import median
from typing import Any

from hypothesis import Phase

from qkverify.contract import REGISTERED, Implementation, with_defaults
from qkverify.contract.registry import Missing
from qkverify.errors import UsageError
from qkverify.results import OUTCOMES_AGAINST, Kill, Planted
from qkverify.runs.run import Run
from qkverify.units import number_of
from qkverify.verification import processes
from qkverify.verification.checking import Cell, applicable, check, law_book, prepare
from qkverify.verification.laws import PROFILES, Law

FOLDERS = ("mutants", "controls")
DTYPES = (
    "float32",
    "float64",
    "bfloat16",
    "float16",
)  # a planted implementation is checked in the first that it offers


def planted(folder: str = "mutants") -> list[Implementation]:
    """The implementations of a subfolder of `implementations/`: the mutants, or the controls; see `left_out`."""
    left_out(folder)
    prefix = folder.removesuffix("s") + "-"
    return [
        with_defaults(implementation)
        for implementation in REGISTERED
        if implementation.name.startswith(prefix)
    ]


@lru_cache(maxsize=len(FOLDERS))
def left_out(folder: str) -> tuple[Missing, ...]:
    """Import the files of a subfolder; those that this machine cannot import, each with the reason."""
    package = importlib.import_module(f"qkverify.implementations.{folder}")
    missing = []
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"{package.__name__}.{module.name}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("", "qkverify"):
                raise  # ours
            missing.append(Missing(f"{folder}/{module.name}", f"{error.name} is not installed"))
    return tuple(missing)


def named(words: Sequence[str]) -> list[tuple[str, str]]:
    """(folder, name) of everything planted, or of what has one of these words in its name. Raises UsageError."""
    every = [(folder, implementation.name) for folder in FOLDERS for implementation in planted(folder)]
    for word in words:
        if not any(word in name for _, name in every):
            raise UsageError(
                f"no planted implementation has {word!r} in its name; without a name all {len(every)} are measured"
            )
    return [(folder, name) for folder, name in every if not words or any(word in name for word in words)]


def cell_of(implementation: Implementation) -> Cell:
    """The one cell that a planted implementation is judged in."""
    return Cell(
        implementation, "cpu", next(d for d in DTYPES if d in implementation.dtypes), implementation.name
    )


def attack(implementation: Implementation, *, examples: int, matrix: bool = False, seed: int | None = None,
           laws: Iterable[Law] | None = None, profile: str = "") -> Planted:  # fmt: skip
    """Every law that applies, held against a planted implementation until one breaks; with `matrix`, all of them.

    `seed` makes the problems those of every other run of that seed; without it QKVERIFY_SEED does, if it is set.
    """
    cell, start, spent = cell_of(implementation), time.perf_counter(), 0
    kills: list[Kill] = []
    smallest, sizes, cost = "", {}, (0, 0.0)
    for law in applicable(laws or law_book(), cell):
        run = prepare(cell)
        phases: dict[str, Any] = {} if not kills else {"phases": (Phase.generate,)}
        verdict = check(law, run, max_examples=examples, seed=seed, database=None, **phases)
        spent += verdict.examples
        if verdict.outcome not in OUTCOMES_AGAINST:
            continue
        kills.append(Kill(law.name, law.family, verdict.examples, verdict.seconds))
        if len(kills) == 1:
            cost = spent, time.perf_counter() - start
            smallest = verdict.counterexample.message if verdict.counterexample else ""
            sizes = _sizes(run)
        if not matrix:
            break
    return Planted(
        name=implementation.name, kind=_kind(implementation), operation=implementation.operation,
        dtype=cell.dtype, sentence=_sentence(implementation), threads=_threads(implementation), kills=kills,
        matrix=matrix, examples=cost[0] if kills else spent,
        seconds=cost[1] if kills else time.perf_counter() - start, sizes=sizes, message=smallest,
        profile=profile,
    )  # fmt: skip


def _sizes(run: Run) -> dict[str, int]:
    return run.problems[0].sizes if run.problems else {}


def _sentence(implementation: Implementation) -> str:
    return (implementation.function.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")


def _threads(implementation: Implementation) -> list[str]:
    """The public threads that a mutant re-creates."""
    planting = importlib.import_module("qkverify.implementations.mutants.correct.planting")
    return next((list(m.threads) for m in planting.MUTANTS if m.name == implementation.name), [])


def _one(folder: str, name: str) -> Implementation:
    return next(implementation for implementation in planted(folder) if implementation.name == name)


def _kind(implementation: Implementation) -> str:
    return implementation.name.partition("-")[0]


def _attack(folder: str, name: str, profile: str, matrix: bool, seed: int | None) -> Planted:
    return attack(_one(folder, name), examples=PROFILES[profile], matrix=matrix, profile=profile, seed=seed)


def measure(
    words: Sequence[str] = (),
    *,
    profile: str = "default",
    jobs: int = 2,
    matrix: bool = False,
    seed: int | None = None,
) -> Iterator[Planted]:
    """What became of each mutant and control, as they are done in parallel processes. Raises UsageError.

    `seed` is that of `attack`.
    """
    if profile not in PROFILES:
        raise UsageError.unknown("profile", profile, PROFILES)
    chosen = named(words)
    # A control is checked by every law: only then has it not been accused.
    tasks = [(folder, name, profile, matrix or folder == "controls", seed) for folder, name in chosen]
    for number, record in processes.each(_attack, tasks, jobs):
        yield _crashed(*chosen[number], profile, matrix) if record is None else record


def _crashed(folder: str, name: str, profile: str, matrix: bool) -> Planted:
    """What is known of one whose process died: that, and no more."""
    implementation = _one(folder, name)
    return Planted(
        name=name, kind=_kind(implementation), operation=implementation.operation, dtype=cell_of(implementation).dtype,
        sentence=_sentence(implementation), threads=_threads(implementation),
        kills=[Kill("a crash of its process", "", 0, 0.0)], matrix=matrix, profile=profile,
    )  # fmt: skip


def idle_laws(records: Sequence[Planted]) -> list[Law]:
    """Laws that no mutant broke. Only a full matrix can tell."""
    broken = Counter(kill.law for record in records if record.kind == "mutant" for kill in record.kills)
    return [law for law in law_book() if not broken[law.name]]


def summary(records: Sequence[Planted]) -> list[str]:
    """What a run of all of them says, a sentence a line."""
    mutants = [record for record in records if record.kind == "mutant"]
    killed = [mutant for mutant in mutants if mutant.kills]
    controls = [record for record in records if record.kind == "control"]
    lines = []
    if mutants:
        lines.append(f"{len(killed)} of {len(mutants)} mutants killed")
    if killed:
        quantities = [
            (mutant.sizes["H"], mutant.sizes["Q"], mutant.sizes["K"]) for mutant in killed if mutant.sizes
        ]
        small = sum(h <= 2 and q <= 3 and k <= 3 for h, q, k in quantities)
        lines.append(f"to kill a mutant: median {median(mutant.examples for mutant in killed):,.0f} examples and "
                     f"{median(mutant.seconds for mutant in killed):.2g} s, shrinking included")  # fmt: skip
        lines.append(
            f"counterexamples of at most 2 heads, 3 queries and 3 keys: {small} of {len(quantities)}"
        )
    if controls:
        accused = [control.name for control in controls if control.kills]
        examples = sum(control.examples for control in controls)
        lines.append(f"{number_of(len(controls), 'control')}, {examples:,} examples: "
                     + (f"ACCUSED {', '.join(accused)}" if accused else "none accused"))  # fmt: skip
    return lines
