"""Scripts about dropout, whose calls depend on chance: the generator is seeded before the first of them.

So a script gives the same numbers every time, and a replay could not: what a script is to show is looked for here anew, with
calls that begin at the same seed. Values are an identity in the laws of dropout: the output is the weights.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qkverify.counterexamples.diagnosis.dropout import ODDS, gradients, times, usual
from qkverify.counterexamples.scripts.calls import Calls
from qkverify.counterexamples.scripts.recorder import Array, Recorded, Recorder
from qkverify.counterexamples.scripts.textbook import attention_steps
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

if TYPE_CHECKING:
    from qkverify.counterexamples.scripts.showing import ScriptCase

SEEDS = {"torch": "torch.manual_seed({})", "numpy": "np.random.seed({})"}
TRIED = 64  # seeds, of which a bug that shows on some of few weights needs one
LEAST = 100  # weights in a mask, below which two right ones may well be equal: the odds are 2^-100


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """The generators that a script seeds are afterwards as they were."""
    torch, before = sys.modules.get("torch"), np.random.get_state()
    state = torch.get_rng_state() if torch is not None else None
    try:
        yield
    finally:
        np.random.set_state(before)
        if torch is not None:
            torch.set_rng_state(state)


def share_of(call: Recorded) -> float:
    return float(call.options.get("dropout", 0.0))


def exact_of(run: Recorder, call: Recorded, seed: int) -> Iterator[tuple[str, Array, Bounded]]:
    """(what, got, exact) of a call that is made once more: outputs, or gradients."""
    problem, p = call.problem, share_of(call)
    assert problem is not None
    if call.kind == "dropout":
        got = run.seeded(call, seed)["output"]
        exact = run.bound(problem)[0]
        yield "output", got, _dropped(exact, got, p, run) if p else exact
        return
    received = run.seeded(call, seed)
    output = received.pop("output")
    kept = np.where(output == 0, 0.0, 1.0) * times(
        p, usual, run.gradient_precision.either_side(problem.scale or 1.0)
    )
    for name, x in gradients(run, problem, kept, kept).items():
        yield f"gradient of {name}", received[name], run._oracle_included(x)


def _dropped(exact: Bounded, got: Array, p: float, run: Run) -> Bounded:
    """Each weight scaled where it was kept."""
    scaled = Bounded(exact.value, exact.errors, run.precision) * times(p, usual, run.precision)
    return run._oracle_included(
        +Bounded(np.where(got == 0, 0.0, scaled.value), scaled.errors, run.precision, 0.0)
    )


def seeded(run: Run, case: ScriptCase) -> str:
    """The line before the first call."""
    return SEEDS[run.implementation.arrays].format(case.seed)


def value_lines(case: ScriptCase, run: Run, calls: Calls, laid_out: list[str]) -> list[str]:
    """One call beside the same in float64, where what it has dropped is dropped as well."""
    call, p = case.call, share_of(case.call)
    problem = call.problem
    assert problem is not None
    if call.kind == "dropout":
        steps = [*attention_steps(problem, "output"), "", *laid_out, seeded(run, case),
                 *calls.output("got", "output", problem, further=call.options)]  # fmt: skip
        kept = f"exact = np.where(got == 0, 0, exact / (1 - {p!r}))  # with V = I these are weights, dropped or scaled"
        return [*steps, *([kept] if p else [])]
    if run.implementation.layout != "BHLD" or run.implementation.arrays != "torch":
        raise NotImplementedError("gradients through dropout stand in a script for torch only")
    which = case.what.removeprefix("gradient of ")
    return [*laid_out, "query, key, value = (x.detach().requires_grad_() for x in (query, key, value))",
            seeded(run, case), f"output = {calls.of(problem, further=call.options)}",
            f"got = numbers(torch.autograd.grad(output, {which}, upstream)[0])",
            f"kept = np.where(numbers(output) == 0, 0, 1 / (1 - {p!r}))  # the values are an identity: the output is the weights",
            "", *attention_steps(problem, case.what, dropped=True)]  # fmt: skip


def masks_lines(case: ScriptCase, run: Run, calls: Calls) -> list[str]:
    """Two calls, whose masks must differ, as must those of batch entries and heads."""
    problem = case.call.problem
    assert problem is not None
    s = problem.sizes
    lines = [seeded(run, case),
             f"one, two = (numbers({calls.of(problem, further=case.call.options)}) == 0 for _ in range(2))",
             'print("dropped by two calls", one.sum(), two.sum(), "  by one and not the other", (one != two).sum())',
             'assert (one != two).any(), "two calls dropped the same weights"']  # fmt: skip
    pairs = [("one[0]", "one[1]", "batch entries")] if s["B"] > 1 else []
    if s["H"] > 1:
        every = ":, " if run.implementation.layout == "BHLD" else ":, :, "
        pairs.append((f"one[{every}0]", f"one[{every}1]", "heads"))
    return [
        *lines,
        *(f'assert ({a} != {b}).any(), "two {what} dropped the same weights"' for a, b, what in pairs),
    ]


def share_lines(case: ScriptCase, run: Run, calls: Calls) -> list[str]:
    """How many weights one call has dropped."""
    problem, p = case.call.problem, share_of(case.call)
    assert problem is not None
    room = math.sqrt(math.log(2 / ODDS) / (2 * problem.visible.sum()))
    return [seeded(run, case),
            f"weights = numbers({calls.of(problem, further=case.call.options)})  # the values are an identity",
            "share = (weights == 0).mean()",
            f'print("dropped", share, "  asked for", {p!r})',
            f"assert abs(share - {p!r}) <= {room:.4g}  # by chance more than that once in {1 / ODDS:.0e} calls"]  # fmt: skip


def repeats_lines(case: ScriptCase, run: Run, calls: Calls) -> list[str]:
    """The same call twice."""
    problem = case.call.problem
    assert problem is not None
    call = calls.of(problem)
    call = f"({call})[0]" if problem.return_lse else call
    return [seeded(run, case), f"one, two = (numbers({call}) for _ in range(2))",
            'print("largest difference", np.nanmax(abs(one - two)))',
            'assert np.array_equal(one, two, equal_nan=True), "the same call gives different numbers"']  # fmt: skip


def is_counted(call: Recorded) -> bool:
    """Whether the share of dropped weights can be told: every weight is there."""
    p = call.problem
    return p is not None and bool(p.visible.all()) and p.visible.size >= LEAST and share_of(call) > 0
