"""The suite's own strength: which laws kill which planted bugs, how fast, and how small the counterexample is.

Every mutant of `implementations/mutants/` is a correct attention with one bug that was reported in a public thread. A mutant
is killed by a law that is broken on it; the controls of `implementations/controls/` are correct by other algorithms and must
never be accused. Nothing here says which law should kill which mutant: the matrix is measured.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

from qkverify.contract import REGISTERED, Implementation, completed
from qkverify.verification import Cell, applicable, check, law_book, prepare, single_threaded

BROKEN = ("failed", "crashed")


@dataclass(frozen=True)
class Kill:
    """One law broken on one mutant. `examples` and `seconds` include what shrinking took."""

    mutant: str
    law: str
    dtype: str
    examples: int
    seconds: float
    problem: str
    sizes: dict[str, int]


def planted(folder: str = "mutants") -> list[Implementation]:
    """The implementations of a subfolder of `implementations/`: the mutants, or the controls."""
    package = importlib.import_module(f"qkverify.implementations.{folder}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    prefix = folder.removesuffix("s") + "-"
    return [completed(one) for one in REGISTERED if one.name.startswith(prefix)]


def cells_of(
    one: Implementation, dtypes: Sequence[str] = ("float32", "float64", "bfloat16", "float16")
) -> list[Cell]:
    """One cell: the first of these dtypes that the implementation offers."""
    dtype = next(d for d in dtypes if d in one.dtypes)
    return [Cell(one, "cpu", dtype, one.name)]


def kills(
    one: Implementation, *, examples: int, first: bool = True, seed: int | None = None
) -> Iterator[Kill]:
    """The laws that are broken on an implementation; with `first`, only the first one that is found."""
    for cell in cells_of(one):
        for law in applicable(law_book(), cell):
            run = prepare(cell)
            start = time.perf_counter()
            found = check(law, run, max_examples=examples, seed=seed, database=None)
            if found.outcome in BROKEN:
                problem = found.counterexample.problem if found.counterexample else ""
                sizes = run.problems[0].sizes if run.problems else {}
                yield Kill(
                    one.name, law.name, cell.dtype, run.examples, time.perf_counter() - start, problem, sizes
                )
                if first:
                    return


def _kills_of(folder: str, name: str, examples: int, first: bool) -> list[Kill]:
    one = next(one for one in planted(folder) if one.name == name)
    return list(kills(one, examples=examples, first=first))


def measure(folder: str = "mutants", *, examples: int = 100, jobs: int = 2, first: bool = True,
            only: Sequence[str] = ()) -> Iterator[tuple[str, list[Kill]]]:  # fmt: skip
    """(mutant, its kills), as they are found in parallel processes."""
    names = [one.name for one in planted(folder) if not only or any(word in one.name for word in only)]
    with single_threaded(), ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_kills_of, folder, name, examples, first): name for name in names}
        for future in as_completed(futures):
            yield futures[future], future.result()


if __name__ == "__main__":
    for _name, _found in measure():
        print(f"{_name:60} {'killed by ' + _found[0].law if _found else 'SURVIVED'}", flush=True)
