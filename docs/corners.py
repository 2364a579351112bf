"""What generated problems reach: counted in seeded draws by `qkverify.benchmarks.coverage`."""

from __future__ import annotations

from block import block

from qkverify.benchmarks.coverage import LAWS, RARE, covered
from qkverify.report.markdown import table


@block("corners")
def _() -> str:
    """A row for each corner; those below the threshold in bold."""
    coverage = covered()
    rows = []
    for corner in coverage.corners:
        shares = [coverage.share(law, corner) for law in LAWS]
        rows.append([corner.kind, corner.name, *map(_per_thousand, shares)])
    met, pairs = coverage.pairs
    counts = table(["kind", "corner", *(f"of 1,000: {law}" for law in LAWS)], rows)
    bold = f"Bold: met in less than 1 of {round(1 / RARE)} problems."
    return f"{counts}\n\n{bold} Pairs of corners met in these problems: {met:,} of {pairs:,}."


def _per_thousand(share: float | None) -> str:
    if share is None:
        return "-"
    count = f"{1000 * share:.1f}"
    return f"**{count}**" if share < RARE else count
