"""The pictures of the sources, measured: what "The Illustrated Transformer" and "Attention Is All You Need" draw, as numbers.

Each file makes the pictures of one group by running implementations of this repository; nothing is drawn from theory. The
numbers become records, and the report draws them wherever it is made. Needs no extra but for the attention of a trained model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qkverify.report.pictures import attention, masks, positions, saturation
from qkverify.results import Picture
from qkverify.verification.checking import Cell


def measure(cells: Sequence[Cell]) -> Iterator[Picture]:
    """Every picture; `cells` are those whose masks are drawn."""
    yield from positions.measure()
    yield from saturation.measure()
    yield from attention.measure()
    yield from masks.measure(cells)
