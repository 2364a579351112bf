"""What an implementation of attention with one mistake of the table, or with two at once, would return."""

from __future__ import annotations

from qkverify.counterexamples.diagnosis.claims import Observation, Parts
from qkverify.counterexamples.diagnosis.fitting import Predict
from qkverify.counterexamples.diagnosis.mistakes import Mistake
from qkverify.counterexamples.diagnosis.mistakes.scores import scale_of
from qkverify.counterexamples.diagnosis.mistakes.variants import Arguments
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import attention
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.rounding import Precision
from qkverify.runs.run import Run


def predicting(run: Run, mistake: Mistake, aspect: str, then: Mistake | None = None) -> Predict:
    """What comes back for an observation's problem with a mistake; `then` is made on top of it, where it matters."""

    def predict(observation: Observation) -> Parts | None:
        made = [m for m in (mistake, then) if m is not None and m.matters(observation.subject)]
        if not made:
            return observation.expected
        try:
            return _computed(run, made, observation.subject, aspect)
        except Exception:  # a variant that cannot be computed here predicts nothing
            return None

    return predict


def _computed(run: Run, made: list[Mistake], problem: Problem, aspect: str) -> Parts | None:
    """The last of the mistakes may be a computation of its own, the one before it only changes arguments."""
    precision = run.precision
    if aspect == "gradients":
        precision = run.gradient_precision.either_side(scale_of(problem))
    arguments = _arguments(run, problem, precision)
    *before, last = made
    for mistake in before:
        if mistake.edit is None:
            return None
        arguments = mistake.edit(arguments, problem)
    special = getattr(last, aspect)
    if special is not None:
        predicted = special(arguments, problem)
        return predicted if aspect == "gradients" else {aspect: predicted}
    if last.edit is None:
        return None
    arguments = last.edit(arguments, problem)
    if aspect == "gradients":
        return attention_vjp(**arguments, delta=run.semantics["delta"])
    arguments.pop("upstream", None)
    output, lse = attention(**arguments, return_lse=True)
    return {aspect: output if aspect == "output" else lse}


def _arguments(run: Run, problem: Problem, precision: Precision) -> Arguments:
    """What the reference is called with, as `Run.bound` and `Run.gradient_bounds` do."""
    names = [n for n in ("query", "key", "value", "upstream") if getattr(problem, n) is not None]
    arrays = {name: run.bounded(getattr(problem, name), precision) for name in names}
    options = run._bounded_options(problem, precision)
    options.pop("return_lse", None)
    return {**arrays, **options}
