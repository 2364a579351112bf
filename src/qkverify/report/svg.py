"""SVG as strings, escaped where text enters, and the two scales that charts need.

Charts are drawn when the page is made, not when it is opened: they need no library on the page (Vega's is 0.9
MB and takes a second to draw eight charts), are there without a script, in print and in a diff, take their
colours from the page's style sheet in light and dark, and are the same bytes every time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MARKS = 6  # shapes of marks in the style of the page: m0 .. m5
COLOURS = 12  # colours in the style sheet: --s0 .. --s11
MOST_TICKS = 5  # above the lowest


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One element. Underscores in names become hyphens (`class_` loses its own); None leaves one out."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(children)
    return Markup(f"<{tag}{named}>{inner}</{tag}>" if children else f"<{tag}{named}/>")


def path(points: Sequence[tuple[float, float]]) -> str:
    """A polyline as path data."""
    return "".join(f"{'L' if i else 'M'}{_number(x)} {_number(y)}" for i, (x, y) in enumerate(points))


@dataclass(frozen=True)
class Scale:
    """Maps `low .. high` to pixels `start .. stop`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        turn = math.log if self.logarithmic else float
        share = (turn(value) - turn(self.low)) / (turn(self.high) - turn(self.low))
        return self.start + share * (self.stop - self.start)


def powers(values: Sequence[float], base: int = 10) -> tuple[float, float, list[float]]:
    """Bounds and ticks of a logarithmic axis around positive values: powers of `base`, at most a few.

    Within two decades there are ticks at 2 and 5 as well, and the axis begins and ends at any of them.
    """
    low, high = min(values), max(values)
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    last = max(last, first + 1)
    if base == 10 and last - first <= 2:
        fine = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
        below, above = [0.0, *fine[:-1]], [*fine[1:], math.inf]
        kept = [
            t for t, lower, upper in zip(fine, below, above, strict=True) if upper >= low and lower <= high
        ]
        return kept[0], kept[-1], kept
    step = math.ceil((last - first) / MOST_TICKS)
    ticks = [float(base) ** (first + step * i) for i in range(math.ceil((last - first) / step) + 1)]
    return ticks[0], ticks[-1], ticks


def even(low: float, high: float) -> list[float]:
    """Ticks of a linear axis around low .. high: multiples of 1, 2 or 5 times a power of ten, at most a few."""
    size = 10.0 ** math.floor(math.log10((high - low) / MOST_TICKS))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= MOST_TICKS)
    hair = math.ulp(1.0) * abs(high) / step  # 0.95 / 0.05 is a hair less than 19
    first, last = math.floor(low / step + hair), math.ceil(high / step - hair)
    return [tick * step for tick in range(first, last + 1)]


def _number(value: object) -> object:
    """Coordinates to a tenth of a pixel, without trailing zeros."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
