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
from qkverify.results import Kill, Planted
from qkverify.runs.run import Run
from qkverify.units import number_of
from qkverify.verification import processes
from qkverify.verification.checking import Cell, applicable, check, law_book, prepare
from qkverify.verification.laws import PROFILES, Law

BROKEN = ("failed", "crashed")
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
    return [with_defaults(one) for one in REGISTERED if one.name.startswith(prefix)]


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
    every = [(folder, one.name) for folder in FOLDERS for one in planted(folder)]
    for word in words:
        if not any(word in name for _, name in every):
            raise UsageError(
                f"no planted implementation has {word!r} in its name; without a name all {len(every)} are measured"
            )
    return [(folder, name) for folder, name in every if not words or any(word in name for word in words)]


def cell_of(one: Implementation) -> Cell:
    """The one cell that a planted implementation is judged in."""
    return Cell(one, "cpu", next(d for d in DTYPES if d in one.dtypes), one.name)


def attack(one: Implementation, *, examples: int, matrix: bool = False, seed: int | None = None,
           laws: Iterable[Law] | None = None, profile: str = "") -> Planted:  # fmt: skip
    """Every law that applies, held against a planted implementation until one breaks; with `matrix`, all of them.

    `seed` makes the problems those of every other run of that seed; without it QKVERIFY_SEED does, if it is set.
    """
    cell, start, spent = cell_of(one), time.perf_counter(), 0
    kills: list[Kill] = []
    smallest, sizes, cost = "", {}, (0, 0.0)
    for law in applicable(laws or law_book(), cell):
        run = prepare(cell)
        phases: dict[str, Any] = {} if not kills else {"phases": (Phase.generate,)}
        found = check(law, run, max_examples=examples, seed=seed, database=None, **phases)
        spent += found.examples
        if found.outcome not in BROKEN:
            continue
        kills.append(Kill(law.name, law.family, found.examples, found.seconds))
        if len(kills) == 1:
            cost = spent, time.perf_counter() - start
            smallest = found.counterexample.message if found.counterexample else ""
            sizes = _sizes(run)
        if not matrix:
            break
    return Planted(
        name=one.name, kind=_kind(one), operation=one.operation, dtype=cell.dtype, sentence=_sentence(one),
        threads=_threads(one), kills=kills, matrix=matrix, examples=cost[0] if kills else spent,
        seconds=cost[1] if kills else time.perf_counter() - start, sizes=sizes, message=smallest,
        profile=profile,
    )  # fmt: skip


def _sizes(run: Run) -> dict[str, int]:
    return run.problems[0].sizes if run.problems else {}


def _sentence(one: Implementation) -> str:
    return (one.function.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")


def _threads(one: Implementation) -> list[str]:
    """The public threads that a mutant re-creates."""
    planting = importlib.import_module("qkverify.implementations.mutants.correct.planting")
    return next((list(m.threads) for m in planting.MUTANTS if m.name == one.name), [])


def _one(folder: str, name: str) -> Implementation:
    return next(one for one in planted(folder) if one.name == name)


def _kind(one: Implementation) -> str:
    return one.name.partition("-")[0]


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
    for number, found in processes.each(_attack, tasks, jobs):
        yield _crashed(*chosen[number], profile, matrix) if found is None else found


def _crashed(folder: str, name: str, profile: str, matrix: bool) -> Planted:
    """What is known of one whose process died: that, and no more."""
    one = _one(folder, name)
    return Planted(
        name=name, kind=_kind(one), operation=one.operation, dtype=cell_of(one).dtype, sentence=_sentence(one),
        threads=_threads(one), kills=[Kill("a crash of its process", "", 0, 0.0)], matrix=matrix, profile=profile,
    )  # fmt: skip


def idle_laws(found: Sequence[Planted]) -> list[Law]:
    """Laws that no mutant broke. Only a full matrix can tell."""
    broken = Counter(kill.law for one in found if one.kind == "mutant" for kill in one.kills)
    return [law for law in law_book() if not broken[law.name]]


def summary(found: Sequence[Planted]) -> list[str]:
    """What a run of all of them says, a sentence a line."""
    mutants = [one for one in found if one.kind == "mutant"]
    killed = [one for one in mutants if one.kills]
    controls = [one for one in found if one.kind == "control"]
    lines = []
    if mutants:
        lines.append(f"{len(killed)} of {len(mutants)} mutants killed")
    if killed:
        quantities = [(one.sizes["H"], one.sizes["Q"], one.sizes["K"]) for one in killed if one.sizes]
        small = sum(h <= 2 and q <= 3 and k <= 3 for h, q, k in quantities)
        lines.append(f"cost of killing one: median {median(one.examples for one in killed):,.0f} examples and "
                     f"{median(one.seconds for one in killed):.2g} s, shrinking included")  # fmt: skip
        lines.append(
            f"counterexamples of at most 2 heads, 3 queries and 3 keys: {small} of {len(quantities)}"
        )
    if controls:
        accused = [one.name for one in controls if one.kills]
        examples = sum(one.examples for one in controls)
        lines.append(f"{number_of(len(controls), 'control')}, {examples:,} examples: "
                     + (f"ACCUSED {', '.join(accused)}" if accused else "none accused"))  # fmt: skip
    return lines
