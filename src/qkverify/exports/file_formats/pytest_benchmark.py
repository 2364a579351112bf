"""The latest timing of every cell in pytest-benchmark's own JSON, with its samples: `pytest-benchmark compare FILE` reads it.

Names are those that `pytest benchmarks` gives the same cells, so that a report can be held against a pytest run. Statistics are
computed by pytest-benchmark's own class. What a results file does not know of (the node's name, the time of the commit) is null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest_benchmark
from pytest_benchmark.stats import Stats

from qkverify.exports.tables import all_tables, runs_of
from qkverify.exports.tables.timings import TimingRow
from qkverify.results import Fact, Record, RunStart, Timing, of_kind

ABOUT = "for: pytest-benchmark compare FILE"
SUFFIXES = (".json",)
OFFERS = ("timings",)


def export(records: Sequence[Record], what: str) -> bytes:
    timed = {
        cell_id(row.timing): row
        for run in runs_of(records)
        for row in all_tables()[what].rows(run)
        if row.timing.seconds
    }
    run = next(iter(reversed(of_kind(records, RunStart))), None)
    facts = run.fingerprint.identity if run else {}
    whole = {
        "machine_info": machine(facts),
        "commit_info": commit(facts),
        "benchmarks": [benchmark(row) for row in timed.values()],
        "datetime": run.started if run else None,
        "version": pytest_benchmark.__version__,
    }
    return (json.dumps(whole, indent=4, ensure_ascii=False, allow_nan=False) + "\n").encode()


def cell_id(timing: Timing) -> str:
    """As `cells.Cell.id`."""
    return f"{timing.case}-{timing.direction}-{timing.implementation}-{timing.device}-{timing.dtype}"


def benchmark(row: TimingRow) -> dict[str, Any]:
    timing = row.timing
    stats: Any = Stats()  # type: ignore[no-untyped-call]  # pytest-benchmark has no types
    for seconds in timing.seconds:
        stats.update(seconds)
    name = f"test_attention[{cell_id(timing)}]"
    return {
        "group": f"{timing.case} {timing.direction} {timing.device} {timing.dtype}",
        "name": name,
        "fullname": f"benchmarks/test_attention.py::{name}",
        "params": {"cell": cell_id(timing)},
        "param": cell_id(timing),
        "extra_info": {
            "implementation": timing.implementation, "case": timing.case, "sizes": timing.sizes, "causal": timing.causal,
            "device": timing.device, "dtype": timing.dtype, "direction": timing.direction, "clock": timing.clock,
            "rounds": timing.rounds, "flops": timing.flops, "bytes": timing.bytes, "peak_bytes": timing.peak_bytes,
            "percent_of_roofline": None if row.share is None else 100 * row.share, "margin": timing.margin,
        },
        "options": {"disable_gc": False, "timer": "measured_seconds", "min_rounds": len(timing.seconds), "max_time": None,
                    "min_time": None, "warmup": True},
        "stats": {**stats.as_dict(), "data": timing.seconds, "iterations": 1},
    }  # fmt: skip


def machine(facts: dict[str, Fact]) -> dict[str, Any]:
    """The fingerprint under pytest-benchmark's names; those it has no name for follow under ours."""
    system, _, release = str(facts.get("os") or "").partition(" ")
    named = {
        "node": None, "processor": facts.get("cpu"), "machine": None, "python_compiler": None,
        "python_implementation": None, "python_implementation_version": None, "python_version": facts.get("python"),
        "python_build": None, "release": release or None, "system": system or None,
        "cpu": {"brand_raw": facts.get("cpu"), "count": facts.get("cores")},
    }  # fmt: skip
    ours = {name: fact for name, fact in facts.items() if name not in ("cpu", "cores", "os", "python")}
    return named | ours


def commit(facts: dict[str, Fact]) -> dict[str, Any]:
    dirty = {"yes": True, "no": False}.get(str(facts.get("dirty")))
    return {"id": facts.get("commit") or "unversioned", "time": None, "author_time": None, "dirty": dirty,
            "project": "qkverify", "branch": "(unknown)"}  # fmt: skip
