"""Sinusoidal positional encodings: 20 positions of 512 dimensions in both layouts, and a toy of 4 dimensions with its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from qkverify.contract import registry
from qkverify.report.pictures.grid import numbered, rounded
from qkverify.results import Picture

IMPLEMENTATION = "numpy_encoding"
SOURCE = '"Attention Is All You Need", section 3.5; "The Illustrated Transformer", part "Positional Encoding"'
SIZES = {"toy": (4, 4), "picture": (20, 512)}  # positions, dimensions
LAYOUTS = {
    "interleaved": "Sines in the even dimensions, cosines in the odd ones, as the paper writes it.",
    "concatenated": "All sines in the left half, all cosines in the right one, as the article draws it.",
}
SEEN = {
    "picture": "The first pair of sine and cosine turns by one radian a position, the last by 1/9647 of one: there the sine "
    "stays near 0 and the cosine near 1.",
    "toy": "Two pairs: one turns by a radian a position, the other by a hundredth of one.",
}


def measure() -> Iterator[Picture]:
    for size, (length, dim) in SIZES.items():
        for layout, words in LAYOUTS.items():
            encoded = registry.find(IMPLEMENTATION)[0].function(length, dim, layout=layout, dtype="float64")
            yield Picture(
                name=f"positions-{size}-{layout}", group="positions", kind="signed", title=f"{length} × {dim}, {layout}",
                finding=f"{words} {SEEN[size]}", source=SOURCE, rows=numbered(length), columns=numbered(dim), row_axis="position",
                column_axis="dimension", values=rounded(encoded, 4 if size == "toy" else 2), made_by=[IMPLEMENTATION],
            )  # fmt: skip
