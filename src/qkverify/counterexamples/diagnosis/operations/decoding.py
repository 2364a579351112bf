"""What the mistakes of packed, cached and paged attention have in common.

Each of the three is one plain attention over all rows that there are, with a mask that says which of them a query sees: so
the mistakes of attention that have nothing to do with masks are theirs as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.gradients import GRADIENTS, OF_EMPTY_ROWS
from qkverify.counterexamples.diagnosis.mistakes.heads import HEADS
from qkverify.counterexamples.diagnosis.mistakes.scores import SCALE, TERMS
from qkverify.counterexamples.diagnosis.mistakes.softmax import SOFTMAX
from qkverify.counterexamples.diagnosis.mistakes.variants import Array, Mistake
from qkverify.counterexamples.diagnosis.operations.kind import Compute, Example, Mistakes
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import attention
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

LETTERS = (  # H, G, D, E
    (2, 2, 3, 4), (4, 2, 4, 3), (3, 1, 2, 2), (1, 1, 5, 2), (6, 3, 3, 3), (4, 2, 2, 5),
)  # fmt: skip
QUIET, LOUD = 1.5, 80.0  # how far arrays spread; loud ones have scores past the range of the exponential


def _offered(mistakes: tuple[Mistake, ...]) -> tuple[Mistake, ...]:
    """Those that need no option which none of the three takes."""
    return tuple(m for m in mistakes if set(m.needs) <= {"softcap"} and not m.among)


SCORED = _offered((*SCALE, *TERMS))
LIKE_PLAIN = (*SCORED, *HEADS, *_offered(SOFTMAX))


def options_of(run: Run, i: int) -> dict[str, Any]:
    """A third of the examples without options, the others with a softcap and scales by turns, as far as they are offered."""
    given = ({}, {"softcap": 1.5}, {}, {"scale": 0.4}, {"scale": -0.5}, {"scale": -0.6, "softcap": 2.0})[
        i % 6
    ]
    return {name: value for name, value in given.items() if run.offers_parameter(name)}


def told(run: Run) -> dict[str, Any]:
    return {name: run.semantics[name] for name in ("causal_alignment", "empty_rows")}


class Dense:
    """Plain attention of query (B,H,Q,D) to key (B,G,K,D), value (B,G,K,E) where `mask` allows it."""

    def __init__(self, query: Any, key: Any, value: Any, *, mask: Array, scale: Any = None, softcap: Any = None,
                 empty_rows: str = "zero", upstream: Any = None, **_: Any) -> None:  # fmt: skip
        p = query.precision
        default = max(query.shape[-1], 1) ** -0.5
        used = Bounded(default, default * p.accumulate.unit, p) if scale is None else scale
        self.arguments = {
            "query": query,
            "key": key,
            "value": value,
            "mask": mask,
            "scale": used,
            "empty_rows": empty_rows,
        }
        self.arguments |= {} if softcap is None else {"softcap": softcap}
        self.upstream = upstream
        self.problem = Problem(
            query=query.value, key=key.value, value=value.value, mask=mask, empty_rows=empty_rows,
            scale=None if scale is None else float(scale.value), softcap=None if softcap is None else float(softcap.value),
        )  # fmt: skip

    def output(self, mistake: Mistake | None = None) -> Any:
        """(B,H,Q,E), right or with a mistake."""
        if mistake is None or not mistake.matters(self.problem):
            return attention(**self.arguments)
        if mistake.output is not None:
            return mistake.output(self.arguments, self.problem)
        return attention(**self._edited(mistake))

    def gradients(self, mistake: Mistake | None = None) -> dict[str, Any]:
        """By query, key and value."""
        if mistake is None or not mistake.matters(self.problem):
            return attention_vjp(**self.arguments, upstream=self.upstream)
        if mistake.gradients is not None:
            problem = self.problem.replace(upstream=self.upstream.value)
            gradients: dict[str, Any] = mistake.gradients(
                {**self.arguments, "upstream": self.upstream}, problem
            )
            return gradients
        return attention_vjp(**self._edited(mistake), upstream=self.upstream)

    def _edited(self, mistake: Mistake) -> dict[str, Any]:
        assert mistake.edit is not None
        return mistake.edit(self.arguments, self.problem)


def like_plain(compute: Callable[[Mistake], Compute]) -> Mistakes:
    """The mistakes of plain attention that show in a result."""
    return tuple((m.text, compute(m)) for m in LIKE_PLAIN if m.edit is not None or m.output is not None)


def like_plain_gradients(compute: Callable[[Mistake], Compute], *, empty_rows: bool = True) -> Mistakes:
    """The mistakes of plain attention that show in gradients, with or without those of queries that see no key."""
    known = GRADIENTS if empty_rows else tuple(m for m in GRADIENTS if m not in OF_EMPTY_ROWS)
    backward = tuple((m.text, compute(m)) for m in _offered(known))
    return (*backward, *((f"those of {m.text}", compute(m)) for m in SCORED if m.edit is not None))


WITH: tuple[tuple[str, Callable[[Example], bool]], ...] = (
    ("with a softcap", lambda e: "softcap" in e.options), ("with a given scale", lambda e: "scale" in e.options),
    ("with grouped heads", lambda e: bool(e.told["grouped"])),
)  # fmt: skip


def per_entry(x: Array) -> Array:
    """(B,) -> (B,1,1,1), to be compared with (Q,1) or (K,)."""
    return np.reshape(x, (-1, 1, 1, 1))
