"""Made-up runs of one machine, one a day: every time drifts with the machine's pace, and one implementation gets slower."""

from __future__ import annotations

import math
import random
from pathlib import Path

import msgspec

from qkverify.history import earlier_runs
from qkverify.results import Ceiling, Fact, Fingerprint, Record, RunStart, Timing, Writer

from . import synthetic_results

SLOWED = ("synthetic_eager", "float32", "forward")  # by RATIO from run STEP on, counted from zero
RATIO = 1.31


def run(
    day: int,
    *,
    step: int | None = None,
    drift: float = 0.05,
    noise: float = 0.02,
    facts: dict[str, Fact] | None = None,
) -> list[Record]:
    """The records of the run of a day, 1 .. 31 of January; `drift` and `noise` are deviations of logarithms."""
    rng = random.Random(day)
    pace = math.exp(rng.gauss(0, drift))
    return [
        _changed(record, day, pace, rng, step, noise, facts or {}) for record in synthetic_results.records()
    ]


def _changed(
    record: Record,
    day: int,
    pace: float,
    rng: random.Random,
    step: int | None,
    noise: float,
    facts: dict[str, Fact],
) -> Record:
    if isinstance(record, RunStart):
        identity = {**record.fingerprint.identity, "commit": f"{day:02x}" * 20, **facts}
        print_of = Fingerprint(identity, record.fingerprint.state)
        return msgspec.structs.replace(
            record, started=f"2026-01-{day:02}T03:04:05+00:00", fingerprint=print_of
        )
    if isinstance(record, Ceiling):
        return msgspec.structs.replace(record, rate=record.rate / pace, seconds=[0.1] * 30)
    if isinstance(record, Timing) and record.seconds:
        factor = pace * math.exp(rng.gauss(0, noise))
        slowed = (
            step is not None
            and day > step
            and (record.implementation, record.dtype, record.direction) == SLOWED
        )
        factor *= RATIO if slowed else 1.0
        return msgspec.structs.replace(record, seconds=[factor * second for second in record.seconds])
    return record


def write(path: Path, records: list[Record]) -> None:
    """As a run that begins anew does: what is there is kept in the history, and replaced."""
    earlier_runs.archive(path)
    path.unlink(missing_ok=True)
    with Writer(path) as writer:
        for record in records:
            writer.append(record)
