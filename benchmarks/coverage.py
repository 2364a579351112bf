"""How often do generated problems have the corners at which kernels fail? Counted in the problems of the two general laws.

    python -m qkverify.benchmarks.coverage --problems 2000

Draws problems as `agrees_with_reference` and `vjp_agrees_with_reference` do, without an implementation (so with every option,
in float32), and prints for each corner (see `qkverify.problem.corners`) how many of 1,000 problems have it, and how many pairs
of corners are met. The draw is seeded, so the counts are the same everywhere. Exit 1 if a corner is met less than once in 300
problems.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from qkverify.problem.byte_strategies import sampled
from qkverify.problem.corners import Corner, Seen, every
from qkverify.verification.checking import law_book

LAWS = {"output": "agrees_with_reference", "gradients": "vjp_agrees_with_reference"}
RARE = 1 / 300  # of the problems of a law; the profile default has 200 of each of these two
PROBLEMS = 2_000  # of each law: at a share of 1 / 300 seven have a corner
# The laws whose problems can have a corner, by what it needs.
WHERE = {"": tuple(LAWS), "upstream": ("gradients",), "no upstream": ("output",)}


class Coverage(NamedTuple):
    """For each law the corners (columns) that its problems (rows) have: bool (problems, corners)."""

    corners: tuple[Corner, ...]
    met: Mapping[str, np.ndarray]

    def share(self, law: str, corner: Corner) -> float | None:
        """The share of a law's problems that have a corner; None where none can."""
        can = law in WHERE[corner.needs]
        return float(self.met[law][:, self.corners.index(corner)].mean()) if can else None

    @property
    def rare(self) -> list[tuple[str, Corner]]:
        """The laws and corners that are met less than once in 300 problems."""
        shares = ((law, each, self.share(law, each)) for law in self.met for each in self.corners)
        return [(law, each) for law, each, share in shares if share is not None and share < RARE]

    @property
    def pairs(self) -> tuple[int, int]:
        """How many pairs of corners some problem has, and how many pairs there are."""
        met = np.concatenate(list(self.met.values())).astype(np.int64)
        upper = np.triu_indices(len(self.corners), 1)
        return int(((met.T @ met)[upper] > 0).sum()), len(upper[0])


def covered(problems: int = PROBLEMS, seed: int = 0) -> Coverage:
    """Draw so many problems of each of the general laws, and see which corners they have."""
    corners = every()
    laws = {law.name: law for law in law_book()}
    met = {}
    for name, law in LAWS.items():
        generator = np.random.default_rng(seed)
        drawn = (sampled(laws[law].arguments["problem"], generator) for _ in range(problems))  # type: ignore[arg-type]
        seen = (Seen(problem) for problem in drawn if problem is not None)
        with np.errstate(all="ignore"):  # scores of -inf, and of numbers near the end of a format
            met[name] = np.array([[bool(corner.holds(each)) for corner in corners] for each in seen])
    return Coverage(corners, met)


def main() -> None:
    """Print a line for each corner, and one for the pairs."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--problems", type=int, default=PROBLEMS, help="of each of the two laws")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    coverage = covered(arguments.problems, arguments.seed)
    print(f"of 1,000 problems   {'   '.join(f'{name:>9}' for name in LAWS)}")
    for corner in coverage.corners:
        shares = [coverage.share(law, corner) for law in LAWS]
        counts = "   ".join("        -" if share is None else f"{1000 * share:9.1f}" for share in shares)
        print(f"{counts}   {corner.kind:8} {corner.name}")
    met, pairs = coverage.pairs
    print(f"{met} of {pairs} pairs of corners met")
    for law, corner in coverage.rare:
        print(f"less than 1 in 300 problems of {LAWS[law]}: {corner.name}")
    raise SystemExit(bool(coverage.rare))


if __name__ == "__main__":
    main()
