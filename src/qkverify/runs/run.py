"""One implementation on one device in one dtype, made callable: what a law holds in its hands.

    output = run(problem)              what came back, as a `Bounded`: value = got, error = the derived bound
    run.exact(problem)                 the reference's value, float64
    run.values(problem)                what came back, bit for bit
    run.gradients(problem)             {"query": Bounded, ...} for problem.upstream

Because a result carries its bound, a law is arithmetic: `run(problem).sum(-1)` has the bound of the sum, and two runs are
compared within the sum of both bounds. The run that is being checked is `active()`: strategies ask it what to generate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from qkverify.problem.byte_strategies import LIMITS
from qkverify.runs.gradient_run import GradientRun
from qkverify.runs.operation_run import OperationRun

_active: ContextVar[Run | None] = ContextVar("active", default=None)


def active() -> Run | None:
    """The run that is being checked, or None outside of a check."""
    return _active.get()


class Run(GradientRun, OperationRun):
    """All that a law may ask: of attention, of its gradients, of the other operations. `framework_adapter` is what they share."""

    @contextlib.contextmanager
    def activated(self) -> Iterator[Run]:
        """The run that strategies draw for. What its implementation does to settings of the process ends with it."""
        token, limits = _active.set(self), LIMITS.set(self.implementation.size_limits)
        try:
            with self.framework.restored():
                yield self
        finally:
            LIMITS.reset(limits)
            _active.reset(token)
