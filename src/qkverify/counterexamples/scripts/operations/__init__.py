"""The textbook form of other operations than attention, one file each, named after the operation: `steps` gives its lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qkverify.contract.operations import in_each
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run

OPERATION_STEPS: Mapping[str, Callable[[Recorded, Run], list[str]]] = in_each(__name__, "steps")
