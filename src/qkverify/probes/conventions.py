"""Finding out what an implementation chose where libraries differ legitimately.

A declared choice is taken at its word and the laws hold it to that. An undeclared one is probed on an example small enough to
be read, printed ("detected: causal top-left"), and, but for `PRINTED_ALONE`, held to for the rest of the run. A probe that
raises leaves the choice open: the laws will meet the same error and report it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qkverify.contract import Implementation, empty_rows, messages
from qkverify.probes import attention_rounding, operation_conventions
from qkverify.probes.attention_conventions import PROBES
from qkverify.probes.choice import Choice
from qkverify.probes.small_problems import answer
from qkverify.rounding import Precision
from qkverify.runs.run import Run

__all__ = ["Choice", "detect", "precisions_of", "settled"]


@messages.collected()
def detect(implementation: Implementation, device: str, dtype: str) -> dict[str, Choice]:
    """Every convention of an implementation in one cell, with the precision model it is judged by in half precision."""
    run = Run(implementation, device, dtype)
    choices: dict[str, Choice] = {}
    if implementation.operation != "attention":
        choices |= operation_conventions.left_out(implementation, run)
        run.semantics |= settled(choices)
        return {**choices, **operation_conventions.rounding(implementation, run)}
    for name, probe in PROBES.items():
        if name in implementation.semantics:
            choices[name] = Choice(_whole(implementation.semantics[name], probe, run), "declared")
            run.semantics[name] = choices[name].value
            continue
        value = answer(probe, run)
        if name in UNUSUAL and not value:
            continue
        choices[name] = Choice(value, "detected") if value else Choice("none", "not applicable")
        if value:
            run.semantics[name] = value
    if dtype in ("float16", "bfloat16"):
        choices |= attention_rounding.of_output(implementation, run)
        if run.offers("gradients"):
            choices |= attention_rounding.of_gradients(implementation, run, choices["precision"])
            choices |= attention_rounding.further_in_gradients(run, choices["gradient_precision"])
    return choices


def settled(choices: Mapping[str, Choice]) -> dict[str, str]:
    """The conventions a run is held to."""
    return {
        name: choice.value
        for name, choice in choices.items()
        if choice.how != "not applicable"
        and name not in ("precision", "gradient_precision")
        and not (name in PRINTED_ALONE and choice.how == "detected")
    }


# What is said only where it is so: the contract asks for an error, and for a difference.
UNUSUAL = ("mismatched_sizes", "exponent")


# What a probe finds and nobody is held to: the contract wants the natural log-sum-exp of whoever says nothing, and bits that
# agreed on one small example need not on others (a matrix product may depend on where its operands lie in memory).
PRINTED_ALONE = ("lse", "deterministic", "batch_invariant")


def precisions_of(choices: Mapping[str, Choice], dtype: str) -> dict[str, Precision]:
    """The precision models that were detected, as `Run` takes them: of the output and of the gradients."""
    return {
        name: Precision.named(choices[name].value, dtype)
        for name in ("precision", "gradient_precision")
        if name in choices and choices[name].how == "detected"
    }


def _whole(declared: str, probe: Callable[[Run], str | None], run: Run) -> str:
    """A declaration as it is; where it speaks of some ways to hide keys only, with what was found out of the others."""
    ways = empty_rows.by_way(declared)
    probed = answer(probe, run) if ways else None
    if probed is None:
        return declared
    others = {way: empty_rows.value_of(probed, way) for way in empty_rows.WAYS if run.offers(way)}
    known = {way: value for way, value in others.items() if value != empty_rows.UNDECIDED}
    apart = {pair: value for pair, value in empty_rows.by_way(probed).items() if pair in empty_rows.PAIRS}
    return empty_rows.joined({**known, **apart, **ways})
