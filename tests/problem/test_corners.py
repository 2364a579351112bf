"""Corners are seen where they are, and nowhere else; how often the general laws meet them is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qkverify.benchmarks.coverage import LAWS, Coverage, covered
from qkverify.problem.attention_problem import Problem
from qkverify.problem.corners import Corner, Seen, every


def problem(**changes: object) -> Problem:
    """One head, three queries, four keys, no option: almost no corner."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal((1, 1, n, 2)).astype(np.float32)
        for name, n in (("query", 3), ("key", 4), ("value", 4))
    }
    return Problem(**{**arrays, **changes})  # type: ignore[arg-type]


def met(seen: Problem) -> set[str]:
    with np.errstate(all="ignore"):
        return {corner.name for corner in every() if corner.holds(Seen(seen))}


HALF = np.array([-np.inf, -np.inf, 0.0, 1.0], np.float32)
SMALL, LARGE = (np.full((1, 1, 3, 2), x, np.float32) for x in (1e-40, 1e38))
BLOCKS = np.kron(np.eye(2, dtype=bool), np.ones((64, 64), bool))[:70, :128]


@pytest.mark.parametrize(
    ("changes", "corners"),
    [
        ({}, set()),
        ({"bias": HALF}, {"infinity in a bias", "first half of a bias is infinite", "bias broadcast over the queries"}),
        ({"bias": np.array([-1e4, 0, 0, 0], np.float32)}, {"finite bias that hides", "bias broadcast over the queries"}),
        ({"bias": np.full((3, 4), 100, np.float32)}, {"bias that shifts a row", "log sum exp above 88"}),
        ({"scale": -0.5}, {"negative scale"}),
        ({"scale": 1e-6}, {"tiny scale"}),
        ({"query": SMALL}, {"subnormal numbers"}),
        ({"query": np.zeros((1, 1, 3, 2), np.float32)}, {"queries of zero"}),
        ({"layouts": {"query": "every second"}}, {"strided query", "last axis not adjacent"}),
        ({"layouts": {"value": "offset"}}, {"array that begins inside a buffer"}),
        ({"mask": np.array([False, False, True, True])}, {"mask that hides the first half"}),
    ],
)  # fmt: skip
def test_a_problem_has_the_corners_that_were_put_into_it(
    changes: dict[str, object], corners: set[str]
) -> None:
    assert met(problem(**changes)) == corners


def test_a_mask_of_blocks_is_told_from_one_that_is_off_by_one() -> None:
    long = {
        name: np.ones((1, 1, n, 2), np.float32) for name, n in (("query", 70), ("key", 128), ("value", 128))
    }
    moved = BLOCKS.copy()
    moved[5, 5] = False
    assert "mask of blocks of 64" in met(problem(**long, mask=BLOCKS))
    assert "mask of blocks of 64" not in met(problem(**long, mask=moved))
    assert "numbers near the end of the format" in met(problem(query=LARGE))


def test_rare_corners_and_pairs_are_counted() -> None:
    corners = tuple(
        Corner(name, "test", needs, bool) for name, needs in (("a", ""), ("b", ""), ("c", "upstream"))
    )
    rows = np.zeros((300, 3), bool)
    rows[0] = True, False, True
    coverage = Coverage(corners, {"output": rows, "gradients": rows})
    assert [(law, corner.name) for law, corner in coverage.rare] == [("output", "b"), ("gradients", "b")]
    assert coverage.share("output", corners[2]) is None
    assert coverage.pairs == (1, 3)


# What the general laws do not reach: rows that overlap (a law of their own does), and sizes of which the README's own five
# lines say 0 / 0.
RARE = {"overlapping rows", "head size of zero", "value size of zero"}


def test_the_general_laws_meet_every_other_corner() -> None:
    """Read off the published table, which tests/test_docs.py holds to what the code makes."""
    text = (Path(__file__).parents[2] / "docs" / "what-is-verified.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.count(" | ") == 3]
    published = {corner: counts for _, corner, *counts in rows if corner in {each.name for each in every()}}
    assert published.keys() == {corner.name for corner in every()}
    assert {corner for corner, counts in published.items() if "**" in "".join(counts)} == RARE


def test_the_count_is_the_same_every_time() -> None:
    one, two = covered(40), covered(40)
    assert list(one.met) == list(LAWS)
    for law in LAWS:
        assert one.met[law].shape == (40, len(every()))
        assert np.array_equal(one.met[law], two.met[law])
