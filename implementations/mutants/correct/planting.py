"""Planting: a broken step and the correct rest become a registered implementation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.contract import OPTIONS, implementation
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.textbook import TEXTBOOK

EVIDENCE = ("stated", "partly", "inferred")  # how much of the mechanism the cited threads state
CLAIMS = {
    "causal_alignment": "bottom-right",
    "empty_rows": "zero",
    "masked_values": "ignored",
    "deterministic": True,
}
USUAL = ("mask", "bias", "causal", "scale")
EVERY = tuple(OPTIONS)
SWITCHES = ("causal", "return_lse")


@dataclass(frozen=True)
class Mutant:
    name: str
    bug: str  # the number of the bug; several mechanisms may share one
    threads: tuple[str, ...]
    evidence: str
    sentence: str
    family: str
    function: Callable[..., Any]


MUTANTS: list[Mutant] = []


def mutant(bug: str, *, threads: str = "", evidence: str, offers: Iterable[str] = USUAL, step: str = "",
           base: Any = TEXTBOOK, gradients: Any = None, **declared: Any) -> Callable[..., Any]:  # fmt: skip
    """Plant the decorated function as `step` of `base`, or, without a step, as it stands.

    `threads` are separated by spaces. `gradients` are the steps of a backward pass (`correct.gradients`);
    where they are given, the step is one of them and the forward pass is right. `offers` are the options in
    the signature. The rest goes to `@implementation`.
    """
    if evidence not in EVIDENCE:
        raise ValueError(f"evidence is one of {', '.join(EVIDENCE)}, not {evidence!r}")

    def plant(broken: Callable[..., Any]) -> Callable[..., Any]:
        function = broken if declared.get("arrays") == "torch" else np.errstate(all="ignore")(broken)
        if gradients is not None:
            declared["vjp"] = derivative(gradients.but(**{step: broken}), broken, offers)
            function = signed(base, broken, (), offers)
        elif step:
            function = signed(base.but(**{step: broken}), broken, (), offers)
        elif "vjp" in declared:  # as in `derivative`
            broken.__globals__[f"{broken.__name__}_vjp"] = declared["vjp"]
        name = f"mutant-{bug}-{broken.__name__.replace('_', '-')}"
        register(function, name, **declared)
        sentence = (inspect.getdoc(broken) or "").partition("\n\n")[0].replace("\n", " ")
        family = broken.__module__.rpartition(".")[2]
        MUTANTS.append(Mutant(name, bug, tuple(threads.split()), evidence, sentence, family, function))
        return function

    return plant


def control(*, offers: Iterable[str] = EVERY, backward: Any = None, **declared: Any) -> Callable[..., Any]:
    """Register a correct attention (call -> output), with the gradients that `backward` computes, if any."""

    def accept(steps: Callable[[Call], Any]) -> Callable[..., Any]:
        if backward is not None:
            declared["vjp"] = derivative(backward, steps, offers)
        return register(
            signed(steps, steps, (), offers), f"control-{steps.__name__.replace('_', '-')}", **declared
        )

    return accept


def register(function: Callable[..., Any], name: str, **declared: Any) -> Callable[..., Any]:
    """Declare an implementation; an attention has the semantics of the correct code unless told otherwise."""
    if declared.get("operation", "attention") == "attention":
        declared = {"differentiable": "vjp" in declared, **CLAIMS, **declared}
    implementation(name=name, **{"arrays": "numpy", **declared})(function)
    return function


def derivative(steps: Any, source: Callable[..., Any], offers: Iterable[str]) -> Callable[..., Any]:
    """A vjp that runs the steps; the module of its source has it as `<name>_vjp`, where a counterexample's script finds it."""
    vjp = signed(steps, source, ("upstream",), offers)
    vjp.__name__ = vjp.__qualname__ = f"{source.__name__}_vjp"
    source.__globals__[vjp.__name__] = vjp  # type: ignore[attr-defined]
    return vjp


def signed(
    steps: Any, source: Callable[..., Any], more: Iterable[str], offers: Iterable[str]
) -> Callable[..., Any]:
    """A function of query, key, value and `more` whose signature shows `offers`; its body runs the steps."""

    def attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        shown.bind(query, key, value, *rest, **options)
        with np.errstate(all="ignore"):
            return steps(Call(query, key, value, **options), *rest)

    names = ("query", "key", "value", *more)
    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False if name in SWITCHES else None)
        for name in offers
    ]
    shown = inspect.Signature([*positional, *keywords])
    attention.__signature__ = shown  # type: ignore[attr-defined]
    attention.__name__ = attention.__qualname__ = source.__name__
    attention.__module__, attention.__doc__ = source.__module__, source.__doc__
    return attention
