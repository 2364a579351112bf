"""Numbers as a person reads them: the one place of the report that turns a quantity into text.

Three significant digits, a unit with its prefix, and a space between them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_FLOPS = ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1.0, "FLOP/s"))
_BANDWIDTH = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1.0, "B/s"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_SMALLEST_SHOWN = 0.001  # smaller margins only say "next to nothing"
FEW_FAMILIES = 2  # what so few judge has a line instead of a row: its own family, and "calls", what every call owes its caller


def seconds(value: float) -> str:
    """0.0015 is "1.50 ms"."""
    return _scaled(value, _TIME)


def tick(unit: Callable[[float], str], value: float) -> str:
    """A round number on an axis, without the zeros that say nothing: "1 ms" where seconds gives "1.00 ms"."""
    number, _, name = unit(value).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {name}".rstrip()


def flops(value: float) -> str:
    """FLOP/s: 1.55e11 is "155 GFLOP/s"."""
    return _scaled(value, _FLOPS)


def bandwidth(value: float) -> str:
    """Bytes per second, in powers of ten as memory is sold: 1.2e10 is "12.0 GB/s"."""
    return _scaled(value, _BANDWIDTH)


def size(value: float) -> str:
    """Bytes, in powers of two: 1_572_864 is "1.50 MiB"."""
    return _scaled(value, _BYTES)


def percent(fraction: float) -> str:
    """0.613 is "61 %"; under ten per cent one digit more."""
    return f"{100 * fraction:.{0 if abs(fraction) >= 0.0995 else 1}f} %"


def margin(value: float | None) -> str:
    """|error| / bound in two digits: "0.34", "3.4e+06", "infinite"; empty where there is none."""
    if value is None:
        return ""
    if value >= sys.float_info.max:  # as results.finite stores an infinite one
        return "infinite"
    if 0 < value < _SMALLEST_SHOWN:
        return f"<{_SMALLEST_SHOWN}"
    if value == 0:
        return "0"
    if 0.995 <= value < 1:  # must not look as if it had reached the limit
        return f"{value:.3f}"
    if 1 < value < 1.05:  # nor as if it had kept it
        return f"{max(value, 1.001):.3f}"
    return f"{value:,.0f}" if 9.95 <= value < 1e5 else f"{value:#.2g}"


def ratio(value: float) -> str:
    """A factor of times: "1.56", or "24" where decimals say nothing."""
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def count(value: int) -> str:
    return f"{value:,}"


def number_of(value: int, noun: str) -> str:
    """A count with its noun: "1 law", "2 laws", "1,200 examples"; a noun in -y gets -ies."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{value:,} {noun if value == 1 else plural}"


def fact(value: str | int | float | None) -> str:
    """A fact of a fingerprint; one that the machine would not give is "not reported"."""
    if value is None:
        return "not reported"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g} {units[-1][1]}"
    # a hair of slack, so that 999.9 us rounds up into the next unit and is never "1e+03 us"
    factor, unit = next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])
    scaled = value / factor
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    whole = unit == "B" and scaled == round(scaled)
    return f"{scaled:.{0 if whole else digits}f} {unit}"
