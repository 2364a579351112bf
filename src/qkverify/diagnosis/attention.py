"""The diagnosis of attention: symptoms that show by themselves, then the table of mistakes, then where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from qkverify.diagnosis import symptoms
from qkverify.diagnosis.conditions import CONDITIONS
from qkverify.diagnosis.fitting import Observation, Parts, Predict, select, sentence
from qkverify.diagnosis.mistakes import MISTAKES, Mistake
from qkverify.diagnosis.mistakes.scores import scale_of
from qkverify.diagnosis.mistakes.variants import Arguments, other_alignment
from qkverify.diagnosis.observing import ASPECTS, Observer, fresh
from qkverify.problems import Problem
from qkverify.reference.attention import attention
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.rounding import Precision
from qkverify.runs import Run


def sentence_of(observer: Observer) -> str:
    """What went wrong on the observer's problem, or nothing. Raises TimeoutError once the time is up."""
    aspect, seen = observer.observations()
    if not seen or seen[0].right:
        return symptoms.written(observer)
    first = seen[0].subject
    if first.options.keys() != observer.problem.options.keys():  # begin anew with what is wrong
        return sentence_of(Observer(observer.run, first, observer.until))
    return (
        symptoms.varies(observer, first, aspect)
        or symptoms.mode(observer, first, aspect)
        or symptoms.layouts(observer, first, aspect)
        or symptoms.lse_switch(observer, first, aspect)
        or _known_mistake(observer, seen, aspect)
        or symptoms.written(observer)
        or symptoms.remembered(observer, aspect)
        or symptoms.digits(observer, aspect)
        or symptoms.place(observer, seen, aspect)
    )


def _known_mistake(observer: Observer, seen: Sequence[Observation], aspect: str) -> str:
    """The first mistake of the table that explains what was observed, with its condition."""
    words, first = _words(observer.problem), seen[0].subject
    every = [
        (m.text.format(**words), _predicting(observer.run, m, aspect)) for m in MISTAKES if m.matters(first)
    ]
    text, where = select(observer.run, seen, every, CONDITIONS, observer.until)
    if not text:
        return ""
    of = {"lse": "that of ", "gradients": "those of "}.get(aspect, "")
    those = of if "attention" in text.split()[:2] else ""
    return sentence(where, ASPECTS[aspect].format(those + text))


def _words(p: Problem) -> dict[str, str]:
    return {"declared": p.causal_alignment, "other": other_alignment(p), "empty": p.empty_rows}


def _predicting(run: Run, mistake: Mistake, aspect: str) -> Predict:
    def predict(seen: Observation) -> Parts | None:
        if not mistake.matters(seen.subject):
            return seen.expected
        try:
            return _computed(run, mistake, seen.subject, aspect)
        except Exception:  # a variant that cannot be computed here predicts nothing
            return None

    return predict


def _computed(run: Run, mistake: Mistake, problem: Problem, aspect: str) -> Parts | None:
    special = getattr(mistake, aspect)
    precision = run.precision
    if aspect == "gradients":
        precision = run.gradient_precision.either_side(scale_of(problem))
    arguments = _arguments(run, problem, precision)
    if special is not None:
        found = special(arguments, problem)
        return found if aspect == "gradients" else {aspect: found}
    if mistake.edit is None:
        return None
    arguments = mistake.edit(arguments, problem)
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


def wrong_first(run: Run, until: float) -> list[Problem]:
    """The problems of the example that failed last, those with a wrong result before the others."""
    distinct, run = {id(p): p for p in run.problems}.values(), fresh(run)

    def right(p: Problem) -> bool:
        observer = Observer(run, p, until)
        own = [observer.observe(p, aspect) for aspect in ASPECTS if observer.applies(aspect)]
        return all(one is None or one.right for one in own)

    return sorted(distinct, key=right)
