"""The runs themselves, and what they measured of the machine."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from qkverify import units
from qkverify.exports.tables import Column, Table
from qkverify.results import Ceiling, Control, RunStart, of_kind


def _fact(name: str) -> Any:
    def fact(run: RunStart) -> str | None:
        value = run.fingerprint.identity.get(name)
        return None if value is None else units.fact(value)

    return fact


FACTS = {
    "cpu": "the processor's name", "cores": "cores that the run could use", "memory_gib": "memory in GiB",
    "gpu": "the GPU's name", "driver": "of the GPU", "cuda": "version", "os": "name and release",
    "python": "version", "numpy": "version", "torch": "version", "triton": "version", "jax": "version",
    "blas": "NumPy's BLAS", "blas_threads": "threads of each BLAS", "torch_threads": "threads of torch",
    "commit": "of qkverify's checkout", "dirty": "whether files differed from the commit",
}  # fmt: skip

TABLES = {
    "runs": Table(
        "one row for each run",
        [
            Column("qkverify", str, "version that wrote it", attrgetter("qkverify"), str),
            Column("command", str, "what repeats it", attrgetter("command"), str),
            Column("profile", str, "how many examples a law", attrgetter("profile"), str),
            Column("seed", int, "of the generated problems", attrgetter("seed")),
            *(Column(name, str, about, _fact(name), str) for name, about in FACTS.items()),
        ],
        lambda run: of_kind(run.records, RunStart),
    ),
    "ceilings": Table(
        "one row for each rate that the device was seen to reach",
        [
            Column("device", str, "cpu or cuda", attrgetter("device"), str),
            Column("dtype", str, "of the numbers", attrgetter("dtype"), str),
            Column("what", str, "matmul or copy", attrgetter("what"), str),
            Column("rate", float, "FLOP/s of a matmul, bytes/s of a copy", attrgetter("rate"), lambda rate: f"{rate:.3g}"),
            Column("samples", int, "how often it was timed", lambda ceiling: len(ceiling.seconds)),
        ],
        lambda run: of_kind(run.records, Ceiling),
    ),
    "controls": Table(
        "one row for each A/A control: an implementation timed against itself",
        [
            Column("case", str, "the workload", attrgetter("case"), str),
            Column("implementation", str, "which", attrgetter("implementation"), str),
            Column("device", str, "cpu or cuda", attrgetter("device"), str),
            Column("dtype", str, "of query, key and value", attrgetter("dtype"), str),
            Column("direction", str, "forward or forward+backward", attrgetter("direction"), str),
            Column("ratio", float, "its time over its own", attrgetter("ratio"), lambda ratio: f"{ratio:.3f}"),
            Column("low", float, "lower end of the 95 % interval", attrgetter("low"), lambda low: f"{low:.3f}"),
            Column("high", float, "upper end of the 95 % interval", attrgetter("high"), lambda high: f"{high:.3f}"),
        ],
        lambda run: of_kind(run.records, Control),
    ),
}  # fmt: skip
