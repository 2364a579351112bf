"""Observing: what an implementation returns on a problem and on those made from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from qkverify.counterexamples.diagnosis.claims import Observation, Parts
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.discriminating_problems import further
from qkverify.counterexamples.diagnosis.fitting import Array, agrees
from qkverify.errors import ContractError
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

ASPECTS: Mapping[str, str] = {"output": "the result equals {}", "lse": "the log-sum-exp equals {}",
                              "gradients": "the gradients are {}"}  # fmt: skip


@dataclass
class Observer:
    """Calls of the implementation on one problem and on those made from it, until the time is up."""

    run: Run
    problem: Problem
    until: Deadline
    written: set[str] = field(default_factory=set)  # arguments that a call has changed

    def observations(self) -> tuple[str, list[Observation]]:
        """What is wrong, and what came back on the problem and on those made from it; a wrong one first."""
        half = self.until.half()
        of_problem = {a: self.observe(self.problem, a) for a in ASPECTS if self.applies(a)}
        known = [observation for observation in of_problem.values() if observation is not None]
        for aspect, first in of_problem.items():
            if first is not None and first.right and not all(observation.right for observation in known):
                continue  # another aspect of this very problem is wrong
            attempts = [first]
            for made in further(self.run, self.problem):
                if half.over:
                    break
                attempts.append(self.observe(made, aspect))
            observations = [observation for observation in attempts if observation is not None]
            observations.sort(key=lambda observation: (observation.right, not observation.got))
            if observations and not observations[0].right:
                return aspect, observations
        return "", []

    def applies(self, aspect: str) -> bool:
        needed = {"output": True, "lse": self.run.offers("return_lse"),
                  "gradients": self.run.offers("gradients") and self.problem.upstream is not None}  # fmt: skip
        return bool(needed[aspect])

    def observe(self, problem: Problem, aspect: str) -> Observation | None:
        """One call, or None where it raises. The implementation gets copies: it may write into its arguments.

        Raises TimeoutError, which ends the diagnosis, once the time is up.
        """
        if self.until.over:
            raise TimeoutError
        names = [f.name for f in fields(problem) if isinstance(getattr(problem, f.name), np.ndarray)]
        lent = problem.replace(**{n: np.copy(getattr(problem, n)) for n in names})
        run = self.run
        try:
            if aspect == "output":
                got: Parts = {"output": run.values(lent)}
                expected: Parts = {"output": run.bound(problem)[0]}
            elif aspect == "lse":
                lse = run.lse(lent)
                got, with_lse = {"lse": lse.value}, problem.replace(return_lse=True)
                expected = {"lse": Bounded(run.bound(with_lse)[1].value, lse.errors)}
            else:
                got, expected = run.gradient_values(lent), run.gradient_bounds(problem)
        except ContractError:
            return Observation(problem, {}, {}, False)
        except Exception:  # what the implementation refuses says nothing
            return None
        self.written |= {n for n in names if not _same(getattr(lent, n), getattr(problem, n))}
        return Observation(problem, got, expected, all(agrees(got[n], expected[n]).all() for n in got))

    def right(self, problem: Problem, aspect: str) -> bool:
        observation = self.observe(problem, aspect)
        return observation is not None and observation.right


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def fresh(run: Run) -> Run:
    """The same run with a state of its own."""
    other = copy.copy(run)
    other.problems, other.failing, other._cache, other.requests = [], {}, {}, []
    other.returned, other.raised, other.used, other._asked = set(), set(), set(), set()
    return other
