"""Numbers that no run can have measured: a record with one of them is refused where it is read, with its line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from qkverify.results.timing_records import Accuracy, Ceiling, Control, OperationTiming, Timing, TimingSummary

LONGEST_SECONDS = 1e9  # thirty years
LARGEST = 2**62  # of a size, a count of operations or of bytes


def refuse_implausible(record: msgspec.Struct) -> None:
    """Raise ValueError that names the field, if a record holds what cannot be."""
    for field, values in _positive(record).items():
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field} is {value:g}, and can only be a number above 0")
    for field, values in _seconds(record).items():
        if any(value > LONGEST_SECONDS for value in values):
            raise ValueError(f"{field} is {max(values):g} s, more than thirty years")
    if isinstance(record, Timing | OperationTiming):
        _refuse_timing(record)
    if isinstance(record, Accuracy) and not (math.isfinite(record.lean) and math.isfinite(record.lean_error)):
        raise ValueError("lean is not finite")


def _positive(record: msgspec.Struct) -> Mapping[str, Iterable[float]]:
    if isinstance(record, Ceiling):
        return {"rate": [record.rate], "seconds": record.seconds}
    if isinstance(record, Control):
        return {"ratio": [record.ratio], "low": [record.low], "high": [record.high]}
    return _seconds(record)


def _seconds(record: msgspec.Struct) -> Mapping[str, list[float]]:
    if isinstance(record, Timing | OperationTiming):
        return {"seconds": record.seconds}
    if isinstance(record, TimingSummary):
        return {name: [getattr(record, name)] for name in ("median_seconds", "low_seconds", "high_seconds")}
    return {}


def _refuse_timing(record: Timing | OperationTiming) -> None:
    if record.seconds and not record.sizes:
        raise ValueError("sizes is empty, and there are seconds")
    if record.seconds and record.rounds and len(record.rounds) != len(record.seconds):
        raise ValueError(f"there are {len(record.seconds)} seconds and {len(record.rounds)} rounds")
    counts = {f"size {letter}": size for letter, size in record.sizes.items()}
    if isinstance(record, Timing):
        counts |= {"flops": record.flops, "bytes": record.bytes}
    for name, count in counts.items():
        if not 0 <= count <= LARGEST:
            raise ValueError(f"{name} is {count}")
